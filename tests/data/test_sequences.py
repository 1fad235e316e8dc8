"""Sequences: every chunk of every episode in its turn, whoever reads them and wherever the walk is taken up."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_decision_mamba.data import SequenceDataset, SequencePass, SequenceSampler, Trajectories, WindowDataset
from hf_decision_mamba.data.sequences import IDLE


def make(lengths: list[int]) -> Trajectories:
    random, steps = np.random.default_rng(0), sum(lengths)
    ends = np.zeros(steps, bool)
    ends[np.cumsum(lengths) - 1] = True
    return Trajectories(
        name="made",
        observations=random.normal(size=(steps, 3)).astype(np.float32),
        actions=random.uniform(-1, 1, (steps, 2)).astype(np.float32),
        rewards=random.normal(size=steps).astype(np.float32),
        terminations=ends,
        truncations=np.zeros(steps, bool),
        starts=np.cumsum([0, *lengths[:-1]]),
        lengths=np.array(lengths),
    )


LENGTHS = st.lists(st.integers(1, 13), min_size=1, max_size=8)


def walks(sampler: SequenceSampler, epochs: int) -> np.ndarray:
    """The items of every row, (batches, lanes * rows)."""
    batches = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
        batches += list(sampler)
    return np.array(batches).reshape(-1, sampler.lanes * sampler.rows)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, rows=st.integers(1, 5), lanes=st.integers(1, 3), seed=st.integers(0, 9))
def test_rows_walk_through_episodes_and_each_is_taken_as_often(lengths, rows, lanes, seed):
    dataset = SequenceDataset(make(lengths), 4)
    chunks = dataset.chunks()
    first = np.concatenate([[0], np.cumsum(chunks)])
    walked = walks(SequenceSampler(chunks, rows, lanes, seed), epochs=4)
    episode = np.searchsorted(first, walked, side="right") - 1
    taken = []
    for row in range(walked.shape[1]):
        begins = np.flatnonzero(np.isin(walked[:, row], first))
        assert begins[0] == 0
        for number, (begin, end) in enumerate(zip(begins, [*begins[1:], len(walked)], strict=True)):
            run = walked[begin:end, row]
            assert (run == run[0] + np.arange(len(run))).all() and run[-1] < first[episode[begin, row] + 1]
            if number and end < len(walked):  # neither cut off to begin with nor by the end of the walk
                assert len(run) == chunks[episode[begin, row]]
            if number:
                taken.append((begin, row, episode[begin, row]))
    order = [number for _, _, number in sorted(taken)]
    for begin in range(0, len(order) - len(chunks) + 1, len(chunks)):
        assert sorted(order[begin : begin + len(chunks)]) == list(range(len(chunks)))


def test_the_walk_goes_on_where_an_epoch_ends_and_depends_on_the_seed():
    chunks = np.array([3, 1, 4, 1, 5])
    whole = [batch for epoch in range(3) for batch in SequenceSampler(chunks, 4, 2, seed=1, epoch=epoch)]
    sampler = SequenceSampler(chunks, 4, 2, seed=1)
    sampler.set_epoch(2)
    assert list(sampler) == whole[2 * len(sampler) :]
    assert [batch for epoch in range(3) for batch in SequenceSampler(chunks, 4, 2, seed=2, epoch=epoch)] != whole


def test_rows_of_equal_episodes_do_not_stay_in_step():
    sampler = SequenceSampler(np.full(50, 10), 64)
    last = list(sampler)[-1]
    assert len({item % 10 for item in last}) > 5


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, rows=st.integers(1, 9))
def test_a_pass_has_each_chunk_once_and_in_order(lengths, rows):
    chunks = SequenceDataset(make(lengths), 4).chunks()
    batches = np.array(list(SequencePass(chunks, rows)))
    assert sorted(batches[batches != IDLE]) == list(range(chunks.sum()))
    first = np.concatenate([[0], np.cumsum(chunks)])
    for row in batches.T:
        real = row[row != IDLE]
        assert (row[len(real) :] == IDLE).all()
        follows = real[1:] == real[:-1] + 1
        assert (follows | np.isin(real[1:], first)).all() and np.isin(real[0], first)


def test_a_batch_is_that_of_windows_with_the_rows_that_begin():
    trajectories = make([5, 3, 9])
    dataset = SequenceDataset(trajectories, 4, return_scale=2.0)
    batch = dataset.__getitems__([0, 1, 3, IDLE])
    assert batch.pop("begins").tolist() == [True, False, True, False]
    windows = WindowDataset(trajectories, 4, return_scale=2.0).__getitems__([0, 4, 8, 0])
    for name, values in batch.items():
        assert torch.equal(values[:3], windows[name][:3]), name
    assert not batch["attention_mask"][3].any() and (batch["labels"][3] == -100).all()


@pytest.mark.parametrize("length", [1, 4, 5])
def test_full_windows_are_padded_only_where_episodes_are_short(length):
    trajectories = make([1, 4, 7, 12])
    windows = WindowDataset(trajectories, length, placement="full")
    masks = windows.__getitems__(np.arange(len(windows)))["attention_mask"].sum(1)
    lengths = np.repeat([1, 4, 7, 12], [1, 4, 7, 12])
    assert masks.tolist() == np.minimum(lengths, length).tolist()
    steps = windows.__getitems__(np.arange(12, 24))["timesteps"][:, 0]
    assert steps.unique().tolist() == list(range(12 - length + 1))
    assert steps.bincount().max() - steps.bincount().min() <= 1  # each window as often as any other


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 6))
def test_covering_windows_that_are_full_have_each_label_once(lengths, length):
    trajectories = make(lengths)
    full, anywhere = (
        WindowDataset.covering(trajectories, length, placement=place).__getitems__(range(len(masks)))
        for place in ("full", "anywhere")
        for masks in [WindowDataset.covering(trajectories, length)]
    )
    for batch in (full, anywhere):
        assert int((batch["labels"][..., 0] != -100).sum()) == sum(lengths)
    assert full["attention_mask"].sum() >= anywhere["attention_mask"].sum()


def test_chunks_of_data_without_rewards_have_all_else() -> None:
    whole = make([5, 2, 9])
    batch, expected = (
        SequenceDataset(data, 4).__getitems__([0, IDLE, 3]) for data in (replace(whole, rewards=None), whole)
    )
    assert expected.keys() - batch.keys() == {"rewards", "returns_to_go"}
    assert all(torch.equal(values, expected[name]) for name, values in batch.items())
