"""A stream gives each episode once a pass, to one of its readers; its windows are those of whole episodes."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from hf_decision_mamba.data import (
    EpisodeStream,
    Trajectories,
    WindowDataset,
    WindowStream,
    load_trajectories,
    open_stream,
    streaming,
)
from hf_decision_mamba.data.goals import GoalsFrom

FILES, EPISODES = 4, 10
HERE = Path(__file__).parent


def write(folder: Path, files: int = FILES, episodes: int = EPISODES, **columns: Any) -> Path:
    """Files of episodes of two to six steps; a state is (number of the episode, step), every reward the number + 1."""
    folder.mkdir(exist_ok=True)
    for file in range(files):
        numbers = [file * episodes + number for number in range(episodes)]
        lengths = [2 + number % 5 for number in numbers]
        both = list(zip(numbers, lengths, strict=True))
        table = {
            "observations": [[[float(number), float(step)] for step in range(length)] for number, length in both],
            "actions": [[[0.5]] * length for length in lengths],
            "rewards": [[number + 1.0] * length for number, length in both],
            "dones": [[False] * (length - 1) + [True] for length in lengths],
            **columns,
        }
        pq.write_table(pa.table(table), folder / f"train-{file:05}.parquet", row_group_size=4)
    return folder


def as_steps(folder: Path) -> Path:
    """The same files with a row a step, as LeRobot has them; row groups end inside of episodes."""
    for path in folder.glob("*.parquet"):
        episodes, first = pq.read_table(path).to_pylist(), 10 * int(path.stem[-5:])
        columns = {"observation.state": "observations", "action": "actions", "next.reward": "rewards"}
        steps = [
            {"episode_index": first + number, "frame_index": step, "next.done": done}
            | {theirs: episode[ours][step] for theirs, ours in columns.items()}
            for number, episode in enumerate(episodes)
            for step, done in enumerate(episode["dones"])
        ]
        pq.write_table(pa.Table.from_pylist(steps), path, row_group_size=13)
    return folder


@pytest.fixture(params=["a row an episode", "a row a step"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(streaming, "STEPS_AT_ONCE", 32)  # like eight episodes
    written = write(tmp_path / "episodes")
    return as_steps(written) if request.param == "a row a step" else written


@pytest.fixture
def stream(folder: Path) -> EpisodeStream:
    return open_stream(str(folder))


def numbers_of(found: Trajectories) -> list[int]:
    return found.observations[found.starts, 0].astype(int).tolist()


@pytest.mark.parametrize("parts", [1, 2, FILES, FILES + 1, 7])
def test_each_episode_has_one_reader_in_a_pass(stream: EpisodeStream, parts: int) -> None:
    order = np.array([2, 0, 3, 1])
    read = [[piece for piece in stream.shard(order, part, parts)] for part in range(parts)]
    assert sorted(number for pieces in read for piece in pieces for number in numbers_of(piece)) == list(range(40))
    assert all(pieces for pieces in read)


def test_episodes_are_those_of_the_loaded_data_set(folder: Path, stream: EpisodeStream) -> None:
    whole, rows = load_trajectories(folder), 0
    for file in stream.files:
        for piece in stream.episodes(file):
            np.testing.assert_array_equal(piece.observations, whole.observations[rows : rows + piece.num_steps])
            np.testing.assert_array_equal(piece.returns_to_go, whole.returns_to_go[rows : rows + piece.num_steps])
            np.testing.assert_array_equal(piece.terminations, whole.terminations[rows : rows + piece.num_steps])
            rows += piece.num_steps
    assert rows == whole.num_steps


def test_a_sample_is_from_many_files_and_what_is_held_out_is_in_no_stream(stream: EpisodeStream) -> None:
    rest, train, held_out = stream.sample(steps=40, held_out_fraction=0.2)
    assert held_out is not None
    assert len({number // EPISODES for number in numbers_of(train)}) == FILES
    assert {number // EPISODES for number in numbers_of(held_out)} == set(range(FILES))
    assert train.num_steps + held_out.num_steps < load_steps(stream)
    streamed = [number for piece in rest.shard(np.arange(FILES), 0, 1) for number in numbers_of(piece)]
    assert sorted(streamed + numbers_of(held_out)) == list(range(40))
    assert set(numbers_of(train)) <= set(streamed)
    assert stream.sample(40, 0.0)[2] is None


def load_steps(stream: EpisodeStream) -> int:
    return sum(piece.num_steps for file in stream.files for piece in stream.episodes(file))


def windows_of(stream: EpisodeStream, **options: Any) -> WindowStream:
    return WindowStream(stream, 3, **{"batch_size": 8, "buffer_steps": 50, "seed": 5, **options})


def test_windows_are_cut_from_whole_episodes(stream: EpisodeStream) -> None:
    for batch in islice(windows_of(stream, return_scale=10.0), 40):
        real = batch["attention_mask"].bool()
        numbers, steps = batch["states"][..., 0][real], batch["states"][..., 1][real]
        left = 2 + numbers % 5 - steps
        torch.testing.assert_close(batch["returns_to_go"][..., 0][real], (numbers + 1) * left / 10)
        assert torch.equal(batch["timesteps"][real], steps.long())
        assert batch["states"].shape == (8, 3, 2)


def test_transitions_begin_as_many_windows(stream: EpisodeStream) -> None:
    """In the long run: the files' order and the buffer bring every episode in again and again."""
    begun: Counter[int] = Counter()
    for batch in islice(windows_of(stream), 3000):
        begun.update(batch["states"][:, 0, 0].int().tolist())
    expected = np.array([2 + number % 5 for number in range(40)])
    drawn = np.array([begun[number] for number in range(40)])
    share = drawn / drawn.sum() / (expected / expected.sum())
    assert share.min() > 0.8 and share.max() < 1.2


def test_a_stream_that_is_read_again_is_the_same(stream: EpisodeStream) -> None:
    first, again = (list(islice(windows_of(stream), 50)) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a)
    other = next(iter(windows_of(stream, seed=6)))
    assert not torch.equal(first[0]["states"], other["states"])


def test_the_buffer_is_bounded(stream: EpisodeStream, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def spied(trajectories: Trajectories, *args: Any, **kwargs: Any) -> WindowDataset:
        sizes.append(trajectories.num_steps)
        return WindowDataset(trajectories, *args, **kwargs)

    monkeypatch.setattr(streaming, "WindowDataset", spied)
    monkeypatch.setattr(streaming, "EPISODES_AT_ONCE", 2)
    monkeypatch.setattr(streaming, "STEPS_AT_ONCE", 6)
    list(islice(windows_of(stream, buffer_steps=64), 500))
    longest_piece = 2 * 6
    assert max(sizes) <= 64 + longest_piece
    assert min(sizes[1:]) > 64 - 3 * longest_piece


def test_workers_and_processes_read_different_episodes(stream: EpisodeStream) -> None:
    seen = []
    for rank in range(2):
        windows = windows_of(stream, rank=rank, world_size=2, buffer_steps=1000)
        batches = islice(DataLoader(windows, batch_size=None, num_workers=2), 8)
        numbers = [set(batch["states"][:, 0, 0].int().tolist()) for batch in batches]
        seen += [set.union(*numbers[::2]), set.union(*numbers[1::2])]
    files = [{number // EPISODES for number in numbers} for numbers in seen]
    assert sorted(file for some in files for file in some) == list(range(FILES))  # in the first pass, a file each


def test_frames_and_discrete_actions(tmp_path: Path) -> None:
    stream, train, held_out = open_stream(str(HERE / "breakout-tiny.parquet")).sample(500, 0.2)
    whole = load_trajectories(HERE / "breakout-tiny.parquet")
    assert held_out is not None
    assert (train.frame_shape, train.act_dim, train.env_id) == ((84, 84), whole.act_dim, whole.env_id)
    np.testing.assert_array_equal(held_out.observations, whole.observations[: held_out.num_steps])
    batch = next(iter(windows_of(stream)))
    assert batch["states"].shape == (8, 3, 4, 84, 84) and batch["actions"].dtype == torch.int64


def test_the_samples_of_a_robot(caplog: pytest.LogCaptureFixture) -> None:
    _, train, held_out = open_stream(str(HERE / "samples" / "lerobot")).sample(1000, 0.2)
    whole = load_trajectories(HERE / "samples" / "lerobot")
    caplog.clear()
    assert held_out is not None and train.num_steps + held_out.num_steps == whole.num_steps
    np.testing.assert_array_equal(held_out.returns_to_go, whole.returns_to_go[: held_out.num_steps])


@pytest.mark.parametrize("kept", ["names", "categories", "lists of one"])
def test_episodes_may_have_names(kept: str, tmp_path: Path) -> None:
    folder = as_steps(write(tmp_path / "steps", files=1))
    whole, path = load_trajectories(folder), folder / "train-00000.parquet"
    table = pq.read_table(path)
    numbers = table.column("episode_index").to_pylist()
    names = pa.array([f"run {number}" for number in numbers])
    changed: dict[str, pa.Array] = {
        "names": names,
        "categories": names.dictionary_encode(),
        "lists of one": pa.array([[number] for number in numbers]),
    }
    place = table.column_names.index("episode_index")
    pq.write_table(table.set_column(place, "episode_index", changed[kept]), path, row_group_size=13)
    stream = open_stream(str(folder))
    found = [piece for piece in stream.episodes(stream.files[0])]
    np.testing.assert_array_equal(np.concatenate([piece.observations for piece in found]), whole.observations)
    assert [length for piece in found for length in piece.lengths] == whole.lengths.tolist()


def test_an_observation_that_no_action_follows_is_left_out_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longer = [[[0.0, 1.0]] * (2 + number % 5 + number % 2) for number in range(EPISODES)]
    stream = open_stream(str(write(tmp_path / "longer", files=1, observations=longer)))
    lengths = [length for piece in stream.episodes(stream.files[0]) for length in piece.lengths]
    assert lengths == [2 + number % 5 for number in range(EPISODES)]
    assert not caplog.text


@pytest.mark.parametrize("form", ["whole numbers", "one-hot"])
def test_what_actions_are_is_asked_once_and_holds_for_the_whole_stream(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "EPISODES_AT_ONCE", 2)
    actions = [[[float(number == 9)] if form == "whole numbers" else [0, 1]] * (2 + number % 5) for number in range(10)]
    if form == "whole numbers":
        actions[9][0] = [0.5]  # which the first episodes do not tell
    folder = write(tmp_path / "made", actions=actions)
    known, train, _ = open_stream(str(folder)).sample(8, 0)
    assert train.action_type == "continuous"
    assert caplog.text.count("--action_type discrete") == 1
    assert all(piece.action_type == "continuous" for piece in known.shard(np.arange(FILES), 0, 1))
    assert caplog.text.count("--action_type discrete") == 1
    if form == "one-hot":
        known, train, _ = open_stream(str(folder), action_type="discrete").sample(8, 0)
        assert (train.action_type, train.act_dim) == ("discrete", 2)
        assert {int(action) for piece in known.episodes(known.files[0]) for action in piece.actions} == {1}


def test_columns_are_mapped(tmp_path: Path) -> None:
    folder = write(tmp_path / "named", score=[[1.0] * (2 + number % 5) for number in range(EPISODES)], files=1)
    stream = open_stream(str(folder), columns={"rewards": "score"})
    assert {float(reward) for piece in stream.episodes(stream.files[0]) for reward in piece.rewards} == {1.0}


def test_several_sources_are_one_stream(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", files=1), write(tmp_path / "two", files=2)
    (one / "train-00000.json").write_text('{"env_id": "Hopper-v5"}')
    stream = open_stream([one, str(two / "*.parquet")])
    assert [Path(file).parent.name for file in stream.files] == ["one", "two", "two"]
    assert (stream.name, stream.metadata.env_id) == ("one + train-00000 + train-00001", "Hopper-v5")
    (two / "train-00000.json").write_text('{"env_id": "Walker2d-v5"}')
    with pytest.raises(ValueError, match=r"one/train-00000.json says env_id='Hopper-v5', and .* says 'Walker2d-v5'"):
        open_stream([one, two])


def test_refuses_what_cannot_be_streamed(tmp_path: Path, folder: Path, stream: EpisodeStream) -> None:
    with pytest.raises(TypeError, match="a stream comes from paths or repositories of the Hub, not from dict"):
        open_stream({"observations": []})  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no data set to stream at 'minari:hopper/sample-v0'"):
        open_stream("minari:hopper/sample-v0")
    with pytest.raises(ValueError, match=r"cannot be streamed: only parquet files can.*d4rl.hdf5"):
        open_stream(str(HERE / "samples" / "d4rl.hdf5"))
    with pytest.raises(ValueError, match=r"has no split 'train\[:10%\]' to stream; it has train"):
        open_stream(str(folder), split="train[:10%]")
    with pytest.raises(ValueError, match="has fewer episodes to stream than the 100 processes and workers"):
        next(iter(windows_of(stream, rank=99, world_size=100)))
    with pytest.raises(ValueError, match="has too few episodes at the beginning of its files"):
        open_stream(str(write(tmp_path / "one", files=1, episodes=1))).sample(10, 0.5)


def test_a_fault_is_named_with_its_file(tmp_path: Path, folder: Path, stream: EpisodeStream) -> None:
    bad = [[1.0] * (2 + number % 5) for number in range(EPISODES)]
    bad[9][1] = float("nan")
    wrong = open_stream(str(write(tmp_path / "wrong", rewards=bad)))
    expected = r"train-0000\d.parquet from episode 8', episode 1, step 1, column 'rewards': the value is nan"
    with pytest.raises(ValueError, match=expected):
        list(islice(windows_of(wrong), 9))
    file = Path(stream.files[1])
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"the file {file} is corrupted, truncated"):
        list(islice(windows_of(stream), 99))


def test_a_stream_may_be_without_rewards(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        reward = next(name for name in table.column_names if "reward" in name)
        pq.write_table(table.drop_columns(reward), path, row_group_size=4)
    with caplog.at_level("WARNING"):
        stream, train, held_out = open_stream(str(folder)).sample(60, 0.1)
    assert held_out is not None and not train.has_rewards and not held_out.has_rewards
    assert caplog.text.count("no rewards: conditioning=none; give --rewards_from COLUMN (such as next.success") == 1
    seen = [next(iter(WindowStream(one, 4, batch_size=8, buffer_steps=50))) for one in (stream, stream)]
    assert "returns_to_go" not in seen[0] and all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    made = open_stream(str(folder), rewards_from="dones")
    assert made.columns == {"rewards": "dones"}
    returns = np.concatenate([piece.returns() for piece in made.episodes(made.files[0])])
    assert returns.tolist() == [1.0] * EPISODES


def test_goals_of_a_stream_are_drawn_alike_every_time(folder: Path) -> None:
    stream = replace(open_stream(str(folder)), goals=GoalsFrom(None, [0]))
    whole = next(iter(WindowStream(stream, 4, batch_size=8, buffer_steps=50)))
    first, again = (next(iter(WindowStream(stream, 4, batch_size=8, buffer_steps=50, goals="uniform"))) for _ in "ab")
    assert torch.equal(first["goals"], again["goals"]) and first["goals"].shape == (8, 4, 1)
    assert "goals" not in whole and len(first["goals"].unique()) > 2
