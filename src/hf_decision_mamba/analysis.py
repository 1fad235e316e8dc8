"""Look inside a model: hidden attention, what it is worth, how far back a decision reaches, how long states remember.

A batch is a mapping of the tensors that a model's `forward` takes, windows of whole steps as `WindowDataset` and a data
collator make them; steps may be masked anywhere. Every function leaves the models that it is given as they were.
Source: DeMa (arXiv 2405.12094): hidden attention (equation 5, figure 4), the exchange of its parameters (figure 5).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from .memory import kinds_of
from .model import DecisionMambaConfig
from .model.cache_decision_mamba import NO_ACTION
from .model.hidden_attention import ScanTerms, scan_terms
from .model.mixers_decision_mamba import DecisionMamba2Mixer, DecisionMambaMixer, take_steps

Model = TypeVar("Model", bound=PreTrainedModel)
Floats = NDArray[np.floating[Any]]

INPUTS = ("states", "actions", "returns_to_go", "timesteps", "attention_mask", "previous_actions")
IGNORED = ("labels", "rewards")


# ------------------------------------------------------------------------------------------------ hidden attention


@dataclass(frozen=True)
class HiddenAttention:
    """Hidden attention of a batch of windows (k steps, l tokens); one head is one channel, `head_dim` in Mamba-2.

    Attributes:
        weights: (layers, batch, [heads,] l) of the last decision, or (layers, batch, [heads,] l, l), query then key;
            tokens stand as in the batch, absent ones are 0.
        kinds: what the tokens of one step are, in order; `("step",)` where a step is one token.
        mask: (batch, k), false where a step is absent.
        last_row: whether `weights` is the last decision's row.
    """

    weights: Floats
    kinds: tuple[str, ...]
    mask: NDArray[np.bool_]
    last_row: bool

    def by_steps_ago(self) -> Floats:
        """The last decision's row as (layers, batch, [heads,] k, kinds): at 0 its own step, at 1 the real step before.

        NaN where a window has no such step; 0 at the own action, which a decision does not see.

        Raises:
            ValueError: these are all rows.
        """
        if not self.last_row:
            raise ValueError(
                "by_steps_ago reads the last decision's row; ask for hidden_attention(..., last_row=True)."
            )
        by_step = self.weights.reshape(*self.weights.shape[:-1], -1, len(self.kinds))
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
    """What every token of a window gives to the scan's output, in every layer; exact.

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
    scans, mask = _scan_terms(model, batch)
    kinds = model.config.token_kinds
    decision = kinds.index("state") if "state" in kinds else 0
    steps = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    query = ((steps * mask).amax(1) - 1).clamp(min=0) * len(kinds) + decision
    layers = []
    for terms in scans:
        weights = terms.attention_row(query) if last_row else terms.attention()
        weights = weights.abs().mean(1) if reduce else weights
        layers.append(weights.cpu().numpy())
    return HiddenAttention(np.stack(layers), kinds, mask.cpu().numpy(), last_row)


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
        attention: (windows, k) or (k,) by steps ago, as `by_steps_ago` gives it for one layer and kind (or summed over
            kinds); NaN where there is no such step.

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
    """Rate, scale and r² (m,) of the mean of values (windows, k), each window counted `counts` (m, windows) times."""
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


# ------------------------------------------------------------------------------------------------- swap, randomise


def swap_hidden_attention(model: Model, other: PreTrainedModel, layers: int | Sequence[int] | None = None) -> Model:
    """A copy of the model with another model's hidden-attention parameters in some layers (DeMa, figure 5).

    These are, as in the paper, all of a mixer but `in_proj` and `out_proj`: conv1d, x_proj, dt_proj, A_log and D.
    Mamba-2 computes B, C and Δ in `in_proj`, so those rows of it belong to them, and its final norm does not.

    Args:
        layers: counted from 0; all when not given.

    Raises:
        ValueError: a layer that one of them does not have, other sizes, or a model without Mamba mixers.
    """
    mixers, donors = _mixers(model), _mixers(other)
    given = {}
    for layer in _chosen_layers(len(mixers), layers):
        if layer >= len(donors):
            raise ValueError(f"layers: the other model has no layer {layer}; it has layers 0 to {len(donors) - 1}.")
        given[layer] = _attention_parameters(donors[layer])
        sizes, others = _sizes(_attention_parameters(mixers[layer])), _sizes(given[layer])
        if sizes != others:
            ours, theirs = (", ".join(sorted(found)) or "nothing more" for found in (sizes - others, others - sizes))
            raise ValueError(f"layer {layer} cannot be swapped: the model has {ours}; the other has {theirs}.")
    return _replaced(model, layers, lambda layer, name, _: given[layer][name])


def randomize_hidden_attention(model: Model, layers: int | Sequence[int] | None = None, seed: int = 0) -> Model:
    """A copy of the model whose hidden-attention parameters in some layers are drawn uniformly from [0, 1).

    Parameters, layers and errors as `swap_hidden_attention`; the same seed draws the same numbers on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    return _replaced(model, layers, lambda layer, name, tensor: torch.rand(tensor.shape, generator=generator))


def zero_hidden_attention(model: Model, layers: int | Sequence[int] | None = None) -> Model:
    """A copy of the model whose hidden-attention parameters in some layers are zero: their scans give nothing.

    Parameters, layers and errors as `swap_hidden_attention`.
    """
    return _replaced(model, layers, lambda layer, name, tensor: torch.zeros_like(tensor))


def _replaced(model: Model, layers: int | Sequence[int] | None, value: Callable[[int, str, Tensor], Tensor]) -> Model:
    """A copy of the model with value(layer, name, parameter) in the place of hidden-attention parameters."""
    chosen = _chosen_layers(len(_mixers(model)), layers)
    changed = copy.deepcopy(model)
    mixers = _mixers(changed)
    with torch.no_grad():
        for layer in chosen:
            for name, tensor in _attention_parameters(mixers[layer]).items():
                tensor.copy_(value(layer, name, tensor))
    return changed


def _attention_parameters(mixer: DecisionMambaMixer | DecisionMamba2Mixer) -> dict[str, Tensor]:
    """The parameters that make a mixer's hidden attention, by name; parts of one are views."""
    named: dict[str, Tensor] = dict(mixer.named_parameters())
    parameters = {name: x for name, x in named.items() if name.split(".")[0] not in ("in_proj", "out_proj", "norm")}
    if isinstance(mixer, DecisionMamba2Mixer):
        first = 2 * mixer.config.intermediate_size  # behind z and x
        for name, tensor in mixer.in_proj.named_parameters():
            parameters[f"in_proj.{name} of B, C and Δ"] = tensor[first:]
    return parameters


def _sizes(parameters: Mapping[str, Tensor]) -> set[str]:
    return {f"{name} {tuple(tensor.shape)}" for name, tensor in parameters.items()}


def _chosen_layers(count: int, layers: int | Sequence[int] | None) -> list[int]:
    chosen = list(range(count)) if layers is None else [layers] if isinstance(layers, int) else list(layers)
    for layer in chosen:
        if not 0 <= layer < count:
            raise ValueError(f"layers: there is no layer {layer}; this model has layers 0 to {count - 1}.")
    return chosen


# ---------------------------------------------------------------------------------------------- effective context


@dataclass(frozen=True)
class EffectiveContext:
    """How much the past of a window changes the action of its last real step.

    A change is the mean of |difference| over the dimensions of the predicted action; of discrete actions it is the
    total variation distance of the two distributions, from 0 to 1. NaN where a window has no such step, so that
    `numpy.nanmean(step_removed, axis=0)` is the curve.

    Attributes:
        steps_ago: (k - 1,) from 1 to k - 1; the decision's own step cannot be left out.
        step_removed: (batch, k - 1) the change when this step alone is absent.
        older_removed: (batch, k - 1) the change when this step and all before it are absent: a context of `steps_ago`
            steps.
    """

    steps_ago: NDArray[np.int64]
    step_removed: Floats
    older_removed: Floats


def effective_context(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> EffectiveContext:
    """Remove each past step of a window, and all older ones, and measure how far the last action moves; exact.

    A step is removed by `attention_mask`, so all of its tokens are absent, and the steps around it close up. Where a
    step's tokens are (R, previous action, state), its own action still stands in the step behind it, as at the edge of
    a shorter window. Works for every model with `DecisionTransformerModel`'s forward. Costs 2 k - 1 forward passes.

    Raises:
        ValueError: a batch that is no window, or of a single step.
    """
    window = _newest_last(model, _window(model, batch))
    mask = window["attention_mask"].bool()
    lengths, length = mask.sum(1), mask.shape[1]
    if length < 2:
        raise ValueError("batch holds windows of one step; there is no past to remove.")
    discrete = kinds_of(model.config)[1] == "discrete"
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def decide(seen: Tensor) -> Tensor:
        prediction = model(**{**window, "attention_mask": seen.long()}, **options).action_preds[:, -1].float()
        return prediction.softmax(-1) if discrete else prediction

    def change(seen: Tensor, exists: Tensor) -> Tensor:
        difference = (decide(seen) - reference).abs()
        difference = difference.sum(-1) / 2 if discrete else difference.mean(-1)
        return difference.masked_fill(~exists, torch.nan)

    step_removed, older_removed = [], []
    places = torch.arange(length, device=mask.device)
    with _evaluating(model):
        reference = decide(mask)
        for ago in range(1, length):
            place, exists = length - 1 - ago, lengths > ago
            step_removed.append(change(mask & (places != place), exists))
            older_removed.append(change(mask & (places > place), exists))
    curves = (torch.stack(changes, dim=1).cpu().numpy() for changes in (step_removed, older_removed))
    return EffectiveContext(np.arange(1, length), *curves)


def _newest_last(model: PreTrainedModel, window: dict[str, Tensor]) -> dict[str, Tensor]:
    """The window with absent steps first, and the previous actions that its steps show, whatever is removed later."""
    mask = window["attention_mask"].bool()
    order = torch.argsort(mask.int(), dim=1, stable=True)
    window = {name: take_steps(tensor, order) for name, tensor in window.items()}
    reads_them = "previous_actions" in inspect.signature(model.forward).parameters
    if reads_them and "previous_actions" not in window and "actions" in window:
        actions = window["actions"]
        nothing = NO_ACTION if kinds_of(model.config)[1] == "discrete" else 0
        previous = torch.cat([torch.full_like(actions[:, :1], nothing), actions[:, :-1]], dim=1)
        first = take_steps(mask, order).cumsum(1) == 1
        window["previous_actions"] = previous.masked_fill(
            first.reshape(*first.shape, *[1] * (actions.dim() - 2)), nothing
        )
    return window


# ------------------------------------------------------------------------------------------------- time constants


@dataclass(frozen=True)
class TimeConstants:
    """Step sizes and memory of every layer.

    Attributes:
        quantiles: (q,) which quantiles these are.
        step_sizes: (layers, q) of Δ over real tokens and heads.
        steps: (layers, q) of the memory time constants of all states, in environment steps.
        tokens_per_step: by which they have to be multiplied to be in tokens.
    """

    quantiles: Floats
    step_sizes: Floats
    steps: Floats
    tokens_per_step: int


def time_constants(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
) -> TimeConstants:
    """How long the states of every layer remember: 1 / (mean Δ · |A|), after which exp(-1) is left of what went in.

    What is left after many tokens is exp(A Σ Δ), so that the mean of Δ over a batch's tokens is what counts.

    Raises:
        ValueError: a model without Mamba mixers, or a batch that is no window.
    """
    scans, mask = _scan_terms(model, batch)
    per_step = len(model.config.token_kinds)
    real = mask.repeat_interleave(per_step, dim=1)
    step_sizes, steps = [], []
    for terms in scans:
        delta = terms.step_sizes[real].double().cpu().numpy()  # (real tokens, heads)
        rates = delta.mean(0)[:, None] * -terms.A.double().cpu().numpy()
        with np.errstate(divide="ignore"):  # a step size that has underflowed remembers for ever
            steps.append(np.quantile(1 / rates / per_step, quantiles))
        step_sizes.append(np.quantile(delta, quantiles))
    return TimeConstants(np.asarray(quantiles), np.stack(step_sizes), np.stack(steps), per_step)


# --------------------------------------------------------------------------------------------------- what is shared


def _mixers(model: PreTrainedModel) -> list[DecisionMambaMixer | DecisionMamba2Mixer]:
    """The model's Mamba mixers, one a layer."""
    mixers = [module for module in model.modules() if isinstance(module, (DecisionMambaMixer, DecisionMamba2Mixer))]
    if not mixers:
        raise ValueError(
            f"{type(model).__name__} has no Mamba mixers, so no hidden attention; give a DecisionMambaModel."
        )
    return mixers


def _window(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch's inputs on the model's device, always with a mask."""
    given = {name for name, tensor in batch.items() if tensor is not None}
    if "states" not in given or not given <= {*INPUTS, *IGNORED}:
        raise ValueError(f"batch holds {', '.join(sorted(given))}; give windows of {', '.join(INPUTS)}.")
    window = {name: batch[name].to(model.device) for name in INPUTS if name in given}
    if "attention_mask" not in window:
        window["attention_mask"] = torch.ones(window["states"].shape[:2], dtype=torch.long, device=model.device)
    if not window["attention_mask"].any():
        raise ValueError("batch holds no real step: attention_mask is zero everywhere.")
    return window


def _scan_terms(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[list[ScanTerms], Tensor]:
    """What each layer's hidden attention is made of, and the mask (b, k) of real steps; steps stand as in the batch."""
    mixers, window = _mixers(model), _window(model, batch)
    mask = window["attention_mask"].bool()
    scans: list[dict[str, Any]] = []

    def record(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_states, tokens = args
        return hidden_states, tokens._replace(scans=scans)

    hooks = [mixer.register_forward_pre_hook(record) for mixer in mixers]
    try:
        with _evaluating(model):
            model(**window, use_cache=False)
            order = torch.argsort(mask.int(), dim=1, descending=True, stable=True)  # in which the model reads the steps
            inverse = torch.argsort(order, dim=1)
            real = take_steps(mask, order).repeat_interleave(len(model.config.token_kinds), dim=1)
            config = cast(DecisionMambaConfig, model.config)
            return [scan_terms(scan, config, real).at_steps(inverse) for scan in scans], mask
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout and gradients; the model's mode comes back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


__all__ = [
    "Decay",
    "EffectiveContext",
    "HiddenAttention",
    "TimeConstants",
    "decay_rate",
    "effective_context",
    "hidden_attention",
    "randomize_hidden_attention",
    "swap_hidden_attention",
    "time_constants",
    "zero_hidden_attention",
]
