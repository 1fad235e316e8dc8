"""DQN replay folders: whole episodes by the papers' protocol, frames as they are in the files, and faults named."""

import gzip
import io
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import SAMPLES

from hf_decision_mamba.data import load_trajectories
from hf_decision_mamba.data.formats import dqn_replay

SAMPLE = SAMPLES / "dqn-replay-Pong"


def save(path: Path, values: Any) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    path.write_bytes(gzip.compress(buffer.getvalue()))


def load(path: Path) -> np.ndarray:
    return np.load(io.BytesIO(gzip.decompress(path.read_bytes())), allow_pickle=False)


def frames(number: int, rows: int) -> np.ndarray:
    return np.random.default_rng(number).integers(1, 256, (rows, 3, 2), np.uint8)


def checkpoint(logs: Path, number: int = 0, ends: tuple[int, ...] = (1, 4), rows: int = 6, **changes: Any) -> Path:
    """Write a checkpoint whose episodes end at these rows; `changes` replace files or, if None, leave them out."""
    logs.mkdir(parents=True, exist_ok=True)
    terminal = np.zeros(rows, np.uint8)
    terminal[list(ends)] = 1
    files = {
        "observation": frames(number, rows),
        "action": np.arange(rows, dtype=np.int32) % 4,
        "reward": np.arange(rows, dtype=np.float32),
        "terminal": terminal,
        "add_count": np.array((number + 1) * rows),
        "invalid_range": np.array([], np.int64),
    }
    for name, values in {**files, **changes}.items():
        prefix = "" if name in ("add_count", "invalid_range") else "$store$_"
        if values is not None:
            save(logs / f"{prefix}{name}_ckpt.{number}.gz", values)
    return logs


@pytest.mark.parametrize("folder", [SAMPLE, SAMPLE / "1", SAMPLE / "1" / "replay_logs"])
def test_the_sample(folder: Path) -> None:
    trajectories = load_trajectories(folder)
    logs = SAMPLE / "1" / "replay_logs"
    assert trajectories.lengths.tolist() == [761, 822]  # 20 more steps are no whole episode
    for column, name in (("observations", "observation"), ("actions", "action"), ("rewards", "reward")):
        np.testing.assert_array_equal(getattr(trajectories, column), load(logs / f"$store$_{name}_ckpt.0.gz")[:1583])
    assert (trajectories.action_type, trajectories.act_dim, trajectories.frame_shape) == ("discrete", 6, (84, 84))
    assert trajectories.returns().tolist() == [-21, -21]
    assert np.flatnonzero(trajectories.terminations).tolist() == [760, 1582]
    assert trajectories.name == ("dqn-replay-Pong" if folder == SAMPLE else "dqn-replay-Pong-1")


def test_whole_episodes_of_every_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path, 0)
    checkpoint(tmp_path, 1, ends=(0, 2, 5))
    trajectories = load_trajectories(tmp_path)
    assert trajectories.lengths.tolist() == [2, 3, 2, 3]
    expected = [frames(0, 6)[:5], frames(1, 6)[1:]]  # what ends in row 0 began in the checkpoint before
    np.testing.assert_array_equal(trajectories.observations, np.concatenate(expected))
    assert trajectories.rewards.tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 4, 5]


def test_padding_before_an_episode_is_left_out(tmp_path: Path) -> None:
    shown = frames(0, 12)
    shown[[0, 1, 2, 6, 7, 8, 9]] = 0  # the fourth one, if it is blank, was played
    checkpoint(tmp_path, ends=(5, 11), rows=12, observation=shown)
    trajectories = load_trajectories(tmp_path)
    assert trajectories.lengths.tolist() == [3, 3]
    assert trajectories.rewards.tolist() == [3, 4, 5, 9, 10, 11]
    np.testing.assert_array_equal(trajectories.observations, shown[[3, 4, 5, 9, 10, 11]])


@pytest.mark.parametrize(
    ("changes", "lengths"),
    [
        ({"invalid_range": np.array([5, 0, 1])}, [3]),
        ({"invalid_range": np.array([3])}, [2, 1]),
        ({"invalid_range": None, "add_count": None}, [2, 3, 1]),
        ({"add_count": np.array(5)}, [2, 3]),
    ],
)
def test_rows_that_the_buffer_calls_invalid(changes: dict[str, Any], lengths: list[int], tmp_path: Path) -> None:
    assert load_trajectories(checkpoint(tmp_path, ends=(1, 4, 5), **changes)).lengths.tolist() == lengths


def test_as_many_transitions_as_wanted_are_drawn_from_all_checkpoints(tmp_path: Path) -> None:
    for number in range(5):
        checkpoint(tmp_path, number, ends=tuple(range(1, 200, 2)), rows=200)
    drawn = load_trajectories(tmp_path, config="100")
    assert drawn.num_steps == 100  # five times ten episodes of two steps
    same = load_trajectories(tmp_path, config="100")
    np.testing.assert_array_equal(same.observations, drawn.observations)
    origins = {number for number in range(5) if (frames(number, 200)[2] == drawn.observations).all((1, 2)).any()}
    assert len(origins) > 1
    assert load_trajectories(tmp_path, config="all").num_steps == 4 * 198 + 200
    assert load_trajectories(tmp_path, split="train[:10]").num_episodes == 10


def test_the_default_is_one_percent_of_a_game() -> None:
    assert dqn_replay.DEFAULT_STEPS == 500_000 == 50 * 1_000_000 // 100


def test_facts_are_in_the_card_of_the_folder(tmp_path: Path) -> None:
    checkpoint(tmp_path / "Pong" / "1" / "replay_logs")
    (tmp_path / "Pong" / "README.md").write_text("---\nenvironment: {id: ALE/Pong-v5, num_actions: 6}\n---\n")
    assert repr(load_trajectories(tmp_path / "Pong")) == (
        "Trajectories('Pong': 2 episodes, 5 steps, frame_shape=(3, 2), num_actions=6, env_id='ALE/Pong-v5')"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": None}, r"the file .*\$store\$_reward_ckpt\.0\.gz is missing; a checkpoint needs it"),
        ({"reward": np.zeros(5)}, "checkpoint 0 has 6 actions, 5 rewards and 6 terminals"),
        ({"terminal": np.full(6, 2)}, "checkpoint 0.*step 0, column 'terminal': expected true or false"),
        ({"terminal": np.zeros(6, np.uint8)}, "holds no whole episode in"),
        ({"action": np.zeros(6)}, r"action_ckpt\.0\.gz holds values of type float64"),
        ({"action": np.zeros((6, 1), int)}, r"action_ckpt\.0\.gz holds shape \(6, 1\); expected one value a step"),
        ({"reward": np.full(6, np.nan)}, "episode 0, step 0, column 'rewards': the value is nan"),
        (
            {"observation": np.zeros((6, 3, 2, 4), np.uint8)},
            r"observation_ckpt\.0\.gz holds uint8 of shape \(6, 3, 2, 4\)",
        ),
        ({"observation": np.zeros((5, 3, 2), np.uint8)}, r"holds uint8 of shape \(5, 3, 2\); expected single frames"),
        ({"action": np.array([None] * 6)}, r"action_ckpt\.0\.gz holds values of type object"),
    ],
)
def test_names_what_is_wrong(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_trajectories(checkpoint(tmp_path, **changes))
    assert "data set " in str(raised.value)


@pytest.mark.parametrize("name", ["observation", "action"])
@pytest.mark.parametrize("damage", ["truncated", "bytes changed", "not gzip at all", "not .npy at all"])
def test_names_the_file_that_cannot_be_read(damage: str, name: str, tmp_path: Path) -> None:
    shutil.copytree(SAMPLE / "1" / "replay_logs", tmp_path / "replay_logs")
    file = tmp_path / "replay_logs" / f"$store$_{name}_ckpt.0.gz"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "bytes changed":
        content[50:150] = bytes(100)
    else:
        content = bytearray(b"<html>404</html>" * 100)
        content = bytearray(gzip.compress(bytes(content))) if damage == "not .npy at all" else content
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"cannot be read: the file .*_{name}_ckpt\.0\.gz is corrupted, truncated or not"
    ):
        load_trajectories(tmp_path)


def header(shape: str, descr: str = "|u1", begin: str = "{") -> bytes:
    """The beginning of a .npy file."""
    text = f"{begin}'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HEADERS = {
    "frames larger than the file": ("observation", header("(6, 1048576, 1048576)"), "but the file can hold at most"),
    "frames that no model reads": ("observation", header("(6, 1, 5000)"), r"holds uint8 of shape \(6, 1, 5000\)"),
    "frames without pixels": ("observation", header("(6, 0, 2)"), r"holds uint8 of shape \(6, 0, 2\); expected"),
    "more rows than memory": ("action", header("(10000000000000,)", "<i4"), "says 40,000,000,000,000 bytes, but"),
    "more rows than an integer": ("action", header(f"({10**30},)", "<i4"), "bytes, but the file can hold at most"),
    "negative rows": ("action", header("(-6,)", "<i4"), "its header is not one that NumPy writes"),
    "a call": ("action", header("__import__('os').system('touch ran')"), "its header is not one that NumPy writes"),
    "a type of many": ("action", header("(6,)", "f8,(9,9)f8"), "its header is not one that NumPy writes"),
    "brackets": ("action", header("(6,)", begin="(" * 3000), "its header is not one that NumPy writes"),
    "a long header": ("action", header("(6,)", begin=" " * 60_000 + "{"), "its header is not one that NumPy writes"),
}


@pytest.mark.parametrize(("name", "content", "message"), HEADERS.values(), ids=HEADERS)
def test_headers_are_not_believed(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / f"$store$_{name}_ckpt.0.gz").write_bytes(gzip.compress(content + bytes(100)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"{name}_ckpt\.0\.gz .*{message}"):
        load_trajectories(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert not Path("ran").exists()


def test_a_column_that_is_nothing_but_zeros_packed_well_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, terminal=np.zeros(5_000_000, np.uint8))
    with pytest.raises(ValueError, match=r"terminal_ckpt\.0\.gz holds shape \(5000000,\); expected at most 4,194,304"):
        load_trajectories(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_count": np.array([1, 2])}, r"add_count_ckpt\.0\.gz holds shape \(2,\); expected one number of rows"),
        ({"add_count": np.array(-5)}, r"add_count_ckpt\.0\.gz holds shape \(\); expected one number of rows"),
        (
            {"action": np.full(6, 2**31 - 1, np.int32)},
            "the action is 2147483647, but discrete actions are",
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_trajectories(checkpoint(tmp_path, **changes))


def test_many_invalid_rows_take_no_time(tmp_path: Path) -> None:
    invalid = np.concatenate([np.full(1_000_000, 3.0), [np.nan, np.inf]])
    trajectories = load_trajectories(checkpoint(tmp_path, ends=(1, 4, 5), invalid_range=invalid))
    assert trajectories.lengths.tolist() == [2, 1]


@pytest.mark.parametrize(
    "options", [{"config": "many"}, {"config": "0"}, {"revision": "main"}, {"columns": {"a": "b"}}]
)
def test_refuses_options_that_mean_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"is no number of transitions of a DQN replay; give one|has no meaning for the"
    ):
        load_trajectories(SAMPLE, **options)
