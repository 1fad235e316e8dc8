"""The gather equals a naive loop, windows stay in their episode, and draw i of the sampler is a function of i."""

import hashlib
import pickle
import tracemalloc
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from processes import FORKS
from torch.utils.data import ConcatDataset, DataLoader, Subset

from hf_decision_mamba.data import Trajectories, WindowDataset, WindowSampler, collate, load_trajectories

some_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def make(lengths: list[int], seed: int = 0) -> Trajectories:
    """Random episodes of these lengths, 3 state and 2 action dimensions."""
    random, steps = np.random.default_rng(seed), sum(lengths)
    return Trajectories(
        observations=random.normal(size=(steps, 3)).astype(np.float32),
        actions=random.normal(size=(steps, 2)).astype(np.float32),
        rewards=random.normal(size=steps).astype(np.float32),
        terminations=np.zeros(steps, bool),
        truncations=np.zeros(steps, bool),
        starts=np.cumsum([0, *lengths])[:-1],
        lengths=np.array(lengths),
    )


def naive_window(trajectories: Trajectories, start: int, length: int) -> dict[str, np.ndarray]:
    """The window that begins at a transition, written down step by step."""
    offsets = trajectories.step_offsets()
    first = max(offset for offset in offsets if offset <= start)
    end = min(offset for offset in offsets if offset > start)
    window = {
        "states": np.zeros((length, 3)),
        "actions": np.zeros((length, 2)),
        "rewards": np.zeros((length, 1)),
        "returns_to_go": np.zeros((length, 1)),
        "timesteps": np.zeros(length),
        "attention_mask": np.zeros(length),
        "previous_actions": np.zeros((length, 2)),
        "labels": np.full((length, 2), -100.0),
    }
    for step in range(length):
        row = start + step
        if row >= end:
            break
        window["states"][step] = trajectories.observations[row]
        window["actions"][step] = window["labels"][step] = trajectories.actions[row]
        window["rewards"][step] = trajectories.rewards[row]
        window["returns_to_go"][step] = trajectories.rewards[row:end].astype(np.float64).sum()
        window["timesteps"][step] = row - first
        window["attention_mask"][step] = 1
        if row > first:
            window["previous_actions"][step] = trajectories.actions[row - 1]
    return window


@given(some_lengths, st.integers(1, 15), st.integers(0, 99))
def test_gather_equals_a_loop_over_steps(lengths: list[int], context_length: int, seed: int) -> None:
    trajectories = make(lengths, seed)
    windows = WindowDataset(trajectories, context_length)
    indices = np.random.default_rng(seed).permutation(len(windows))
    batch = windows.__getitems__(indices.tolist())
    for name, values in batch.items():
        expected = [naive_window(trajectories, start, context_length)[name] for start in indices]
        np.testing.assert_allclose(values.numpy(), np.stack(expected), rtol=1e-6, atol=1e-6, err_msg=name)


# Of sha256: all tensors of 64 drawn windows, and of the first 64 covering ones, by part of a split.
DRAWS = {
    "hopper-tiny-v5.parquet": [
        (2874, 297, [71, 12, 62, 142], "9865418ca4a7f5f2", "37048c659076ab24"),
        (2504, 259, [178, 107, 95, 135], "1b638a44e5692622", "37048c659076ab24"),
        (370, 38, [121, 73, 142, 135], "918118fe4b63e610", "edebbe91f8226384"),
    ],
    "breakout-tiny.parquet": [
        (1356, 137, [244, 45, 252, 332], "e819ec13376487e8", "741da0bd9d8c493b"),
        (906, 92, [20, 177, 234, 178], "57fd5dd89c347ee5", "741da0bd9d8c493b"),
        (450, 45, [164, 46, 205, 158], "a4efb19367d8637b", "9fe380fb492cb7f0"),
    ],
}


def digest(batch: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(batch[name].numpy().tobytes() for name in sorted(batch))).hexdigest()[:16]


@pytest.mark.parametrize("name", DRAWS)
def test_windows_are_drawn_as_they_always_were(name: str) -> None:
    """Resumed and published runs depend on it: these were drawn when every part of a split had columns of its own."""
    trajectories = load_trajectories(Path(__file__).parent / name)
    for part, expected in zip([trajectories, *trajectories.split(0.1, seed=3)], DRAWS[name], strict=True):
        windows = WindowDataset(part, 10, return_scale=1000.0)
        batch = windows.__getitems__(list(islice(WindowSampler(len(windows), seed=42, epoch=1), 64)))
        covering = WindowDataset.covering(part, 10, return_scale=1000.0)
        first = covering.__getitems__(range(min(len(covering), 64)))
        starts = batch["timesteps"][:4, 0].tolist()
        assert (len(windows), len(covering), starts, digest(batch), digest(first)) == expected


@given(some_lengths, st.integers(1, 15), st.integers(0, 99))
def test_windows_of_a_selection_are_those_of_a_copy(lengths: list[int], context_length: int, seed: int) -> None:
    chosen = np.random.default_rng(seed).random(len(lengths)) < 0.5
    chosen[seed % len(lengths)] = True
    part = make(lengths, seed).select(chosen)
    for kind in (WindowDataset, WindowDataset.covering):
        windows, copy = kind(part, context_length), kind(part.compact(), context_length)
        assert len(windows) == len(copy)
        batch, expected = (data.__getitems__(range(len(copy))) for data in (windows, copy))
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_nothing_is_held_for_each_transition() -> None:
    trajectories = make([1000] * 1000)
    assert trajectories.returns_to_go.shape == (1_000_000,)
    tracemalloc.start()
    train, held_out = trajectories.split(0.1, seed=0)
    windows, covering = WindowDataset(train, 20), WindowDataset.covering(held_out, 20)
    windows.__getitems__([0, len(windows) - 1]), covering.__getitems__([0, len(covering) - 1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000  # bytes: numbers of each episode


def make_atari(lengths: list[int], seed: int = 0) -> Trajectories:
    """Random episodes of these lengths with frames of 3 by 2 pixels and 4 actions."""
    random, steps = np.random.default_rng(seed), sum(lengths)
    observations, actions = random.integers(1, 256, (steps, 3, 2), np.uint8), random.integers(0, 4, steps)
    return replace(make(lengths, seed), observations=observations, actions=actions, num_actions=4)


def naive_atari_window(trajectories: Trajectories, start: int, length: int, frame_stack: int) -> dict[str, np.ndarray]:
    """The window of images and discrete actions that begins at a transition, written down step by step."""
    offsets = trajectories.step_offsets()
    first = max(offset for offset in offsets if offset <= start)
    end = min(offset for offset in offsets if offset > start)
    window = {
        "states": np.zeros((length, frame_stack, 3, 2), np.uint8),
        "actions": np.zeros(length, np.int64),
        "previous_actions": np.full(length, -1),
        "labels": np.full(length, -100),
        "attention_mask": np.zeros(length, np.int64),
    }
    for step, row in enumerate(range(start, min(start + length, end))):
        for frame in range(frame_stack):
            age = frame_stack - 1 - frame
            window["states"][step, frame] = trajectories.observations[max(row - age, first)]
        window["actions"][step] = window["labels"][step] = trajectories.actions[row]
        window["attention_mask"][step] = 1
        if row > first:
            window["previous_actions"][step] = trajectories.actions[row - 1]
    return window


@given(some_lengths, st.integers(1, 15), st.integers(1, 6), st.integers(0, 99))
def test_gather_of_images_equals_a_loop_over_steps_and_frames(
    lengths: list[int], context_length: int, frame_stack: int, seed: int
) -> None:
    trajectories = make_atari(lengths, seed)
    windows = WindowDataset(trajectories, context_length, frame_stack=frame_stack)
    indices = np.random.default_rng(seed).permutation(len(windows))
    batch = windows.__getitems__(indices.tolist())
    expected = [naive_atari_window(trajectories, start, context_length, frame_stack) for start in indices]
    for name in expected[0]:
        values, wanted = batch[name].numpy(), np.stack([window[name] for window in expected])
        np.testing.assert_array_equal(values, wanted, err_msg=name)
        assert values.dtype == wanted.dtype


def test_four_frames_are_stacked_with_the_newest_last() -> None:
    trajectories = make_atari([1, 6])
    window = WindowDataset(trajectories, 6)[1]
    frames = trajectories.observations[1:]
    np.testing.assert_array_equal(window["states"][0].numpy(), frames[[0, 0, 0, 0]])
    np.testing.assert_array_equal(window["states"][2].numpy(), frames[[0, 0, 1, 2]])
    np.testing.assert_array_equal(window["states"][5].numpy(), frames[[2, 3, 4, 5]])


def test_shapes_and_types_of_images_and_discrete_actions() -> None:
    batch = WindowDataset(make_atari([4, 1, 7]), context_length=5).__getitems__([0, 4])
    shapes = {name: (tuple(values.shape), values.dtype) for name, values in batch.items()}
    assert shapes == {
        "states": ((2, 5, 4, 3, 2), torch.uint8),
        "actions": ((2, 5), torch.int64),
        "rewards": ((2, 5, 1), torch.float32),
        "returns_to_go": ((2, 5, 1), torch.float32),
        "timesteps": ((2, 5), torch.int64),
        "attention_mask": ((2, 5), torch.int64),
        "previous_actions": ((2, 5), torch.int64),
        "labels": ((2, 5), torch.int64),
    }


def test_vectors_with_discrete_actions_are_still_normalised() -> None:
    trajectories = replace(make([3]), actions=np.array([1, 0, 2]))
    window = WindowDataset(trajectories, 4, state_mean=np.ones(3))[0]
    np.testing.assert_array_equal(window["states"][:3].numpy(), trajectories.observations - 1)
    assert window["previous_actions"].tolist() == [-1, 1, 0, -1]
    assert window["labels"].tolist() == [1, 0, 2, -100]


@pytest.mark.parametrize("name", ["state_mean", "state_std"])
def test_images_are_not_normalised(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no meaning for 'trajectories', which has images or discrete"):
        WindowDataset(make_atari([3]), 4, **{name: np.ones(3)})  # type: ignore[arg-type]


@given(some_lengths, st.integers(1, 15))
def test_covering_windows_hold_every_transition_once(lengths: list[int], context_length: int) -> None:
    trajectories = make(lengths)
    windows = WindowDataset.covering(trajectories, context_length)
    batch = windows.__getitems__(range(len(windows)))
    real = batch["attention_mask"].bool()
    np.testing.assert_array_equal(batch["states"][real].numpy(), trajectories.observations)
    assert len(windows) == sum(-(-length // context_length) for length in lengths)


def test_shapes_and_types() -> None:
    batch = WindowDataset(make([4, 1, 7]), context_length=5).__getitems__([0, 4])
    shapes = {name: (tuple(values.shape), values.dtype) for name, values in batch.items()}
    assert shapes == {
        "states": ((2, 5, 3), torch.float32),
        "actions": ((2, 5, 2), torch.float32),
        "rewards": ((2, 5, 1), torch.float32),
        "returns_to_go": ((2, 5, 1), torch.float32),
        "timesteps": ((2, 5), torch.int64),
        "attention_mask": ((2, 5), torch.int64),
        "previous_actions": ((2, 5, 2), torch.float32),
        "labels": ((2, 5, 2), torch.float32),
    }


def test_states_are_normalised_and_returns_scaled_but_padding_stays_zero() -> None:
    trajectories = make([3])
    mean, std = np.array([1.0, -2.0, 0.5]), np.array([0.5, 2.0, 1.0])
    window = WindowDataset(trajectories, 4, state_mean=mean, state_std=std, return_scale=1000.0)[0]
    expected = (trajectories.observations - mean) / std
    np.testing.assert_allclose(window["states"][:3].numpy(), expected, rtol=1e-6)
    assert window["states"][3].tolist() == [0, 0, 0]
    np.testing.assert_allclose(window["returns_to_go"][:3, 0].numpy(), trajectories.returns_to_go / 1000, rtol=1e-6)
    np.testing.assert_array_equal(window["rewards"][:3, 0].numpy(), trajectories.rewards)


def test_actions_are_scaled_but_where_there_are_none() -> None:
    trajectories, mid, scale = make([4]), np.float32([0.5, -1]), np.float32([2, 3])
    batch = WindowDataset(trajectories, 3, action_mid=mid, action_scale=scale).__getitems__([0, 2])
    scaled = torch.from_numpy((trajectories.actions - mid) / scale)
    assert torch.equal(batch["actions"][0], scaled[:3]) and torch.equal(batch["labels"][0], scaled[:3])
    assert torch.equal(batch["previous_actions"][0], torch.cat([torch.zeros(1, 2), scaled[:2]]))
    assert torch.equal(batch["previous_actions"][1], torch.cat([scaled[1:3], torch.zeros(1, 2)]))
    assert (batch["actions"][1, 2] == 0).all() and (batch["labels"][1, 2] == -100).all()


def test_gathering_leaves_the_data_as_it_was() -> None:
    trajectories = make([3, 2])
    for column in ("observations", "actions", "rewards"):
        getattr(trajectories, column).flags.writeable = False
    windows = WindowDataset(trajectories, 4, state_mean=np.ones(3))
    first, second = (windows.__getitems__([0, 3]) for _ in range(2))
    first["states"].fill_(7.0)
    assert not torch.equal(first["states"], second["states"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context_length": 0}, "context_length must be 1 or more steps, got 0"),
        ({"state_mean": np.zeros(2)}, r"state_mean must be 3 finite numbers.*got shape \(2,\)"),
        ({"state_mean": np.full(3, np.nan)}, "state_mean must be 3 finite numbers"),
        ({"state_std": np.zeros(3)}, "state_std must be positive"),
        ({"action_scale": np.zeros(2)}, "action_scale must be positive"),
        ({"action_mid": np.zeros(3)}, r"action_mid must be 2 finite numbers, one for each dimension .* shape \(3,\)"),
        ({"return_scale": 0.0}, "return_scale must be a positive number"),
        ({"return_scale": float("nan")}, "return_scale must be a positive number"),
        ({"frame_stack": 0}, "frame_stack must be 1 or more frames, got 0"),
        ({"stride": 0}, "stride must be 1 or more steps, got 0"),
        ({"starts": np.array([5])}, r"starts must be .* each in 0 ... 4"),
        ({"starts": np.array([], np.int64)}, "one or more transitions"),
    ],
)
def test_refuses_arguments_out_of_range(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowDataset(make([2, 3]), **{"context_length": 4, **arguments})  # type: ignore[arg-type]


def test_covering_refuses_an_empty_window() -> None:
    with pytest.raises(ValueError, match="context_length must be 1 or more steps, got 0"):
        WindowDataset.covering(make([2, 3]), 0)


@pytest.mark.parametrize("index", [-1, 5])
def test_refuses_an_index_outside_the_data(index: int) -> None:
    with pytest.raises(IndexError, match=r"in 0 \.\.\. 4"):
        WindowDataset(make([2, 3]), 4)[index]


def draws(sampler: WindowSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_draws_are_a_function_of_seed_epoch_and_index() -> None:
    sampler = WindowSampler(1000, seed=1, num_samples=20_000)  # more than the sampler holds at once
    epochs = [draws(sampler, epoch) for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    assert draws(WindowSampler(1000, seed=2, num_samples=20_000), 0) != epochs[0]
    assert draws(WindowSampler(1000, seed=1, num_samples=9_001), 1) == epochs[1][:9_001]
    assert WindowSampler(1000, seed=1, epoch=1).__iter__().__next__() == epochs[1][0]


def test_an_iteration_that_has_begun_keeps_its_epoch() -> None:
    sampler = WindowSampler(1000, num_samples=20_000)
    expected = list(sampler)
    begun = iter(sampler)
    sampler.set_epoch(1)
    assert list(begun) == expected


def test_torch_generator_has_no_say() -> None:
    torch.manual_seed(0)
    first = list(WindowSampler(1000))
    before = torch.get_rng_state()
    assert list(WindowSampler(1000)) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_episodes_are_drawn_in_proportion_to_their_length() -> None:
    lengths = [1, 10, 100, 889]
    trajectories = make(lengths)
    starts = np.fromiter(WindowSampler(trajectories.num_steps, seed=5, num_samples=100_000), np.int64)
    episodes = np.searchsorted(trajectories.step_offsets(), starts, side="right") - 1
    counts, expected = np.bincount(episodes, minlength=4), np.array(lengths) * 100.0
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees of freedom: 1 in 1000 exceeds it
    # Within an episode every step is as likely: mean of the uniform distribution, five standard errors.
    steps = starts[episodes == 3] - 111
    assert abs(steps.mean() - 444) < 5 * 889 / np.sqrt(12 * len(steps))


def test_good_episodes_are_drawn_more_often() -> None:
    lengths = np.array([4, 1, 7, 3])
    trajectories = make(lengths.tolist())
    returns = trajectories.returns()
    temperature = 0.5
    windows = WindowDataset(trajectories, 3, return_temperature=temperature, placement="full")
    weights = np.exp(returns / (temperature * np.ptp(returns)))
    expected = np.repeat(weights / (weights * lengths).sum(), lengths)  # of each transition
    sampler = windows.sampler(seed=5, num_samples=50_000)
    assert len(sampler) == 50_000
    counts = np.bincount(np.fromiter(sampler, np.int64), minlength=15)
    assert ((counts - 50_000 * expected) ** 2 / (50_000 * expected)).sum() < 36.1  # chi-square, 14 degrees: 1 in 1000
    # A function of seed, epoch and index, as without weights.
    longer = windows.sampler(seed=5, num_samples=60_000)
    assert list(longer)[:50_000] == list(sampler) != draws(windows.sampler(seed=5, num_samples=50_000), 1)


def test_without_a_temperature_or_where_returns_are_alike_all_windows_are_drawn_as_often() -> None:
    trajectories = make([4, 1, 7])
    plain = WindowDataset(trajectories, 3)
    assert plain.episode_weights() is None
    assert list(plain.sampler(3)) == list(WindowSampler(12, seed=3))
    same = replace(trajectories, rewards=np.zeros_like(trajectories.rewards))
    weights = WindowDataset(same, 3, return_temperature=0.1).episode_weights()
    assert weights is not None and weights.tolist() == [1, 1, 1]
    tiny = WindowDataset(trajectories, 3, return_temperature=1e-9)  # whose other weights are 0: the best alone
    best = int(trajectories.returns().argmax())
    first = trajectories.step_offsets()[best]
    assert set(tiny.sampler(num_samples=999)) == set(range(first, first + trajectories.lengths[best]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"return_temperature": 0.0}, "return_temperature=0.0 must be a positive number"),
        ({"return_temperature": float("nan")}, "return_temperature=nan must be a positive number"),
        ({"return_temperature": 0.1, "stride": 2}, "leave out starts and stride"),
        ({"return_temperature": 0.1, "starts": np.array([0, 3])}, "leave out starts and stride"),
    ],
)
def test_refuses_a_temperature_that_cannot_be_drawn_by(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowDataset(make([2, 3]), 4, **arguments)


def test_refuses_a_temperature_where_there_are_no_returns() -> None:
    without = replace(make([2, 3]), rewards=None)
    with pytest.raises(
        ValueError, match=r"return_temperature draws by return, and of .* it has no rewards; leave it out"
    ):
        WindowDataset(without, 4, return_temperature=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": np.array([4, 5]), "weights": np.ones(2)}, "10 in all, and weights one number for each; got 9"),
        ({"counts": np.array([4, 6]), "weights": np.ones(3)}, r"got 10 in \(2,\) and \(3,\)"),
        ({"counts": np.array([4, 6]), "weights": np.array([1, -1])}, "weights must be finite and not negative"),
        ({"counts": np.array([4, 6])}, "give both of them, or neither"),
        ({"weights": np.ones(2)}, "give both of them, or neither"),
        ({"counts": np.array([4, 6]), "weights": np.zeros(2)}, "one of them positive"),
        ({"num_windows": 0}, "num_windows must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"epoch": -1}, "epoch must be 0 or more"),
        ({"num_samples": 0}, "num_samples must be 1 or more"),
    ],
)
def test_sampler_refuses_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowSampler(**{"num_windows": 10, **arguments})


def loader(num_workers: int = 0, **options: object) -> DataLoader:
    windows = WindowDataset(make([30, 5, 60]), context_length=4)
    sampler = WindowSampler(len(windows), seed=7)
    return DataLoader(windows, batch_size=8, sampler=sampler, collate_fn=collate, num_workers=num_workers, **options)  # type: ignore[arg-type]


def states(batches) -> list[torch.Tensor]:
    return [batch["states"] for batch in batches]


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_accelerate_moves_the_sampler_from_epoch_to_epoch() -> None:
    prepared = Accelerator(cpu=True).prepare(loader())
    epochs = [states(prepared), states(prepared)]
    for epoch, batches in enumerate(epochs):
        expected = loader()
        expected.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        assert_same(batches, states(expected))
    assert not torch.equal(epochs[0][0], epochs[1][0])


def test_skipping_batches_goes_on_as_if_never_stopped() -> None:
    never_stopped = Accelerator(cpu=True).prepare(loader())
    never_stopped.set_epoch(3)
    skipped = skip_first_batches(Accelerator(cpu=True).prepare(loader()), 5)
    skipped.set_epoch(3)
    assert_same(states(never_stopped)[5:], states(skipped))


def test_workers_give_the_same_batches() -> None:
    # Workers that are forked from another process also prove that the data set can be pickled.
    workers = loader(num_workers=2, multiprocessing_context=FORKS)
    assert_same(states(Accelerator(cpu=True).prepare(workers)), states(loader()))


def test_data_set_and_sampler_can_be_pickled() -> None:
    windows, sampler = pickle.loads(pickle.dumps((WindowDataset(make([3, 4]), 2), WindowSampler(10, seed=4))))
    assert windows[6]["timesteps"].tolist() == [3, 0]
    assert list(islice(sampler, 5)) == list(islice(WindowSampler(10, seed=4), 5))


@pytest.mark.parametrize("wrap", [lambda windows: Subset(windows, range(10)), lambda windows: ConcatDataset([windows])])
def test_wrapped_data_sets_collate_to_the_same_batch(wrap) -> None:
    windows = WindowDataset(make([30]), context_length=4)
    batch = next(iter(DataLoader(wrap(windows), batch_size=8, collate_fn=collate)))
    expected = windows.__getitems__(range(8))
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
