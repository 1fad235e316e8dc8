"""Minari data sets by their ids: the last observation goes, nested ones become a vector, spaces become facts."""

import copy
import json
import logging
import sys
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from factories import SAMPLES
from gymnasium import spaces
from minari.serialization import serialize_space

from hf_decision_mamba.data import load_trajectories
from hf_decision_mamba.data.goals import GoalsFrom

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float64)
ACTIONS = spaces.Box(-1, 1, (1,), np.float32)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for data sets in a folder of the test, and nowhere else."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    def no_download(dataset_id: str) -> None:
        raise ConnectionError(f"no network for {dataset_id}")

    monkeypatch.setattr("minari.storage.hosting.download_dataset", no_download)


def observations(space: Any, steps: int, random: np.random.Generator) -> Any:
    """Observations of a space as the storage nests them, one more than there are steps."""
    if isinstance(space, spaces.Dict):
        return {key: observations(inner, steps, random) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return {f"_index_{place}": observations(inner, steps, random) for place, inner in enumerate(space.spaces)}
    if isinstance(space, spaces.Discrete):
        return random.integers(space.start, space.start + space.n, steps + 1)
    return random.normal(size=(steps + 1, *space.shape)).astype(space.dtype)


def make(
    folder: Path,
    name: str,
    observation_space: Any = BOX,
    action_space: Any = ACTIONS,
    env_id: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Write a data set of two episodes as Minari lays it out; return what is in the second one."""
    data = folder / name / "data"
    data.mkdir(parents=True)
    random = np.random.default_rng(0)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for number, steps in enumerate((2, 3)):
            discrete = isinstance(action_space, spaces.Discrete)
            episode = {
                "observations": observations(observation_space, steps, random),
                "actions": action_space.start + np.arange(steps) if discrete else random.uniform(-1, 1, (steps, 1)),
                "rewards": random.normal(size=steps),
                "terminations": np.arange(steps) == (steps - 1 if number == 0 else -1),
                "truncations": np.arange(steps) == (steps - 1 if number == 1 else -1),
                **changes,
            }
            write(file.create_group(f"episode_{number}"), episode)
    metadata: dict[str, Any] = {
        "total_episodes": 2,
        "total_steps": 5,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "dataset_id": name,
        "minari_version": "0.5.4",
        "observation_space": serialize_space(observation_space),
        "action_space": serialize_space(action_space),
    }
    if env_id is not None:
        spec = copy.deepcopy(gymnasium.spec(env_id))
        spec.kwargs.update(env_kwargs or {})
        metadata["env_spec"] = spec.to_json()
    (data / "metadata.json").write_text(json.dumps(metadata))
    return episode


def write(group: h5py.Group, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            write(group.create_group(key), value)
        else:
            group[key] = value


def test_the_sample_holds_the_episodes_that_the_d4rl_sample_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(SAMPLES / "minari"))
    trajectories = load_trajectories("minari:hopper/sample-v0")
    flat = load_trajectories(SAMPLES / "d4rl.hdf5", split="train[:6]")
    for name in ("observations", "actions", "rewards", "terminations", "truncations", "starts", "lengths"):
        np.testing.assert_array_equal(getattr(trajectories, name), getattr(flat, name))
    assert trajectories.env_id == "Hopper-v5"


def test_a_data_set_of_vectors(tmp_path: Path) -> None:
    second = make(tmp_path, "mujoco/hopper/test-v0", env_id="Hopper-v5")
    trajectories = load_trajectories("minari:mujoco/hopper/test-v0")
    assert repr(trajectories) == (
        "Trajectories('minari:mujoco/hopper/test-v0': 2 episodes, 5 steps, state_dim=2, act_dim=1, env_id='Hopper-v5')"
    )
    for name in ("actions", "rewards"):
        np.testing.assert_array_equal(getattr(trajectories, name)[2:], second[name].astype(np.float32))
    np.testing.assert_array_equal(trajectories.observations[2:], second["observations"][:-1].astype(np.float32))
    assert np.flatnonzero(trajectories.terminations).tolist() == [1]
    assert np.flatnonzero(trajectories.truncations).tolist() == [4]
    assert load_trajectories("minari:mujoco/hopper/test-v0", split="train[1:]").lengths.tolist() == [3]


NESTED = spaces.Dict(
    {
        "observation": BOX,
        "achieved_goal": spaces.Box(-1, 1, (2, 2), np.float32),
        "body": spaces.Dict({"joints": BOX, "grip": spaces.Tuple((spaces.Box(-1, 1, (1,)), spaces.Discrete(3)))}),
    }
)


def test_nested_observations_become_what_flatten_observation_makes_of_them(tmp_path: Path) -> None:
    second = make(tmp_path, "nested-v0", NESTED)["observations"]
    grip = second["body"]["grip"]
    for step in range(3):
        whole = {
            "achieved_goal": second["achieved_goal"][step],
            "body": {
                "grip": (grip["_index_0"][step], grip["_index_1"][step]),
                "joints": second["body"]["joints"][step],
            },
            "observation": second["observation"][step],
        }
        expected = spaces.flatten(NESTED, whole).astype(np.float32)
        np.testing.assert_array_equal(load_trajectories("minari:nested-v0").observations[2 + step], expected)


def test_spaces_and_arguments_are_known_of_what_is_read_and_of_what_is_cached(tmp_path: Path) -> None:
    arguments = {"reset_noise_scale": 0.5, "healthy_z_range": [0.7, 9.0]}
    make(tmp_path, "facts-v0", NESTED, spaces.Discrete(4, start=-1), "Hopper-v5", {"render_mode": "human", **arguments})
    for _ in ("read", "cached"):
        trajectories = load_trajectories("minari:facts-v0")
        assert trajectories.actions.tolist() == [0, 1, 0, 1, 2]
        assert (trajectories.num_actions, trajectories.action_start) == (4, -1)
        assert (trajectories.env_id, trajectories.env_kwargs) == ("Hopper-v5", arguments)
        assert [part["path"] for part in trajectories.observation_parts] == [
            ["achieved_goal"],
            ["body", "grip", 0],
            ["body", "grip", 1],
            ["body", "joints"],
            ["observation"],
        ]
        assert trajectories.observation_parts[2] == {
            **{"path": ["body", "grip", 1], "shape": [], "size": 3},
            **{"counts": [3], "starts": [0]},
        }


def test_discrete_actions_and_grey_frames(tmp_path: Path) -> None:
    second = make(tmp_path, "frames-v0", spaces.Box(0, 1, (4, 5), np.uint8), spaces.Discrete(6))
    trajectories = load_trajectories("minari:frames-v0")
    assert (trajectories.frame_shape, trajectories.act_dim) == ((4, 5), 6)
    np.testing.assert_array_equal(trajectories.observations[2:], second["observations"][:-1])
    assert trajectories.actions.tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("shape", [(1, 4, 5), (4, 5, 1), (2, 40, 41), (40, 41, 2)])
def test_frames_with_channels(shape: tuple[int, ...], tmp_path: Path) -> None:
    axis, count = int(np.argmin(shape)), min(shape)
    single = np.arange(4 * 40 * 41, dtype=np.uint8).reshape(4, 40, 41)[:, : sorted(shape)[1], : max(shape)]
    stacks = np.stack([single[np.maximum(np.arange(4) - back, 0)] for back in range(count)[::-1]], axis + 1)
    columns = {name: np.zeros(3, bool) for name in ("terminations", "truncations")}
    make(tmp_path, "frames-v0", spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(2), observations=stacks,
         actions=np.zeros(3, int), rewards=np.zeros(3), **columns)  # fmt: skip
    np.testing.assert_array_equal(load_trajectories("minari:frames-v0").observations[3:], single[:-1])


def test_colours_are_refused(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    make(tmp_path, "colours-v0", spaces.Box(0, 255, (32, 32, 3), np.uint8), observations=colours)
    with pytest.raises(ValueError, match=r"episode 0, step 1, column 'observations': .*\(32, 32, 3\) are colours"):
        load_trajectories("minari:colours-v0")


def test_an_episode_may_lack_the_last_observation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    second = make(tmp_path, "mixed-v0")
    whole = load_trajectories("minari:mixed-v0")
    path = tmp_path / "mixed-v0" / "data" / "main_data.hdf5"
    for kept, said in (
        (3, "1 of 2 episodes have an observation after their last action, which is left out"),
        (2, None),
    ):
        with h5py.File(path, "a") as file:
            del file["episode_1/observations"]
            file["episode_1/observations"] = second["observations"][:kept]
        if said is None:
            with pytest.raises(
                ValueError, match="episode 1: the number of steps differs, 2 in column 'observations' and 3"
            ):
                load_trajectories("minari:mixed-v0")
        else:
            np.testing.assert_array_equal(load_trajectories("minari:mixed-v0").observations, whole.observations)
            assert said in caplog.text


def test_actions_are_clipped_to_the_space(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    space = spaces.Box(-2, 2, (1,), np.float32)
    make(tmp_path, "torque-v0", action_space=space, actions=np.array([[-1.5], [5.0]]), observations=np.zeros((3, 2)),
         rewards=np.zeros(2), terminations=np.zeros(2, bool), truncations=np.zeros(2, bool))  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert load_trajectories("minari:torque-v0").actions.ravel().tolist() == [-1.5, 2, -1.5, 2]
    assert "episode 0, step 1, column 'actions', dimension 0: the action is 5.0, outside" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action_space": spaces.MultiBinary(2)}, "column 'actions': actions from MultiBinary.* are not read"),
        (
            {"action_space": spaces.MultiDiscrete([2, 3])},
            "'actions': actions from MultiDiscrete.*; number their comb",
        ),
        (
            {"action_space": spaces.Box(-1, 1, (2, 2))},
            r"'actions': actions from Box.*\(2, 2\).*; make vectors of them",
        ),
        (
            {"action_space": spaces.Box(-1, 1, ())},
            "column 'actions': actions from Box.* are not read.*; make vectors",
        ),
        (
            {"action_space": spaces.Box(0, 9, (1,), np.int64)},
            "column 'actions': actions from Box.*int64.* are not",
        ),
        (
            {"observation_space": spaces.Dict({"eye": spaces.Box(0, 255, (64, 64, 3), np.float32)})},
            "'observations.eye': ob",
        ),
        (
            {
                "observation_space": spaces.Dict({"mode": spaces.Discrete(3, start=1)}),
                "observations": {"mode": np.array([1, 4, 2])},
            },
            "episode 0, column 'observations.mode', step 1: the value is 4, but the space has 1 to 3; correct or re",
        ),
        ({"rewards": np.zeros(1)}, "episode 0: the number of steps differs, 1 in column 'rewards' and 2 in the others"),
    ],
)
def test_names_what_is_wrong(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    make(tmp_path, "bad-v0", **arguments)
    with pytest.raises(ValueError, match=message) as raised:
        load_trajectories("minari:bad-v0")
    assert "data set 'minari:bad-v0'" in str(raised.value)


def test_the_environment_that_a_file_names_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "a-v0", env_id="Hopper-v5")
    path = tmp_path / "a-v0" / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    spec = json.loads(metadata["env_spec"])
    spec.update(entry_point="os:system", kwargs={"command": "touch ran"})
    del metadata["observation_space"]
    path.write_text(json.dumps({**metadata, "env_spec": json.dumps(spec)}))
    with pytest.raises(
        ValueError, match=r"cannot be read from .*a-v0: .* does not say its observation_space and action"
    ):
        load_trajectories("minari:a-v0")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_episodes": 10**12}, "counts more than 16,777,216 episodes"),
        ({"total_episodes": "x"}, "cannot be read from .*TypeError"),
        ({"observation_space": "[" * 100_000}, "cannot be read from .*RecursionError"),
        ({"observation_space": 5}, "does not say its observation_space"),
        (
            {"observation_space": serialize_space(spaces.Discrete(10**12))},
            "3 values, each one of 1000000000000, are too",
        ),
    ],
)
def test_the_file_about_a_data_set_is_not_believed(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    make(tmp_path, "a-v0", spaces.Discrete(4))
    path = tmp_path / "a-v0" / "data" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message) as error:
        load_trajectories("minari:a-v0")
    assert len(str(error.value)) < 1000


def spoil(file: h5py.File, how: str) -> None:
    """Put something into a file that minari would read, wherever it leads."""
    episode = file["episode_0"]
    if how == "link":
        episode["infos/x"] = h5py.ExternalLink("/etc/passwd", "x")
    elif how == "loop":
        episode["infos/again"] = episode["infos"] if "infos" in episode else episode.create_group("infos")
    elif how == "twice":
        episode["infos/x"] = episode["rewards"]
    else:
        episode.create_dataset("infos/x", (10**12,), "f4", chunks=(1000,))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("link", "column 'episode_0/infos/x' is a link, which is not followed"),
        ("loop", "'episode_0/infos/again' is in the file under two names; keep one"),
        ("twice", "is in the file under two names; keep one"),
        ("huge", "column 'episode_0/infos/x': 1,000,000,000,000 values of shape .* cannot be right"),
    ],
)
def test_nothing_but_the_file_itself_is_read(how: str, message: str, tmp_path: Path) -> None:
    make(tmp_path, "a-v0")
    with h5py.File(tmp_path / "a-v0" / "data" / "main_data.hdf5", "a") as file:
        spoil(file, how)
    with pytest.raises(ValueError, match=message):
        load_trajectories("minari:a-v0")


def test_texts_beside_the_columns_are_allowed_but_not_one_over_and_over(tmp_path: Path) -> None:
    make(tmp_path, "a-v0")
    path = tmp_path / "a-v0" / "data" / "main_data.hdf5"
    with h5py.File(path, "a") as file:
        texts = file["episode_0"].create_dataset("infos/x", (3000,), h5py.string_dtype())
        texts[0] = "a" * 200_000
        place = texts.id.get_offset()
    assert load_trajectories("minari:a-v0").num_steps == 5
    content = bytearray(path.read_bytes())
    content[place : place + 16 * 3000] = content[place : place + 16] * 3000  # where the text of each is
    path.write_bytes(content)
    with pytest.raises(ValueError, match="column 'episode_0/infos/x': its values are longer than the file can hold"):
        load_trajectories("minari:a-v0")


def test_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=rf"no data set 'minari:a/b-v0': it is not in {tmp_path} .*no network for a"
    ):
        load_trajectories("minari:a/b-v0")
    (tmp_path / "c-v0" / "data").mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"'minari:c-v0' cannot be read from {tmp_path}/c-v0: "):
        load_trajectories("minari:c-v0")


@pytest.mark.parametrize(
    "options", [{"columns": {"rewards": "r"}}, {"config": "a"}, {"revision": "b"}, {"split": "test"}]
)
def test_refuses_options_that_would_do_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    make(tmp_path, "a-v0")
    with pytest.raises(ValueError, match=r"has no meaning for the data set minari:a-v0|its one split is 'train'"):
        load_trajectories("minari:a-v0", **options)


def test_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r'Minari data sets need minari .*pip install "hf_decision_mamba\[minari\]"'):
        load_trajectories("minari:a-v0")


def test_goals_are_parts_of_the_observations_until_they_are_asked_for(tmp_path: Path) -> None:
    names = ("observation", "achieved_goal", "desired_goal")
    second = make(tmp_path, "maze-v0", spaces.Dict({name: BOX for name in names}))["observations"]
    whole = load_trajectories("minari:maze-v0")
    assert (whole.state_dim, whole.goals, whole.achieved_goals) == (6, None, None)
    found = GoalsFrom().of(whole)
    for column, name in (("observations", names[0]), ("achieved_goals", names[1]), ("goals", names[2])):
        np.testing.assert_array_equal(getattr(found, column)[2:], second[name][:-1].astype(np.float32))
    assert [part["path"] for part in found.observation_parts] == [["observation"]]
