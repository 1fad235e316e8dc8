"""Images: bytes of frames become one array that holds each frame once, whatever the source, and faults are named."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import Blob, LoopbackHub, Repository
from PIL import Image
from processes import run_python

from hf_decision_mamba.data import Trajectories, load_trajectories

BREAKOUT = Path(__file__).parent / "breakout-tiny.parquet"
SMALL = {"obs_shape": [3, 2]}  # frames of the episodes made here


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what `datasets` caches in a folder of the test, not among its data, and every test off the network."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return cache


def frames(steps: int, seed: int = 0, shape: tuple[int, int] = (3, 2)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (steps, *shape), np.uint8)


def episodes(lengths: tuple[int, ...] = (2, 1, 3), **changes: Any) -> pa.Table:
    """Episodes of these lengths; `changes` replace columns."""
    columns: dict[str, Any] = {
        "observations": pa.array([frames(steps, seed).tobytes() for seed, steps in enumerate(lengths)], pa.binary()),
        "actions": [[1] * steps for steps in lengths],
        "rewards": [[0.5] * steps for steps in lengths],
        "terminations": [[False] * (steps - 1) + [True] for steps in lengths],
    }
    return pa.table({**columns, **changes})


def save(folder: Path, table: pa.Table, facts: object = SMALL) -> Path:
    """Write a parquet file, with the JSON file of its facts beside it."""
    path = folder / "game.parquet"
    pq.write_table(table, path)
    if facts is not None:
        path.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
    return path


def made(trajectories: Trajectories, lengths: tuple[int, ...] = (2, 1, 3), shape: tuple[int, int] = (3, 2)) -> None:
    """Check that these are the episodes that `episodes` makes."""
    expected = np.concatenate([frames(steps, seed, shape) for seed, steps in enumerate(lengths)])
    np.testing.assert_array_equal(trajectories.observations, expected)
    assert trajectories.observations.dtype == np.uint8
    assert trajectories.lengths.tolist() == list(lengths)


def test_frames_are_those_of_the_file(own_cache: Path) -> None:
    trajectories = load_trajectories(BREAKOUT)
    assert repr(trajectories) == (
        "Trajectories('breakout-tiny': 5 episodes, 1356 steps, frame_shape=(84, 84), num_actions=4, "
        "env_id='BreakoutNoFrameskip-v4')"
    )
    for episode, row in enumerate(pq.read_table(BREAKOUT).to_pylist()):
        steps = slice(trajectories.step_offsets()[episode], trajectories.step_offsets()[episode + 1])
        assert trajectories.observations[steps].tobytes() == row["observations"]
        assert trajectories.actions[steps].tolist() == row["actions"]
        assert trajectories.rewards[steps].tolist() == row["rewards"]
        assert trajectories.terminations[steps].tolist() == row["terminations"]
    assert not list(own_cache.rglob("*.arrow"))


@pytest.mark.parametrize("kind", ["file", "file of large bytes", "row groups", "folder", "several files"])
def test_every_layout_gives_the_same_frames(kind: str, tmp_path: Path) -> None:
    table, source = episodes(), tmp_path / "game"
    source.mkdir()
    (source / "README.md").write_text(f"---\nenvironment: {json.dumps({'id': 'Game-v0', **SMALL})}\n---\n")
    if kind == "folder":
        pq.write_table(table, source / "train.parquet")
    elif kind == "several files":
        for part in range(2):
            pq.write_table(table.slice(2 * part, 2), source / f"train-0000{part}-of-00002.parquet")
    else:
        source = save(tmp_path, table, {"env_id": "Game-v0", **SMALL})
    if kind == "file of large bytes":
        pq.write_table(table.set_column(0, "observations", table["observations"].cast(pa.large_binary())), source)
    if kind == "row groups":
        pq.write_table(table, source, row_group_size=1)
    trajectories = load_trajectories(source)
    made(trajectories)
    assert trajectories.env_id == "Game-v0"


@pytest.mark.parametrize("kind", ["dataset", "dataset in chunks"])
def test_frames_of_a_loaded_data_set_need_the_usual_shape(kind: str) -> None:
    data = datasets.Dataset(episodes((1, 2), observations=[bytes(84 * 84), bytes(2 * 84 * 84)]))
    if kind == "dataset in chunks":
        data = datasets.concatenate_datasets([data.select([0]), data.select([1])])
    assert load_trajectories(data).observations.shape == (3, 84, 84)


def test_a_frame_that_no_action_follows_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    longer = [frames(steps, seed).tobytes() + bytes(6 * (seed != 1)) for seed, steps in enumerate((2, 1, 3))]
    made(load_trajectories(save(tmp_path, episodes(observations=pa.array(longer, pa.binary())))))
    assert "2 of 3 episodes have an observation after their last action, which is left out" in caplog.text
    whole = datasets.Dataset(episodes((1, 2), observations=[bytes(2 * 84 * 84), bytes(3 * 84 * 84)]))
    assert load_trajectories(whole).lengths.tolist() == [1, 2]


def stacked(single: np.ndarray, count: int = 4) -> np.ndarray:
    """(T, F, H, W), the last frames at each step, the newest last; the first one repeats before the episode begins."""
    return np.stack([single[np.maximum(np.arange(len(single)) - back, 0)] for back in range(count)[::-1]], axis=1)


def larger() -> list[np.ndarray]:
    """The frames of three episodes, with more pixels each way than a stack has frames."""
    return [frames(steps, seed, (6, 5)) for seed, steps in enumerate((2, 1, 3))]


#: Frames (T, H, W) as others keep them.
KEPT = {
    "(T, H, W)": lambda single: single,
    "(T, H, W) of int64": lambda single: single.astype(np.int64),
    "(T, H, W, 1)": lambda single: single[..., None],
    "(T, 1, H, W)": lambda single: single[:, None],
    "(T, F, H, W)": stacked,
    "(T, H, W, F)": lambda single: np.moveaxis(stacked(single), 1, -1),
}


def table(seen: list[Any], feature: Any = None, a_row_a_step: bool = False) -> datasets.Dataset:
    """The episodes of `episodes` with these observations, kept as this feature of `datasets`."""
    columns = {name: episodes().column(name).to_pylist() for name in ("actions", "rewards", "terminations")}
    columns["observations"] = [list(steps) for steps in seen]
    if a_row_a_step:
        columns = {name: [step for episode in values for step in episode] for name, values in columns.items()}
        columns["episode_index"] = [0, 0, 1, 2, 2, 2]
    features = {name: datasets.Dataset.from_dict({name: values}).features[name] for name, values in columns.items()}
    return datasets.Dataset.from_dict(
        columns, features=datasets.Features(features | ({"observations": feature} if feature else {}))
    )


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("layout", ["episodes", "flat", "rows of episodes", "arrays", "rows of steps", "file"])
def test_frames_in_other_shapes_are_the_same_frames(layout: str, kept: str, tmp_path: Path) -> None:
    seen = [KEPT[kept](steps) for steps in larger()]
    step = seen[0].shape[1:]
    plain = {name: episodes().column(name).to_pylist() for name in ("actions", "rewards", "terminations")}
    source: Any
    if layout == "episodes":
        source = [{"observations": seen[row], **{name: plain[name][row] for name in plain}} for row in range(3)]
    elif layout == "flat":
        source = {"observations": np.concatenate(seen), **{name: np.concatenate(plain[name]) for name in plain}}
    elif layout == "rows of steps":
        source = table(seen, {2: datasets.Array2D, 3: datasets.Array3D}[len(step)](step, "uint8"), a_row_a_step=True)
    elif layout == "arrays":
        source = table(seen, {2: datasets.Array3D, 3: datasets.Array4D}[len(step)]((None, *step), "uint8"))
    else:
        source = table(seen)
    if layout == "file":
        source.to_parquet(tmp_path / "game.parquet")
        source = tmp_path / "game.parquet"
    made(load_trajectories(source), shape=(6, 5))


def pictures(seen: list[Any], a_row_a_step: bool = False) -> datasets.Dataset:
    """The episodes with observations as `datasets` encodes pictures."""

    def encoded(pixels: Any) -> Any:
        if not isinstance(pixels, np.ndarray):
            return pixels
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    feature = datasets.Image() if a_row_a_step else datasets.List(datasets.Image())
    return table([[encoded(pixels) for pixels in steps] for steps in seen], feature, a_row_a_step)


@pytest.mark.parametrize("kept", ["(T, H, W)", "(T, H, W, F)"])
@pytest.mark.parametrize("a_row_a_step", [False, True])
def test_pictures_of_frames_are_decoded(kept: str, a_row_a_step: bool, tmp_path: Path) -> None:
    seen = [KEPT[kept](steps) for steps in larger()]
    data = pictures(seen, a_row_a_step)
    made(load_trajectories(data), shape=(6, 5))
    renamed = data.rename_column("observations", "observation.image")
    made(load_trajectories(renamed, columns={"observations": "observation.image"}), shape=(6, 5))
    data.to_parquet(tmp_path / "game.parquet")
    made(load_trajectories(tmp_path / "game.parquet"), shape=(6, 5))


def test_pictures_may_be_files(tmp_path: Path) -> None:
    seen = larger()
    for episode, steps in enumerate(seen):
        for step, pixels in enumerate(steps):
            Image.fromarray(pixels).save(tmp_path / f"{episode}-{step}.png")
    paths = [[f"{tmp_path}/{episode}-{step}.png" for step in range(len(steps))] for episode, steps in enumerate(seen)]
    made(load_trajectories(table(paths, datasets.List(datasets.Image()))), shape=(6, 5))
    paths[1][0] = f"{tmp_path}/missing.png"
    with pytest.raises(ValueError, match=r"episode 1, step 0, .*picture cannot be decoded .*missing\.png"):
        load_trajectories(table(paths, datasets.List(datasets.Image())))


def test_pictures_that_are_no_frames_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = larger()
    with pytest.raises(ValueError, match=r"episode 2, step 1, column 'observations': a picture of \(5, 6\), where the"):
        load_trajectories(pictures([*seen[:2], [seen[2][0], seen[2][1].T, seen[2][2]]]))
    with pytest.raises(ValueError, match=r"episode 1, step 0, column 'observations': a value is missing \(null\)"):
        load_trajectories(pictures([seen[0], [None], seen[2]]))
    with pytest.raises(ValueError, match=r"episode 1, step 0, column 'observations': the picture cannot be decoded"):
        load_trajectories(pictures([seen[0], [{"bytes": b"no picture", "path": None}], seen[2]]))
    with pytest.raises(
        ValueError, match=r"episode 1, step 0, column 'observations': expected a picture of bytes, found"
    ):
        load_trajectories(pictures([seen[0], [np.zeros((6, 5), np.uint16)], seen[2]]))
    data = pictures(seen)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"column 'observations': pictures need Pillow .* pip install pillow"):
        load_trajectories(data)


def test_colours_and_what_is_no_stack_are_refused() -> None:
    colours = [np.random.default_rng(0).integers(0, 256, (steps, 6, 5, 3), np.uint8) for steps in (2, 1, 3)]
    grey = r"convert them, for example frames @ \[0\.299"
    with pytest.raises(ValueError, match=rf"episode 0, step 1, .*frames of \(6, 5, 3\) are colours.*{grey}"):
        load_trajectories(pictures(colours))
    with pytest.raises(ValueError, match=r"episode 0, step 1, .*frames of \(3, 6, 5\) are colours"):
        load_trajectories(table([np.moveaxis(steps, -1, 1) for steps in colours]))
    stacks = [stacked(steps) for steps in larger()]
    stacks[2][2] = stacks[2][2][::-1]
    with pytest.raises(ValueError, match=r"episode 2, step 2, .*no stacks of 4, oldest first: this one does not go on"):
        load_trajectories(table(stacks))
    with pytest.raises(
        ValueError, match=r"episode 2, step 0, column 'observations': frames are whole numbers from 0 to"
    ):
        load_trajectories(table([*(frames(steps).astype(int) for steps in (2, 1)), frames(3).astype(int) - 300]))


def test_columns_are_mapped(tmp_path: Path) -> None:
    table = episodes().rename_columns(["pixels", "actions", "rewards", "dones"])
    made(load_trajectories(save(tmp_path, table), columns={"observations": "pixels"}))


def test_vectors_beside_a_column_of_bytes_are_read_as_ever(tmp_path: Path) -> None:
    vectors = [[[0.5, 1.5]] * steps for steps in (2, 1, 3)]
    table = (
        episodes().rename_columns(["pixels", "actions", "rewards", "dones"]).append_column("observations", [vectors])
    )
    trajectories = load_trajectories(save(tmp_path, table))
    assert trajectories.state_type == "vector"
    assert trajectories.observations.tolist() == [[0.5, 1.5]] * 6


@pytest.mark.parametrize(
    ("split", "lengths"), [("train", [2, 1, 3]), ("train[1:]", [1, 3]), ("train[:34%]+test", [2, 4]), ("test", [4])]
)
def test_splits_and_their_slices(split: str, lengths: list[int], tmp_path: Path) -> None:
    for name, table in {
        "train-0": episodes().slice(0, 2),
        "train-1": episodes().slice(2),
        "test": episodes((4,)),
    }.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    (tmp_path / "README.md").write_text("---\nenvironment: {obs_shape: [3, 2]}\n---\n")
    trajectories = load_trajectories(tmp_path, split=split)
    assert trajectories.lengths.tolist() == lengths
    assert trajectories.observations.shape == (sum(lengths), 3, 2)
    if split == "train[1:]":
        np.testing.assert_array_equal(trajectories.observations[1:], frames(3, seed=2))


def test_the_hub_is_asked_once_and_not_at_all_without_a_connection(tmp_path: Path) -> None:
    load = "from hf_decision_mamba.data import load_trajectories; print(load_trajectories('alice/breakout'))"
    facts = "environment: {id: ALE/Breakout-v5, obs_shape: [84, 84], num_actions: 18}"
    repository = Repository("datasets", "alice/breakout", private=False)
    files = {
        "data/train.parquet": Blob(BREAKOUT.read_bytes(), lfs=True),
        "README.md": Blob(f"---\n{facts}\n---\n".encode(), lfs=False),
    }
    repository.add("main", files, "five episodes")
    with LoopbackHub({"hf_alice": "alice"}) as hub:
        hub.repositories["datasets", "alice/breakout"] = repository
        environment = hub.client_environment(tmp_path / "home", "hf_alice")
        for more in ({}, {"HF_HUB_OFFLINE": "1"}):
            asked = len(hub.requests)
            done = run_python(load, environment=environment | more)
            assert done.returncode == 0, done.stderr
            assert (len(hub.requests) == asked) == bool(more)
            assert done.stdout.strip() == (
                "Trajectories('alice/breakout': 5 episodes, 1356 steps, frame_shape=(84, 84), num_actions=18, "
                "env_id='ALE/Breakout-v5')"
            )
    assert not list((tmp_path / "home").rglob("*.arrow"))


def bytes_of(*steps: int) -> pa.Array:
    return pa.array([None if count is None else bytes(6 * count) for count in steps], pa.binary())


@pytest.mark.parametrize(
    ("changes", "facts", "message"),
    [
        (
            {"observations": pa.array([bytes(12), bytes(7), bytes(18)])},
            SMALL,
            r"episode 1, column 'observations': 7 bytes, but a grey frame of 3x2 bytes for each of 1 steps takes 6; "
            r"correct the episode, or obs_shape in .*game\.json",
        ),
        (
            {"observations": bytes_of(4, 1, 3)},
            SMALL,
            "episode 0, column 'observations': 24 bytes, but a grey frame of 3x2 bytes for each of 2 steps takes 12",
        ),
        ({"observations": bytes_of(2, 0, 3)}, SMALL, "episode 1, column 'observations': 0 bytes, but a grey frame"),
        ({"observations": bytes_of(2, None, 3)}, SMALL, "episode 1, column 'observations' is null; remove it"),
        (
            {},
            None,
            r"episode 0, column 'observations': 12 bytes for 2 steps are no frames of 84x84, and nothing says their "
            r"shape; write obs_shape: \[height, width\]",
        ),
        ({}, {"obs_shape": [3, 2, 1]}, r"game\.json: obs_shape must be \[height, width\] of one grey frame, found \[3"),
        ({}, {"obs_shape": [3, 0]}, r"game\.json: obs_shape must be"),
        ({}, {"obs_shape": "3x2"}, r"game\.json: obs_shape must be"),
        (
            {},
            {"obs_shape": [4, 2]},
            "12 bytes, but a grey frame of 4x2 bytes for each of 2 steps takes 16; correct the",
        ),
        (
            {"actions": [[0, 1], [3], [0, 1, 2]]},
            {**SMALL, "num_actions": 3},
            "episode 1, step 0, column 'actions': the action is 3, but there are num_actions=3",
        ),
        (
            {"rewards": [[0.0] * 2, [0.0], [0.0] * 2]},
            SMALL,
            "episode 2: .* 2 in column 'rewards' and 3 in the others",
        ),
        (
            {"rewards": [[0.0], [], [0.0] * 2]},
            SMALL,
            "episode 0: .*, 1 in column 'rewards' and 2 in the others; every step needs a value",
        ),
        ({"rewards": [[0.0] * 2, [np.nan], [0.0] * 3]}, SMALL, "episode 1, step 0, column 'rewards': the value is nan"),
    ],
)
def test_names_what_is_wrong(changes: dict[str, Any], facts: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_trajectories(save(tmp_path, episodes(**changes), facts))
    assert "game" in str(raised.value)


def test_refuses_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"game\.parquet' cannot be loaded with .*split='test': .*\['train'\]"):
        load_trajectories(save(tmp_path, episodes()), split="test")
    with pytest.raises(ValueError, match=r"has no episodes in split 'train\[:0\]'; choose another split"):
        load_trajectories(save(tmp_path, episodes()), split="train[:0]")


def test_refuses_files_of_different_columns(tmp_path: Path) -> None:
    pq.write_table(episodes(), tmp_path / "train-0.parquet")
    pq.write_table(episodes(actions=[[[0.5]] * steps for steps in (2, 1, 3)]), tmp_path / "train-1.parquet")
    with pytest.raises(
        ValueError, match=r"columns of train-1\.parquet are not those of train-0\.parquet: they differ in actions"
    ):
        load_trajectories(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "bytes changed", "not parquet at all"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_names_the_file_that_cannot_be_read(damage: str, in_folder: bool, tmp_path: Path) -> None:
    content = bytearray(BREAKOUT.read_bytes())
    if damage == "truncated":
        del content[20_000:]
    elif damage == "bytes changed":
        content[2_000:8_000] = bytes(6_000)
    else:
        content[:] = b"<html>404</html>" * 1000
    if in_folder:
        shutil.copy(BREAKOUT, tmp_path / "train-0.parquet")
    file = tmp_path / "train-1.parquet"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot be read: .*{file.name}.*corrupted, truncated or not what its ending"):
        load_trajectories(tmp_path if in_folder else file)
