"""One row per step (LeRobot): rows in any order become episodes, missing ones are named, missing rewards have rules."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import SAMPLES
from hub_server import Blob, LoopbackHub, Repository
from processes import run_python

from hf_decision_mamba.data import Trajectories, load_trajectories, open_stream
from hf_decision_mamba.model.observations_decision_mamba import describe_parts, flatten_observations


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what `datasets` caches in a folder of the test, not among its data, and every test off the network."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return cache


def steps(**changes: Any) -> pa.Table:
    """Episodes of three and of two steps; `changes` replace columns or, if None, drop them."""
    columns: dict[str, Any] = {
        "observation.state": pa.array([[float(row), 0.5] for row in range(5)], pa.list_(pa.float32(), 2)),
        "action": pa.array([[row / 10] for row in range(5)], pa.list_(pa.float32(), 1)),
        "next.reward": pa.array([1.0, 2.0, 3.0, 4.0, 5.0], pa.float32()),
        "next.done": [False, False, True, False, True],
        "episode_index": [0, 0, 0, 1, 1],
        "frame_index": [0, 1, 2, 0, 1],
        "timestamp": [0.0, 0.1, 0.2, 0.0, 0.1],
    }
    return pa.table({name: values for name, values in {**columns, **changes}.items() if values is not None})


def save(folder: Path, table: pa.Table) -> Path:
    path = folder / "steps.parquet"
    pq.write_table(table, path)
    return path


def made(trajectories: Trajectories) -> None:
    """Check that these are the episodes that `steps` makes."""
    assert trajectories.observations.tolist() == [[row, 0.5] for row in range(5)]
    assert trajectories.actions.tolist() == np.float32([[row / 10] for row in range(5)]).tolist()
    assert trajectories.rewards.tolist() == [1, 2, 3, 4, 5]
    assert trajectories.step_offsets().tolist() == [0, 3, 5]
    assert trajectories.terminations.tolist() == [False, False, True, False, True]


def test_the_sample_holds_the_episodes_that_the_d4rl_sample_holds(own_cache: Path) -> None:
    steps, flat = load_trajectories(SAMPLES / "lerobot"), load_trajectories(SAMPLES / "d4rl.hdf5", split="train[:6]")
    for name in ("observations", "actions", "rewards", "terminations", "truncations", "starts", "lengths"):
        np.testing.assert_array_equal(getattr(steps, name), getattr(flat, name))
    assert steps.name == "lerobot"
    assert not list(own_cache.rglob("*.arrow"))


@pytest.mark.parametrize("kind", ["v2", "v3", "file", "json", "dataset", "dataset dict", "out of order", "other names"])
def test_every_layout_gives_the_same_episodes(kind: str, tmp_path: Path) -> None:
    table, columns = steps(), None
    if kind in ("v2", "v3"):
        (tmp_path / "data" / "chunk-000").mkdir(parents=True)
        (tmp_path / "meta" / "episodes").mkdir(parents=True)
        (tmp_path / "meta" / "info.json").write_text('{"total_frames": 5, "features": {}}')
        (tmp_path / "meta" / "episodes.jsonl").write_text('{"episode_index": 0, "length": 3}\n')
        pq.write_table(
            pa.table({"episode_index": [0, 1], "length": [3, 2]}), tmp_path / "meta/episodes/file-000.parquet"
        )
        pieces = {"episode_000000": table.slice(0, 3), "episode_000001": table.slice(3)}
        for name, piece in pieces.items() if kind == "v2" else [("file-000", table)]:
            pq.write_table(piece, tmp_path / "data" / "chunk-000" / f"{name}.parquet")
        source: Any = tmp_path
    elif kind == "json":
        source = tmp_path / "steps.jsonl"
        datasets.Dataset(table).to_json(source)
    elif kind in ("dataset", "dataset dict"):
        source = datasets.Dataset(table)
        source = datasets.DatasetDict(train=source) if kind == "dataset dict" else source
    elif kind == "other names":
        source = save(tmp_path, table.rename_columns(["obs", "a", "r", "end", "trial", "tick", "time"]))
        columns = dict(observations="obs", actions="a", rewards="r", dones="end", episodes="trial", steps="tick")
    else:
        source = save(tmp_path, table.take([4, 1, 3, 0, 2]) if kind == "out of order" else table)
    made(load_trajectories(source, columns=columns))


def robot(folder: Path, table: pa.Table, **info: Any) -> Path:
    """A folder of LeRobot's."""
    (folder / "data" / "chunk-000").mkdir(parents=True)
    (folder / "meta").mkdir()
    pq.write_table(table, folder / "data" / "chunk-000" / "file-000.parquet")
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    return folder


def test_the_rate_is_what_the_description_says(tmp_path: Path) -> None:
    assert load_trajectories(SAMPLES / "lerobot").fps == 125
    folder = robot(tmp_path, steps(), fps=30)
    assert load_trajectories(folder).fps == 30
    assert load_trajectories(folder).fps == 30  # from the cache
    assert open_stream(folder).sample(5, 0)[1].fps == 30
    (folder / "README.md").write_text("---\nenvironment: {fps: 29.97}\n---\n")
    assert load_trajectories(folder).fps == 29.97
    (folder / "README.md").write_text("---\nenvironment: {fps: fast}\n---\n")
    with pytest.raises(ValueError, match="fps must be the steps a second, a positive number, found 'fast'"):
        load_trajectories(folder)


@pytest.mark.parametrize(
    ("times", "fps"),
    [
        ([0.0, 0.1, 0.2, 0.0, 0.1], 10.0),
        (pa.array([0.0, 1 / 30, 2 / 30, 7.0, 7.0 + 1 / 30], pa.float32()), 30.0),
        ([0.0, 0.1, 0.2005, 0.0, 0.1], 10.0),
        ([0.0, 0.1, 0.2015, 0.0, 0.1], None),  # not within 1%
        ([0.0, 0.1, 0.3, 0.0, 0.1], None),  # a step was lost
        ([0.0, 100.0, 200.0, 0.0, 100.0], None),  # milliseconds, perhaps
        ([0, 1, 2, 0, 1], None),
        ([0.0] * 5, None),
        (None, None),
    ],
)
def test_the_rate_of_steady_times(times: Any, fps: float | None, tmp_path: Path) -> None:
    trajectories = load_trajectories(save(tmp_path, steps(timestamp=times).take([4, 1, 3, 0, 2])))
    assert trajectories.fps == fps
    if fps is None:
        assert load_trajectories(save(tmp_path, steps(timestamp=times).slice(4))).fps is None  # one step


@pytest.mark.parametrize("names", [["arm.pos", "grip"], {"motors": ["arm.pos", "grip"]}])
def test_numbers_of_an_observation_may_have_names(names: Any, tmp_path: Path) -> None:
    features = {"observation.state": {"dtype": "float32", "shape": [2], "names": names}}
    folder = robot(tmp_path, steps(), features=features)
    trajectories = load_trajectories(folder)
    assert describe_parts(trajectories.observation_parts) == "a dictionary of arm.pos (), grip ()"
    assert open_stream(folder).sample(5, 0)[1].observation_parts == trajectories.observation_parts
    made(trajectories)
    seen = flatten_observations({"grip": 0.5, "arm.pos": 3.0}, trajectories.observation_parts)
    assert seen.tolist() == trajectories.observations[3].tolist()
    by_goal = load_trajectories(folder, goals_from=[1])
    assert describe_parts(by_goal.observation_parts) == "a dictionary of arm.pos ()" and by_goal.goal_dim == 1


@pytest.mark.parametrize(
    "feature",
    [
        {"shape": [2], "names": None},
        {"shape": [2], "names": ["state"]},
        {"shape": [2], "names": ["same", "same"]},
        {"shape": [2], "names": [1, 2]},
        {"shape": [2], "names": {"motors": ["a"], "axes": ["b"]}},
        {"shape": [1, 2], "names": ["a", "b"]},
    ],
)
def test_names_that_name_no_numbers_are_left_alone(feature: dict[str, Any], tmp_path: Path) -> None:
    trajectories = load_trajectories(robot(tmp_path, steps(), features={"observation.state": feature}))
    made(trajectories)
    assert trajectories.observation_parts is None


def test_names_are_those_of_the_column_that_is_read(tmp_path: Path) -> None:
    table = steps().append_column("observation.environment_state", steps().column("observation.state"))
    features = {"observation.environment_state": {"shape": [2], "names": ["x", "y"]}}
    folder = robot(tmp_path, table, features=features)
    assert load_trajectories(folder).observation_parts is None
    columns = {"observations": "observation.environment_state"}
    assert [part["path"] for part in load_trajectories(folder, columns=columns).observation_parts] == [["x"], ["y"]]


def test_a_robot_of_the_hub_is_read_without_the_tables_about_it(tmp_path: Path) -> None:
    load = "from hf_decision_mamba.data import load_trajectories; print(load_trajectories('alice/robot'))"
    folder = tmp_path / "robot"
    shutil.copytree(SAMPLES / "lerobot", folder)
    (folder / "meta" / "episodes").mkdir()
    pq.write_table(pa.table({"episode_index": [0, 1], "length": [3, 2]}), folder / "meta/episodes/file-000.parquet")
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"]["observation.images.top"] = {"dtype": "video"}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    repository = Repository("datasets", "alice/robot", private=False)
    files = [path for path in folder.rglob("*") if path.is_file()]
    blobs = {path.relative_to(folder).as_posix(): Blob(path.read_bytes(), lfs=False) for path in files}
    repository.add("main", blobs, "six episodes")
    with LoopbackHub({"hf_alice": "alice"}) as hub:
        hub.repositories["datasets", "alice/robot"] = repository
        environment = hub.client_environment(tmp_path / "home", "hf_alice")
        for more in ({}, {"HF_HUB_OFFLINE": "1"}):
            done = run_python(load, environment=environment | more)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("Trajectories('alice/robot': 6 episodes, 188 steps, state_dim=11")
            assert "pictures are not read (observation.images.top)" in done.stderr


def test_rows_without_a_count_of_steps_stay_as_they_are(tmp_path: Path) -> None:
    made(load_trajectories(save(tmp_path, steps(frame_index=None))))
    with pytest.raises(
        ValueError, match=r"the rows of episode 0 do not stand together, and no column counts the steps"
    ):
        load_trajectories(save(tmp_path, steps(frame_index=None).take([0, 3, 1, 2, 4])))


@pytest.mark.parametrize(
    ("split", "rewards"), [("train[:1]", [1, 2, 3]), ("train[1:]", [4, 5]), ("train[50%:]", [4, 5])]
)
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_slices_are_whole_episodes(split: str, rewards: list[float], ending: str, tmp_path: Path) -> None:
    source = save(tmp_path, steps())
    if ending == "jsonl":
        source = tmp_path / "steps.jsonl"
        datasets.Dataset(steps()).to_json(source)
    assert load_trajectories(source, split=split).rewards.tolist() == rewards
    with pytest.raises(ValueError, match=r"has no episodes in split|corresponds to no data"):
        load_trajectories(source, split="train[:0]")
    with pytest.raises(ValueError, match=r"cannot be loaded with .*split='test'"):
        load_trajectories(source, split="test")


def test_one_number_a_step(tmp_path: Path) -> None:
    trajectories = load_trajectories(save(tmp_path, steps(**{"observation.state": [0.0, 1.0, 2.0, 3.0, 4.0]})))
    assert trajectories.observations.tolist() == [[0], [1], [2], [3], [4]]
    discrete = load_trajectories(save(tmp_path, steps(action=[0, 2, 1, 0, 0])))
    assert (discrete.action_type, discrete.act_dim) == ("discrete", 3)
    continuous = load_trajectories(save(tmp_path, steps(action=[0.0, 0.5, 1.0, 0.0, 0.0])))
    assert (continuous.action_type, continuous.act_dim) == ("continuous", 1)


@pytest.mark.parametrize(
    "changes",
    [
        {name: [[value] for value in steps().column(name).to_pylist()]}
        for name in ("next.reward", "next.done", "episode_index", "frame_index", "timestamp")
    ]
    + [
        {name: [[value] for value in steps().column(name).to_pylist()] for name in ("next.reward", "next.done")},
        {"next.reward": pa.array([[value] for value in (1.0, 2.0, 3.0, 4.0, 5.0)], pa.list_(pa.float64(), 1))},
        {"episode_index": [0.0, 0.0, 0.0, 1.0, 1.0], "frame_index": [0.0, 1.0, 2.0, 0.0, 1.0]},
        {"episode_index": ["ten", "ten", "ten", "nine", "nine"]},
        {"episode_index": pa.array(["ten", "ten", "ten", "nine", "nine"]).dictionary_encode()},
        {"episode_index": pa.array([7, 7, 7, 9, 9]).dictionary_encode()},
        {"next.done": [0, 0, 1, 0, 1]},
        {"next.done": [0.0, 0.0, 1.0, 0.0, 1.0]},
        {"timestamp": ["Monday"] * 5},
        {"timestamp": [3.0] * 5},
        {"frame_index": None, "timestep": [0, 1, 2, 0, 1]},
    ],
)
def test_values_may_be_kept_in_other_ways(changes: dict[str, Any], tmp_path: Path) -> None:
    made(load_trajectories(save(tmp_path, steps(**changes))))
    made(load_trajectories(datasets.Dataset(steps(**changes))))


def test_first_steps_may_be_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path, steps(frame_index=[0, 1, 2, 4, 5]))
    made(load_trajectories(path))
    assert "1 of 2 episodes do not begin at step 0 of 'frame_index'" in caplog.text
    assert "(episode 1 begins at 4); each first step that is there counts as step 0" in caplog.text
    made(load_trajectories(save(tmp_path, steps(frame_index=[*range(5)]).take([3, 1, 4, 0, 2]))))


@pytest.mark.parametrize(
    "action",
    [[[0], [2], [1], [0], [0]], [[0.0], [2.0], [1.0], [0.0], [0.0]], np.eye(3)[[0, 2, 1, 0, 0]].tolist()],
    ids=["lists of an integer", "lists of a whole number", "one-hot"],
)
def test_what_actions_are_can_be_said(action: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path, steps(action=action))
    integers = isinstance(action[0][0], int)
    assert load_trajectories(path).action_type == ("discrete" if integers else "continuous")
    assert ("column 'action': the actions are" in caplog.text) != integers
    discrete = load_trajectories(path, action_type="discrete")
    assert (discrete.actions.tolist(), discrete.act_dim) == ([0, 2, 1, 0, 0], 3)
    assert load_trajectories(path, action_type="continuous").actions.tolist() == action


def test_truncations_are_kept_apart(tmp_path: Path) -> None:
    truncated = {
        "next.truncated": [False, False, False, False, True],
        "terminations": [False, False, True, False, False],
    }
    trajectories = load_trajectories(save(tmp_path, steps(**truncated)))
    assert np.flatnonzero(trajectories.terminations).tolist() == [2]
    assert np.flatnonzero(trajectories.truncations).tolist() == [4]


def test_a_success_is_the_reward_where_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    successes = {"next.success": [False, True, True, False, False], "next.reward": None}
    with caplog.at_level(logging.WARNING):
        trajectories = load_trajectories(save(tmp_path, steps(**successes)))
    assert trajectories.rewards.tolist() == [0, 1, 0, 0, 0]
    assert "1 at the first step of an episode with 'next.success', which 1 of 2 episodes have" in caplog.text
    kept = load_trajectories(save(tmp_path, steps(**{**successes, "next.reward": [1.0, 2.0, 3.0, 4.0, 5.0]})))
    assert kept.rewards.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("done", [None, [False, False, True, False, True]])
def test_demonstrations_without_rewards_may_all_be_successes(done: list[bool] | None, tmp_path: Path) -> None:
    path = save(tmp_path, steps(**{"next.reward": None, "next.done": done}))
    assert not load_trajectories(path).has_rewards
    trajectories = load_trajectories(path, columns={"rewards": "next.done"})
    assert trajectories.rewards.tolist() == [0, 0, 1, 0, 1]
    assert trajectories.returns().tolist() == [1, 1]
    assert load_trajectories(path, rewards_from="next.done").rewards.tolist() == [0, 0, 1, 0, 1]


def test_pictures_are_left_alone_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "meta").mkdir()
    features = {"observation.images.top": {"dtype": "video", "shape": [480, 640, 3]}}
    counts = {"total_frames": 9, "total_episodes": 3}
    (tmp_path / "meta" / "info.json").write_text(json.dumps({**counts, "features": features}))
    picture = [{"bytes": b"png", "path": None}] * 5
    pq.write_table(steps(**{"observation.image": picture}), tmp_path / "data" / "train-0.parquet")
    with caplog.at_level(logging.WARNING):
        made(load_trajectories(tmp_path))
    assert "pictures are not read (observation.image, observation.images.top)" in caplog.text
    assert "5 of the 9 steps that meta/info.json counts are here" in caplog.text
    assert "2 of the 3 episodes that meta/info.json counts are here" in caplog.text
    pq.write_table(
        steps(**{"observation.image": picture, "observation.state": None}), tmp_path / "data/train-0.parquet"
    )
    with pytest.raises(
        ValueError, match=r"no column 'observation\.state' .* Pictures \(observation\.image, .*not read"
    ):
        load_trajectories(tmp_path)


def test_a_description_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{")
    pq.write_table(steps(), tmp_path / "data" / "train-0.parquet")
    with pytest.raises(ValueError, match=r"info\.json is not the description of a LeRobot data set"):
        load_trajectories(tmp_path)


def test_a_table_of_episodes_may_number_them(tmp_path: Path) -> None:
    table = pa.table(
        {
            "observations": [[[0.0], [1.0]], [[2.0]]],
            "actions": [[0, 1], [0]],
            "rewards": [[0.0, 0.0], [1.0]],
            "episode_index": [0, 1],
        }
    )
    assert load_trajectories(save(tmp_path, table)).lengths.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_index": [0, 1, 1, 0, 1]}, "episode 0, column 'frame_index': step 1 is there twice; remove one"),
        ({"frame_index": [0, 1, 3, 0, 1]}, r"episode 0, column 'frame_index': step 2 is missing \(the next one is 3\)"),
        ({"frame_index": [0, 1, 2, 1, 3]}, r"episode 1, column 'frame_index': step 2 is missing \(the next one is 3\)"),
        ({"episode_index": [0, 0, 0, 0, 0]}, "episode 0, column 'frame_index': step 0 is there twice"),
        ({"episode_index": [0.0, 0.0, 0.0, 1.0, 1.5]}, "row 4 of the table, .* expected a whole number, found 1.5"),
        ({"episode_index": [0.0, 0.0, np.nan, 1.0, 1.0]}, "row 2 of the table, column 'episode_index': a value is mis"),
        (
            {"episode_index": ["a", "a", None, "b", "b"]},
            "row 2 of the table, column 'episode_index': a value is missing",
        ),
        ({"episode_index": ["a", "a", "a", "b", "a"]}, "episode a, column 'frame_index': step 1 is there twice"),
        (
            {"episode_index": [True, True, True, False, False]},
            "'episode_index': expected one whole number .* found bool",
        ),
        ({"frame_index": [0, 1, None, 0, 1]}, "row 2 of the table, column 'frame_index': a value is missing"),
        (
            {"frame_index": ["0", "1", "2", "0", "1"]},
            "'frame_index': expected one whole number for each step, found str",
        ),
        (
            {"episode_index": [0] * 5, "frame_index": [*range(5)]},
            r"episode 0, step 3, column 'timestamp': time goes back from 0\.2 to 0\.0, so more than one episode",
        ),
        (
            {"next.reward": [[1.0], [2.0, 2.5], [3.0], [4.0], [5.0]]},
            r"episode 0, step 1, column 'next\.reward': expected "
            "one value, found a list of 2",
        ),
        (
            {"next.done": [[False], [], [True], [False], [True]]},
            r"episode 0, step 1, column 'next\.done': expected one "
            "value, found a list of 0",
        ),
        (
            {"next.reward": [[1.0], None, [3.0], [4.0], [5.0]]},
            r"episode 0, step 1, column 'next\.reward': a value is mis",
        ),
        ({"episode_index": [[0], [0], [0], [1], [1, 1]]}, r"'episode_index': expected one value, found a list of 2"),
        (
            {"episode_index": None},
            r"one row per episode .* needs a column that says each step's episode: columns=\{\"epi",
        ),
        ({"action": None}, "no column 'actions' for the actions; its columns are observation.state, next.reward"),
        ({"action": [[0.0], [0.0], [0.0], [0.0], None]}, "episode 1, step 1, column 'action': a value is missing"),
        ({"action": [[0.0], [0.0], [0.0], [0.0], [None]]}, "episode 1, step 1, column 'action': a value is missing"),
        ({"action": [[0.0], [0.0], [0.0, 1.0], [0.0], [0.0]]}, "episode 0, step 2, column 'action': 2 numbers, where"),
        (
            {"action": ["a"] * 5},
            r"column 'action': expected one row per step with a list of numbers, or one number, found s.*; convert the "
            r"column, or map another one with columns=\{\.\.\.\}",
        ),
        (
            {"observation.state": ["a"] * 5},
            "column 'observation.state': expected one row per step with .* one number, or a frame, found str",
        ),
        ({"next.reward": [0.0, 1.0, np.nan, 0.0, 0.0]}, r"episode 0, step 2, column 'rewards': the value is nan"),
        ({"next.reward": [0.0, 1.0, None, 0.0, 0.0]}, r"episode 0, step 2, column 'next\.reward': a value is missing"),
        (
            {"next.done": [False, True, True, False, True]},
            r"episode 0, step 1, column 'next\.done': the episode ends here",
        ),
        ({"next.reward": [[0.0, 1.0]] * 5}, r"column 'next\.reward': expected one value, found a list of 2"),
        ({"next.done": [0, 0, 7, 0, 1]}, r"episode 0, step 2, column 'next\.done': expected true or false .*found 7"),
    ],
)
def test_names_what_is_wrong(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_trajectories(save(tmp_path, steps(**changes)))
    assert "steps" in str(raised.value)


def test_rows_of_different_files_may_be_interleaved_but_not_be_there_twice(tmp_path: Path) -> None:
    for name, rows in {"a": [4, 0, 2], "b": [1, 3]}.items():
        pq.write_table(steps().take(rows), tmp_path / f"{name}.parquet")
    made(load_trajectories(tmp_path))
    pq.write_table(steps().take([3]), tmp_path / "c.parquet")
    with pytest.raises(
        ValueError, match=r"episode 1, column 'frame_index': step 0 is there twice; .*of different files"
    ):
        load_trajectories(tmp_path)
