"""Goals are achieved later in the episode of a window, drawn the same everywhere, and taken out of observations."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from factories import reaching
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader

from hf_decision_mamba.data import SequenceDataset, Trajectories, WindowDataset, WindowSampler, load_trajectories
from hf_decision_mamba.data.goals import DISCOUNT, DRAWS, GoalsFrom, drawn_steps, shares

some_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=6)
HINDSIGHT = ["last", "uniform", "geometric"]


def make(lengths: list[int], recorded: bool = True) -> Trajectories:
    """Episodes whose achieved goals say the episode and the step, and whose recorded ones are the negative of that."""
    places = [(episode, step) for episode, length in enumerate(lengths) for step in range(length)]
    achieved = np.array(places, np.float32)
    return Trajectories(
        observations=np.zeros((len(places), 3), np.float32),
        actions=np.zeros((len(places), 1), np.float32),
        rewards=None,
        terminations=np.zeros(len(places), bool),
        truncations=np.zeros(len(places), bool),
        starts=np.cumsum([0, *lengths])[:-1],
        lengths=np.array(lengths),
        goals=-achieved if recorded else None,
        achieved_goals=achieved,
    )


@given(
    some_lengths,
    st.integers(1, 6),
    st.sampled_from(HINDSIGHT),
    st.integers(1, 4),
    st.sampled_from(["anywhere", "full"]),
    st.integers(0, 99),
)
def test_a_goal_is_achieved_in_the_rest_of_the_windows_own_episode(lengths, context, goals, stride, placement, seed):
    windows = WindowDataset(make(lengths), context, goals=goals, stride=stride, placement=placement)
    items = np.random.default_rng(seed).integers(windows.num_items, size=20)
    batch = windows.__getitems__(items)
    plain = WindowDataset(make(lengths), context, stride=stride, placement=placement).__getitems__(items % len(windows))
    assert batch.keys() - plain.keys() == {"goals"} and "goals" not in plain
    assert all(torch.equal(batch[name], values) for name, values in plain.items())
    offsets = np.cumsum([0, *lengths])
    for row, mask in enumerate(batch["attention_mask"].bool()):
        own = batch["goals"][row][mask]
        assert (batch["goals"][row][~mask] == 0).all()
        assert (own == own[0]).all(), "one goal for the whole window"
        episode, step = own[0].int().tolist()
        begin = items[row] % len(windows)
        firsts = np.concatenate([[0], np.cumsum(-(-np.diff(offsets) // stride))])
        assert episode == np.searchsorted(firsts, begin, side="right") - 1
        last = int(batch["timesteps"][row][mask].max())
        assert last <= step < lengths[episode]
        if goals == "last":
            assert step == lengths[episode] - 1


@given(some_lengths, st.integers(1, 6))
def test_recorded_goals_are_those_of_each_step(lengths, context):
    trajectories = make(lengths)
    batch = WindowDataset(trajectories, context, goals="recorded").__getitems__(np.arange(sum(lengths)))
    for start, row in enumerate(batch["goals"]):
        real = int(batch["attention_mask"][start].sum())
        np.testing.assert_array_equal(row[:real], trajectories.goals[start : start + real])
        assert (row[real:] == 0).all()


@pytest.mark.parametrize("left", [1, 2, 40])
def test_draws_have_the_distribution_that_they_are_named_after(left):
    share = (np.arange(200_000) + 0.5) / 200_000
    first = np.full(len(share), 7)
    weights = {"uniform": np.ones(left), "geometric": DISCOUNT ** np.arange(left), "last": np.arange(left) == left - 1}
    for goals, weight in weights.items():
        steps = drawn_steps(goals, first, first + left, share)
        np.testing.assert_allclose(
            np.bincount(steps - 7, minlength=left) / len(share), weight / weight.sum(), atol=2e-5
        )


def test_shares_are_even_over_draws_and_over_windows():
    for windows, draws in ((np.full(5000, 123_456), np.arange(5000) * (DRAWS // 5000)), (np.arange(5000),) * 2):
        found = np.sort(shares(windows, draws))
        assert found[0] >= 0 and found[-1] < 1
        assert np.abs(found - np.arange(5000) / 5000).max() < 0.01
    assert (shares(np.array([2**40]), np.array([DRAWS - 1])) < 1).all()


def batches_of(windows: WindowDataset, skip: int = 0, **loading) -> list[torch.Tensor]:
    sampler = WindowSampler(windows.num_items, seed=3, epoch=2, num_samples=60)
    loader = DataLoader(windows, batch_size=5, sampler=sampler, collate_fn=lambda batch: batch, **loading)
    return [batch["goals"] for batch in (skip_first_batches(loader, skip) if skip else loader)]


@pytest.mark.parametrize("goals", ["uniform", "geometric"])
def test_goals_are_drawn_alike_by_workers_processes_and_resumed_runs(goals):
    windows = WindowDataset(make([9, 30, 4]), 3, goals=goals)
    whole = batches_of(windows)
    assert len({tuple(goal) for batch in whole for goal in batch[:, 0].tolist()}) > 20
    assert all(map(torch.equal, whole, batches_of(windows, num_workers=2, multiprocessing_context="fork")))
    assert all(map(torch.equal, whole[5:], batches_of(windows, skip=5)))
    sampler = WindowSampler(windows.num_items, seed=3, epoch=2, num_samples=60)
    for process in range(2):
        shard = BatchSamplerShard(BatchSampler(sampler, 5, drop_last=False), num_processes=2, process_index=process)
        own = [windows.__getitems__(items)["goals"] for items in shard]
        assert len(own) == 6 and all(map(torch.equal, own, whole[process::2]))
    other = WindowSampler(windows.num_items, seed=3, epoch=3, num_samples=60)
    assert [*other] != [*sampler]


def test_the_windows_of_a_run_are_those_of_a_run_without_goals():
    plain, asked = WindowDataset(make([9, 30, 4]), 3), WindowDataset(make([9, 30, 4]), 3, goals="uniform")
    drawn = np.array([*WindowSampler(asked.num_items, seed=1, num_samples=100)])
    assert (drawn % len(asked)).tolist() == [*WindowSampler(plain.num_items, seed=1, num_samples=100)]
    assert len(plain) == len(asked) == plain.num_items


def test_goals_exclude_windows_drawn_by_return():
    with pytest.raises(ValueError, match=r"of '.*' windows are trained towards last goals; leave it out"):
        WindowDataset(make([9, 30, 4]), 3, goals="last", return_temperature=0.1)


def test_held_out_goals_are_always_the_same_and_at_all_distances():
    trajectories = make([200] * 10)
    found = [WindowDataset.covering(trajectories, 5, goals="uniform") for _ in range(2)]
    first, second = (windows.__getitems__(np.arange(len(windows)))["goals"] for windows in found)
    assert torch.equal(first, second)
    ahead = (first[:, 0, 1].numpy() - np.tile(np.arange(4, 200, 5), 10)) / np.tile(np.arange(196, 0, -5), 10)
    assert abs(ahead.mean() - 0.5) < 0.03 and ahead.min() < 0.02 and ahead.max() > 0.9


def test_goals_are_normalised():
    trajectories = make([5, 7])
    statistics = trajectories.statistics()
    np.testing.assert_allclose(statistics.goal_mean, trajectories.achieved_goals.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(statistics.goal_std, trajectories.achieved_goals.std(axis=0), rtol=1e-6)
    scaling = {"goal_mean": [1.0, 2.0], "goal_std": [2.0, 4.0]}
    plain, scaled = (WindowDataset(trajectories, 1, goals="last", **kwargs) for kwargs in ({}, scaling))
    (raw, seen) = (windows.__getitems__([3])["goals"][0, 0].tolist() for windows in (plain, scaled))
    assert seen == [(raw[0] - 1) / 2, (raw[1] - 2) / 4]
    only_recorded = replace(trajectories, achieved_goals=None).statistics()
    np.testing.assert_allclose(only_recorded.goal_mean, -statistics.goal_mean)


def test_chunks_of_an_episode_have_one_goal():
    trajectories = make([10, 3])
    chunks = SequenceDataset(trajectories, 4, goals="last")
    assert chunks.__getitems__([0, 1, 2, 3])["goals"][:, 0].tolist() == [[0, 9]] * 3 + [[1, 2]]
    with pytest.raises(ValueError, match=r"another goal for each chunk .* take goals='last' or 'recorded'"):
        SequenceDataset(trajectories, 4, goals="uniform")


def observed(parts=None, **columns) -> Trajectories:
    return Trajectories(
        observations=np.arange(12, dtype=np.float32).reshape(2, 6),
        actions=np.zeros((2, 1), np.float32),
        rewards=None,
        terminations=np.zeros(2, bool),
        truncations=np.zeros(2, bool),
        starts=np.array([0]),
        lengths=np.array([2]),
        observation_parts=parts,
        **columns,
    )


def part(name: str, size: int) -> dict:
    return {"path": [name], "shape": [size], "size": size}


OF_GYMNASIUM = [part("achieved_goal", 2), part("desired_goal", 2), part("observation", 2)]


def test_numbers_of_the_observation_are_goals():
    found = GoalsFrom([4, 5], [0, 1]).of(observed())
    assert found.observations.tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]  # the position stays, the goal does not
    assert (found.goals.tolist(), found.achieved_goals.tolist()) == ([[4, 5], [10, 11]], [[0, 1], [6, 7]])
    assert (found.goal_dim, found.state_dim) == (2, 4) and "goal_dim=2" in repr(found)


def test_parts_of_gymnasium_are_goals():
    found = GoalsFrom().of(observed(OF_GYMNASIUM))
    assert (found.goals.tolist(), found.achieved_goals.tolist()) == ([[2, 3], [8, 9]], [[0, 1], [6, 7]])
    assert (found.observations.tolist(), found.observation_parts) == ([[4, 5], [10, 11]], OF_GYMNASIUM[2:])
    untouched = observed([part("a", 6)])
    assert GoalsFrom().of(untouched) is untouched


def test_a_goal_may_be_a_whole_observation():
    plain = observed()
    found = GoalsFrom(None, "observations").of(plain)
    assert found.achieved_goals is found.observations is plain.observations and found.goals is None
    found = GoalsFrom([4, 5, 1], "observations").of(observed())
    assert found.achieved_goals.tolist() == found.observations.tolist() == [[0, 2, 3], [6, 8, 9]]
    found = GoalsFrom(None, "observations").of(observed([part("desired_goal", 3), part("observation", 3)]))
    assert (found.goals.tolist(), found.achieved_goals.tolist()) == ([[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10, 11]])
    with pytest.raises(ValueError, match=r"achieved_goals_from='position' .* 'observations' for all of them"):
        GoalsFrom(None, "position")


@pytest.mark.parametrize(
    ("goals_from", "trajectories", "message"),
    [
        (GoalsFrom([6]), observed(), r"goals_from=\[6\] .* numbers of its observations, 0 to 5"),
        (GoalsFrom([1, 1]), observed(), r"goals_from=\[1, 1\] .* must be different numbers"),
        (GoalsFrom(None, [-1]), observed(), r"achieved_goals_from=\[-1\] \(--achieved_goals_from\) must be"),
        (GoalsFrom([0]), observed(goals=np.zeros((2, 1), np.float32)), "it has a column of goals already"),
        (GoalsFrom(None, "observations"), observed(achieved_goals=np.zeros((2, 1), np.float32)), "has a column of ach"),
        (GoalsFrom([0, 1, 2, 3, 4, 5]), observed(), "all 6 numbers of its observations would be goals"),
        (GoalsFrom([4], [0]), observed([part("a", 6)]), "takes some numbers of the part 'a' of its observations"),
        (GoalsFrom([4], [0, 1]), observed(), "goals of 1 numbers, and achieved goals of 2"),
    ],
)
def test_what_cannot_be_goals_is_refused(goals_from, trajectories, message):
    with pytest.raises(ValueError, match=message):
        goals_from.of(trajectories)


@pytest.mark.parametrize(
    ("goals", "message"),
    [
        ("uniform", r"has no achieved_goals, which goals='uniform' needs: .* achieved_goals_from=\[0, 1\]"),
        (
            "recorded",
            r"has no goals, which goals='recorded' needs: no column goals or desired_goal, .*--goals_from 0 1",
        ),
        ("nearest", "goals must be one of recorded, last, uniform, geometric, got 'nearest'"),
    ],
)
def test_goals_that_are_not_there_are_refused(goals, message):
    with pytest.raises(ValueError, match=message):
        WindowDataset(observed(), 2, goals=goals)


def test_without_a_choice_goals_are_drawn_uniformly_or_recorded():
    zeros = np.zeros((2, 1), np.float32)
    assert WindowDataset(observed(achieved_goals=zeros), 2, goal_mean=[0.0]).goals == "uniform"
    assert WindowDataset(observed(goals=zeros), 2, goal_mean=[0.0]).goals == "recorded"
    assert WindowDataset(observed(goals=zeros), 2).goals is None


def test_rollouts_in_an_environment_of_goals_load_as_gymnasium_flattens_them():
    episodes = reaching(3)
    whole = load_trajectories(episodes)
    assert [part["path"] for part in whole.observation_parts] == [["achieved_goal"], ["desired_goal"], ["observation"]]
    assert whole.state_dim == 7 and whole.goal_dim is None  # as models see it that are asked for no goal
    found = GoalsFrom().of(whole)
    assert found.lengths.tolist() == [12] * 3
    for column, name in (
        ("observations", "observation"),
        ("goals", "desired_goal"),
        ("achieved_goals", "achieved_goal"),
    ):
        expected = np.concatenate([episode["observations"][name][:-1] for episode in episodes])
        np.testing.assert_array_equal(getattr(found, column), expected.astype(np.float32))
    flat = {
        **{name: np.concatenate([episode[name] for episode in episodes]) for name in ("actions", "truncations")},
        "observations": {
            name: np.concatenate([episode["observations"][name][:-1] for episode in episodes])
            for name in episodes[0]["observations"]
        },
    }
    np.testing.assert_array_equal(load_trajectories(flat).observations, whole.observations)


def test_dicts_that_do_not_fit_each_other_are_refused():
    episodes = reaching(2)
    other = {**episodes[1], "observations": {"observation": episodes[1]["observations"]["observation"]}}
    with pytest.raises(
        ValueError, match=r"episode 1, column 'observations' is a dictionary of observation \(3,\), and"
    ):
        load_trajectories([episodes[0], other])
    with pytest.raises(ValueError, match="episode 1, column 'observations' is no dict of arrays"):
        load_trajectories([episodes[0], {**other, "observations": np.zeros((13, 7))}])
    short = {**episodes[0]["observations"], "desired_goal": np.zeros((3, 2))}
    with pytest.raises(
        ValueError, match=r"the number of steps differs, 3 in column 'desired_goal' and 13 in the others"
    ):
        load_trajectories([{**episodes[0], "observations": short}])


def columns_of_tables(episodes, final: bool) -> dict[str, list]:
    """Columns with a row an episode, of a rollout with or without its last observation."""
    seen = [{name: values[: None if final else -1] for name, values in e["observations"].items()} for e in episodes]
    renamed = {"observations": "observation", "desired_goal": "desired_goal", "achieved_goal": "achieved_goal"}
    return {
        **{column: [episode[name].tolist() for episode in seen] for column, name in renamed.items()},
        **{name: [episode[name].tolist() for episode in episodes] for name in ("actions", "truncations")},
    }


@pytest.mark.parametrize("final", [True, False])
def test_tables_have_goals_as_columns(final, tmp_path):
    episodes = reaching(3)
    expected = GoalsFrom().of(load_trajectories(episodes))
    columns = columns_of_tables(episodes, final)
    pq.write_table(pa.table(columns), tmp_path / "episodes.parquet")
    steps = {name: [*chain(*values)] for name, values in columns_of_tables(episodes, False).items()}
    steps |= {"episode_index": np.repeat(np.arange(3), 12), "observation.state": steps.pop("observations")}
    pq.write_table(pa.table(steps), tmp_path / "steps.parquet")
    renamed = {"goals" if name == "desired_goal" else name: values for name, values in columns.items()}
    arrays = [{name: values[number] for name, values in renamed.items()} for number in range(3)]
    for source in (tmp_path / "episodes.parquet", tmp_path / "episodes.parquet", tmp_path / "steps.parquet", arrays):
        found = load_trajectories(source)  # from the cache the second time
        assert found.lengths.tolist() == [12] * 3 and found.state_dim == 3
        for column in ("observations", "goals", "achieved_goals"):
            np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))
    mapped = load_trajectories(tmp_path / "episodes.parquet", columns={"goals": "achieved_goal"})
    np.testing.assert_array_equal(mapped.goals, expected.achieved_goals)


@pytest.mark.parametrize(
    ("goals", "message"),
    [
        ([[0.5] * 12] * 3, "'desired_goal': expected one row per episode with a list of numbers for each step"),
        ([[[0.5, 1.0]] * 5] * 3, "the number of steps differs, 5 in column 'desired_goal' and 12 in the others"),
        ([[[0.5, np.nan]] * 12] * 3, "episode 0, step 0, column 'goals', dimension 1: the value is nan"),
    ],
)
def test_columns_that_are_no_goals_are_refused(goals, message, tmp_path):
    columns = {**columns_of_tables(reaching(3), False), "desired_goal": goals}
    pq.write_table(pa.table(columns), tmp_path / "episodes.parquet")
    with pytest.raises(ValueError, match=message):
        load_trajectories(tmp_path / "episodes.parquet")
