"""Windows that are gathered on a device are those of the host, to the bit."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_decision_mamba.data import DeviceWindowDataset, Trajectories, WindowDataset
from hf_decision_mamba.data.windows_on_device import fits

lengths_of_episodes = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def make(lengths: list[int], images: bool, discrete: bool, seed: int) -> Trajectories:
    """Random episodes of these lengths."""
    random, steps = np.random.default_rng(seed), sum(lengths)
    return Trajectories(
        observations=random.integers(256, size=(steps, 4, 5), dtype=np.uint8)
        if images
        else random.normal(size=(steps, 3)).astype(np.float32),
        actions=random.integers(4, size=steps) if discrete else random.normal(size=(steps, 2)).astype(np.float32),
        rewards=random.normal(size=steps).astype(np.float32),
        terminations=np.zeros(steps, bool),
        truncations=np.zeros(steps, bool),
        starts=np.cumsum([0, *lengths])[:-1],
        lengths=np.array(lengths),
        num_actions=4 if discrete else None,
    )


def assert_same_batches(trajectories: Trajectories, context_length: int, seed: int, **settings) -> None:
    host = WindowDataset(trajectories, context_length, **settings)
    there = DeviceWindowDataset(trajectories, context_length, device="cpu", **settings)
    assert len(there) == len(host)
    indices = np.random.default_rng(seed).integers(len(host), size=10)
    expected, batch = host.__getitems__(indices), there.__getitems__(indices)
    assert list(batch) == list(expected)
    for name, values in expected.items():
        assert batch[name].dtype == values.dtype, name
        assert torch.equal(batch[name], values), name


@given(lengths_of_episodes, st.integers(1, 15), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
def test_batches_are_those_of_the_host(lengths, context_length, images, discrete, scaled, seed) -> None:
    trajectories = make(lengths, images, discrete, seed)
    random, settings = np.random.default_rng(seed), {"return_scale": 7.0, "frame_stack": 3, "stride": 1 + seed % 3}
    if scaled and not images:
        settings |= {"state_mean": random.normal(size=3), "state_std": random.uniform(0.1, 3, size=3)}
    if scaled and not discrete:
        settings |= {"action_mid": random.normal(size=2), "action_scale": random.uniform(0.1, 3, size=2)}
    assert_same_batches(trajectories, context_length, seed, **settings)


def test_columns_come_from_the_disk_and_of_a_selection(tmp_path) -> None:
    make([5, 1, 9, 3], images=False, discrete=False, seed=0).save(tmp_path)
    mapped, _ = Trajectories.open(tmp_path)
    assert_same_batches(mapped.select(np.array([True, False, True, True])), 4, seed=1)


@pytest.mark.parametrize(("free", "expected"), [(4 * 600, True), (4 * 600 - 4, False)])
def test_data_fits_into_a_quarter_of_the_free_memory(monkeypatch, free, expected) -> None:
    trajectories = make([20, 5], images=False, discrete=False, seed=0)  # 25 steps of 6 numbers, and returns-to-go
    needed = 25 * (3 + 2 + 1 + 1) * 4
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * needed // 600, 0))
    assert fits(trajectories, SimpleNamespace()) is expected


def test_windows_of_data_without_rewards_have_all_else() -> None:
    whole = make([3, 7, 1], images=False, discrete=False, seed=0)
    bare = replace(whole, rewards=None)
    assert_same_batches(bare, 4, seed=0)
    indices = np.arange(11)
    batch, expected = (WindowDataset(data, 4).__getitems__(indices) for data in (bare, whole))
    assert expected.keys() - batch.keys() == {"rewards", "returns_to_go"}
    assert all(torch.equal(values, expected[name]) for name, values in batch.items())


@pytest.mark.parametrize("goals", ["recorded", "last", "uniform", "geometric"])
def test_goals_are_those_of_the_host(goals) -> None:
    random, whole = np.random.default_rng(0), make([3, 7, 1], images=False, discrete=False, seed=0)
    columns = {name: random.normal(size=(11, 2)).astype(np.float32) for name in ("goals", "achieved_goals")}
    settings = {"goals": goals, "goal_mean": [0.3, 0.1], "goal_std": [0.7, 3.0]}
    host = WindowDataset(replace(whole, **columns), 4, **settings)
    there = DeviceWindowDataset(replace(whole, **columns), 4, device="cpu", **settings)
    items = random.integers(host.num_items, size=30)
    expected, batch = host.__getitems__(items), there.__getitems__(items)
    assert list(batch) == list(expected) and batch["goals"].abs().max() > 0
    assert all(torch.equal(batch[name], values) for name, values in expected.items())
