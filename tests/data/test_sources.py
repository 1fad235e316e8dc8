"""Every source gives the same columns, and every fault of one is named: where it is and what to do about it."""

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from hf_decision_mamba.data import Trajectories, load_trajectories, open_stream
from hf_decision_mamba.data.request import PARQUET_REVISION

HOPPER = Path(__file__).parent / "hopper-tiny-v5.parquet"
SAMPLES = Path(__file__).parent / "samples"
BREAKOUT = Path(__file__).parent / "breakout-tiny.parquet"
SHIPPED = Path(__file__).parents[2] / "datasets" / "hopper-medium-replay"


def columns_of(trajectories: Trajectories) -> dict[str, np.ndarray]:
    names = ("observations", "actions", "rewards", "terminations", "truncations", "starts", "lengths")
    return {name: getattr(trajectories, name) for name in names}


def assert_same(first: Trajectories, second: Trajectories) -> None:
    for name, values in columns_of(first).items():
        np.testing.assert_array_equal(values, columns_of(second)[name], err_msg=name)
        assert values.dtype == columns_of(second)[name].dtype


def two_episodes(**changes: Any) -> dict[str, Any]:
    """Episodes of two steps and of one step; `changes` replace columns or, if None, drop them."""
    columns = {
        "observations": [[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], [[6.0, 7.0, 8.0]]],
        "actions": [[[0.0, 0.1], [0.2, 0.3]], [[0.4, 0.5]]],
        "rewards": [[1.0, 2.0], [3.0]],
        "terminations": [[False, True], [False]],
        "truncations": [[False, False], [True]],
    }
    return {name: values for name, values in {**columns, **changes}.items() if values is not None}


def load(**changes: Any) -> Trajectories:
    return load_trajectories(datasets.Dataset.from_dict(two_episodes(**changes)))


# What is read


def test_columns_are_those_of_the_file() -> None:
    trajectories = load_trajectories(HOPPER)
    rows = pq.read_table(HOPPER).to_pylist()
    assert (trajectories.num_episodes, trajectories.num_steps) == (20, 2874)
    assert (trajectories.state_dim, trajectories.act_dim) == (11, 3)
    assert trajectories.name == "hopper-tiny-v5"
    for episode in (0, 7, 19):
        steps = slice(trajectories.step_offsets()[episode], trajectories.step_offsets()[episode + 1])
        for column in ("observations", "actions", "rewards", "terminations", "truncations"):
            expected = np.array(rows[episode][column], dtype=getattr(trajectories, column).dtype)
            np.testing.assert_array_equal(getattr(trajectories, column)[steps], expected)


def source(kind: str, folder: Path, **changes: Any) -> Any:
    """The two episodes as a source of this kind; `changes` are those of `two_episodes`."""
    data = datasets.Dataset.from_dict(two_episodes(**changes))
    if kind == "dataset":
        return data
    if kind == "dataset dict":
        return datasets.DatasetDict(train=data)
    if kind == "sliced dataset":
        return datasets.concatenate_datasets([data, data]).select([2, 1])
    if kind == "dataset in chunks":
        return datasets.concatenate_datasets([data.select([0]), data.select([1])])
    if kind == "dataset of 2-d arrays":
        features = {**data.features, "observations": datasets.Array2D((None, 3), "float32")}
        return datasets.Dataset.from_dict(two_episodes(), features=datasets.Features(features))
    if kind == "dataset of fixed-size lists":
        table = data.data.table.set_column(
            0, "observations", pa.array(two_episodes()["observations"], pa.list_(pa.list_(pa.float32(), 3)))
        )
        return datasets.Dataset(pa.table(table.columns, names=table.column_names))
    if kind == "folder":
        (folder / "data").mkdir()
        data.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        return str(folder)
    if kind.startswith("saved"):
        (datasets.DatasetDict(train=data) if kind == "saved dict" else data).save_to_disk(folder / "saved")
        return folder / "saved" / ("data-00000-of-00001.arrow" if kind == "saved file" else "")
    path = folder / f"episodes.{kind}"
    if kind == "arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, data.data.table.schema) as writer:
            writer.write_table(data.data.table)
    else:
        {"parquet": data.to_parquet}.get(kind, data.to_json)(path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "dataset",
        "dataset dict",
        "sliced dataset",
        "dataset in chunks",
        "dataset of 2-d arrays",
        "dataset of fixed-size lists",
        "folder",
        "parquet",
        "json",
        "jsonl",
        "jsonl.gz",
        "json.xz",
        "arrow",
        "saved data set",
        "saved dict",
        "saved file",
    ],
)
def test_every_kind_of_source_gives_the_same_columns(kind: str, tmp_path: Path) -> None:
    trajectories = load_trajectories(source(kind, tmp_path))
    assert trajectories.observations.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert trajectories.actions.tolist() == np.float32([[0, 0.1], [0.2, 0.3], [0.4, 0.5]]).tolist()
    assert trajectories.rewards.tolist() == [1, 2, 3]
    assert trajectories.terminations.tolist() == [False, True, False]
    assert trajectories.truncations.tolist() == [False, False, True]
    assert trajectories.step_offsets().tolist() == [0, 2, 3]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("rows", ["episodes", "steps"])
def test_slices_of_what_is_loaded_are_whole_episodes(rows: str, saved: bool, tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict(two_episodes())
    if rows == "steps":
        steps = {name: [step for episode in values for step in episode] for name, values in two_episodes().items()}
        data = datasets.Dataset.from_dict({**steps, "episode_index": [0, 0, 1]})
    both = datasets.DatasetDict(train=data, test=data)
    for split, rewards in {"train[1:]": [3], "train[:50%]": [1, 2], "test": [1, 2, 3]}.items():
        source: Any = both if split == "test" else data
        if saved:
            source.save_to_disk(tmp_path / split)
            source = tmp_path / split
        assert load_trajectories(source, split=split).rewards.tolist() == rewards
    with pytest.raises(ValueError, match=r"has no (episodes in )?split 'train\[:0\]'|has no episodes in split"):
        load_trajectories(source, split="train[:0]")
    with pytest.raises(ValueError, match=r"has no split 'dev'; it has 'train', 'test'"):
        load_trajectories(both, split="dev")
    with pytest.raises(ValueError, match=r"has no split 'test'; it has 'train'"):
        load_trajectories(data, split="test")


@pytest.mark.parametrize("damage", ["missing", "cut short", "no JSON"])
def test_a_saved_data_set_that_is_damaged_is_named(damage: str, tmp_path: Path) -> None:
    folder = source("saved data set", tmp_path)
    arrow = next(folder.glob("*.arrow"))
    if damage == "missing":
        arrow.unlink()
    elif damage == "cut short":
        arrow.write_bytes(arrow.read_bytes()[:-200])
    else:
        (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match=rf"{folder}' cannot be read: a file that save_to_disk wrote is corrupted"):
        load_trajectories(folder)
    with pytest.raises(ValueError, match="config='a' has no meaning for the folder"):
        load_trajectories(folder, config="a")


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read one episode at a time, and make every column on the disk."""
    monkeypatch.setattr("hf_decision_mamba.data.formats.rows.BYTES_AT_ONCE", 1)
    monkeypatch.setattr("hf_decision_mamba.data.storage.IN_MEMORY", 0)


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("kind", ["dataset", "folder", "json"])
def test_long_columns_are_made_piece_by_piece_on_the_disk(kind: str, tmp_path: Path) -> None:
    test_every_kind_of_source_gives_the_same_columns(kind, tmp_path)
    assert not list(Path(datasets.config.HF_DATASETS_CACHE).glob("tmp*"))


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([[6, 7]], "episode 1, step 0, column 'observations': 2 numbers, where other steps have 3"),
        ([[6, None, 8]], r"episode 1, step 0, column 'observations': a value is missing \(null\)"),
        (None, "episode 1, column 'observations' is null"),
        ([[6, 1e300, 8]], "episode 1, step 0, column 'observations', dimension 1: the value is inf in float32"),
        ([[6, 7, 8]] * 3, "episode 1: the number of steps differs, 3 in column 'observations' and 1 in"),
    ],
)
def test_what_is_wrong_in_a_later_piece_is_named(second: Any, message: str, tmp_path: Path) -> None:
    columns = two_episodes()
    columns["observations"][1] = second
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "episodes.parquet")
    with pytest.raises(ValueError, match=message):
        load_trajectories(tmp_path / "episodes.parquet")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
@pytest.mark.usefixtures("one_at_a_time")
def test_no_room_for_a_long_column_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source("parquet", tmp_path)
    with open("/dev/full", "wb", buffering=0) as full, monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", lambda **options: full)
        with pytest.raises(OSError, match=r"no room for a column .* No space left .*: free some, or set HF_DATASETS"):
            load_trajectories(path)


def test_numbers_of_other_files_may_have_other_widths(tmp_path: Path) -> None:
    for file, width in enumerate((pa.float32(), pa.float64())):
        table = datasets.Dataset.from_dict(two_episodes()).data.table.select(["actions", "rewards", "observations"])
        wide = [pa.list_(pa.list_(width)), pa.list_(width), pa.large_list(pa.list_(width, 3))]
        pq.write_table(table.cast(pa.schema(zip(table.column_names, wide, strict=True))), tmp_path / f"{file}.parquet")
    trajectories = load_trajectories(tmp_path)
    assert trajectories.rewards.tolist() == [1, 2, 3, 1, 2, 3]
    assert trajectories.actions.tolist() == 2 * np.float32([[0, 0.1], [0.2, 0.3], [0.4, 0.5]]).tolist()


# Several sources, and folders of single files


def files(folder: Path, **facts: str | None) -> list[Path]:
    """Files of the two episodes, in the order of their names, with the facts of each beside it."""
    folder.mkdir(exist_ok=True)
    for number, (name, said) in enumerate(facts.items()):
        rewards = [[number, 1.0], [2.0]]
        datasets.Dataset.from_dict(two_episodes(rewards=rewards)).to_parquet(folder / f"{name}.parquet")
        if said is not None:
            (folder / f"{name}.json").write_text(said, encoding="utf-8")
    return [folder / f"{name}.parquet" for name in facts]


HOPPER_FACTS = '{"env_id": "Hopper-v5"}'


def test_several_sources_are_read_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = files(tmp_path, medium=HOPPER_FACTS, expert=None, more=HOPPER_FACTS)
    trajectories = load_trajectories([two, str(one)])
    assert trajectories.rewards.tolist() == [1, 1, 2, 0, 1, 2]
    assert trajectories.step_offsets().tolist() == [0, 2, 3, 5, 6]
    assert (trajectories.name, trajectories.env_id) == ("expert + medium", "Hopper-v5")
    assert load_trajectories([one, two], split="train[:50%]").rewards.tolist() == [0, 1, 1, 1]
    assert_same(load_trajectories(str(tmp_path / "*m*e*.parquet")), load_trajectories([one, three]))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_same(load_trajectories(["~/medium.parquet", "~/mor?.parquet"]), load_trajectories([one, three]))
    rows = [{name: np.asarray(values[0]) for name, values in two_episodes().items()}]
    with pytest.raises(ValueError, match=r"episode 1 is of type str; expected a dict of its columns"):
        load_trajectories([*rows, str(one)])  # type: ignore[list-item]


def test_each_of_several_sources_keeps_its_own_rules(tmp_path: Path) -> None:
    one, two = files(tmp_path, narrow='{"action_low": -0.1, "action_high": 0.1}', wide=None)
    actions = load_trajectories([one, two]).actions
    assert actions.max(axis=1).tolist() == np.float32([0.1, 0.1, 0.1, 0.1, 0.3, 0.5]).tolist()
    flat = SAMPLES / "d4rl.hdf5"
    both = load_trajectories([SAMPLES / "lerobot", flat])
    assert (both.num_episodes, both.name) == (6 + load_trajectories(flat).num_episodes, "lerobot + d4rl")


def test_sources_of_other_rates_are_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two, three = files(tmp_path, slow='{"fps": 10}', fast='{"fps": 50}', alike='{"fps": 10.0}')
    assert load_trajectories([one, three]).fps == 10 and not caplog.records
    assert load_trajectories([one, two]).fps is None
    assert "recorded at different rates, 'slow' at 10 and 'fast' at 50 steps a second" in caplog.text


def test_sources_of_other_names_are_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    size = load_trajectories(files(tmp_path / "any", one=None)[0]).state_dim
    left, right = (
        json.dumps({"observation_parts": [{"path": [f"{name}{i}"], "shape": [], "size": 1} for i in range(size)]})
        for name in ("x", "y")
    )
    one, two, three = files(tmp_path, one=left, two=right, three=left)
    assert load_trajectories([one, three]).observation_parts[0]["path"] == ["x0"] and not caplog.records
    assert load_trajectories([one, two]).observation_parts[0]["path"] == ["x0"]
    assert "data set 'one' observes a dictionary of x0 ()" in caplog.text and "and 'two' a dictionary" in caplog.text


def test_names_of_many_sources_are_counted(tmp_path: Path) -> None:
    paths = files(tmp_path, **dict.fromkeys("abcdef"))
    assert load_trajectories(paths).name == "a + b + c + d + 2 more"


def test_refuses_sources_that_do_not_belong_together(tmp_path: Path) -> None:
    one, two = files(tmp_path, a=HOPPER_FACTS, b='{"env_id": "Walker2d-v5"}')
    with pytest.raises(ValueError, match=r"'a' is of the environment Hopper-v5, and 'b' of Walker2d-v5; only data of"):
        load_trajectories([one, two])
    with pytest.raises(
        ValueError, match=r"data set 'hopper-tiny-v5', column 'observations': .* \(11,\) a step, where ot"
    ):
        load_trajectories([one, HOPPER])
    with pytest.raises(ValueError, match=rf"the data set {tmp_path}/a.parquet is there twice; leave one out"):
        load_trajectories([one, two, str(one)])
    with pytest.raises(
        ValueError, match=rf"(?s)config='x' has no meaning .*`hf-decision-mamba inspect-data {one} {two}`"
    ):
        load_trajectories([one, two], config="x")
    with pytest.raises(FileNotFoundError, match=r"no file or folder has a name of this pattern"):
        load_trajectories(str(tmp_path / "*.hdf5"))
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*missing\.parquet"):
        load_trajectories([one, tmp_path / "missing.parquet"])


def test_a_folder_of_single_files_has_the_facts_beside_them(tmp_path: Path) -> None:
    files(tmp_path / "data", a=HOPPER_FACTS, b='{"action_low": -0.2, "action_high": 0.2}', c='{"episodes": 7}')
    trajectories = load_trajectories(tmp_path / "data")
    assert (trajectories.env_id, trajectories.num_episodes) == ("Hopper-v5", 6)
    assert trajectories.actions.max() == np.float32(0.2)
    (tmp_path / "data" / "notes.json").write_text('{"more": "JSON files than data"}')
    assert_same(load_trajectories(tmp_path / "data"), trajectories)
    (tmp_path / "data" / "README.md").write_text("---\nenvironment: {id: Hopper-v5}\n---\n")
    (tmp_path / "data" / "notes.json").unlink()
    assert_same(load_trajectories(tmp_path / "data"), trajectories)


@pytest.mark.parametrize("card", [False, True])
def test_facts_beside_files_may_not_contradict_one_another(card: bool, tmp_path: Path) -> None:
    one, two = files(tmp_path, a=None if card else '{"max_episode_steps": 3}', b='{"max_episode_steps": 4}')
    if card:
        (tmp_path / "README.md").write_text("---\nenvironment: {max_episode_steps: 3}\n---\n")
    said = r"(a\.json|README\.md) says max_episode_steps=3, and .*b\.json says 4, but their data are read as one"
    with pytest.raises(ValueError, match=said):
        load_trajectories(tmp_path)
    assert load_trajectories([one, two]).num_episodes == 4


def test_the_shipped_data_set() -> None:
    trajectories = load_trajectories(SHIPPED)
    assert repr(trajectories) == (
        "Trajectories('hopper-medium-replay': 1120 episodes, 199266 steps, state_dim=11, act_dim=3, env_id='Hopper-v5')"
    )


def test_the_card_of_the_shipped_data_set_says_what_its_data_say() -> None:
    statistics = load_trajectories(SHIPPED).statistics()
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for dimension, (mean, std) in enumerate(zip(statistics.state_mean, statistics.state_std, strict=True)):
        line = next(line for line in card.splitlines() if line.startswith(f"| {dimension} | ") and line.count("|") == 8)
        assert f"| {mean:.4f} | {std:.4f} |" in line
    text = " ".join(card.split())
    for fact in (
        f"{statistics.episodes:,} episodes, {statistics.transitions:,} steps",
        f"| {statistics.return_mean:.1f} | {statistics.return_std:.1f} | {statistics.return_min:.1f} |",
        f"| {statistics.return_max:.1f} |",
        f"{statistics.length_mean:.1f} steps on average",
        f"({statistics.length_min} to {statistics.length_max:,})",
        f"true at the last step of {statistics.terminated:,} episodes",
        f"true at the last step of {statistics.truncated} episodes",
    ):
        assert fact in text


# What is mapped, converted and filled in


def test_columns_are_mapped_and_others_left_alone() -> None:
    renamed = {"obs": two_episodes()["observations"], "note": ["a", "b"], "observations": None}
    rows = datasets.Dataset.from_dict(two_episodes(**renamed))
    trajectories = load_trajectories(rows, columns={"observations": "obs"})
    assert trajectories.observations.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_any_numbers_become_float32_and_flags_may_be_numbers() -> None:
    trajectories = load(
        observations=[[[0], [1]], [[2]]],
        rewards=[[1, 2], [3]],
        terminations=[[0, 1], [0]],
        truncations=[[0.0, 0.0], [1.0]],
    )
    assert trajectories.observations.dtype == trajectories.rewards.dtype == np.float32
    assert trajectories.terminations.tolist() == [False, True, False]
    assert trajectories.truncations.tolist() == [False, False, True]


def test_true_and_false_may_be_observed() -> None:
    seen = [[[True, False], [False, False]], [[True, True]]]
    expected = [[1, 0], [0, 0], [1, 1]]
    assert load(observations=seen).observations.tolist() == expected
    steps = {name: [step for episode in values for step in episode] for name, values in two_episodes().items()}
    steps |= {"observations": [step for episode in seen for step in episode], "episode_index": [0, 0, 1]}
    assert load_trajectories(datasets.Dataset.from_dict(steps)).observations.tolist() == expected
    arrays = [{name: values[row] for name, values in two_episodes(observations=seen).items()} for row in range(2)]
    assert load_trajectories(arrays).observations.tolist() == expected


def test_refuses_two_columns_of_a_name(tmp_path: Path) -> None:
    table = pa.table(two_episodes())
    pq.write_table(table.append_column("rewards", table.column("rewards")), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has more than one column 'rewards'; rename or remove the others"):
        load_trajectories(tmp_path / "a.parquet")


def test_one_number_may_be_in_a_list_of_its_own() -> None:
    single = {"rewards": [[[1.0], [2.0]], [[3.0]]], "terminations": [[[False], [True]], [[False]]]}
    assert_same(load(**single), load())


@pytest.mark.parametrize("kind", ["table", "one at a time", "arrays"])
@pytest.mark.parametrize(("first", "second"), [(3, 2), (3, 1), (2, 2), (2, 1)])
def test_an_observation_that_no_action_follows_is_left_out_of_its_episode(
    kind: str, first: int, second: int, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    if kind == "one at a time":
        request.getfixturevalue("one_at_a_time")
    columns = two_episodes(
        observations=[[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [9.0] * 3][:first], [[6.0, 7.0, 8.0], [9.0] * 3][:second]]
    )
    rows = [{name: values[episode] for name, values in columns.items()} for episode in range(2)]
    trajectories = load_trajectories(rows if kind == "arrays" else datasets.Dataset.from_dict(columns))
    assert_same(trajectories, load())
    left_out = (first == 3) + (second == 2)
    said = f"{left_out} of 2 episodes have an observation after their last action, which is left out"
    assert (said in caplog.text) == (left_out == 1)


@pytest.mark.parametrize("width", [pa.float16(), pa.float64(), pa.int8(), pa.uint64()])
def test_numbers_of_every_width(width: pa.DataType, tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict(two_episodes()).data.table
    wide = pa.array([[[0, 1, 2], [3, 4, 5]], [[6, 7, 8]]], pa.large_list(pa.list_(width, 3)))
    pq.write_table(table.set_column(0, "observations", wide), tmp_path / "episodes.parquet")
    assert_same(load_trajectories(tmp_path / "episodes.parquet"), load())


def test_one_integer_a_step_is_a_discrete_action() -> None:
    trajectories = load(actions=[[1, 0], [2]])
    assert trajectories.action_type == "discrete"
    assert trajectories.actions.tolist() == [1, 0, 2]
    assert trajectories.act_dim == 3
    assert load(actions=[[[1], [0]], [[2]]]).actions.tolist() == [1, 0, 2]
    assert load(actions=[[[1, 0], [0, 2]], [[3, 0]]]).action_type == "continuous"


def test_rewards_and_flags_may_be_lists_of_one_number() -> None:
    nested = {
        name: [[[value] for value in row] for row in two_episodes()[name]] for name in ("rewards", "terminations")
    }
    assert_same(load(**nested), load())


@pytest.mark.parametrize(
    ("actions", "action_type", "expected"),
    [
        ([[[1.0], [0.0]], [[2.0]]], "discrete", [1, 0, 2]),
        ([[1.0, 0.0], [2.0]], "discrete", [1, 0, 2]),
        ([[[0, 1, 0], [1, 0, 0]], [[0, 0, 1]]], "discrete", [1, 0, 2]),
        ([[True, False], [True]], "discrete", [1, 0, 1]),
        ([[1, 0], [2]], "continuous", [[1], [0], [2]]),
        ([[0.5, 0.0], [0.25]], None, [[0.5], [0], [0.25]]),
    ],
)
def test_what_actions_are_can_be_said(actions: Any, action_type: str | None, expected: Any) -> None:
    rows = datasets.Dataset.from_dict(two_episodes(actions=actions))
    assert load_trajectories(rows, action_type=action_type).actions.tolist() == expected


@pytest.mark.parametrize(
    "changed",
    [
        lambda rows: rows.with_transform(lambda batch: batch),
        lambda rows: rows.with_transform(lambda batch: batch, columns=["rewards"], output_all_columns=True),
        lambda rows: rows.with_format("numpy", dtype=np.int32),
        lambda rows: datasets.DatasetDict(train=rows.with_transform(lambda batch: batch)),
    ],
    ids=["transform", "transform of a column", "dtype", "transform in a dict"],
)
def test_what_is_seen_and_not_stored_is_refused(changed: Any) -> None:
    message = r"has a (transform|format with a dtype) .*: keep the change with \.map\(.*with_format\(None\)"
    with pytest.raises(ValueError, match=message):
        load_trajectories(changed(datasets.Dataset.from_dict(two_episodes())))


@pytest.mark.parametrize("kind", ["numpy", "torch", "arrow"])
def test_rows_are_those_that_are_seen(kind: str) -> None:
    rows = datasets.Dataset.from_dict(two_episodes())
    seen = datasets.interleave_datasets([rows, rows.select([1, 0])]).with_format(kind)
    assert load_trajectories(seen).rewards.tolist() == [1, 2, 3, 3, 1, 2]
    assert load_trajectories(seen.select([3, 1])).rewards.tolist() == [1, 2, 3]
    columns = ["actions", "rewards", "observations"]
    assert not load_trajectories(seen.with_format(kind, columns=columns)).terminations.any()
    assert load_trajectories(seen.with_format(kind, columns=columns, output_all_columns=True)).terminations.any()
    with pytest.raises(ValueError, match=r"no column 'observations' for the obs.*; its columns are actions, rewards"):
        load_trajectories(seen.with_format(kind, columns=columns[:2]))


NONE = {"terminations": None, "truncations": None}


@pytest.mark.parametrize(
    ("flags", "terminations", "truncations"),
    [
        ({**NONE}, [0, 0, 0], [0, 1, 1]),
        ({**NONE, "dones": [[False, True], [True]]}, [0, 1, 1], [0, 0, 0]),
        ({**NONE, "dones": [[False, True], [False]]}, [0, 1, 0], [0, 0, 1]),
        ({"truncations": None}, [0, 1, 0], [0, 0, 1]),
        ({"terminations": None}, [0, 1, 0], [0, 0, 1]),
        ({"terminations": [[False, False], [False]], "truncations": [[False, False], [False]]}, [0, 0, 0], [0, 1, 1]),
        ({"terminations": [[False, True], [True]]}, [0, 1, 1], [0, 0, 1]),
        ({"dones": [["what is not read"], []]}, [0, 1, 0], [0, 0, 1]),
    ],
    ids=[
        "no flags",
        "dones at every end",
        "dones but at a recording that stopped",
        "terminations only",
        "truncations only",
        "nothing set at the ends",
        "both at one step",
        "dones beside the others",
    ],
)
def test_how_an_episode_ended(flags: dict[str, Any], terminations: list[int], truncations: list[int]) -> None:
    trajectories = load(**flags)
    assert trajectories.terminations.astype(int).tolist() == terminations
    assert trajectories.truncations.astype(int).tolist() == truncations


@pytest.mark.parametrize(
    ("front_matter", "env_id"),
    [
        ("---\nenvironment:\n  id: Hopper-v5\n---\n", "Hopper-v5"),
        ("---\nlicense: mit\n---\n", None),
        ("---\nenvironment: in the wild\n---\n", None),
        ("no front matter\n", None),
    ],
)
def test_environment_id_comes_from_the_card(front_matter: str, env_id: str | None, tmp_path: Path) -> None:
    folder = source("folder", tmp_path)
    (tmp_path / "README.md").write_text(front_matter, encoding="utf-8")
    assert load_trajectories(folder).env_id == env_id


def test_facts_of_a_single_file_are_in_the_json_beside_it(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(two_episodes(actions=[[1, 0], [2]])).to_parquet(tmp_path / "cart.parquet")
    assert load_trajectories(tmp_path / "cart.parquet").env_id is None
    (tmp_path / "cart.json").write_text('{"env_id": "CartPole-v1", "num_actions": 5}', encoding="utf-8")
    trajectories = load_trajectories(tmp_path / "cart.parquet")
    assert (trajectories.env_id, trajectories.act_dim) == ("CartPole-v1", 5)


def test_what_else_a_file_may_say_of_its_environment(tmp_path: Path) -> None:
    """Actions are counted from 0 when they are read, whatever the environment counts from."""
    said = {
        "action_start": -1,
        "env_kwargs": {"gravity": 5.0},
        "observation_parts": [{"path": ["goal"], "shape": [], "size": 1}, {"path": ["at"], "shape": [2], "size": 2}],
    }
    datasets.Dataset.from_dict(two_episodes(actions=[[1, 0], [-1]])).to_parquet(tmp_path / "cart.parquet")
    (tmp_path / "cart.json").write_text(json.dumps(said), encoding="utf-8")
    trajectories = load_trajectories(tmp_path / "cart.parquet")
    assert trajectories.actions.tolist() == [2, 1, 0] and trajectories.num_actions == 3
    assert {name: getattr(trajectories, name) for name in said} == said


def test_what_observations_are_made_of_may_be_said_by_who_loads_them(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(two_episodes()).to_parquet(tmp_path / "a.parquet")
    for named in ({"at": 2, "goal": 1}, {"goal": 1, "at": 2}):  # which are other data in the cache
        parts = [{"path": [name], "shape": [size], "size": size} for name, size in named.items()]
        assert load_trajectories(tmp_path / "a.parquet", observation_parts=named).observation_parts == parts
        stream = open_stream(tmp_path / "a.parquet", observation_parts=named)
        assert stream.metadata.observation_parts == parts
    with pytest.raises(ValueError, match=r"observation_parts={'at': 3.0} must be the names"):
        load_trajectories(tmp_path / "a.parquet", observation_parts={"at": 3.0})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"observation_parts={'at': 3} has no meaning for images"):
        load_trajectories(BREAKOUT, observation_parts={"at": 3})


@pytest.mark.parametrize("beside", ['{"env_id": 7}', "[1, 2]", '{"observations": []}\n{"observations": []}\n', "null"])
def test_json_beside_a_file_may_hold_something_else(beside: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict(two_episodes()).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(beside, encoding="utf-8")
    assert load_trajectories(tmp_path / "a.parquet").env_id is None


@pytest.mark.parametrize(
    ("beside", "action_type"),
    [
        ('{"num_actions": 3}', "discrete"),
        ('{"action_type": "discrete"}', "discrete"),
        ('{"action_type": "continuous", "num_actions": 3}', "continuous"),
        ('{"action_low": 0, "action_high": 2}', "continuous"),
    ],
)
def test_the_source_may_say_what_its_actions_are(beside: str, action_type: str, tmp_path: Path, caplog: Any) -> None:
    for actions in ([[1, 0], [2]], [[[1.0], [0.0]], [[2.0]]]):
        datasets.Dataset.from_dict(two_episodes(actions=actions)).to_parquet(tmp_path / "a.parquet")
        (tmp_path / "a.json").write_text(beside, encoding="utf-8")
        assert load_trajectories(tmp_path / "a.parquet").action_type == action_type
        other = "continuous" if action_type == "discrete" else "discrete"
        assert load_trajectories(tmp_path / "a.parquet", action_type=other).action_type == other
    assert "--action_type" not in caplog.text


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ('{"action_type": "both"}', r"a\.json: action_type must be continuous or discrete, found 'both'; correct it"),
        ('{"num_actions": 2}', "episode 1, step 0, column 'actions': the action is 2, but there are num_actions=2"),
        ('{"num_actions": 2.5}', r"a\.json: num_actions must be a positive whole number, found 2\.5"),
        ('{"num_actions": true}', r"a\.json: num_actions must be a positive whole number, found True"),
        (
            '{"action_start": 1}',
            "episode 0, step 1, column 'actions': the action is 0, but discrete actions count from 1",
        ),
        (
            '{"action_start": -1, "num_actions": 3}',
            "the action is 2, but there are num_actions=3 from -1 on; correct it",
        ),
        ('{"action_start": 0.5}', r"a\.json: action_start must be a whole number, found 0\.5; correct it"),
        ('{"env_kwargs": [1]}', r"a\.json: env_kwargs must be names with values, found \[1\]; correct it"),
        ('{"observation_parts": [{"size": 2}]}', r"a\.json: observation_parts must be .* to the 3 numbers of an obs"),
        ('{"observation_parts": {"goal": 2}}', r"a\.json: observation_parts must be a list of .*found {'goal': 2}"),
        ('{"observation_parts": []}', r"a\.json: observation_parts must be a list of .*found \[\]; correct it"),
        ('{"env_id": "Cart', r"a\.json, which describes a\.parquet, is not JSON .*correct or remove it"),
    ],
)
def test_refuses_facts_that_cannot_be(beside: str, message: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict(two_episodes(actions=[[1, 0], [2]])).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(beside, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_trajectories(tmp_path / "a.parquet")


def test_the_space_of_the_actions_may_be_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = datasets.Dataset.from_dict(two_episodes(actions=[[[0.0, 200.0], [0.0, -7.0]], [[3.0, 0.0]]]))
    data.to_parquet(tmp_path / "a.parquet")
    assert load_trajectories(tmp_path / "a.parquet").actions.tolist() == [[0, 200], [0, -7], [3, 0]]
    place = "episode 0, step 0, column 'actions', dimension 1: the action is 200.0"
    assert f"{place}, and nothing says their space: the actions are taken as they are" in caplog.text
    (tmp_path / "a.json").write_text('{"action_low": -5, "action_high": [2, 180]}', encoding="utf-8")
    assert load_trajectories(tmp_path / "a.parquet").actions.tolist() == [[0, 180], [0, -5], [2, 0]]


@pytest.mark.parametrize(
    "bounds", ['"action_low": -1', '"action_low": -1, "action_high": [1, 1, 1]', '"action_low": "a"']
)
def test_refuses_a_space_that_cannot_be(bounds: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict(two_episodes()).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(f"{{{bounds}}}", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"a\.json: action_\w+ must be a number or a list of 2, one for each dimension"
    ):
        load_trajectories(tmp_path / "a.parquet")


# What is refused: the form of the episodes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actions": None},
            r"no column 'actions' for the actions; its columns are observations, .*truncations\. Say whi",
        ),
        (
            {"observations": [[[0.0]] * 4, [[1.0]]]},
            "episode 0: the number of steps differs, 4 in column 'observations' and 2",
        ),
        (
            {"actions": [[[0.0]] * 2, [[1.0]] * 3]},
            "episode 1: .*, 3 in column 'actions' and 1 in the others; every",
        ),
        ({"truncations": [[False, False], []]}, "episode 1: .* 0 in column 'truncations' and 1 in the others; every"),
        (
            {"observations": [[[0.0, 1.0], [2.0]], [[3.0, 4.0]]]},
            "episode 0, step 1, column 'observations': 1 numbers, ",
        ),
        ({"actions": [[[0.0], [1.0]], [[2.0, 3.0]]]}, "episode 1, step 0, column 'actions': 2 numbers, .* have 1"),
        ({"actions": [[[0.0], [1.0, 2.0]], [[2.0, 3.0]]]}, "episode 0, step 0, column 'actions': 1 numbers, .* have 2"),
        ({"observations": [[[], []], [[]]]}, "episode 0, step 0, column 'observations': the step has no numbers"),
        (
            {"observations": [[0.0, 1.0], [2.0]]},
            r"'observations': expected one row per episode with a list.*found list",
        ),
        ({"actions": [["a", "b"], ["c"]]}, "'actions': expected one row per episode with a list of numbers, or one nu"),
        (
            {"rewards": [[[1.0, 0.0], [2.0, 0.0]], [[3.0, 0.0]]]},
            "column 'rewards': expected one value, found a list of 2",
        ),
        ({"actions": [[0, 1], [-1]]}, "episode 1, step 0, column 'actions': the action is -1, but discrete actions co"),
        ({"actions": [[0, None], [1]]}, "episode 0, step 1, column 'actions': a value is missing"),
        ({"actions": [[0, 1], [1, 2]]}, "episode 1: .*, 2 in column 'actions' and 1 in the others; every"),
        (
            {"observations": [[[[0.0]]] * 2, [[[0.5]]]]},
            "episode 0, step 0, column 'observations': frames are whole numbers from 0 to 255, found float64 from 0.0",
        ),
        (
            {"rewards": [1.0, 2.0]},
            "column 'rewards': expected one row per episode with one number for each step, found",
        ),
        ({"rewards": [["a", "b"], ["c"]]}, r"column 'rewards': .*found list<.*string>; convert the column, or map"),
        ({"terminations": [["no", "yes"], ["no"]]}, "column 'terminations': .* with true or false for each step"),
        ({"terminations": [[0, 2], [0]]}, "episode 0, step 1, column 'terminations': expected true or false .*found 2"),
        ({"terminations": [[True, True], [False]]}, "episode 0, step 0, column 'terminations': the episode ends here"),
        (
            {**NONE, "dones": [[True, False], [True]]},
            "episode 0, step 0, column 'dones': the episode ends here, but more steps of it follow; split",
        ),
        ({"rewards": [[1.0, 2.0], None]}, "episode 1, column 'rewards' is null"),
        ({"rewards": [[1.0, None], [3.0]]}, "episode 0, step 1, column 'rewards': a value is missing"),
        ({"observations": [[[1.0], None], [[3.0]]]}, "episode 0, step 1, column 'observations': a value is missing"),
        (
            {"actions": [[[1.0, 0.0], [2.0, 0.0]], [[3.0, None]]]},
            "episode 1, step 0, column 'actions': a value is miss",
        ),
        ({"rewards": [[1.0, 2.0], [float("nan")]]}, "episode 1, step 0, column 'rewards': the value is nan"),
        (
            {"observations": [[[0.0], [np.inf]], [[1.0]]]},
            "episode 0, step 1, column 'observations', dimension 0: .* inf",
        ),
        ({"rewards": [[1.0, 1e300], [2.0]]}, "episode 0, step 1, column 'rewards': the value is inf in float32"),
        (
            {"rewards": [[[1.0], [2.0, 3.0]], [[4.0]]]},
            "episode 0, step 1, column 'rewards': 2 numbers, where other steps have 1",
        ),
        (
            {"rewards": [[[1.0, 2.0]] * 2, [[4.0, 5.0]]]},
            "step 0, column 'rewards': expected one value, found a list of 2",
        ),
        (
            {"rewards": [[1.0], [3.0]], "observations": [[[0.0]] * 3, [[1.0]]]},
            "0: .* 1 in column 'rewards' and 2 in the others",
        ),
        ({"actions": [[[0.0]], [[3.0]]]}, "episode 0: .* 1 in column 'actions' and 2 in the others"),
        ({name: [[], []] for name in two_episodes()}, "episode 0 is empty"),
        ({name: [None, None] for name in two_episodes()}, "episode 0, column 'actions' is null"),
        ({name: [rows[0], []] for name, rows in two_episodes().items()}, "episode 1 is empty.* remove it"),
        ({name: [] for name in two_episodes()}, "has no episodes in split 'train'"),
    ],
)
def test_refuses_an_episode_that_is_not_one(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load(**changes)
    assert "data set 'data set in memory'" in str(raised.value)


def test_places_are_counted_over_chunks() -> None:
    faulty = two_episodes(rewards=[[1.0, 2.0], [None]])
    rows = datasets.concatenate_datasets([datasets.Dataset.from_dict(data) for data in (two_episodes(), faulty)])
    with pytest.raises(ValueError, match="episode 3, step 0, column 'rewards': a value is missing"):
        load_trajectories(rows)


def test_refuses_a_mapping_to_nothing() -> None:
    rows = datasets.Dataset.from_dict(two_episodes())
    with pytest.raises(ValueError, match="'obs' is none of our columns; map from observations, actions"):
        load_trajectories(rows, columns={"obs": "observations"})
    with pytest.raises(ValueError, match="no column 'finished' for the dones"):
        load_trajectories(rows, columns={"dones": "finished"})
    with pytest.raises(ValueError, match=r"no column 'earned' for the rewards; its columns are .* rewards_from="):
        load_trajectories(rows.remove_columns("rewards"), columns={"rewards": "earned"})


# What is refused: the source


CARDS = {
    "no YAML": ": : :\n - a",
    "code": "environment: !!python/object/apply:os.system ['touch ran']",
    "levels without end": "environment: " + "[" * 100_000,
    "values without end": "a: &a [x, x]\n"
    + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "merged without end": "a: &a {x: 1}\n"
    + "".join(
        f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "a part within itself": "environment: &a {id: *a}",
    "a number of many digits": "environment: {num_actions: " + "1:" * 50_000 + "1}",
    "a day that is none": "environment: 2020-99-99",
    "bytes that are no text": "\udcff",
}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_card_that_cannot_be_read_is_warned_of(
    card: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    shutil.copy(HOPPER, tmp_path / "made" / "train.parquet")
    (tmp_path / "made" / "README.md").write_text(f"---\n{card}\n---\n", "utf-8", "surrogateescape")
    assert_same(load_trajectories("made"), load_trajectories(HOPPER))
    assert "README.md: its front matter cannot be read" in caplog.text and len(caplog.text) < 1000
    assert not Path("ran").exists()


def test_parts_of_a_card_may_be_named_and_used_again(tmp_path: Path) -> None:
    shutil.copy(HOPPER, tmp_path / "train.parquet")
    (tmp_path / "README.md").write_text("---\nfirst: &it {id: Hopper-v5}\nenvironment: *it\n---\n")
    assert load_trajectories(tmp_path).env_id == "Hopper-v5"


@pytest.mark.parametrize(
    "place", ["../secret.parquet", "{}/secret.parquet", "../*.parquet", "file://{}/secret.parquet"]
)
def test_a_card_cannot_name_files_elsewhere(place: str, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    for name in ("secret.parquet", "made/train.parquet"):
        shutil.copy(HOPPER, tmp_path / name)
    files = place.format(tmp_path)
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {files!r}\n---\n"
    (tmp_path / "made" / "README.md").write_text(card)
    with pytest.raises(
        ValueError, match=r"its card \(README\.md\) says that .*secret\.parquet is part of it, which is else"
    ):
        load_trajectories(tmp_path / "made")


def test_a_card_cannot_name_files_that_are_no_tables(tmp_path: Path) -> None:
    """`datasets` would read HDF5, which may lead to any other file."""
    shutil.copy(SHIPPED.parents[1] / "tests" / "data" / "samples" / "d4rl.hdf5", tmp_path / "a.h5")
    shutil.copy(HOPPER, tmp_path / "train.parquet")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.h5\n---\n")
    with pytest.raises(ValueError, match=r"its card \(README\.md\) says that .*a\.h5 is part of it, which is no table"):
        load_trajectories(tmp_path)


def test_a_folder_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    shutil.copy(HOPPER, tmp_path / "blobs" / "1")  # as in the cache of the Hub
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "train.parquet").symlink_to(tmp_path / "blobs" / "1")
    (tmp_path / "link").symlink_to(tmp_path / "snapshot")
    assert_same(load_trajectories(tmp_path / "link"), load_trajectories(HOPPER))


@pytest.mark.parametrize("frames", [False, True])
def test_a_table_that_repeats_itself_is_not_unpacked(
    frames: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "observations": bytes(20 * 84 * 84) if frames else [[0.0] * 4] * 20,
        "actions": [1] * 20 if frames else [[0.0]] * 20,
        "rewards": [0.0] * 20,
        "terminations": [False] * 19 + [True],
    }
    for name in ("a.parquet", "b.parquet"):
        pq.write_table(pa.Table.from_pylist([row] * 40), tmp_path / name, compression="zstd")
    assert load_trajectories(tmp_path / "a.parquet").num_steps == 800
    monkeypatch.setattr("hf_decision_mamba.data.formats.rows.ALWAYS_UNPACKED", 1 << 10)
    monkeypatch.setattr("hf_decision_mamba.data.formats.rows.MOST_UNPACKED", 4)
    with pytest.raises(ValueError, match=r"b\.parquet unpacks to [\d,]+ bytes or more, which is over 4 times its"):
        load_trajectories(tmp_path / "b.parquet")


def test_messages_are_short_and_can_be_shown(tmp_path: Path) -> None:
    columns = {"\x1b[2J" + "long" * 1000: [1], **{f"column {number}": [1] for number in range(1000)}}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no column 'observations' .*; its columns are \\x1b\[2Jlong") as error:
        load_trajectories(tmp_path / "a.parquet")
    assert len(str(error.value)) < 2000 and "Say which one it is" in str(error.value)


def test_refuses_what_is_no_source() -> None:
    with pytest.raises(TypeError, match=r"from a Hub repository id, .* or a dict of flat arrays, not from int"):
        load_trajectories(7)  # type: ignore[arg-type]
    stream = datasets.Dataset.from_dict(two_episodes()).to_iterable_dataset()
    for source in (stream, datasets.IterableDatasetDict(train=stream)):
        with pytest.raises(
            TypeError, match=r"not read from a stream \(IterableDataset.*: load it without streaming=True"
        ):
            load_trajectories(source)


@pytest.mark.parametrize(
    "name",
    [
        *("data/missing.parquet", "data/missing.hdf5", "data/missing.pkl"),
        *("./missing", "a/b/c", "missing", "not a name", "json"),
    ],
)
def test_says_where_it_looked_for_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    looked_for = f"no data set at {name!r}: there is no file or folder {tmp_path / name}, and it is not a repository id"
    with pytest.raises(FileNotFoundError, match=re.escape(looked_for)):
        load_trajectories(name)


def test_says_that_the_hub_cannot_be_reached() -> None:
    looked_for = (
        "no data set 'nobody/nothing': there is no file or folder .*nobody/nothing, and the Hub cannot be reached"
    )
    with pytest.raises(ConnectionError, match=looked_for):
        load_trajectories("nobody/nothing")


def test_says_that_the_hub_has_no_such_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(*args: object, **kwargs: object) -> None:
        raise DatasetNotFoundError("Dataset 'nobody/nothing' doesn't exist on the Hub or cannot be accessed.")

    monkeypatch.setattr(datasets, "load_dataset_builder", not_found)
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nobody/nothing, and on the Hub: .*doesn't exist"):
        load_trajectories("nobody/nothing")


def test_a_script_is_not_run_but_its_parquet_copy_is_recommended(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("raise SystemExit('this was run')", encoding="utf-8")
    with pytest.raises(ValueError, match=f"made by a script, .* parquet copy with revision='{PARQUET_REVISION}'"):
        load_trajectories(folder)


def test_configurations_of_the_parquet_copy_are_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    builder = datasets.load_dataset_builder(source("folder", tmp_path))

    def load_dataset_builder(path: str, **options: object) -> datasets.DatasetBuilder:
        asked.update(options, path=path)
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    monkeypatch.setattr(
        "hf_decision_mamba.data.formats.rows.check_inside", lambda path, files: None
    )  # its files are here
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    load_trajectories("org/gym", config="hopper", revision=PARQUET_REVISION)
    assert asked == {"path": "org/gym", "data_dir": "hopper", "revision": PARQUET_REVISION}
    asked.clear()
    load_trajectories("org/gym", config="hopper", revision="v1")
    assert asked == {"path": "org/gym", "name": "hopper", "revision": "v1"}
    with pytest.raises(ValueError, match=r"every configuration is a folder, .* name one with config="):
        load_trajectories("org/gym", revision=PARQUET_REVISION)


@pytest.mark.parametrize("damage", ["truncated", "bytes changed", "not parquet at all"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_names_the_file_that_cannot_be_read(damage: str, in_folder: bool, tmp_path: Path) -> None:
    content = bytearray(HOPPER.read_bytes())
    if damage == "truncated":
        del content[100_000:]
    elif damage == "bytes changed":
        content[20_000:60_000] = bytes(40_000)
    else:
        content[:] = b"<html>404</html>" * 1000
    if in_folder:
        shutil.copy(HOPPER, tmp_path / "train-00000.parquet")
    file = tmp_path / "train-00001.parquet"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot be read: .*{file.name}.*corrupted, truncated or not what its ending"):
        load_trajectories(tmp_path if in_folder else file)


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("damage", ["cut short", "bytes changed", "not compressed"])
def test_names_compressed_files_that_are_damaged(ending: str, damage: str, tmp_path: Path) -> None:
    path = source(f"jsonl.{ending}", tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "cut short":
        del content[-20:]
    elif damage == "bytes changed":
        content[40:60] = bytes(20)
    else:
        content[:] = b'{"observations": []}'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"the file {path} is corrupted, truncated or not what its ending says"):
        load_trajectories(path)


def test_a_full_disk_is_not_blamed_on_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: object, **options: object) -> None:
        raise DatasetGenerationError("An error occurred") from OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(OSError, match="No space left on device"):
        load_trajectories(source("arrow", tmp_path))


@pytest.mark.parametrize("name", ["episodes.json", "episodes.jsonl", "episodes.arrow"])
def test_names_other_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    for content in ('{"observations": [[1, 2]], "act', ""):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=f"{name}.*cannot be read: .*corrupted, truncated"):
            load_trajectories(tmp_path / name)


def test_lists_the_kinds_of_files_it_reads(tmp_path: Path) -> None:
    (tmp_path / "episodes.xyz").touch()
    with pytest.raises(ValueError, match=r"cannot read a file of this kind; known endings: \.parquet,.*\.hdf5.*\.pkl"):
        load_trajectories(tmp_path / "episodes.xyz")
    for name in ("a.hdf5.gz", "a.pkl.gz", "a.parquet.gz", "a.zip", "a.csv.gz"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=rf"{name}: .*of compressed files only JSON is read, so unpack it first"):
            load_trajectories(tmp_path / name)
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match=r"a\.csv: .*a cell of it holds one number, so no vector .* to_parquet"):
        load_trajectories(tmp_path / "a.csv")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"the folder .*empty holds no data files; looked for \.parquet.*_ckpt"):
        load_trajectories(empty)


def test_a_folder_of_files_that_are_each_a_data_set_is_not_one(tmp_path: Path) -> None:
    for name in ("b.pkl", "a.hdf5", "a.json"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds files that are each a data set; name one of them, .*/a\.hdf5"):
        load_trajectories(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, r"cannot be loaded with split='test': .*\['train'\]"),
        ({"config": "other"}, "cannot be loaded with name='other', split='train': .*not found"),
        ({"revision": "main"}, "revision='main' has no meaning for the local folder"),
    ],
)
def test_refuses_options_that_a_folder_does_not_have(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_trajectories(source("folder", tmp_path), **options)  # type: ignore[arg-type]


def test_refuses_options_that_would_do_nothing() -> None:
    with pytest.raises(ValueError, match="config='a' has no meaning for the local file"):
        load_trajectories(HOPPER, config="a")
    rows = datasets.Dataset.from_dict(two_episodes())
    with pytest.raises(ValueError, match="revision='a' has no meaning for a data set that is already loaded"):
        load_trajectories(rows, revision="a")


# Data without rewards


def bare(kind: str, folder: Path, rewards: bool) -> Any:
    """The first episodes of the samples, or the two episodes, as a source of this kind; with rewards or without."""
    if kind in ("dataset", "dataset dict", "folder", "saved", "saved dict", "parquet", "jsonl", "arrow"):
        return source(kind, folder, **({} if rewards else {"rewards": None}))
    if kind.startswith("lerobot"):
        shutil.copytree(SAMPLES / "lerobot", folder / "lerobot")
        file = folder / "lerobot/data/chunk-000/file-000.parquet"
        table = pq.read_table(file)
        table = table if rewards else table.drop_columns("next.reward")
        if kind == "lerobot v3":
            pq.write_table(table, file)
            return folder / "lerobot"
        file.unlink()
        numbers = table.column("episode_index").to_numpy().ravel()
        for number in np.unique(numbers):
            pq.write_table(table.filter(pa.array(numbers == number)), file.with_name(f"episode_{number:06}.parquet"))
        return folder / "lerobot"
    with h5py.File(SAMPLES / "d4rl.hdf5") as file:
        names = ["observations", "actions", "terminals", *(["rewards"] if rewards else [])]
        columns = {name: file[name][:35] for name in names}
    if kind == "hdf5":
        with h5py.File(folder / "a.hdf5", "w") as file:
            file.update(columns)
        return folder / "a.hdf5"
    columns["terminals"][:-1] &= kind == "flat"  # of one episode alone
    if kind == "pickle":
        (folder / "a.pkl").write_bytes(pickle.dumps([columns, columns]))
        return folder / "a.pkl"
    return columns if kind == "flat" else [columns, columns]


BARE = ["dataset", "dataset dict", "folder", "saved", "saved dict", "parquet", "jsonl", "arrow"]
BARE += ["lerobot v2", "lerobot v3", "hdf5", "pickle", "flat", "episodes"]


@pytest.mark.parametrize("kind", BARE)
@pytest.mark.filterwarnings("ignore:.*truncations")
def test_every_kind_of_source_may_be_without_rewards(kind: str, tmp_path: Path, caplog: Any) -> None:
    folders = [tmp_path / "whole", tmp_path / "bare"]
    for folder in folders:
        folder.mkdir()
    whole = load_trajectories(bare(kind, folders[0], rewards=True))
    assert whole.has_rewards and "no rewards" not in caplog.text
    found = bare(kind, folders[1], rewards=False)
    for _ in range(2):  # the second time from the cache, where there is one
        caplog.clear()
        data = load_trajectories(found)
        assert not data.has_rewards and data.rewards is None
        assert caplog.text.count("no rewards: conditioning=none; give --rewards_from COLUMN (such as next.success") == 1
        for name, values in columns_of(whole).items():
            if name != "rewards":
                np.testing.assert_array_equal(getattr(data, name), values, err_msg=name)
        data.check_finite()
    flag = "next.done" if kind.startswith("lerobot") else "terminations"
    made = load_trajectories(found, rewards_from=flag)
    np.testing.assert_array_equal(made.rewards, made.terminations.astype(np.float32))
    np.testing.assert_array_equal(load_trajectories(found).observations, made.observations)


def test_the_column_that_the_rewards_are_of_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    won = [[False, True], [True]]
    for name in ("rewards", "reward", "next.reward"):
        assert load(**{"rewards": None, name: [[1.0, 2.0], [3.0]]}).rewards.tolist() == [1, 2, 3], name
    data = datasets.Dataset.from_dict(two_episodes(won=won))
    assert load_trajectories(data).rewards.tolist() == [1, 2, 3]
    assert load_trajectories(data, rewards_from="won").rewards.tolist() == [0, 1, 1]
    assert load_trajectories(data, columns={"rewards": "won"}).rewards.tolist() == [0, 1, 1]
    for flag in ("terminations", "terminated"):  # as gymnasium calls it
        assert load_trajectories(data, rewards_from=flag).rewards.tolist() == [0, 1, 0]
    ended = datasets.Dataset.from_dict(two_episodes(rewards=None, terminations=None, ended=won))
    said = {"terminations": "ended"}
    assert load_trajectories(ended, rewards_from="terminations", columns=said).rewards.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match=r"'scores' for the rewards; its columns are obs.*, won. Say .* rewards_from="):
        load_trajectories(data, rewards_from="scores")
    with pytest.raises(ValueError, match=r"rewards_from='won' and columns=\{'rewards': 'rewards'\} both say which"):
        load_trajectories(data, rewards_from="won", columns={"rewards": "rewards"})
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(SAMPLES / "minari"))
    for kept in ("minari:hopper/sample-v0", str(SAMPLES / "dqn-replay-Pong")):
        with pytest.raises(ValueError, match=f"rewards_from='won' has no meaning for the data set {kept}; leave it ou"):
            load_trajectories(kept, rewards_from="won")
    caplog.clear()
    assert not load(rewards=None, shaped_reward=[[1.0, 2.0], [3.0]]).has_rewards
    assert "COLUMN (such as shaped_reward) to have returns; its columns are observations, actions, t" in caplog.text


def test_another_column_of_rewards_is_another_entry_of_the_cache(tmp_path: Path) -> None:
    path = source("parquet", tmp_path, won=[[False, True], [True]])
    for _ in range(2):
        assert load_trajectories(path).rewards.tolist() == [1, 2, 3]
        assert load_trajectories(path, rewards_from="won").rewards.tolist() == [0, 1, 1]
        assert load_trajectories(path, rewards_from="truncations").rewards.tolist() == [0, 0, 1]


def test_views_of_rewards_need_some(tmp_path: Path) -> None:
    path = source("parquet", tmp_path, rewards=None)
    with pytest.raises(ValueError, match="data set 'episodes': delayed_reward changes rewards, and it has none; leave"):
        load_trajectories(path, delayed_reward=True)
    assert load_trajectories(path, rewards_from="terminations", delayed_reward=True).rewards.tolist() == [0, 1, 0]


def test_sources_with_and_without_rewards_do_not_belong_together(tmp_path: Path) -> None:
    paths = []
    for name, changes in (("whole", {}), ("bare", {"rewards": None})):
        (tmp_path / name).mkdir()
        paths.append(source("parquet", tmp_path / name, **changes).rename(tmp_path / f"{name}.parquet"))
    message = "data set 'bare' has no rewards, and 'whole' has; leave out one of them, or name a column that is in both"
    for order in (paths, paths[::-1]):
        with pytest.raises(ValueError, match=message):
            load_trajectories(order)
    assert load_trajectories(paths, rewards_from="terminations").returns().tolist() == [1, 0, 1, 0]
