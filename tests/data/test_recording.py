"""Recording: episodes become rows in groups of bounded size, and their statistics are those of all steps together."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_decision_mamba.data import load_trajectories, recording
from hf_decision_mamba.data.recording import Episode, EpisodeBuilder, EpisodeStatistics, EpisodeWriter


def episode(steps: int, seed: int = 0, terminated: bool = True, offset: float = 0.0) -> Episode:
    generator, builder = np.random.default_rng(seed), EpisodeBuilder(seed)
    for _ in range(steps):
        builder.add(
            generator.normal(offset, size=3), np.float32(generator.uniform(-1, 1, 2)), float(generator.normal())
        )
    return builder.finish(terminated)


def test_what_is_written_is_what_is_loaded(tmp_path):
    episodes = [episode(steps, seed, terminated=steps != 2) for seed, steps in enumerate((3, 1, 2))]
    with EpisodeWriter(tmp_path / "data" / "file.parquet") as writer:
        for one in episodes:
            writer.add(one)
    loaded = load_trajectories(tmp_path / "data" / "file.parquet")
    assert loaded.step_offsets().tolist() == [0, 3, 4, 6]
    np.testing.assert_array_equal(loaded.observations, np.concatenate([one.observations for one in episodes]))
    np.testing.assert_array_equal(loaded.actions, np.concatenate([one.actions for one in episodes]))
    np.testing.assert_array_equal(loaded.rewards, np.concatenate([one.rewards for one in episodes]))
    assert loaded.terminations.tolist() == [False, False, True, True, False, False]
    assert loaded.truncations.tolist() == [False] * 5 + [True]
    assert loaded.returns().tolist() == [one.total for one in episodes]
    assert pq.read_table(tmp_path / "data" / "file.parquet")["seed"].to_pylist() == [0, 1, 2]


def test_memory_holds_one_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "ROW_GROUP_BYTES", 1000)
    with EpisodeWriter(tmp_path / "file.parquet") as writer:
        for seed in range(40):
            writer.add(episode(10, seed))
            assert len(writer.waiting) <= 1000 // (10 * (3 + 2) * 4)
    groups = pq.ParquetFile(tmp_path / "file.parquet")
    assert groups.metadata.num_rows == 40 and groups.num_row_groups == 8


def test_an_error_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "ROW_GROUP_BYTES", 1)
    with pytest.raises(RuntimeError, match="in the middle"), EpisodeWriter(tmp_path / "file.parquet") as writer:
        writer.add(episode(2))
        raise RuntimeError("in the middle")
    assert list(Path(tmp_path).iterdir()) == []


def test_a_full_disk_leaves_no_file_and_is_named(tmp_path, no_room):
    place = tmp_path / "data" / "file.parquet"
    with no_room(1000), pytest.raises(OSError, match=r"data/file\.parquet"), EpisodeWriter(place) as writer:
        for seed in range(40):
            writer.add(episode(100, seed))
    assert list(tmp_path.iterdir()) == []


def test_statistics_are_those_of_all_steps_together():
    episodes = [episode(steps, steps, offset=1e6, terminated=steps > 2) for steps in (1, 7, 2, 30)]
    statistics = EpisodeStatistics()
    for one in episodes:
        statistics.add(one)
    found, seen = statistics.to_dict(), np.concatenate([one.observations for one in episodes]).astype(np.float64)
    assert (found["episodes"], found["transitions"], found["terminated"], found["truncated"]) == (4, 40, 2, 2)
    for name, expected in (("mean", seen.mean(0)), ("std", seen.std(0)), ("low", seen.min(0)), ("high", seen.max(0))):
        np.testing.assert_allclose([row[name] for row in found["observations"]], expected, rtol=1e-9)
    assert found["lengths"]["median"] == 4.5 and found["action_counts"] is None
    assert found["returns"]["max"] == max(one.total for one in episodes)


@pytest.mark.parametrize(
    ("observation", "action", "reward", "message"),
    [
        ([np.inf], [0.0], 0.0, r"The observation is \[inf\] at step 1 of the episode with seed 7"),
        ([1e300], [0.0], 0.0, r"The observation is \[inf\] at step 1"),
        ([0.0], [np.nan], 0.0, r"The action is \[nan\] at step 1"),
        ([0.0], [0.0], np.nan, "The reward is nan at step 1"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(observation, action, reward, message):
    builder = EpisodeBuilder(seed=7)
    builder.add([0.0], [0.0], 0.0)
    builder.add(observation, action, reward)
    with pytest.raises(ValueError, match=message):
        builder.finish(terminated=True)
