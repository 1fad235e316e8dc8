"""How long each channel's state remembers, from its step sizes and decay rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from .windows import Floats, mixers_of, scan_terms_of


@dataclass(frozen=True)
class TimeConstants:
    """Step sizes and memory of every layer.

    Attributes:
        quantiles: (q,) which quantiles these are.
        step_sizes: (layers, q) of Δ over real tokens and heads.
        learned: (layers, q) of what Δ is before it depends on any token, softplus(bias), over channels or heads.
        steps: (layers, q) of the memory time constants of all states, in environment steps.
        tokens_per_step: by which they have to be multiplied to be in tokens.
    """

    quantiles: Floats
    step_sizes: Floats
    learned: Floats
    steps: Floats
    tokens_per_step: int


def time_constants(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
) -> TimeConstants:
    """Measure how long the states of every layer remember.

    A state keeps exp(-1) of what went in after 1 / (mean Δ · |A|) tokens: after many exp(A Σ Δ) is left, so that the
    mean of Δ over a batch's tokens is what counts.

    Raises:
        ValueError: a model without Mamba mixers, or a batch that is no window.
    """
    scans, mask = scan_terms_of(model, batch)
    per_step = len(model.config.token_types)
    real = mask.repeat_interleave(per_step, dim=1)
    learned = [np.quantile(_biased(mixer), quantiles) for mixer in mixers_of(model)]
    step_sizes, steps = [], []
    for terms in scans:
        delta = terms.delta[real].double().cpu().numpy()  # (real tokens, heads)
        rates = delta.mean(0)[:, None] * -terms.A.double().cpu().numpy()
        with np.errstate(divide="ignore"):  # a step size that has underflowed remembers for ever
            steps.append(np.quantile(1 / rates / per_step, quantiles))
        step_sizes.append(np.quantile(delta, quantiles))
    return TimeConstants(np.asarray(quantiles), np.stack(step_sizes), np.stack(learned), np.stack(steps), per_step)


def _biased(mixer: Any) -> Floats:
    """Return the step sizes that a mixer's biases alone make."""
    bias: Tensor = mixer.dt_bias if hasattr(mixer, "dt_bias") else mixer.dt_proj.bias
    return F.softplus(bias.detach().double()).cpu().numpy()
