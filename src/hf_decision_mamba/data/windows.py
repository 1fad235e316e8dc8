"""Windows of `context_length` steps: what a model trains on, gathered a whole batch at a time.

The sampler is counter based, so that workers, processes and resumed runs draw the same windows; the gather has no loop.
Source: windows drawn by episode length and padded as Decision Transformer does (Chen et al. 2021, appendix A).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from ..model import DecisionMambaProcessor
from ..model.cache_decision_mamba import NO_ACTION
from ..reporting.checks import wrong_type
from .goals import DRAWS, Goals, checked_goals, drawn_steps, shares
from .trajectories import Trajectories, offsets_of


def window_settings(processor: DecisionMambaProcessor) -> dict[str, Any]:
    """Return the arguments of `WindowDataset` that show a model what it sees when it acts."""
    names = ["state_mean", "state_std", "action_mid", "action_scale", "return_scale", "frame_stack"]
    names += ["goal_mean", "goal_std"] if processor.goal_mean is not None else []
    return {name: getattr(processor, name) for name in names}


#: Label of a padded step: the loss leaves it out, and transformers' Trainer does not count it.
IGNORED_LABEL = -100

#: Where a window may begin.
Placement: TypeAlias = Literal["full", "anywhere"]

_DRAWS_AT_ONCE = 8192  # bounds the sampler's memory, whatever the length of an epoch


class WindowDataset(Dataset[dict[str, Tensor]]):
    """Windows of a data set. Item i is the window that begins at transition `starts[i]` and stays in its episode.

    With the default `starts`, every transition begins one window: to draw items uniformly is to draw an episode in
    proportion to its length and then a step of it. Windows that reach the end of their episode are padded on the right.
    Nothing is held for each transition, and memory-mapped trajectories stay on the disk.

    A batch of b windows of K steps is a dict of tensors, float32 unless said otherwise:

    - `states` (b, K, S), normalised; `actions` (b, K, A), scaled
    - of data that have rewards, `rewards` (b, K, 1), as recorded, and `returns_to_go` (b, K, 1), of the whole episode,
      divided by `return_scale`
    - where goals are asked for, `goals` (b, K, G), normalised: those that its steps were recorded with; or one goal for
      the whole window, which was achieved at its last real step or later in the episode (see `goals.py`)
    - `timesteps` (b, K) int64, the step within the episode; `attention_mask` (b, K) int64, 1 on real steps
    - `previous_actions` (b, K, A), the action of the step before, also at the first step of a window that begins inside
      an episode; zero at the first step of the episode
    - `labels` (b, K, A), the actions, and -100 on padding. Everything else is 0 on padding.

    Images: `states` (b, K, F, H, W) uint8, the last F = `frame_stack` frames at each step, the newest last; before its
    episode begins, the first frame repeats. They are stacked here, so that memory holds each frame once.

    Discrete actions: `actions`, `previous_actions` and `labels` are (b, K) int64; where there is no previous action, at
    the episode's first step and on padding, it is -1.

    Items from `len` on are the same windows with other draws of their goals: item i + d * `len` is window i with draw
    d, so that who draws items below `num_items` draws the goals too, in whatever process.

    Args:
        trajectories: where the windows come from.
        context_length: K, steps in a window.
        state_mean: (S,), subtracted from the states; default 0. Not for images, whose pixels the model scales.
        state_std: (S,), divides the centred states; default 1. Not for images.
        action_mid: (A,), subtracted from continuous actions; default 0.
        action_scale: (A,), divides them then; default 1.
        return_scale: divides the returns-to-go; in reward units.
        frame_stack: F, frames in the state of an image; a vector is one observation. Source: Mnih et al. 2015.
        starts: (n,) the transition at which each window begins, counted over the episodes; default every transition.
        stride: steps from one window to the next in an episode, where `starts` are not given.
        return_temperature: where it is given, the windows of good episodes are drawn more often (`episode_weights`).
            For data with rewards, without goals; with neither `starts` nor a stride.
        placement: where a window may begin. `"anywhere"`: at every step, as Decision Transformer does. `"full"`:
            between an episode's first step and the last one that leaves K steps, so that only episodes shorter than K
            are padded; with a stride, the last window begins earlier, and what the one before has is no label in it.
            Given `starts` are taken as they are.
        goals: which goals windows are trained towards; None for none, or with a `goal_mean` for `uniform` where the
            data have achieved goals, else `recorded`.
        goal_mean: (G,), subtracted from the goals; default 0.
        goal_std: (G,), divides them then; default 1.

    Raises:
        TypeError: `trajectories` are something else.
        ValueError: an argument is out of range or has the wrong shape.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        context_length: int,
        *,
        state_mean: ArrayLike | None = None,
        state_std: ArrayLike | None = None,
        action_mid: ArrayLike | None = None,
        action_scale: ArrayLike | None = None,
        return_scale: float = 1.0,
        frame_stack: int = 4,
        starts: NDArray[np.int64] | None = None,
        stride: int = 1,
        placement: Placement = "anywhere",
        return_temperature: float | None = None,
        goals: Goals | None = None,
        goal_mean: ArrayLike | None = None,
        goal_std: ArrayLike | None = None,
    ) -> None:
        if not isinstance(trajectories, Trajectories):
            raise wrong_type("trajectories", trajectories, "Trajectories, as load_trajectories(source) returns them")
        if context_length < 1:
            raise ValueError(f"context_length must be 1 or more steps, got {context_length}")
        if not (np.isfinite(return_scale) and return_scale > 0):
            raise ValueError(f"return_scale must be a positive number, got {return_scale}")
        if frame_stack < 1:
            raise ValueError(f"frame_stack must be 1 or more frames, got {frame_stack}")
        if stride < 1:
            raise ValueError(f"stride must be 1 or more steps, got {stride}")
        if placement not in get_args(Placement):
            raise ValueError(f"placement must be one of {', '.join(get_args(Placement))}, got {placement!r}")
        if return_temperature is not None:
            if not (np.isfinite(return_temperature) and return_temperature > 0):
                raise ValueError(f"return_temperature={return_temperature} must be a positive number")
            if starts is not None or stride != 1:
                raise ValueError(
                    "return_temperature draws among all windows of an episode; leave out starts and stride"
                )
        self.trajectories = trajectories
        self.context_length = int(context_length)
        self.return_temperature = return_temperature
        state_dim = trajectories.state_dim if trajectories.state_type == "vector" else None
        self.state_mean = _vector("state_mean", state_mean, 0.0, state_dim, trajectories.name)
        self.state_std = _vector("state_std", state_std, 1.0, state_dim, trajectories.name)
        scales_actions = action_mid is not None or action_scale is not None
        act_dim = trajectories.act_dim if trajectories.action_type == "continuous" else None
        self.action_mid = _vector("action_mid", action_mid, 0.0, act_dim, trajectories.name) if scales_actions else None
        self.action_scale = (
            _vector("action_scale", action_scale, 1.0, act_dim, trajectories.name) if scales_actions else None
        )
        self.goals = None if goals is None and goal_mean is None else checked_goals(trajectories, goals)
        if return_temperature is not None and (self.goals is not None or not trajectories.has_rewards):
            why = "it has no rewards" if self.goals is None else f"windows are trained towards {self.goals} goals"
            raise ValueError(f"return_temperature draws by return, and of {trajectories.name!r} {why}; leave it out")
        goal_dim = None if self.goals is None else trajectories.goal_dim
        self.goal_mean = _vector("goal_mean", goal_mean, 0.0, goal_dim, trajectories.name)
        self.goal_std = _vector("goal_std", goal_std, 1.0, goal_dim, trajectories.name)
        scales = {"state_std": self.state_std, "action_scale": self.action_scale, "goal_std": self.goal_std}
        for name, values in scales.items():
            if values is not None and not (values > 0).all():
                raise ValueError(f"{name} must be positive in every dimension; of constant ones it is 1")
        self.return_scale = float(return_scale)
        self.frame_stack = int(frame_stack)
        self.starts = None if starts is None else _checked_starts(starts, trajectories)
        self.stride = 1 if starts is not None else stride
        self.placement = "anywhere" if starts is not None else placement
        counts = -(-trajectories.lengths // self.stride)  # windows of each episode, rounded up
        self._first_windows = offsets_of(counts)
        (self._steps,) = self._on_device(np.arange(context_length))
        (self._ages,) = self._on_device(np.arange(self.frame_stack)[::-1])
        (self._return_scale,) = self._on_device(np.array(self.return_scale, np.float32))
        self._state_scaling, self._action_scaling, self._goal_scaling = (
            None if mid is None or scale is None else self._on_device(mid, scale)
            for mid, scale in (
                (self.state_mean, self.state_std),
                (self.action_mid, self.action_scale),
                (self.goal_mean, self.goal_std),
            )
        )

    @classmethod
    def covering(cls, trajectories: Trajectories, context_length: int, **kwargs: Any) -> WindowDataset:
        """Cut every episode into windows that do not overlap: each transition is in exactly one (for `eval_loss`).

        Takes the same arguments as the class, but for `starts` and `stride`.
        """
        return cls(trajectories, context_length, stride=max(context_length, 1), **kwargs)

    def __len__(self) -> int:
        return int(self._first_windows[-1]) if self.starts is None else len(self.starts)

    @property
    def num_items(self) -> int:
        """Items to draw from: each window, where its goal is drawn with every draw of it."""
        return len(self) * (DRAWS if self.goals in ("uniform", "geometric") else 1)

    def episode_weights(self) -> NDArray[np.float64] | None:
        """Return how likely the windows of each episode are to be drawn, (E,), up to a factor; None for all alike.

        exp(R / (temperature (max R - min R))) of the returns R. Source: Hong et al. 2023, return weighting.
        """
        if self.return_temperature is None:
            return None
        returns = self.trajectories.returns()
        span = np.ptp(returns)
        return np.exp((returns - returns.max()) / (self.return_temperature * (span if span > 0 else 1.0)))

    def sampler(self, seed: int = 0, num_samples: int | None = None) -> WindowSampler:
        """Return what draws these windows, as often as they are to be drawn."""
        weights = self.episode_weights()
        if weights is None:
            return WindowSampler(self.num_items, seed=seed, num_samples=num_samples)
        return WindowSampler(
            len(self), seed=seed, num_samples=num_samples, counts=self.trajectories.lengths, weights=weights
        )

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one window: the tensors of a batch without their first dimension."""
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int] | NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the finished batch of these windows in one gather (a DataLoader calls this when it is there)."""
        items = np.asarray(indices, dtype=np.int64)
        if len(items) and not (items.min() >= 0 and items.max() < self.num_items):
            raise IndexError(
                f"window indices must be in 0 ... {self.num_items - 1}; got {items.min()} ... {items.max()}"
            )
        draws, chosen = np.divmod(items, len(self))
        share = shares(chosen, draws)
        chosen = chosen if self.starts is None else self.starts[chosen]
        episode = np.searchsorted(self._first_windows, chosen, side="right") - 1
        step = self.stride * (chosen - self._first_windows[episode])
        if self.placement == "anywhere":
            return self._gather(episode, step, share)
        lengths = self.trajectories.lengths[episode]
        last = np.maximum(lengths - self.context_length, 0)
        if self.stride == 1:  # the T steps of an episode stand for its T - K + 1 windows, each as often as any other
            return self._gather(episode, step * (last + 1) // lengths, share)
        first = np.minimum(step, last)
        batch = self._gather(episode, first, share)
        labels, seen = batch["labels"], torch.from_numpy(step - first).to(batch["labels"].device)
        labels[torch.arange(self.context_length, device=labels.device) < seen[:, None]] = IGNORED_LABEL
        return batch

    def _gather(
        self, episode: NDArray[np.int64], step: NDArray[np.int64], share: NDArray[np.float64]
    ) -> dict[str, Tensor]:
        """Gather the windows that begin at these steps of these episodes, with goals at these shares, (b,) each.

        NumPy computes it here, and torch on a device: only what both write alike stands here.
        """
        starts, lengths = self.trajectories.starts[episode], self.trajectories.lengths[episode]
        first, length, start = self._on_device(starts[:, None], lengths[:, None], step[:, None])
        timesteps = start + self._steps
        real = timesteps < length
        padding = ~real
        # Padding reads the episode's last row: always a legal row, and cheaper than gathering the real rows alone.
        rows = first + self._arrays.minimum(timesteps, length - 1)

        states = self._gather_states(rows, first)
        before = self._arrays.maximum(rows[:, :1] - 1, first)
        taken = self._take("actions", self._arrays.concatenate([before, rows], axis=1))
        if self._action_scaling is not None:
            mid, scale = self._action_scaling
            taken = (taken - mid) / scale
        previous_actions, actions, labels = map(self._copy, (taken[:, :-1], taken[:, 1:], taken[:, 1:]))
        earned = {}
        if self.trajectories.has_rewards:
            earned["rewards"] = self._take("rewards", rows)
            earned["returns_to_go"] = self._take("returns_to_go", rows) / self._return_scale
        asked = {}
        if self.goals is not None:
            asked["goals"] = self._gather_goals(rows, self._goal_rows(episode, step, share))
        discrete = self.trajectories.action_type == "discrete"
        previous_actions[padding | (timesteps == 0)] = NO_ACTION if discrete else 0
        labels[padding] = IGNORED_LABEL
        for values in (states, actions, *earned.values(), *asked.values(), timesteps):
            values[padding] = 0
        batch = {
            "states": states,
            "actions": actions,
            **{name: values[..., None] for name, values in earned.items()},
            **asked,
            "timesteps": timesteps,
            "attention_mask": real * 1,
            "previous_actions": previous_actions,
            "labels": labels,
        }
        return {name: self._as_tensor(values) for name, values in batch.items()}

    def _gather_states(self, rows: Any, first: Any) -> Any:
        """Gather the states at `rows` (b, K) of episodes that begin at the rows `first` (b, 1)."""
        if self._state_scaling is None:  # images
            return self._take("observations", self._arrays.maximum(rows[..., None] - self._ages, first[..., None]))
        states = self._take("observations", rows)
        mean, std = self._state_scaling
        states -= mean
        states /= std
        return states

    def _goal_rows(
        self, episode: NDArray[np.int64], step: NDArray[np.int64], share: NDArray[np.float64]
    ) -> NDArray[np.int64] | None:
        """Return the rows (b,) whose achieved goals windows are trained towards; None for recorded goals."""
        if self.goals is None or self.goals == "recorded":
            return None
        lengths = self.trajectories.lengths[episode]
        last = np.minimum(step + self.context_length, lengths) - 1
        return self.trajectories.starts[episode] + drawn_steps(self.goals, last, lengths, share)

    def _gather_goals(self, rows: Any, drawn: NDArray[np.int64] | None) -> Any:
        """Gather the goals of windows whose steps are at `rows` (b, K): their own, or the one at the row `drawn`."""
        if drawn is None:
            goals = self._take("goals", rows)
        else:
            (at,) = self._on_device(drawn[:, None])
            goals = self._take("achieved_goals", at + 0 * rows)
        assert self._goal_scaling is not None
        mean, std = self._goal_scaling
        goals -= mean
        goals /= std
        return goals

    # What differs where something else than NumPy computes

    #: The functions on arrays.
    _arrays: Any = np
    _copy: Any = staticmethod(np.ndarray.copy)
    _as_tensor: Any = staticmethod(torch.from_numpy)

    def _on_device(self, *values: NDArray[Any]) -> Sequence[Any]:
        """Return arrays of one shape and type where the columns are."""
        return values

    def _take(self, column: str, rows: Any) -> Any:
        """Return these rows of a column."""
        # `take` copies whole rows, at the speed of memory; what it returns is one allocation.
        values: np.ndarray = getattr(self.trajectories, column)
        return values.take(rows, axis=0)


class WindowSampler(Sampler[int]):
    """Draws windows, with replacement: draw i of epoch e is a pure function of (seed, e, i).

    All are as likely, unless there are weights.

    It has no state but the epoch, which `set_epoch` (called by accelerate and the Trainer) changes, and needs no random
    generator of torch: a run that skips the draws it has already seen goes on exactly as if it had never stopped.

    Args:
        num_windows: windows to draw from, the length of the `WindowDataset`.
        seed: not negative.
        epoch: not negative.
        num_samples: draws in an epoch; default `num_windows`.
        counts: (E,) windows of each episode, in their order, `num_windows` in all.
        weights: (E,) how likely each window of an episode is, up to a factor; not negative, and not all 0.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_windows: int,
        seed: int = 0,
        epoch: int = 0,
        num_samples: int | None = None,
        counts: NDArray[np.int64] | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        num_samples = num_windows if num_samples is None else num_samples
        for name, value, least in (
            ("num_windows", num_windows, 1),
            ("seed", seed, 0),
            ("epoch", epoch, 0),
            ("num_samples", num_samples, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        self.num_windows = num_windows
        self.seed = seed
        self.epoch = epoch
        self.num_samples = num_samples
        self._episodes = None
        if counts is not None and weights is not None:
            self._episodes = _episodes_by_weight(num_windows, counts, weights)
        elif counts is not None or weights is not None:
            raise ValueError("counts and weights are of the same episodes; give both of them, or neither")

    def set_epoch(self, epoch: int) -> None:
        """Draw the windows of this epoch from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        # Not a generator itself: the epoch is the one at this call, even if the first draw is asked for later.
        return self._draws(self.epoch)

    def _draws(self, epoch: int) -> Iterator[int]:
        for first in range(0, self.num_samples, _DRAWS_AT_ONCE):
            # Philox is counter based (Salmon et al. 2011): its stream may begin anywhere, a step gives four numbers.
            # One number a draw keeps draw i at number i; the bias of the remainder is below num_windows / 2^64.
            stream = np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)).advance(first // 4)
            numbers = stream.random_raw(min(_DRAWS_AT_ONCE, self.num_samples - first))
            if self._episodes is None:
                yield from (numbers % np.uint64(self.num_windows)).tolist()
                continue
            # The unit interval is cut into a piece for each episode, and that evenly into its windows.
            counts, firsts, ends = self._episodes
            places = (numbers >> np.uint64(11)) * 2.0**-53
            episode = np.searchsorted(ends[1:], places, side="right")
            within = (places - ends[episode]) / (ends[episode + 1] - ends[episode])
            yield from (
                firsts[episode] + np.minimum(within * counts[episode], counts[episode] - 1).astype(int)
            ).tolist()


def _episodes_by_weight(
    num_windows: int, counts: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return windows (E,) and first window (E + 1,) of each episode, and where its piece of [0, 1] ends, (E + 1,)."""
    counts, weights = np.asarray(counts, np.int64), np.asarray(weights, np.float64)
    if counts.shape != weights.shape or counts.ndim != 1 or counts.sum() != num_windows or (counts < 0).any():
        raise ValueError(
            f"counts must be windows of each episode, {num_windows} in all, and weights one number for each; got "
            f"{counts.sum()} in {counts.shape} and {weights.shape}"
        )
    shares = counts * weights
    if not (np.isfinite(shares).all() and (weights >= 0).all() and shares.sum() > 0):
        raise ValueError("weights must be finite and not negative, and one of them positive")
    ends = offsets_of(counts).astype(np.float64)
    np.cumsum(shares, out=ends[1:])
    return counts, offsets_of(counts), ends / ends[-1]


def collate(batch: dict[str, Tensor] | list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pass a finished batch through; stack single windows, which wrappers without `__getitems__` fetch one by one."""
    if isinstance(batch, dict):
        return batch
    stacked: dict[str, Tensor] = default_collate(batch)
    return stacked


def _vector(
    name: str, values: ArrayLike | None, default: float, dimensions: int | None, source_name: str
) -> NDArray[np.float32] | None:
    """Return `values` as (dimensions,) float32, or the default in each; None for what has none and takes no values."""
    if dimensions is None:
        if values is None:
            return None
        raise ValueError(
            f"{name} has no meaning for {source_name!r}, which has images or discrete actions there: the model divides "
            "pixels by 255, and counts actions; leave it out"
        )
    vector = np.full(dimensions, default, np.float32) if values is None else np.asarray(values, dtype=np.float32)
    if vector.shape != (dimensions,) or not np.isfinite(vector).all():
        raise ValueError(
            f"{name} must be {dimensions} finite numbers, one for each dimension of {source_name!r}; got shape "
            f"{vector.shape}"
        )
    return vector


def _checked_starts(starts: NDArray[np.int64], trajectories: Trajectories) -> NDArray[np.int64]:
    """Return `starts` when there is one or more and all are transitions of the data set."""
    starts = np.asarray(starts, dtype=np.int64)
    if starts.ndim != 1 or len(starts) == 0 or starts.min() < 0 or starts.max() >= trajectories.num_steps:
        raise ValueError(
            f"starts must be a list of one or more transitions of {trajectories.name!r}, "
            f"each in 0 ... {trajectories.num_steps - 1}"
        )
    return starts
