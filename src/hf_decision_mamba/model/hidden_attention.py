# Copyright 2026
"""The attention that a selective scan hides: what every token takes from every token before it.

Unrolled, the scan reads `y_i = Σ_j α_ij x_j + D x_i` with `α_ij = C_i · exp(A Σ_{k=j+1..i} Δ_k) Δ_j B_j`, and zero for
j > i: signed, without softmax; the convolution, D and the gate are no part of it. Source: DeMa (arXiv 2405.12094),
equation 5, after Ali et al. (arXiv 2403.01590).

The product of decays is the exponential of a sum of step sizes. Every sum runs over its own tokens only: differences of
one long sum would lose digits.

Shapes: b batch, l tokens, h heads, n states, r decay rates of a head. In Mamba every channel is a head and every state
has a rate (r = n); in Mamba-2 `head_dim` channels share a head, and all of its states one rate (r = 1).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .configuration_decision_mamba import DecisionMambaConfig
from .mixers_decision_mamba import take_steps
from .selective_scan import delta_factor, effective_delta


class ScanTerms(NamedTuple):
    """What a layer's hidden attention is made of, float32 or float64; its methods compute in place, without autograd.

    Attributes:
        delta: Δ (b, l, h), times the time scale; 0 at absent tokens.
        A: (h, r), negative.
        B, C: (b, l, n); C is 0 at absent tokens.
    """

    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor

    def at_steps(self, index: Tensor) -> "ScanTerms":
        """Select the steps of every row at index (b, k), each with all of its tokens."""

        def moved(x: Tensor) -> Tensor:
            return take_steps(x.unflatten(1, (index.shape[1], -1)), index).flatten(1, 2)

        return self._replace(delta=moved(self.delta), B=moved(self.B), C=moved(self.C))

    def attention(self) -> Tensor:
        """Compute α (b, h, l, l), query then key. Time O(b h l² r), memory three times the result's."""
        length = self.B.shape[1]
        delta = self.delta.mT  # (b, h, l)
        elapsed = delta[..., None].expand(-1, -1, -1, length).tril(-1).cumsum_(2)  # Σ_{k=j+1..i} Δ_k
        attention, decay = torch.zeros_like(elapsed), torch.empty_like(elapsed)
        rates = self.A.shape[1]
        for A, B, C in zip(
            self.A.unbind(1),
            self.B.unflatten(2, (rates, -1)).unbind(2),
            self.C.unflatten(2, (rates, -1)).unbind(2),
            strict=True,
        ):
            torch.mul(elapsed, A[:, None, None], out=decay).exp_()
            attention.addcmul_((C @ B.mT).tril()[:, None], decay)
        return attention.mul_(delta[:, :, None])

    def attention_row(self, query: Tensor) -> Tensor:
        """Compute α (b, h, l) of one query a row, at tokens query (b,). Time O(b h l r), memory O(b l (h + n))."""
        seen = torch.arange(self.B.shape[1], device=query.device) <= query[:, None]
        delta = self.delta * seen[..., None]
        until_query = delta.flip(1).cumsum(1).flip(1)  # Σ_{k=j..i} Δ_k
        elapsed = torch.cat([until_query[:, 1:], torch.zeros_like(delta[:, :1])], dim=1)
        scores = (self.B * take_steps(self.C, query[:, None])).unflatten(2, (self.A.shape[1], -1)).sum(3)
        attention = torch.zeros_like(delta)
        for A, score in zip(self.A.unbind(1), scores.unbind(2), strict=True):
            attention.addcmul_(score[..., None], torch.exp(A * elapsed))
        return attention.mul_(delta).mT


def scan_terms(scan: dict[str, Any], config: DecisionMambaConfig, mask: Tensor | None) -> ScanTerms:
    """Compute the terms of a recorded scan.

    Args:
        scan: the arguments of a layer's `selective_scan`, as `TokenStream.scans` holds them.
        config: of the model.
        mask: (b, l) bool, false where a token is absent; None where all are real.
    """
    dtype = torch.promote_types(scan["u"].dtype, torch.float32)
    A, B, C = scan["A"], scan["B"].to(dtype), scan["C"].to(dtype)
    delta, bias = scan["delta"], scan.get("delta_bias")
    if config.ssm == "mamba2":  # a head's channels are equal, and so are its states' rates
        delta, A = delta[..., :: config.head_dim], A[:: config.head_dim, :1]
        bias = None if bias is None else bias[:: config.head_dim]
    bias = None if bias is None else bias.to(dtype)
    factor = delta_factor(mask, scan.get("time_scale"), dtype)
    taken = effective_delta(delta.to(dtype), bias, scan.get("delta_softplus", True), factor)
    return ScanTerms(taken, A.to(dtype), B, C if mask is None else C * mask[..., None])
