"""Look inside a model: hidden attention, what it is worth, how far back a decision reaches, how long states remember.

A batch is a mapping of the tensors that a model's `forward` takes, windows of whole steps as `WindowDataset` and a data
collator make them; steps may be masked anywhere. Every function leaves the models that it is given as they were.
Source: DeMa (arXiv 2405.12094): hidden attention (equation 5, figure 4), the exchange of its parameters (figure 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..model.modeling_decision_mamba import state_token
from .windows import Floats, scan_terms_of


@dataclass(frozen=True)
class HiddenAttention:
    """Hidden attention of a batch of windows (k steps, l tokens); one head is one channel, `head_dim` in Mamba-2.

    Attributes:
        weights: (layers, batch, [heads,] l) of the last decision, or (layers, batch, [heads,] l, l), query then key;
            tokens stand as in the batch, absent ones are 0.
        token_types: what the tokens of one step are, in order; `("step",)` where a step is one token.
        mask: (batch, k), false where a step is absent.
        last_row: whether `weights` is the last decision's row.
    """

    weights: Floats
    token_types: tuple[str, ...]
    mask: NDArray[np.bool_]
    last_row: bool

    def by_steps_ago(self) -> Floats:
        """Return the last decision's row (layers, batch, [heads,] k, types): at 0 its own step, at 1 the one before.

        NaN where a window has no such step; 0 at the own action, which a decision does not see.

        Raises:
            ValueError: these are all rows.
        """
        if not self.last_row:
            raise ValueError(
                "by_steps_ago reads the last decision's row; ask for hidden_attention(..., last_row=True)."
            )
        by_step = self.weights.reshape(*self.weights.shape[:-1], -1, len(self.token_types))
        ordered = np.full_like(by_step, np.nan)
        for row, real in enumerate(self.mask):
            newest_first = np.flatnonzero(real)[::-1]
            ordered[:, row, ..., : newest_first.size, :] = by_step[:, row][..., newest_first, :]
        return ordered


def hidden_attention(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    *,
    reduce: Literal["abs-mean"] | None = "abs-mean",
    last_row: bool = True,
) -> HiddenAttention:
    """Compute what every token of a window gives to the scan's output, in every layer; exact.

    The last row belongs to the token from which the last real step's action is predicted. Beside a forward pass it
    takes O(b l (h + n)) memory and O(b l h n) time a layer (b windows, l tokens, h heads, n states; in Mamba-2 time
    without n). All rows take 12 b h l² bytes and O(b h l² n) time, one layer after the other.

    Args:
        reduce: `"abs-mean"`, the mean of |α| over heads, which the paper draws; None for α of every head.
        last_row: the last decision's row alone, or all rows.

    Raises:
        ValueError: a model without Mamba mixers, a batch that is no window, or an unknown `reduce`.
    """
    if reduce not in ("abs-mean", None):
        raise ValueError(f"reduce={reduce!r} is unknown; choose 'abs-mean' or None.")
    scans, mask = scan_terms_of(model, batch)
    token_types = model.config.token_types
    decision = state_token(token_types)
    steps = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    query = ((steps * mask).amax(1) - 1).clamp(min=0) * len(token_types) + decision
    layers = []
    for terms in scans:
        weights = terms.attention_row(query) if last_row else terms.attention()
        weights = weights.abs().mean(1) if reduce else weights
        layers.append(weights.cpu().numpy())
    return HiddenAttention(np.stack(layers), token_types, mask.cpu().numpy(), last_row)


@dataclass(frozen=True)
class Decay:
    """|α| ≈ `scale` · exp(-`rate` · steps ago), fitted by `decay_rate`.

    Attributes:
        rate: per step; `rate_interval` is its confidence interval, NaN from a single window.
        scale: of the fitted curve at the decision's own step.
        r_squared: share of the variance of log |α| that the line explains; 1 where decay is exactly exponential.
    """

    rate: float
    rate_interval: tuple[float, float]
    scale: float
    r_squared: float

    @property
    def half_life(self) -> float:
        """Steps after which half is left; infinite where nothing decays."""
        return _half_life(self.rate)

    @property
    def half_life_interval(self) -> tuple[float, float]:
        """Confidence interval of the half-life, in steps."""
        low, high = self.rate_interval
        return _half_life(high), _half_life(low)


def decay_rate(attention: ArrayLike, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> Decay:
    """Fit a line to the logarithm of |attention|, averaged over windows, against the distance in steps.

    The interval is the percentile bootstrap over windows, which it takes for independent. Zeros of the averaged curve,
    for instance what has underflowed, have no logarithm and are left out.

    Args:
        attention: (windows, k) or (k,) by steps ago, as `by_steps_ago` gives it for one layer and type (or summed over
            token types); NaN where there is no such step.

    Raises:
        ValueError: another shape, an infinite value, or fewer than two distances with attention; a confidence that is
            not between 0 and 1.
    """
    values = np.abs(np.atleast_2d(np.asarray(attention, dtype=np.float64)))
    if values.ndim != 2 or np.isinf(values).any():
        raise ValueError(f"attention has shape {values.shape}; give finite numbers (windows, steps ago), NaN for none.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1.")
    windows = values.shape[0]
    rates, scales, shares = _fit_exponentials(values, np.ones((1, windows)))
    if np.isnan(rates[0]):
        raise ValueError("attention is positive at fewer than two distances; a rate needs two steps that are attended.")
    interval = (np.nan, np.nan)
    if windows > 1:
        draws = np.random.default_rng(seed).multinomial(windows, np.full(windows, 1 / windows), size=resamples)
        tail = (1 - confidence) / 2
        low, high = np.nanquantile(_fit_exponentials(values, draws)[0], [tail, 1 - tail])
        interval = (float(low), float(high))
    return Decay(float(rates[0]), interval, float(scales[0]), float(shares[0]))


def _fit_exponentials(values: Floats, counts: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Return rate, scale and r² (m,) of the mean of values (windows, k), counted `counts` (m, windows) times."""
    present = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        curves = counts @ np.where(present, values, 0.0) / (counts @ present)
        used = curves > 0
        logs = np.log(np.where(used, curves, 1.0))
        number = used.sum(1, keepdims=True)
        distances = np.broadcast_to(np.arange(values.shape[1]), used.shape)
        x = np.where(used, distances - (distances * used).sum(1, keepdims=True) / number, 0.0)
        mean = logs.sum(1, keepdims=True) / number
        y = np.where(used, logs - mean, 0.0)
        slope = (x * y).sum(1) / (x * x).sum(1)
        intercept = mean[:, 0] - slope * (distances * used).sum(1) / number[:, 0]
        total = (y * y).sum(1)
        left = ((y - slope[:, None] * x) ** 2).sum(1)
        explained = np.where(total > 0, 1 - left / total, 1.0)
    return -slope, np.exp(intercept), explained


def _half_life(rate: float) -> float:
    return np.inf if rate <= 0 else float(np.log(2) / rate)
