"""What is installed and what computes where, and why: the first thing to read in a bug report.

Which backend runs is asked of the function that chooses it, and is tried on a few numbers. Nothing needs a network.
"""

import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import datasets
import torch
from huggingface_hub import constants, get_token
from torch import Tensor, nn

from .acting.compiled import fuse
from .data.cache import cache_folder
from .model import DecisionMambaConfig, DecisionMambaModel
from .model.causal_conv import causal_conv
from .model.selective_scan import BACKENDS, choose_backend, selective_scan
from .model.selective_scan_cpu import why_no_numba
from .model.sizes_cpu import LANES
from .model.threads_cpu import whose_threads
from .reporting._version import __version__
from .reporting.tables import table_lines

_PACKAGES = (
    *("torch", "transformers", "huggingface_hub", "datasets", "accelerate", "safetensors", "numpy"),
    *("numba", "llvmlite", "triton", "mamba-ssm", "causal-conv1d"),
    *("gymnasium", "mujoco", "ale-py", "opencv-python-headless", "minari", "stable-baselines3", "matplotlib"),
)
_VARIABLES = re.compile(r"(OMP|MKL)_NUM_THREADS|NUMBA_\w+|TRITON_\w+|CUDA_VISIBLE_DEVICES|HF_\w+_OFFLINE")
_TOLERANCE = 1e-4  # of float32 kernels against the reference, on numbers around 1


def installation_info() -> dict[str, Any]:
    """Collect versions, devices, backends, caches and the Hub's settings, ready for JSON.

    The first call on a machine compiles kernels, which takes seconds. Tokens are not in it, only whether there is one.
    """
    with _quiet():  # a slow backend is said here, not warned of
        devices = {str(device): _device(device) for device in _devices()}
    return {
        "versions": {
            "hf_decision_mamba": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{package: version_of(package) for package in _PACKAGES},
        },
        "devices": devices,
        "kernels": _kernels(),
        "hub": {
            "endpoint": re.sub(r"//[^/@]*@", "//", constants.ENDPOINT),
            "token": get_token() is not None,
            "offline": constants.HF_HUB_OFFLINE,
            "HF_HOME": constants.HF_HOME,
            "checkpoints": constants.HF_HUB_CACHE,
            "datasets": str(datasets.config.HF_DATASETS_CACHE),
            "trajectories": str(cache_folder()),
        },
        "environment": {name: value for name, value in sorted(os.environ.items()) if _VARIABLES.fullmatch(name)},
    }


def info_text(found: Mapping[str, Any]) -> str:
    """Write what `installation_info` found as text for a terminal."""
    lines = ["versions", *_rows(found["versions"])]
    for name, device in found["devices"].items():
        lines += ["", f"device {name}", *_rows(device)]
    for name in ("kernels", "hub", "environment"):
        if found[name]:
            lines += ["", name, *_rows(found[name])]
    return "\n".join(lines)


def _rows(found: Mapping[str, Any]) -> list[str]:
    words = {None: "not installed", True: "yes", False: "no"}
    rows: list[list[str]] = []
    for name, value in found.items():
        lines = value if isinstance(value, list) else [words.get(value, value) if _is_word(value) else value]
        rows += [["" if place else name, str(line)] for place, line in enumerate(lines)]
    return [f"  {line}" for line in table_lines([], rows, left=2)]


def _is_word(value: object) -> bool:
    return value is None or isinstance(value, bool)


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[torch.device]:
    """List the CPU and every accelerator that torch sees."""
    devices = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        devices += [torch.device(accelerator.type, index) for index in range(torch.accelerator.device_count())]
    return devices


def _device(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if device.type == "cpu":
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        found["name"] = f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
        found["cores"] = f"{os.cpu_count()}, of which {usable} usable"
        found["threads"] = torch.get_num_threads()
    elif device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["name"] = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
        found["memory"] = f"{properties.total_memory / 2**30:.0f} GiB"
        found["cuda"] = str(torch.version.cuda)
    chosen = choose_backend(torch.empty(0, device=device))
    found["scan"] = [f"{chosen}: {_trial(_small_scan, device)}", *_cannot_run(device)]
    found["convolution"] = f"{chosen}: {_trial(_small_convolution, device)}"  # it asks for the scan's backend
    model: nn.Module = DecisionMambaModel(DecisionMambaConfig(state_dim=1, act_dim=1, hidden_size=8, n_layer=1))
    found["acting"] = "one compiled call a decision" if fuse(model.to(device)) else "the model's forward"
    return found


def _cannot_run(device: torch.device) -> list[str]:
    """Say why some backends are not chosen, in the words of what chooses."""
    reasons = []
    for backend in BACKENDS:
        try:
            choose_backend(torch.empty(0, device=device), backend)
        except ValueError as error:
            reasons.append(str(error).split(". ")[0])
    return reasons


def _trial(compute: Callable[[torch.device, str | None], Tensor], device: torch.device) -> str:
    """Try what is chosen: say whether it works, and does the same as the reference."""
    started = time.perf_counter()
    try:
        result = compute(device, None)
    except Exception as error:  # whatever a compiler or a driver may raise: to report it is what this is for
        return f"FAILS on a small example ({type(error).__name__}: {' '.join(str(error).split())})"
    seconds = time.perf_counter() - started
    difference = (result - compute(device, "reference")).abs().max().item()
    verdict = "agrees with the reference" if difference <= _TOLERANCE else f"is WRONG by {difference:.1e}"
    return f"a small example ran in {seconds:.1f} s and {verdict}"


def _small_scan(device: torch.device, backend: str | None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    u, delta, z = (torch.randn(1, 4, 8, generator=generator).to(device) for _ in range(3))
    B, C = (torch.randn(1, 4, 4, generator=generator).to(device) for _ in range(2))
    A = -torch.ones(8, 4, device=device)
    return selective_scan(u, delta, A, B, C, z=z, backend=backend)[0]


def _small_convolution(device: torch.device, backend: str | None) -> Tensor:
    x = torch.linspace(-1, 1, 32, device=device).view(1, 4, 8)
    conv = nn.Conv1d(8, 8, kernel_size=4, groups=8, bias=False, device=device).requires_grad_(False)
    conv.weight.fill_(0.5)
    return causal_conv(x, conv, backend=backend)


def _kernels() -> dict[str, Any]:
    """Describe how wide the CPU kernels' vectors are, whose threads they run on, where their machine code is kept."""
    if (reason := why_no_numba()) is not None:
        return {"CPU kernels": f"none ({reason})"}
    from llvmlite import binding

    from .model import selective_scan_kernels

    features = binding.get_host_cpu_features()
    widest = next((bits for name, bits in (("avx512f", 512), ("avx", 256)) if features.get(name)), 128)
    kept = getattr(selective_scan_kernels.forward.stats, "cache_path", None)
    registers = f"registers of {widest} bits ({binding.get_host_cpu_name()})"
    return {
        "vectors": f"{LANES} numbers, in {registers}",
        "threads": whose_threads(),
        "kept in": kept or "memory only: no folder can be written to, so every process compiles",
    }


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger(__package__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
