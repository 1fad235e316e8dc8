"""The flat columns: what is refused, and that returns, statistics and splits are what their definitions say."""

import json
import pickle
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_decision_mamba.data import Trajectories
from hf_decision_mamba.data.trajectories import FORMS, concatenate


def make(lengths: Sequence[int], /, seed: int = 0, **changes: object) -> Trajectories:
    """Random episodes of these lengths, 3 state and 2 action dimensions; `changes` replace columns."""
    random, steps = np.random.default_rng(seed), sum(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    terminations = np.zeros(steps, bool)
    terminations[offsets[1:] - 1] = True
    columns: dict[str, object] = {
        "observations": random.normal(size=(steps, 3)).astype(np.float32),
        "actions": random.normal(size=(steps, 2)).astype(np.float32),
        "rewards": random.normal(size=steps).astype(np.float32),
        "terminations": terminations,
        "truncations": np.zeros(steps, bool),
        "starts": offsets[:-1],
        "lengths": np.diff(offsets),
        "name": "made",
    }
    return Trajectories(**{**columns, **changes})  # type: ignore[arg-type]


def test_dimensions() -> None:
    trajectories = make([4, 1, 2])
    assert (trajectories.num_episodes, trajectories.num_steps) == (3, 7)
    assert (trajectories.state_dim, trajectories.act_dim) == (3, 2)
    assert trajectories.lengths.tolist() == [4, 1, 2]
    assert repr(trajectories) == "Trajectories('made': 3 episodes, 7 steps, state_dim=3, act_dim=2, env_id=None)"


def make_atari(lengths: Sequence[int], /, seed: int = 0, **changes: object) -> Trajectories:
    """Random episodes of these lengths with frames of 3 by 2 pixels and 4 actions."""
    random, steps = np.random.default_rng(seed), sum(lengths)
    columns: dict[str, object] = {
        "observations": random.integers(0, 256, (steps, 3, 2), np.uint8),
        "actions": random.integers(0, 4, steps),
        "num_actions": 4,
    }
    return make(lengths, seed, **{**columns, **changes})


@pytest.mark.parametrize(
    ("rewards", "scale"),
    [
        ([0, 1], 1),
        ([1234.5, 1000], 2200),
        ([-7, -5], 12),
        ([100, -100], 100),  # the return is 0, what is left of it after the first step is not
        ([0.0123, 0.011], 0.023),
        ([0, 0], 1),
        ([1e-42, 0], 1),
    ],
)
def test_the_return_scale_makes_returns_to_go_ones_of_size_one(rewards: list[float], scale: float) -> None:
    statistics = make([2, 1], rewards=np.float32([*rewards, 0])).statistics()
    assert statistics.return_scale == scale
    assert statistics.remark_on_scale(scale) is None


@pytest.mark.parametrize(
    ("scale", "remark"),
    [
        (1000, "return_scale 1000 makes returns-to-go of 0 to 2 ones of 0 to 0.002, too much alike .* 2 fits these d"),
        (200, None),
        (0.02, None),
        (0.01, "return_scale 0.01 makes returns-to-go of 0 to 2 ones of 0 to 200, too large for a model to tell apart"),
    ],
)
def test_a_return_scale_that_hides_the_returns_is_named(scale: float, remark: str | None) -> None:
    found = make([2, 1], rewards=np.float32([1, 1, 0])).statistics().remark_on_scale(scale)
    assert found is None if remark is None else re.search(remark, str(found))


@pytest.mark.parametrize("rewards", [[0, 0], [500, 501]])
def test_a_scale_is_not_to_blame_for_returns_that_are_alike(rewards: list[float]) -> None:
    assert make([1, 1], rewards=np.float32(rewards)).statistics().remark_on_scale(1000) is None


def test_a_selection_has_a_return_scale_of_its_own() -> None:
    whole = make([1, 1, 1], rewards=np.float32([1, 20, 300]))
    assert whole.select(np.array([True, True, False])).statistics().return_scale == 20


def test_rewards_without_a_sum_are_named() -> None:
    trajectories = make([1, 3], rewards=np.float32([1, 1, 2e38, 2e38]))
    for check in (trajectories.check_finite, trajectories.statistics):
        with pytest.raises(ValueError, match="episode 1, step 0, column 'returns_to_go': the value is inf in float32"):
            check()
    make([1, 3], rewards=np.float32([3e38, 1, 2e38, 1e38])).check_finite()


def test_images_and_discrete_actions() -> None:
    trajectories = make_atari([4, 1, 2], actions=np.array([0, 1, 1, 1, 0, 2, 2]))
    assert (trajectories.state_type, trajectories.action_type) == ("image", "discrete")
    assert (trajectories.frame_shape, trajectories.act_dim) == ((3, 2), 4)
    assert repr(trajectories) == (
        "Trajectories('made': 3 episodes, 7 steps, frame_shape=(3, 2), num_actions=4, env_id=None)"
    )
    statistics = trajectories.statistics()
    assert [statistics.state_mean, statistics.state_std, statistics.action_low, statistics.action_high] == [None] * 4
    assert json.loads(json.dumps(statistics.to_dict()))["action_counts"] == [2, 3, 2, 0]
    assert statistics.return_max == trajectories.returns().max()


def test_vectors_and_continuous_actions() -> None:
    trajectories = make([4, 1, 2])
    assert (trajectories.state_type, trajectories.action_type) == ("vector", "continuous")
    assert trajectories.num_actions is None
    assert trajectories.statistics().action_counts is None


def test_without_a_number_of_actions_the_largest_one_taken_is_the_last() -> None:
    assert make([3], actions=np.array([0, 2, 1])).act_dim == 3


def test_parts_of_a_split_know_all_actions() -> None:
    for part in make_atari([2, 1, 3], actions=np.zeros(6, np.int64)).split(0.4, seed=0):
        assert (part.state_type, part.act_dim) == ("image", 4)


def test_dimensions_of_the_other_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="'made' observes images, which have no state_dim; use frame_shape"):
        make_atari([2]).state_dim  # noqa: B018
    with pytest.raises(ValueError, match="'made' observes vectors, which have no frame_shape; use state_dim"):
        make([2]).frame_shape  # noqa: B018


def test_rewards_beside_images_are_checked() -> None:
    trajectories = make_atari([2, 3], rewards=np.array([0, 1, 2, np.nan, 0], np.float32))
    with pytest.raises(ValueError, match="episode 1, step 1, column 'rewards': the value is nan"):
        trajectories.check_finite()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"starts": np.empty(0, int), "lengths": np.empty(0, int)}, "'made' has no episodes"),
        ({"lengths": np.array([3, 0])}, "episode 1 is empty"),
        ({"lengths": np.array([2, 3, 1])}, "2 starts, but 3 lengths; an episode has both"),
        ({"starts": np.array([0.0, 2.0])}, "starts must be a one-dimensional int64"),
        ({"lengths": np.array([[2, 3]])}, "lengths must be a one-dimensional int64"),
        ({"starts": np.array([-1, 2])}, "begin at row -1"),
        ({"lengths": np.array([2, 4])}, "column 'observations' has 5 rows, .* and the episodes .* end at 6"),
        ({"starts": np.array([2, 0]), "lengths": np.array([2, 3])}, "episode 0 begins within episode 1"),
        ({"observations": np.zeros((5, 3))}, "column 'observations': expected a float32 or uint8 array, found float64"),
        ({"observations": np.zeros(5, np.float32)}, r"expected shape \(steps, dimensions\).*found \(5,\)"),
        (
            {"observations": np.zeros((5, 84), np.uint8)},
            r"shape \(steps, height, width\).*uint8 values, found \(5, 84\)",
        ),
        ({"observations": np.zeros((5, 4, 84, 84), np.uint8)}, r"found \(5, 4, 84, 84\)"),
        ({"observations": np.zeros((5, 0), np.float32)}, r"found \(5, 0\)"),
        ({"actions": [[0.0]] * 5}, "column 'actions': expected a float32 or int64 array, found list"),
        ({"actions": np.zeros((5, 1), np.int64)}, r"column 'actions': expected shape \(steps,\) of int64 values"),
        (
            {"actions": np.array([0, 1, 2, -1, 0])},
            "episode 1, step 1, column 'actions': the action is -1, but discrete",
        ),
        (
            {"actions": np.array([0, 1, 2, 1, 4]), "num_actions": 4},
            "episode 1, step 2, column 'actions': the action is 4, but there are num_actions=4; correct it",
        ),
        (
            {"actions": np.array([0, 1, 2, 2**20, 4])},
            "episode 1, step 1, column 'actions': the action is 1048576, but models have at most 1,048,576; correct it",
        ),
        ({"actions": np.arange(5), "num_actions": 10**30}, r"num_actions=1e\+30, but models have at most 1,048,576"),
        ({"num_actions": 4}, "num_actions=4 was given, but its actions are continuous"),
        ({"rewards": np.zeros((5, 1), np.float32)}, r"column 'rewards': expected shape \(steps,\)"),
        ({"terminations": np.zeros(5, np.int64)}, "column 'terminations': expected a bool array"),
        ({"truncations": np.zeros(4, bool)}, "column 'truncations' has 4 rows"),
    ],
)
def test_refuses_columns_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([2, 3], **changes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("column", "place", "dimension"),
    [("observations", (4, 1), ", dimension 1"), ("actions", (4, 0), ", dimension 0"), ("rewards", (4,), "")],
)
def test_names_the_place_of_a_number_that_is_not_finite(
    value: float, column: str, place: tuple[int, ...], dimension: str
) -> None:
    trajectories = make([2, 3])
    getattr(trajectories, column)[place] = value
    expected = f"data set 'made', episode 1, step 2, column '{column}'{dimension}: the value is {value}"
    with pytest.raises(ValueError, match=expected):
        trajectories.check_finite()
    with pytest.raises(ValueError, match=expected):
        trajectories.statistics()


def test_columns_may_be_memory_mapped(tmp_path) -> None:
    trajectories = make([2, 3])
    np.save(tmp_path / "observations.npy", trajectories.observations)
    mapped = make([2, 3], observations=np.load(tmp_path / "observations.npy", mmap_mode="r"))
    assert isinstance(mapped.observations, np.memmap)
    assert mapped.statistics().to_dict() == trajectories.statistics().to_dict()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 99))
def test_returns_are_sums_of_rewards(lengths: list[int], seed: int) -> None:
    trajectories = make(lengths, seed)
    returns, returns_to_go = trajectories.returns(), trajectories.returns_to_go
    for episode, (start, end) in enumerate(
        zip(trajectories.starts, trajectories.starts + trajectories.lengths, strict=True)
    ):
        rewards = trajectories.rewards[start:end].astype(np.float64)
        assert returns[episode] == pytest.approx(rewards.sum(), abs=1e-12)
        for step in range(end - start):
            assert returns_to_go[start + step] == pytest.approx(rewards[step:].sum(), rel=1e-6, abs=1e-6)


def test_returns_to_go_are_summed_in_float64_and_episode_by_episode() -> None:
    # In float32, ten thousand additions of 0.1 to 1e6 would lose most of them; 1e30 before them would lose all.
    rewards = np.full(10_001, 0.1, np.float32)
    rewards[-1] = 1e6
    trajectories = make([1, 10_001], rewards=np.concatenate([[np.float32(1e30)], rewards]))
    assert trajectories.returns_to_go[1] == pytest.approx(1_001_000, rel=1e-7)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 99))
def test_statistics(lengths: list[int], seed: int) -> None:
    trajectories = make(lengths, seed)
    statistics = trajectories.statistics()
    states = trajectories.observations.astype(np.float64)
    constant = states.std(axis=0) < 1e-6
    np.testing.assert_allclose(statistics.state_mean, states.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(statistics.state_std, np.where(constant, 1, states.std(axis=0)), atol=1e-12)
    np.testing.assert_array_equal(statistics.action_low, trajectories.actions.min(axis=0))
    np.testing.assert_array_equal(statistics.action_high, trajectories.actions.max(axis=0))
    assert (statistics.episodes, statistics.transitions) == (len(lengths), sum(lengths))
    assert statistics.return_mean == pytest.approx(trajectories.returns().mean())
    assert statistics.return_std == pytest.approx(trajectories.returns().std())
    assert statistics.return_min <= statistics.return_mean + 1e-9 <= statistics.return_max + 2e-9
    assert (statistics.length_min, statistics.length_max) == (min(lengths), max(lengths))
    assert statistics.length_mean == pytest.approx(np.mean(lengths))
    assert (statistics.terminated, statistics.truncated) == (len(lengths), 0)


def test_statistics_merge_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    trajectories = make([50, 57])
    whole = trajectories.statistics()
    monkeypatch.setattr("hf_decision_mamba.data.trajectories.ROWS_AT_ONCE", 10)
    np.testing.assert_allclose(trajectories.statistics().state_mean, whole.state_mean, atol=1e-14)
    np.testing.assert_allclose(trajectories.statistics().state_std, whole.state_std, atol=1e-14)


def test_statistics_do_not_cancel_far_from_zero() -> None:
    observations = np.full((6, 3), 2.0**20, np.float32)
    observations[::2] += 1
    assert make([6], observations=observations).statistics().state_std == pytest.approx([0.5] * 3, abs=1e-12)


def test_a_constant_dimension_is_not_divided_by_nothing() -> None:
    observations = make([5]).observations
    observations[:, 1] = 0.1
    statistics = make([5], observations=observations).statistics()
    assert statistics.state_std[1] == 1.0
    assert statistics.state_mean[1] == np.float32(0.1)


NORMALIZATIONS = {
    "mean_std": lambda values: (values.mean(axis=0), values.std(axis=0)),
    "min_max": lambda values: ((values.max(axis=0) + values.min(axis=0)) / 2, np.ptp(values, axis=0) / 2),
    "quantile": lambda values: (
        np.percentile(values, [1, 99], axis=0).mean(axis=0),
        np.diff(np.percentile(values, [1, 99], axis=0), axis=0)[0] / 2,
    ),
    "none": lambda values: (np.zeros(values.shape[1]), np.ones(values.shape[1])),
}


@pytest.mark.parametrize("method", NORMALIZATIONS)
@pytest.mark.parametrize("column", ["observations", "actions"])
def test_normalisation_of_the_episodes_in_blocks(method: str, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectories = make([50, 57, 20]).select(np.array([True, False, True]))
    values = np.concatenate([getattr(trajectories, column)[:50], getattr(trajectories, column)[107:]]).astype(float)
    values[:, 1] = getattr(trajectories, column)[:, 1] = 0.5  # constant
    monkeypatch.setattr("hf_decision_mamba.data.trajectories.ROWS_AT_ONCE", 10)
    found = trajectories.normalization(column, method)
    mid, scale = NORMALIZATIONS[method](values)
    scale[1] = 1.0
    np.testing.assert_allclose(found, (mid, scale), atol=1e-12)
    seen = (values - found[0]) / found[1]
    assert method != "min_max" or (np.abs(seen).max(axis=0)[0], seen[0, 1]) == (pytest.approx(1), 0)


def test_percentiles_of_very_much_are_those_of_evenly_spaced_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    trajectories = make([50, 57])
    monkeypatch.setattr("hf_decision_mamba.data.trajectories.ROWS_AT_ONCE", 10)
    monkeypatch.setattr("hf_decision_mamba.data.trajectories.MOST_SORTED", 3 * 36)
    mid, scale = trajectories.normalization("observations", "quantile")
    taken = trajectories.observations[::3].astype(np.float64)
    np.testing.assert_allclose((mid, scale), NORMALIZATIONS["quantile"](taken), atol=1e-12)


def test_statistics_are_ready_for_json() -> None:
    facts = json.loads(json.dumps(make([2, 3]).statistics().to_dict()))
    assert len(facts["state_mean"]) == 3
    assert facts["transitions"] == 5


@pytest.mark.parametrize(("fraction", "held_out"), [(0.25, 5), (0.001, 1), (0.999, 19)])
def test_split_keeps_episodes_whole_and_in_order(fraction: float, held_out: int) -> None:
    lengths = list(range(1, 21))
    trajectories = make(lengths, env_id="Hopper-v5")
    parts = trajectories.split(fraction, seed=3)
    assert [part.num_episodes for part in parts] == [20 - held_out, held_out]
    assert sorted(length for part in parts for length in part.lengths.tolist()) == lengths
    for part in parts:
        assert part.env_id == "Hopper-v5"
        assert part.lengths.tolist() == sorted(part.lengths.tolist())
        for episode, length in enumerate(part.lengths):
            rows = slice(part.starts[episode], part.starts[episode] + length)
            origin = slice(trajectories.starts[length - 1], trajectories.starts[length - 1] + length)
            for column in ("observations", "actions", "rewards", "terminations", "truncations"):
                np.testing.assert_array_equal(getattr(part, column)[rows], getattr(trajectories, column)[origin])


@pytest.mark.parametrize(
    ("fraction", "best"), [(1.0, [0, 1, 2, 3]), (0.9, [1, 2, 3]), (0.7, [1, 3]), (0.3, [1]), (0.01, [1])]
)
def test_the_best_episodes_hold_a_share_of_the_steps(fraction: float, best: list[int]) -> None:
    lengths, returns = [1, 3, 2, 4], [1.0, 9.0, 5.0, 5.5]
    rewards = np.repeat(np.divide(returns, lengths), lengths).astype(np.float32)
    trajectories = make(lengths, rewards=rewards)
    chosen = trajectories.best(fraction)
    assert chosen.lengths.tolist() == [lengths[episode] for episode in best]
    np.testing.assert_allclose(chosen.returns(), [returns[episode] for episode in best], rtol=1e-6)
    equal = make([2, 2, 2], rewards=np.ones(6, np.float32))
    assert equal.best(0.4).select(np.array([True])).starts.tolist() == [0]


@pytest.mark.parametrize("fraction", [0, 1.01, float("nan")])
def test_no_other_share_is_the_best(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must be above 0 and at most 1; got"):
        make([2]).best(fraction)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 99), st.integers(1, 20))
def test_a_selection_is_a_view_that_is_what_a_copy_is(lengths: list[int], seed: int, rows_at_once: int) -> None:
    trajectories = make(lengths, seed)
    chosen = np.random.default_rng(seed).random(len(lengths)) < 0.5
    chosen[seed % len(lengths)] = True
    part = trajectories.select(chosen)
    with pytest.MonkeyPatch.context() as blocks:
        blocks.setattr("hf_decision_mamba.data.trajectories.ROWS_AT_ONCE", rows_at_once)
        copy = part.compact()
        assert part.statistics().to_dict() == copy.statistics().to_dict()
    assert np.shares_memory(part.observations, trajectories.observations)
    assert np.shares_memory(copy.observations, trajectories.observations) == chosen.all()
    assert (part.num_episodes, part.num_steps) == (chosen.sum(), np.array(lengths)[chosen].sum())
    assert len(copy.observations) == copy.num_steps == part.num_steps
    np.testing.assert_array_equal(part.returns(), copy.returns())
    np.testing.assert_array_equal(part.step_offsets()[:-1], copy.starts)
    assert part.returns_to_go is trajectories.returns_to_go
    rows = np.repeat(chosen, lengths)
    np.testing.assert_array_equal(copy.observations, trajectories.observations[rows])
    np.testing.assert_array_equal(copy.returns_to_go, trajectories.returns_to_go[rows])


def test_a_selection_of_a_selection() -> None:
    part = make([1, 2, 3, 4, 5]).select(np.array([True, False, True, True, True]))
    assert part.select(np.array([False, True, False, True])).lengths.tolist() == [3, 5]
    with pytest.raises(ValueError, match="'made' has no episodes; check the source, and what is selected of it"):
        part.select(np.zeros(4, bool))


def test_episodes_may_stand_in_any_order_and_leave_rows_out() -> None:
    whole = make([2, 3, 4])
    part = replace(whole, starts=np.array([5, 0]), lengths=np.array([4, 2]))
    assert part.returns().tolist() == whole.returns()[[2, 0]].tolist()
    np.testing.assert_array_equal(part.compact().observations, whole.observations[[5, 6, 7, 8, 0, 1]])
    assert part.statistics().to_dict() == part.compact().statistics().to_dict()
    twice = part.select(np.array([0, 0]))
    assert (twice.num_steps, twice.statistics().return_mean) == (8, part.returns()[0])


def test_returns_to_go_are_of_the_rewards_and_episodes_that_there_are() -> None:
    whole = make([2, 4], rewards=np.float32([1, 2, 3, 4, 5, 6]))
    assert whole.returns_to_go.tolist() == [3, 2, 18, 15, 11, 6]
    assert replace(whole, name="other").returns_to_go is whole.returns_to_go
    assert replace(whole, rewards=whole.rewards * 2).returns_to_go.tolist() == [6, 4, 36, 30, 22, 12]
    assert replace(whole, lengths=np.array([2, 2])).returns_to_go.tolist() == [3, 2, 7, 4, 0, 0]


def test_a_row_of_no_episode_is_named_by_its_number() -> None:
    with pytest.raises(ValueError, match="'made', row 2, column 'actions': the action is 9, but there are num_act"):
        make_atari([2, 1], actions=np.array([1, 0, 9]), starts=np.array([0]), lengths=np.array([2]))


def episodes_of(trajectories: Trajectories) -> list[dict[str, np.ndarray]]:
    ends = zip(trajectories.starts, trajectories.starts + trajectories.lengths, strict=True)
    columns = {name: getattr(trajectories, name) for name in FORMS if getattr(trajectories, name) is not None}
    return [{name: values[start:end] for name, values in columns.items()} for start, end in ends]


@pytest.mark.parametrize("made", [make([2, 3, 1]), make_atari([4, 1, 2])])
def test_episodes_that_are_kept_one_by_one_are_joined(made: Trajectories) -> None:
    settings = {"num_actions": made.num_actions, "env_id": "Hopper-v5"}
    joined = Trajectories.from_episodes(episodes_of(made.select(np.array([True, False, True]))), "made", **settings)
    assert (joined.name, joined.env_id, joined.num_actions) == ("made", "Hopper-v5", made.num_actions)
    assert joined.lengths.tolist() == made.lengths[[0, 2]].tolist() and joined.starts[0] == 0
    rows = np.repeat([True, False, True], made.lengths)
    for name in (*episodes_of(made)[0], "returns_to_go"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(made, name)[rows], err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros(2, np.float32)}, "episode 1, column 'rewards' has 2 steps, but there are 3 actions"),
        ({"actions": np.zeros((3, 5), np.float32)}, r"episode 1, column 'actions': float32 of \(5,\) a step, where o"),
        ({"rewards": np.zeros(3)}, "column 'rewards': expected a float32 array, found float64; convert it"),
        ({"truncations": None}, "episode 1 has no column 'truncations'; every episode needs observations, actions, "),
    ],
)
def test_episodes_that_do_not_fit_are_named(changes: dict[str, np.ndarray | None], message: str) -> None:
    episodes = episodes_of(make([2, 3, 1]))
    changed = {name: values for name, values in {**episodes[1], **changes}.items() if values is not None}
    with pytest.raises(ValueError, match=f"data set 'mine', {message}"):
        Trajectories.from_episodes([episodes[0], changed, episodes[2]], "mine")
    with pytest.raises(ValueError, match="data set 'mine' has no episodes"):
        Trajectories.from_episodes([], "mine")


def test_a_selection_counts_its_own_episodes() -> None:
    trajectories = make([2, 3, 4])
    trajectories.rewards[7] = np.nan
    part = trajectories.select(np.array([True, False, True]))
    with pytest.raises(ValueError, match="episode 1, step 2, column 'rewards': the value is nan"):
        part.check_finite()


def test_split_depends_on_the_seed_alone() -> None:
    trajectories = make(list(range(1, 21)))
    first, again, other = (trajectories.split(0.3, seed)[1].lengths.tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_refuses_a_fraction_that_leaves_nothing(fraction: float) -> None:
    with pytest.raises(ValueError, match="held_out_fraction must be between 0 and 1"):
        make([2, 3]).split(fraction, seed=0)


def test_split_refuses_a_single_episode() -> None:
    with pytest.raises(ValueError, match="'made' has one episode, which cannot be split"):
        make([5]).split(0.5, seed=0)


def test_data_may_be_without_rewards(tmp_path: Path) -> None:
    whole, bare = make([4, 1, 2, 3]), make([4, 1, 2, 3], rewards=None)
    assert (whole.has_rewards, bare.has_rewards) == (True, False)
    assert repr(bare) == repr(whole)[:-1] + ", no rewards)"
    chosen = np.array([True, False, True, True])
    bare.save(tmp_path)
    parts = [bare, bare.select(chosen), *bare.split(0.3, 0), bare.select(chosen).compact(), concatenate([bare, bare])]
    joined = Trajectories.from_episodes(bare_episodes(bare))
    for part in [*parts, joined, Trajectories.open(tmp_path)[0], pickle.loads(pickle.dumps(bare))]:
        assert not part.has_rewards and part.rewards is None
        for what in (part.returns, lambda part=part: part.returns_to_go, lambda part=part: part.best(0.5)):
            with pytest.raises(ValueError, match="has no rewards, so no returns; rewards_from='COLUMN'"):
                what()
    np.testing.assert_array_equal(joined.observations, bare.observations)
    with pytest.raises(ValueError, match="data set 'made' has no rewards, and 'other' has; leave out one of them"):
        concatenate([replace(whole, name="other"), bare])
    with pytest.raises(ValueError, match=r"episode 1 has no column 'rewards'; every episode needs obs.*, rewards, t"):
        Trajectories.from_episodes([episodes_of(whole)[0], bare_episodes(bare)[1]])


def bare_episodes(trajectories: Trajectories) -> list[dict[str, np.ndarray]]:
    names = ("observations", "actions", "terminations", "truncations")
    return [
        {name: getattr(trajectories, name)[start:end] for name in names}
        for start, end in pairwise(trajectories.step_offsets())
    ]


def test_statistics_without_rewards_are_the_others(tmp_path: Path) -> None:
    whole, bare = (make([4, 1, 2], rewards=rewards) for rewards in (np.ones(7, np.float32), None))
    bare.save(tmp_path)
    expected, found = whole.statistics().to_dict(), bare.statistics()
    values = found.to_dict()
    assert {name for name, value in values.items() if value != expected[name]} == {
        name for name in expected if name.startswith("return_")
    }
    assert all(value is None for name, value in values.items() if name.startswith("return_"))
    assert (found.return_scale, found.remark_on_scale(1e9)) == (1.0, None)
    assert type(found).from_dict(json.loads(json.dumps(values))).to_dict() == values
    mapped = Trajectories.open(tmp_path)[0]
    assert mapped.statistics().to_dict() == mapped.statistics().to_dict() == values
    with pytest.raises(ValueError, match="episode 1, step 0, column 'actions', dimension 0: the value is nan"):
        make(
            [4, 1, 2], rewards=None, actions=np.where(np.arange(7)[:, None] == 4, np.nan, np.float32(0))
        ).check_finite()


def test_lengths_are_drawn_without_returns() -> None:
    labels = [[axes.get_xlabel() for axes in make([4, 1, 2], **kind).plot().axes] for kind in ({}, {"rewards": None})]
    assert labels == [["return of an episode", "steps of an episode"], ["steps of an episode"]]


def test_data_may_have_goals(tmp_path: Path) -> None:
    whole = make([2, 3, 1])
    goals = np.arange(12, dtype=np.float32).reshape(6, 2)
    data = replace(whole, goals=goals, achieved_goals=goals + 1)
    assert (whole.goal_dim, data.goal_dim) == (None, 2) and data.returns().tolist() == whole.returns().tolist()
    joined = Trajectories.from_episodes(episodes_of(data))
    np.testing.assert_array_equal(joined.achieved_goals, goals + 1)
    part = data.select(np.array([False, True, True])).compact()
    np.testing.assert_array_equal(part.goals, goals[2:])
    np.testing.assert_allclose(part.statistics().goal_mean, goals[2:].mean(axis=0) + 1)
    part.save(tmp_path)
    opened, _ = Trajectories.open(tmp_path)
    np.testing.assert_array_equal(opened.achieved_goals, goals[2:] + 1)
    assert opened.statistics().to_dict() == part.statistics().to_dict()
    assert concatenate([data, data]).goals.shape == (12, 2)
    with pytest.raises(ValueError, match="'made' has no achieved_goals, and 'made' has; leave out one of them"):
        concatenate([data, replace(data, achieved_goals=None)])
    with pytest.raises(ValueError, match="goals of 1 numbers, and achieved goals of 2; both are of one space"):
        replace(data, goals=goals[:, :1].copy())
    with pytest.raises(ValueError, match="column 'goals': expected a float32 array, found float64"):
        replace(data, goals=goals.astype(np.float64))
    goals[3, 1] = np.nan
    with pytest.raises(ValueError, match="episode 1, step 1, column 'goals', dimension 1: the value is nan"):
        replace(whole, goals=goals).check_finite()
