"""Collecting: what is stored can be played again, the same settings give the same bytes, and it trains."""

import importlib.util
import json
import re
import signal
from pathlib import Path

import datasets
import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel, DecisionMambaPolicy, DecisionMambaProcessor
from hf_decision_mamba.cli import main
from hf_decision_mamba.collecting.collect import collect
from hf_decision_mamba.collecting.settings import CollectSettings
from hf_decision_mamba.data import load_trajectories
from hf_decision_mamba.evaluation.environments import make_environments
from hf_decision_mamba.evaluation.statistics import wilson_interval
from hf_decision_mamba.reporting.console import StoppedBySignal
from hf_decision_mamba.reporting.figures import number
from hf_decision_mamba.sharing.dataset_card import DATA_FILE

NEEDS_SB3 = pytest.mark.skipif(
    importlib.util.find_spec("stable_baselines3") is None, reason="stable-baselines3 is not installed"
)


class Walk(gymnasium.Env):
    """A step to the left or right; over after as many steps as the seed says, with that number as observation."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)
    interrupted_in: int | None = None  # the episode in which Ctrl-C is pressed
    signal = signal.SIGINT

    def __init__(self, **spaces):
        vars(self).update(spaces)

    def reset(self, *, seed=None, options=None):
        self.seed, self.steps, self.limit = seed, 0, 1 + (7 * seed) % 10
        return self._seen(), {}

    def step(self, action):
        self.steps += 1
        if self.seed == Walk.interrupted_in:
            signal.raise_signal(Walk.signal)
        return self._seen(), float(action), self.steps == self.limit, False, {}

    def _seen(self):
        return np.array([self.seed, self.steps], np.float64)


class Maze(gymnasium.Env):
    """Four rooms; the doors count from 1, and the last one of each room leads on."""

    observation_space = gymnasium.spaces.Dict(
        {"room": gymnasium.spaces.Discrete(4), "wind": gymnasium.spaces.Box(-1, 1, (2, 1), np.float64)}
    )
    action_space = gymnasium.spaces.Discrete(3, start=1)

    def __init__(self, rooms=4):
        self.rooms = rooms

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.room = self.steps = 0
        return self._seen(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        self.room += int(action == 3)
        over = self.room == self.rooms - 1
        return self._seen(), float(action == 3), over, self.steps == 12, {}

    def _seen(self):
        return {"room": np.int64(self.room), "wind": self.np_random.uniform(-1, 1, (2, 1))}


@pytest.fixture(autouse=True)
def walk(tmp_path_factory, monkeypatch):
    """Know the environment above, and keep what `datasets` caches in a folder of the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(Walk, "interrupted_in", None)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))  # mujoco logs into the working directory
    gymnasium.register("Walk-v0", Walk)
    gymnasium.register("Words-v0", lambda: Walk(observation_space=gymnasium.spaces.Text(3)))
    gymnasium.register("Buttons-v0", lambda: Walk(action_space=gymnasium.spaces.MultiBinary(2)))
    gymnasium.register("Maze-v0", Maze)
    yield
    for env_id in ("Walk-v0", "Words-v0", "Buttons-v0", "Maze-v0"):
        del gymnasium.registry[env_id]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained policy for Hopper-v5."""
    config = DecisionMambaConfig(state_dim=11, act_dim=3, hidden_size=8, n_layer=1, state_size=2)
    DecisionMambaModel(config).save_pretrained(tmp_path / "policy")
    processor = DecisionMambaProcessor(
        state_mean=[0.0] * 11, state_std=[1.0] * 11, target_return=3600.0, context_length=4, env_id="Hopper-v5"
    )
    processor.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def collected(folder: Path, env_id: str, **settings) -> Path:
    collect(CollectSettings(env_id, **settings), folder, progress=False)
    return folder


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder / DATA_FILE).to_pylist()


def play_again(env_id: str, row: dict, max_episode_steps: int | None = None) -> tuple[np.ndarray, list[float]]:
    """Observations and rewards that a row's actions lead to from its seed."""
    envs = make_environments(env_id, 1, max_episode_steps)
    env = envs.envs[0]
    observation, _ = env.reset(seed=row["seed"])
    seen, rewards = [], []
    for action in row["actions"]:
        seen.append(observation)
        observation, reward, terminated, truncated, _ = env.step(np.array(action, env.action_space.dtype))
        rewards.append(float(reward))
    assert (terminated, truncated or not terminated) == (row["terminations"][-1], row["truncations"][-1])
    envs.close()
    return np.array(seen), rewards


@pytest.mark.parametrize(
    ("env_id", "settings"),
    [
        ("Pendulum-v1", {"episodes": 3, "num_envs": 2}),
        ("Hopper-v5", {"episodes": 3, "policy": "checkpoint", "epsilon": 0.2, "noise": 0.1}),
        ("BreakoutNoFrameskip-v4", {"episodes": 2, "max_episode_steps": 20}),
        pytest.param("Pendulum-v1", {"train": "sac", "steps": 230}, marks=NEEDS_SB3),
        pytest.param("CartPole-v1", {"train": "ppo", "steps": 100}, marks=NEEDS_SB3),
    ],
    ids=["random", "checkpoint with noise", "frames", "training of SAC", "training of PPO"],
)
def test_stored_actions_lead_from_the_stored_seed_through_the_same_observations(env_id, settings, tmp_path, checkpoint):
    settings = {**settings, **({"policy": str(checkpoint)} if "policy" in settings else {})}
    folder = collected(tmp_path / "data", env_id, seed=5, **settings)
    for row in rows(folder):
        observations, rewards = play_again(env_id, row, settings.get("max_episode_steps"))
        stored = row["observations"]
        if isinstance(stored, bytes):
            np.testing.assert_array_equal(np.frombuffer(stored, np.uint8).reshape(observations.shape), observations)
        else:
            np.testing.assert_array_equal(np.array(stored, np.float32), observations.astype(np.float32))
        np.testing.assert_array_equal(np.array(row["rewards"], np.float32), np.array(rewards, np.float32))


@pytest.mark.parametrize(
    ("env_id", "settings"),
    [
        ("Pendulum-v1", {"episodes": 2}),
        pytest.param("Pendulum-v1", {"train": "sac", "steps": 130}, marks=NEEDS_SB3),
    ],
)
def test_the_same_settings_give_the_same_bytes(env_id, settings, tmp_path, monkeypatch):
    files = []
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        monkeypatch.chdir(tmp_path / run)
        collected(Path("data"), env_id, **settings)
        files.append({path: path.read_bytes() for path in Path("data").rglob("*.*")})
    assert {path.name for path in files[0]} == {Path(DATA_FILE).name, "README.md", "collection.json", "returns.png"}
    assert files[0] == files[1]
    collected(tmp_path / "other", env_id, **settings, seed=1)
    assert (tmp_path / "other" / DATA_FILE).read_bytes() != Path("data", DATA_FILE).read_bytes()


@pytest.mark.parametrize("amount", [{"episodes": 12}, {"steps": 50}])
def test_episodes_are_those_of_the_first_seeds_however_many_run_at_once(amount, tmp_path):
    alone = collected(tmp_path / "alone", "Walk-v0", num_envs=1, **amount)
    many = collected(tmp_path / "many", "Walk-v0", num_envs=5, **amount)
    assert rows(many) == rows(alone)
    seeds, lengths = [row["seed"] for row in rows(many)], [len(row["rewards"]) for row in rows(many)]
    assert seeds == list(range(len(seeds)))
    assert lengths == [1 + (7 * seed) % 10 for seed in seeds]
    if "steps" in amount:
        assert sum(lengths[:-1]) < 50 <= sum(lengths)
    else:
        assert len(seeds) == 12


def test_the_folder_is_a_data_set_with_its_environment(tmp_path):
    folder = collected(tmp_path / "walks", "Walk-v0", episodes=5)
    trajectories = load_trajectories(folder)
    assert (trajectories.num_episodes, trajectories.env_id, trajectories.num_actions) == (5, "Walk-v0", 2)
    assert trajectories.observations.dtype == np.float32 and trajectories.terminations[-1]
    facts = json.loads((folder / "collection.json").read_text())
    statistics = trajectories.statistics()
    assert (facts["episodes"], facts["transitions"]) == (5, statistics.transitions)
    assert facts["returns"]["mean"] == pytest.approx(statistics.return_mean)
    assert [row["mean"] for row in facts["observations"]] == pytest.approx(statistics.state_mean.tolist())
    assert [row["std"] for row in facts["observations"]] == pytest.approx(statistics.state_std.tolist())
    assert list(facts["action_counts"].values()) == statistics.action_counts.tolist()
    assert (folder / "returns.png").stat().st_size > 5_000
    columns = pq.read_metadata(folder / DATA_FILE)
    assert {columns.row_group(0).column(number).compression for number in range(columns.num_columns)} == {"ZSTD"}


TRAINED = pytest.param({"train": "ppo", "steps": 121}, marks=NEEDS_SB3)


@pytest.mark.parametrize("policy", [{"policy": "random"}, TRAINED, {"policy": "expert"}])
def test_what_the_environment_calls_a_success_is_counted(policy, tmp_path):
    settings = policy if "train" in policy else {"episodes": 60, **policy}
    folder = collected(tmp_path / "maze", "hf_decision_mamba/TMaze-v0", env_kwargs={"length": 1}, **settings)
    ended = [sum(row["rewards"]) for row in rows(folder) if row["terminations"][-1]]
    right = sum(total == 1 for total in ended)  # of one who walked, and then turned as the clue said
    facts, card = json.loads((folder / "collection.json").read_text()), (folder / "README.md").read_text()
    assert facts["success_rate"] == right / len(ended) and facts["success_ci95"] == wilson_interval(right, len(ended))
    assert (right == 60) if policy == {"policy": "expert"} else (0 < right < len(ended))
    assert f"calls {number(100 * right / len(ended), 1)}% of the episodes a success (95% interval, Wilson's: " in card


def test_frames_load_as_they_were_seen(tmp_path):
    folder = collected(tmp_path / "frames", "BreakoutNoFrameskip-v4", episodes=2, max_episode_steps=15)
    trajectories = load_trajectories(folder)
    assert trajectories.observations.shape == (30, 84, 84) and trajectories.observations.max() > 0
    assert trajectories.num_actions == 4 and trajectories.truncations[[14, 29]].all()


def test_interrupted_work_keeps_what_had_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(Walk, "interrupted_in", 6)
    handler = signal.getsignal(signal.SIGINT)
    _, complete = collect(CollectSettings("Walk-v0", episodes=40, num_envs=3), tmp_path / "data", progress=False)
    seeds = [row["seed"] for row in rows(tmp_path / "data")]
    assert not complete and set(seeds) < set(range(8)) and len(seeds) >= 4
    assert load_trajectories(tmp_path / "data").num_episodes == len(seeds)
    card = (tmp_path / "data" / "README.md").read_text()
    assert "interrupted" in card and "same bytes" not in card
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_terminated_command_keeps_what_had_ended_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Walk, "interrupted_in", 6)
    monkeypatch.setattr(Walk, "signal", signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        main(["collect", "Walk-v0", "--episodes", "40", "--num-envs", "3", "--output", str(tmp_path / "data")])
    assert end.value.code == 143
    assert f"the episodes that had ended were written to {tmp_path / 'data'}.\n" in capsys.readouterr().err
    assert load_trajectories(tmp_path / "data").num_episodes == len(rows(tmp_path / "data")) >= 4


@NEEDS_SB3
def test_an_interrupted_training_keeps_its_replay_so_far(tmp_path, monkeypatch):
    monkeypatch.setattr(Walk, "interrupted_in", 6)
    _, complete = collect(CollectSettings("Walk-v0", train="dqn", steps=500), tmp_path / "data", progress=False)
    stored = rows(tmp_path / "data")
    assert not complete and [row["seed"] for row in stored] == [0, 1, 2, 3, 4, 5, 6]
    assert len(stored[-1]["rewards"]) == 1 and stored[-1]["truncations"] == [True]


def test_an_interruption_before_the_first_episode_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Walk, "interrupted_in", 1)
    with pytest.raises(StoppedBySignal, match="no episode had ended yet, so nothing was written"):
        collect(CollectSettings("Walk-v0", seed=1, num_envs=1), tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


@NEEDS_SB3
def test_a_training_is_recorded_from_its_first_step_to_its_last(tmp_path):
    folder = collected(tmp_path / "replay", "CartPole-v1", train="dqn", steps=170)
    stored = rows(folder)
    assert sum(len(row["rewards"]) for row in stored) == 170
    assert [row["seed"] for row in stored] == list(range(len(stored)))
    facts = json.loads((folder / "collection.json").read_text())
    assert facts["parts"][-1]["last"] == len(stored) - 1 and "stable-baselines3" in facts["versions"]
    card = (folder / "README.md").read_text()
    assert "The rows are in the order of the training" in card and "--steps 170 --train dqn" in card


def test_observations_that_are_not_finite_are_refused_with_their_place(tmp_path, monkeypatch):
    monkeypatch.setattr(Walk, "_seen", lambda self: np.array([np.nan if self.steps == 2 else 0.0, 0.0]))
    with pytest.raises(ValueError, match="Walk-v0 gave an observation that is nan in dimension 0 at step 2 of the ep"):
        collected(tmp_path / "data", "Walk-v0", episodes=3)
    assert not list((tmp_path).rglob("*.part")) and not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": 0}, "episodes=0 must be at least 1"),
        ({"episodes": 1, "steps": 1}, "give one of them"),
        ({"epsilon": 1.5, "policy": "p"}, "epsilon=1.5 is a probability"),
        ({"noise": -1.0, "policy": "p"}, "noise=-1.0 must be 0 or"),
        ({"noise": 0.1}, "noise=0.1 has no meaning for the random policy"),
        ({"target_return": 1.0, "policy": "sb3:sac:a.zip"}, "target_return=1.0 has no meaning for a stable-baselines3"),
        ({"train": "sac"}, "train needs steps"),
        ({"train": "dreamer", "steps": 5}, "train='dreamer' is unknown; choose one of ppo"),
        ({"train": "sac", "steps": 5, "num_envs": 4}, "num_envs=4 has no meaning for train"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CollectSettings("Walk-v0", **settings)


@pytest.mark.parametrize(
    ("env_id", "settings", "error", "message"),
    [
        ("Words-v0", {}, ValueError, r"Words-v0, 'observations': observations from Text.* are not read"),
        ("Buttons-v0", {}, ValueError, r"Buttons-v0: actions from MultiBinary\(2\) are not read or given"),
        ("NoSuchThing-v0", {}, ValueError, "No environment 'NoSuchThing-v0'"),
        ("Walk-v0", {"policy": "nowhere"}, OSError, "nowhere"),
        ("Pendulum-v1", {"policy": "checkpoint"}, ValueError, "Pendulum-v1 observes 3 dimensions"),
    ],
)
def test_what_cannot_be_collected_is_refused_before_anything_is_written(
    env_id, settings, error, message, tmp_path, checkpoint, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = {**settings, **({"policy": str(checkpoint)} if settings.get("policy") == "checkpoint" else {})}
    with pytest.raises(error, match=message):
        collected(tmp_path / "data", env_id, **settings)
    assert not (tmp_path / "data").exists()


def test_noise_is_for_continuous_actions_only(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"noise=0.1 is for continuous actions, and those of CartPole-v1 are discrete"):
        collected(tmp_path / "data", "CartPole-v1", policy="anything", noise=0.1)


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("/home/me/runs/dema", "dema"),
        ("~/runs/dema", "dema"),
        ("runs/dema", "runs/dema"),
        ("org/dema", "org/dema"),
        ("sb3:sac:/tmp/a.zip", "sb3:sac:a.zip"),
        ("sb3:sac:org/name", "sb3:sac:org/name"),
    ],
)
def test_folders_of_the_machine_do_not_stand_in_the_card(policy, name):
    settings = CollectSettings("Walk-v0", policy=policy)
    assert settings.policy_name == name
    assert settings.command(Path("/tmp/out")) == f"hf-decision-mamba collect Walk-v0 --policy {name} --output out"


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already; name another folder"):
        collected(tmp_path, "Walk-v0", episodes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_training_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "stable_baselines3", None)
    with pytest.raises(ImportError, match=r'pip install "hf_decision_mamba\[collect\]"'):
        collected(tmp_path / "data", "Pendulum-v1", train="sac", steps=10)


def test_what_was_collected_is_inspected_trained_on_and_scored(tmp_path, capsys):
    data, run = tmp_path / "pendulum", tmp_path / "run"
    main(["collect", "InvertedPendulum-v5", "--episodes", "40", "--output", str(data)])
    main(["inspect-data", str(data), "--output", str(tmp_path / "inspection")])
    printed = capsys.readouterr().out
    assert "episodes      40: 40 terminated, 0 truncated" in printed and "InvertedPendulum-v5" in printed
    sizes = ["--hidden_size=8", "--embedding_size=8", "--n_layer=1", "--state_size=4", "--context_length=4"]
    steps = ["--max_steps=10", "--per_device_train_batch_size=8", "--warmup_steps=1", "--eval_episodes=0"]
    folders = [f"--dataset_name={data}", f"--output_dir={run}", "--use_cpu=True"]
    main(["train", *folders, *sizes, *steps])
    main(["evaluate", str(run), "--episodes", "2", "--output", str(run)])
    result = json.loads((run / "evaluation.json").read_text())
    assert (result["env_id"], result["episodes_per_target"]) == ("InvertedPendulum-v5", 2)


def test_from_rooms_and_doors_to_a_checkpoint_that_acts_on_them(tmp_path, capsys):
    """A dictionary of a whole number and a matrix, actions that count from 1, an argument: through every door."""
    data, run, made = tmp_path / "maze", tmp_path / "run", '{"rooms": 3}'
    main(["collect", "Maze-v0", "--env-kwargs", made, "--episodes", "12", "--output", str(data)])
    assert {action for row in rows(data) for action in row["actions"]} == {1, 2, 3}
    facts = json.loads((data / "collection.json").read_text())
    assert facts["command"] == f"hf-decision-mamba collect Maze-v0 --episodes 12 --env-kwargs '{made}' --output maze"
    card = (data / "README.md").read_text()
    assert (
        "room (one of 4), wind (2, 1), concatenated in this order" in card
        and "one of 3 actions, counted from 1" in card
    )
    main(["inspect-data", str(data)])

    trajectories = load_trajectories(data)
    assert (trajectories.state_dim, trajectories.num_actions, trajectories.action_start) == (6, 3, 1)
    assert trajectories.env_kwargs == {"rooms": 3} and {*trajectories.actions.tolist()} == {0, 1, 2}
    assert trajectories.observation_parts == [
        {"path": ["room"], "shape": [], "size": 4, "counts": [4], "starts": [0]},
        {"path": ["wind"], "shape": [2, 1], "size": 2},
    ]

    sizes = ["--hidden_size=8", "--embedding_size=8", "--n_layer=1", "--state_size=4", "--context_length=4"]
    steps = ["--max_steps=2", "--per_device_train_batch_size=8", "--warmup_steps=1", "--eval_episodes=3"]
    main(["train", f"--dataset_name={data}", f"--output_dir={run}", "--use_cpu=True", *sizes, *steps])
    result = json.loads((run / "evaluation.json").read_text())
    assert (result["env_id"], result["env_kwargs"]) == ("Maze-v0", {"rooms": 3})
    assert "env_kwargs:\n  rooms: 3" in (run / "train.yaml").read_text()

    card = (run / "README.md").read_text()
    assert '(`{"rooms": 3}`)' in card and "a dictionary of room (one of 4), wind (2, 1)" in card
    assert "| 1 to 3 |" in card
    use, episode, alone = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[:3]
    names = {"observation": {"room": 2, "wind": np.zeros((2, 1))}}
    for snippet in (use, episode, alone):
        exec(snippet, names)
    assert names["action"] in (1, 2, 3) and names["env"].unwrapped.rooms == 3 and names["done"]

    policy, env, reward = DecisionMambaPolicy.from_pretrained(run), gymnasium.make("Maze-v0", rooms=3), None
    observation, _ = env.reset(seed=3)
    policy.reset(1.0)
    for _ in range(5):
        action = policy.act(observation, reward)
        assert names["act"](observation, reward or 0.0) == action and env.action_space.contains(action)
        observation, reward, *_ = env.step(action)
    several = {"room": np.array([1, 3]), "wind": np.zeros((2, 2, 1))}
    policy.reset(num_envs=2)
    assert policy.act(several).shape == (2,)
    with pytest.raises(ValueError, match=r"observation has no 'wind'; it must be a dictionary of room, wind"):
        policy.act({"room": 1})
