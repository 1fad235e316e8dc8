"""Shared by all tests: quiet libraries, one way to compare, one way to read a numeric parity file."""

from __future__ import annotations

import gc
import itertools
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator

# What tests load is kept in a cache of their own, not in that of whoever runs them.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="datasets-of-tests-")
os.environ.setdefault("MUJOCO_GL", "egl")  # rendering without a display
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# pytest-xdist's workers share the cores out: threads beyond these would wait for each other, wide awake.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

gc.disable()  # until all is imported: `pytest_collection_finish`


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Choose between a GPU and Triton's interpreter; where pytest-xdist only hands tests out, torch is not needed."""
    if session.config.pluginmanager.has_plugin("dsession"):
        return
    import torch

    if not torch.cuda.is_available():  # Triton reads it when it is imported, which anything may do
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_unconfigure() -> None:
    """Delete the cache of the tests, and let all go that was left out of garbage collections."""
    gc.unfreeze()
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


#: Files whose tests take long: they come first, so that at the end no worker is left alone with one of them.
LONG = ("model/test_threads_cpu.py", "training/test_run.py", "sharing/test_remote_code.py", "test_damaged_files.py")


#: What uses none of the kernels that numba compiles.
WITHOUT_KERNELS = "model/test_selective_scan_triton.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, and the second of two workers with what needs no kernels; else the order stays.

    So the first one has compiled and kept the kernels when the second one needs them, instead of both at the same time.
    """
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))
    moved = [item for item in items if item.path.as_posix().endswith(WITHOUT_KERNELS)]
    others = [item for item in items if item not in moved]
    half = min(len(items) // 2, len(others))  # xdist gives each worker as many, in their order
    items[:] = others[:half] + moved + others[half:]


def pytest_collection_finish() -> None:
    """Leave what imports have made out of garbage collections; every training asks for one, of all that there is."""
    gc.freeze()
    gc.enable()


_finished = itertools.count(1)


def pytest_runtest_logfinish() -> None:
    """Now and then, leave out what tests have loaded meanwhile: modules, compiled code, what libraries remember."""
    if next(_finished) % 50 == 0:
        gc.collect()
        gc.freeze()


@pytest.fixture
def no_room() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which no file gets longer than so many bytes, as none does on a disk that is nearly full."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def assert_close():
    """Compare like the parity data asks: max |difference| / max(1, max |expected|), with the name of what differs."""

    def check(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
        assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
        assert actual.isfinite().all(), f"{name}: not finite"
        difference = (actual.double() - expected.double()).abs().max() if actual.numel() else actual.double().sum()
        scale = max(1.0, expected.double().abs().max().item()) if expected.numel() else 1.0
        assert difference / scale <= tolerance, f"{name}: relative error {difference / scale:.2e} > {tolerance:.0e}"

    return check


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that are saved, by the names of their files: what they show are the numbers in their axes."""
    from matplotlib.figure import Figure

    figures: dict[str, Figure] = {}
    save = Figure.savefig

    def kept(figure: Figure, path: str | os.PathLike[str], **options: object) -> None:
        figures[Path(path).name.removeprefix(".").replace(".draft", "")] = figure
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    return figures
