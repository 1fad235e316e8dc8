# Copyright 2026
"""mamba-ssm's scan and causal-conv1d's convolution, for those who have compiled them against their torch.

Both packages are imported at the first call on CUDA tensors, and never for others: parts of them import, or fail to,
where there is no GPU. Whatever their import raises is a reason not to use them, which is kept and told.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def why_no_mamba_ssm(u: Tensor) -> str | None:
    """Say why mamba-ssm's scan cannot run on a tensor; None if it can."""
    if u.device.type != "cuda":
        return f"the tensors live on {u.device}"
    if u.dtype == torch.float64:
        return "mamba-ssm has no float64"
    found = load("mamba-ssm", "mamba_ssm.ops.selective_scan_interface", "selective_scan_cuda", "selective_scan_fn")
    return found if isinstance(found, str) else None


def mamba_ssm_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Call mamba-ssm's `selective_scan_fn` with the arguments and results of `selective_scan`.

    It has neither mask nor initial state, and no gradient flows back from the state that it returns.
    """
    function: Any = load(
        "mamba-ssm", "mamba_ssm.ops.selective_scan_interface", "selective_scan_cuda", "selective_scan_fn"
    )
    u_, delta_, B_, C_, z_ = (None if t is None else t.to(u.dtype).mT for t in (u, delta, B, C, z))
    A_, D_, bias = (None if t is None else t.float() for t in (A, D, delta_bias))  # as its kernel wants them
    y, final_state = function(u_, delta_, A_, B_, C_, D_, z_, bias, delta_softplus, return_last_state=True)
    return y.mT, final_state.detach().float()


def causal_conv1d(x: Tensor, width: int, history: int) -> Callable[..., Tensor] | None:
    """Return causal-conv1d's `causal_conv1d_fn` if it is there and can convolve x (b, l, c), else None."""
    fits = 2 <= width <= 4 and history == 0 and x.dtype != torch.float64
    fits = fits and x.stride(2) == 1 and x.stride(0) % 8 == 0 and x.stride(1) % 8 == 0
    if not fits or x.device.type != "cuda":
        return None
    found = load("causal-conv1d", "causal_conv1d", "causal_conv1d_cuda", "causal_conv1d_fn")
    return None if isinstance(found, str) else found


@functools.cache
def load(package: str, module: str, compiled: str, function: str) -> Callable[..., Any] | str:
    """Import a function of a package, or return the reason why it cannot be used."""
    if importlib.util.find_spec(module.split(".")[0]) is None:
        return f"{package} is not installed (pip install {package} --no-build-isolation, which needs nvcc)"
    try:
        importlib.import_module(compiled)  # without which the rest may import and compute slowly
        return getattr(importlib.import_module(module), function)
    except Exception as error:  # a missing part, another torch's symbols, no driver: each raises something else
        words = " ".join(str(error).split())
        return f"{package} is installed but does not work with this torch ({type(error).__name__}: {words})"
