"""What acts while data are collected: chance in its streams, and stable-baselines3's files, of which no code runs."""

import base64
import io
import json
import pickle
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from hf_decision_mamba.collecting.collect import collect
from hf_decision_mamba.collecting.policies import Exploration
from hf_decision_mamba.collecting.settings import CollectSettings
from hf_decision_mamba.collecting.stable_baselines import StableBaselinesPolicy, split_source
from hf_decision_mamba.data import load_trajectories
from hf_decision_mamba.evaluation.environments import make_environments
from hf_decision_mamba.evaluation.rollouts import Job

BOX = Box(np.float32([-1, -4]), np.float32([1, 4]))


# ------------------------------------------------------------------------------------------------------------ chance


def explored(space, actions, *, rows=2, steps=200, seed=0, episodes=None, **settings) -> np.ndarray:
    """Actions (steps, rows, ...) where the policy always wants the same."""
    exploration = Exploration(space, rows, seed, **{"noise": 0.0, "epsilon": 0.0, **settings})
    for row, episode in enumerate(episodes or range(rows)):
        exploration.begin(row, episode)
    return np.stack([exploration.explore(actions) for _ in range(steps)])


def test_without_chance_the_policy_is_obeyed_within_the_space():
    wanted = np.float32([[0.5, -2], [3, -9]])
    np.testing.assert_array_equal(explored(BOX, wanted, steps=1)[0], np.float32([[0.5, -2], [1, -4]]))


def test_noise_is_a_share_of_half_the_range_of_each_dimension():
    taken = explored(BOX, np.zeros((2, 2), np.float32), noise=0.1, steps=4000)
    np.testing.assert_allclose(taken.std(axis=(0, 1)), [0.1, 0.4], rtol=0.05)
    endless = Box(-np.inf, np.inf, (1,))
    np.testing.assert_allclose(explored(endless, np.zeros((2, 1), np.float32), noise=0.1, steps=4000).std(), 0.1, 0.05)


def test_epsilon_is_the_probability_of_an_action_drawn_from_the_space():
    taken = explored(Discrete(4), np.zeros(2, np.int64), epsilon=0.4, steps=4000)
    np.testing.assert_allclose((taken != 0).mean(), 0.4 * 3 / 4, rtol=0.1)
    assert taken.dtype == np.int64 and set(np.unique(taken)) == {0, 1, 2, 3}


@pytest.mark.parametrize("settings", [{}, {"epsilon": 0.5, "noise": 0.2}])
def test_an_episode_draws_the_same_in_any_row(settings):
    wanted = None if not settings else np.zeros((3, 2), np.float32)
    first = explored(BOX, wanted, rows=3, steps=20, episodes=(4, 5, 6), **settings)
    second = explored(BOX, wanted, rows=3, steps=20, episodes=(6, 4, 9), **settings)
    np.testing.assert_array_equal(first[:, [2, 0]], second[:, [0, 1]])
    assert not np.array_equal(first[:, 1], second[:, 2])


def test_what_is_done_is_what_float32_can_store():
    taken = explored(Box(-1, 1, (2,), np.float64), None, steps=5)
    assert taken.dtype == np.float64
    np.testing.assert_array_equal(taken, taken.astype(np.float32))


# ------------------------------------------------------------------------------------------------- stable-baselines3


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("sb3:sac:a.zip", ("sac", "a.zip")),
        ("sb3:a/b.zip", (None, "a/b.zip")),
        ("sb3:PPO:org/name", ("ppo", "org/name")),
    ],
)
def test_the_algorithm_may_stand_before_the_file(source, expected):
    assert split_source(source) == expected


@pytest.mark.parametrize("source", ["sb3:", "sb3:sac:", "sb3:dreamer:a.zip"])
def test_other_names_are_refused(source):
    with pytest.raises(ValueError, match="one of the algorithms ppo, a2c, sac, td3, dqn"):
        split_source(source)


@pytest.fixture
def sb3():
    return pytest.importorskip("stable_baselines3")


def saved(sb3, folder: Path, algorithm: str, env_id: str, **settings):
    """A freshly drawn policy in a file, and stable-baselines3's own object of it."""
    settings = {"policy_kwargs": {"net_arch": [8, 8]}, **settings}
    if algorithm in ("sac", "td3", "dqn"):
        settings["buffer_size"] = 10
    agent = getattr(sb3, algorithm.upper())("MlpPolicy", env_id, seed=3, device="cpu", **settings)
    agent.save(folder / "agent.zip")
    return folder / "agent.zip", agent


def behaviour(source: str, env_id: str, rows: int = 2, **settings):
    envs = make_environments(env_id, rows)
    made = StableBaselinesPolicy(source, envs, env_id, **{"sample": False, "seed": 0, **settings})
    made.reset([Job(seed) for seed in range(rows)])
    envs.close()
    return made


@pytest.mark.parametrize(
    ("algorithm", "env_id", "settings"),
    [
        ("ppo", "CartPole-v1", {}),
        ("ppo", "Pendulum-v1", {"use_sde": True}),
        ("a2c", "Pendulum-v1", {}),
        ("sac", "Pendulum-v1", {"use_sde": True}),
        ("td3", "Pendulum-v1", {}),
        ("dqn", "CartPole-v1", {}),
        ("sac", "Pendulum-v1", {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [4]}, "n_critics": 1}}),
    ],
)
def test_a_saved_policy_acts_as_the_one_that_was_saved(algorithm, env_id, settings, sb3, tmp_path):
    path, agent = saved(sb3, tmp_path, algorithm, env_id, **settings)
    observations = np.random.default_rng(0).normal(size=(2, *agent.observation_space.shape)).astype(np.float32)
    expected, _ = agent.predict(observations, deterministic=True)
    for source in (f"sb3:{algorithm}:{path}", f"sb3:{path}"):
        np.testing.assert_array_equal(behaviour(source, env_id).act(observations, None), expected)


def test_settings_that_stand_in_a_pickle_are_read_beside_it(sb3, tmp_path):
    import torch

    path, agent = saved(
        sb3, tmp_path, "ppo", "CartPole-v1", policy_kwargs={"net_arch": [8], "activation_fn": torch.nn.ReLU}
    )
    observations = np.float32([[1, 2, 3, 4], [-4, 3, -2, 1]])
    acting = behaviour(f"sb3:ppo:{path}", "CartPole-v1")
    np.testing.assert_array_equal(acting.act(observations, None), agent.predict(observations, deterministic=True)[0])
    assert any(isinstance(module, torch.nn.ReLU) for module in acting.policy.modules())


def test_sampled_actions_follow_from_the_seed(sb3, tmp_path):
    path, _ = saved(sb3, tmp_path, "sac", "Pendulum-v1")
    observations = np.zeros((2, 3), np.float32)
    first, again, other = (
        behaviour(f"sb3:{path}", "Pendulum-v1", sample=True, seed=seed).act(observations, None) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other) and not np.array_equal(first[0], first[1])


def test_frames_are_stacked_newest_last_with_blanks_before_the_first(sb3, tmp_path):
    space = Box(0, 255, (4, 84, 84), np.uint8)

    class Frames(gymnasium.Env):
        observation_space, action_space = space, Discrete(4)

    agent = sb3.DQN("CnnPolicy", Frames(), buffer_size=1, device="cpu", policy_kwargs={"net_arch": [8]})
    agent.save(tmp_path / "agent.zip")
    acting = behaviour(f"sb3:dqn:{tmp_path / 'agent.zip'}", "BreakoutNoFrameskip-v4")
    frames = np.random.default_rng(0).integers(0, 256, (5, 2, 84, 84), np.uint8)
    blank = np.zeros_like(frames[0])
    for step in range(4):
        actions = acting.act(frames[step], None)
    np.testing.assert_array_equal(actions, agent.predict(frames[:4].swapaxes(0, 1), deterministic=True)[0])
    acting.reset_rows(np.array([True, False]), [Job(2)])
    acting.act(frames[4], None)
    expected = np.stack([blank, blank, blank, frames[4]], axis=1)[0], np.stack(frames[1:5], axis=1)[1]
    np.testing.assert_array_equal(acting.stacks, np.stack(expected))


@pytest.mark.parametrize(
    ("files", "place", "message"),
    [
        (["README.md", "agent.zip"], "org/name", None),
        (["a.zip", "models/agent.zip"], "org/name/models/agent.zip", None),
        (["a.zip", "agent.zip"], "org/name", r"has 2 \.zip files \(a\.zip, agent\.zip\); name one"),
        (["README.md"], "org/name", r"has 0 \.zip files \(none\)"),
        (["agent.zip", "vec_normalize.pkl"], "org/name", "were normalised by vec_normalize.pkl"),
    ],
)
def test_a_repository_of_the_hub_stands_for_its_one_file(files, place, message, sb3, tmp_path, monkeypatch):
    path, _ = saved(sb3, tmp_path, "ppo", "CartPole-v1")
    monkeypatch.setattr("hf_decision_mamba.collecting.stable_baselines.HfApi.list_repo_files", lambda api, name: files)
    monkeypatch.setattr(
        "hf_decision_mamba.collecting.stable_baselines.hf_hub_download", lambda name, file: tmp_path / Path(file).name
    )
    if message is None:
        assert behaviour(f"sb3:ppo:{place}", "CartPole-v1").algorithm == "ppo"
    else:
        with pytest.raises(ValueError, match=message):
            behaviour(f"sb3:ppo:{place}", "CartPole-v1")
    assert path.is_file()


class Bomb:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_of_a_file_runs(sb3, tmp_path):
    path, _ = saved(sb3, tmp_path, "ppo", "CartPole-v1")
    bomb = base64.b64encode(pickle.dumps(Bomb(tmp_path / "exploded"))).decode()
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    settings = json.loads(files["data"])
    pickled = [value for value in settings.values() if isinstance(value, dict) and ":serialized:" in value]
    for value in pickled:
        value[":serialized:"] = bomb
    files["data"] = json.dumps(settings).encode()
    for changed, message in (
        (files, None),
        ({**files, "policy.pth": pickle.dumps(Bomb(tmp_path / "exploded"))}, "not what"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in changed.items():
                archive.writestr(name, content)
        if message is None:
            assert behaviour(f"sb3:{path}", "CartPole-v1").act(np.zeros((2, 4), np.float32), None).shape == (2,)
        else:
            with pytest.raises(ValueError, match="not what stable-baselines3 saves"):
                behaviour(f"sb3:{path}", "CartPole-v1")
    assert pickled and not (tmp_path / "exploded").exists()


def repacked(content: bytes, **changes: bytes) -> bytes:
    """An archive with other files, by the end of their names; repeated zeros take no room in it."""
    into = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED) as changed:
        for name in archive.namelist():
            other = [value for end, value in changes.items() if name.endswith(end.replace("_", "."))]
            changed.writestr(name, other[0] if other else archive.read(name))
    return into.getvalue()


DOUBLED = b"K\x01" + b"q\x00h\x00\x86" * 40  # a tuple of a tuple twice, forty levels deep
PICKLES = {
    "a key that cannot be hashed": b"\x80\x02}" + DOUBLED + b"K\x01s.",
    "pairs that cannot be hashed": b"\x80\x02ccollections\nOrderedDict\n" + DOUBLED + b"\x85R.",
    "a command": b"cos\nsystem\n(S'touch ran'\ntR.",
    "no tensors": pickle.dumps({"a": 1}, 2),
    "no dict": pickle.dumps([1], 2),
    "a huge tensor": (
        b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
        b"X\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\x00\x8a\x05\xff\xff\xff\xff\x7f\x85K\x00\x85\x89}tRs."
    ),
}


@pytest.mark.parametrize("pickled", PICKLES.values(), ids=PICKLES)
def test_weights_are_read_without_their_pickle_being_run(pickled, sb3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, _ = saved(sb3, tmp_path, "ppo", "CartPole-v1")
    with zipfile.ZipFile(path) as archive:
        weights = repacked(archive.read("policy.pth"), data_pkl=pickled)
    path.write_bytes(repacked(path.read_bytes(), policy_pth=weights))
    with pytest.raises(ValueError, match=r"agent\.zip is not what stable-baselines3 saves"):
        behaviour(f"sb3:{path}", "CartPole-v1")
    assert not Path("ran").exists()


def change_settings(path: Path, **changes) -> None:
    with zipfile.ZipFile(path) as archive:
        settings = {**json.loads(archive.read("data")), **changes}
    path.write_bytes(repacked(path.read_bytes(), data=json.dumps(settings).encode()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy_kwargs": {"net_arch": [10**6, 10**6]}}, r"has layers that its [\d,]+ weights are not of"),
        ({"policy_kwargs": {"net_arch": {"pi": [8], "vf": [10**9]}}}, r"has layers that its [\d,]+ weights are not of"),
        ({"policy_kwargs": {"net_arch": [-1]}}, "has layers that its"),
        ({"policy_kwargs": {"net_arch": "x"}}, "has layers that its"),
        ({"policy_kwargs": {"n_critics": 10**9}}, "has more critics than weights"),
        ({"policy_kwargs": [1]}, "says nothing of its layers that can be read"),
        ({"policy_kwargs": {"x" * 5000: 1}}, "was made with xxx"),
        ({"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.None'>"}}, "which is not known"),
        ({"policy_class": {"__module__": "x" * 5000}}, "is of xxx"),
    ],
)
def test_strange_settings_end_in_one_error(settings, message, sb3, tmp_path):
    path, _ = saved(sb3, tmp_path, "ppo", "CartPole-v1")
    change_settings(path, **settings)
    with pytest.raises(ValueError, match=message) as error:
        behaviour(f"sb3:{path}", "CartPole-v1")
    assert len(str(error.value)) < 1000


def test_a_file_that_unpacks_without_end_is_refused(sb3, tmp_path):
    path, _ = saved(sb3, tmp_path, "ppo", "CartPole-v1")
    path.write_bytes(repacked(path.read_bytes(), data=b" " * (20 << 20) + b"{}"))
    with pytest.raises(ValueError, match="data unpacks to 20,971,522 bytes"):
        behaviour(f"sb3:{path}", "CartPole-v1")


def test_one_storage_for_very_many_tensors_is_refused(sb3, tmp_path):
    path, _ = saved(sb3, tmp_path, "ppo", "CartPole-v1")
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ\x90\xd0\x03\x00tQq\x00"
    tensor = b"X\x04\0\0\0%04d%b(%bK\x00K\x01\x85K\x01\x85\x89}tR"
    tensors = [tensor % (0, b"ctorch._utils\n_rebuild_tensor_v2\nq\x01", storage)]
    tensors += [tensor % (number, b"h\x01", b"h\x00") for number in range(1, 500)]
    pickled = b"\x80\x02}(" + b"".join(tensors) + b"u."
    with zipfile.ZipFile(path) as archive:
        weights = repacked(archive.read("policy.pth"), data_pkl=pickled, **{"data/0": bytes(1_000_000)})
    path.write_bytes(repacked(path.read_bytes(), policy_pth=weights))
    with pytest.raises(ValueError, match=r"its tensors are more than [\d,]+ bytes can hold"):
        behaviour(f"sb3:{path}", "CartPole-v1")


def test_weights_that_are_no_numbers_are_refused(sb3, tmp_path):
    path, _ = saved(sb3, tmp_path, "ppo", "CartPole-v1")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(io.BytesIO(archive.read("policy.pth"))) as weights:
        name = next(name for name in weights.namelist() if name.endswith("data/0"))
        nan = np.full(len(weights.read(name)) // 4, np.nan, np.float32).tobytes()
        changed = repacked(archive.read("policy.pth"), **{"data/0": nan})
    path.write_bytes(repacked(path.read_bytes(), policy_pth=changed))
    with pytest.raises(ValueError, match="is not finite"):
        behaviour(f"sb3:{path}", "CartPole-v1")


def test_what_does_not_fit_is_refused(sb3, tmp_path):
    path, _ = saved(sb3, tmp_path, "sac", "Pendulum-v1")
    for source, env_id, error, message in (
        (f"sb3:dqn:{path}", "Pendulum-v1", ValueError, "was trained by sac, not by dqn"),
        (f"sb3:sac:{path}", "CartPole-v1", ValueError, "does not fit CartPole-v1, which shows Box"),
        (
            f"sb3:sac:{path}",
            "BreakoutNoFrameskip-v4",
            ValueError,
            "reads no frames, which BreakoutNoFrameskip-v4 shows",
        ),
        (f"sb3:sac:{tmp_path}/none.zip", "Pendulum-v1", FileNotFoundError, "there is no file .*none.zip"),
        (f"sb3:sac:{__file__}", "Pendulum-v1", ValueError, "not what stable-baselines3 saves"),
    ):
        with pytest.raises(error, match=message):
            behaviour(source, env_id)
    (tmp_path / "vec_normalize.pkl").touch()
    with pytest.raises(ValueError, match=r"normalised by vec_normalize\.pkl beside it, a pickle"):
        behaviour(f"sb3:sac:{path}", "Pendulum-v1")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "stable_baselines3", None)
    with pytest.raises(ImportError, match=r'pip install "hf_decision_mamba\[collect\]"'):
        behaviour("sb3:sac:a.zip", "Pendulum-v1")


def test_the_environments_own_expert(tmp_path):
    settings = CollectSettings(
        "hf_decision_mamba/TMaze-v0", policy="expert", episodes=12, num_envs=5, env_kwargs={"length": [2, 9]}
    )
    folder, complete = collect(settings, tmp_path / "maze", progress=False)
    maze = load_trajectories(folder)
    assert complete and maze.num_episodes == 12 and maze.env_kwargs == {"length": [2, 9]}
    assert (maze.returns() == 1).all() and {*maze.lengths} <= {*range(3, 11)}
    with pytest.raises(ValueError, match=r"CartPole-v1 has no expert: its class has no method `expert_action"):
        collect(CollectSettings("CartPole-v1", policy="expert"), tmp_path / "cart", progress=False)
    with pytest.raises(ValueError, match="mode='recurrent' has no meaning for the environment's expert"):
        CollectSettings("CartPole-v1", policy="expert", mode="recurrent")
