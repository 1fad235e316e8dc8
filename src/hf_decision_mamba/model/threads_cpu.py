# Copyright 2026
"""How the CPU kernels are called: torch's tensors as the flat arrays that they take, torch's threads for their work.

A kernel is a numba function of (first, last, *arrays) that does the work items [first, last), independent of each
other. Nothing here imports numba.
"""

import ctypes
import functools
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_flat_view(tensor: Tensor) -> tuple[np.ndarray, int, int]:
    """View the memory that a (b, l, x) tensor spans, first number to last; return it and the first two strides."""
    tensor = tensor.detach()
    if tensor.stride(2) != 1:
        tensor = tensor.contiguous()
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.as_strided((span if tensor.numel() else 0,), (1,)).numpy()
    return memory, tensor.stride(0), tensor.stride(1)


def as_flat_array(tensor: Tensor | None, like: Tensor) -> np.ndarray:
    """Return a tensor as one flat array: a view if it is contiguous."""
    if tensor is None:
        return placeholder(like.dtype)
    return tensor.detach().contiguous().view(-1).numpy()


@functools.cache
def placeholder(dtype: torch.dtype) -> np.ndarray:
    """Make what stands for a tensor that is not there; the kernels do not touch it."""
    return torch.zeros(1, dtype=dtype).numpy()


def run_items(kernel: Callable[..., None], items: int, threads: int, *arguments: np.ndarray) -> None:
    """Run every work item of a kernel, on no more threads than are worth it and torch uses.

    They are torch's own threads where its OpenMP can be reached. Any others would fight with them for the cores: after
    each operation of torch they wait for the next one for some milliseconds, wide awake.

    Raises:
        MemoryError, RuntimeError: a work item failed, so that the results hold what was in the memory before; the
            message names the kernel.
    """
    dtypes = "".join(array.dtype.char for array in arguments)
    assert all(array.ndim == 1 and array.flags.c_contiguous for array in arguments), "kernels take flat arrays"
    assert {*dtypes} <= {*"lq?f"} or {*dtypes} <= {*"lq?d"}, f"kernels take int64, bool and one precision: {dtypes}"
    threads = 1 if _forked else min(torch.get_num_threads(), items, threads)
    try:
        if threads <= 1:
            return kernel(0, items, *arguments)
        if (parallel := openmp()) is None:
            return _run_on_pool(kernel, items, threads, arguments)
    except Exception as error:
        error_type = MemoryError if isinstance(error, MemoryError) else RuntimeError
        raise error_type(f"{_name(kernel)} failed: {error}") from error

    from .threads_kernels import team_address

    call = np.array([0, 0, items, *(x for array in arguments for x in (array.ctypes.data, array.size))], np.int64)
    parallel(team_address(kernel, dtypes), call.ctypes.data, threads, 0)
    if (finished := call[1]) != items:
        raise RuntimeError(
            f"{_name(kernel)} failed: {items - finished} of {items} work items did not finish. What they raised is "
            "printed above this; most often it is memory that ran out."
        )
    return None


def _name(kernel: Callable[..., None]) -> str:
    return f"The CPU kernel {kernel.__module__.rpartition('.')[2]}.{kernel.__name__}"


@functools.cache
def openmp() -> Any:
    """Find the entry of torch's OpenMP runtime that runs a function on its team of threads; None if there is none.

    torch loads libgomp on Linux; Intel's and LLVM's runtimes there have the same entry. It is looked up from torch's
    own library, because another package may have loaded a runtime too, whose threads would fight with torch's.
    """
    try:
        parallel = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")).GOMP_parallel
    except (AttributeError, OSError):  # another runtime, or another operating system
        return None
    parallel.argtypes, parallel.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return parallel


def whose_threads() -> str:
    """Say whose threads the kernels run on: the path of the OpenMP runtime that is torch's, or a pool."""
    if (parallel := openmp()) is None:
        return "a pool of our own: torch's OpenMP has no entry here"
    found = (ctypes.c_void_p * 4)()  # Dl_info, whose first entry is the file's name
    ctypes.CDLL(None).dladdr(ctypes.cast(parallel, ctypes.c_void_p), found)
    return f"torch's, of {os.fsdecode(ctypes.string_at(found[0] or 0))}"


def _run_on_pool(kernel: Callable[..., None], items: int, threads: int, arguments: tuple[np.ndarray, ...]) -> None:
    """Run the work items on threads of our own; whoever is free takes the next one."""
    left = deque(range(items))

    def work() -> None:
        while left:
            try:
                item = left.popleft()
            except IndexError:  # another thread has just taken the last one
                return
            kernel(item, item + 1, *arguments)

    others = [_pool().submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        wait(others)  # they write into the same arrays
    for other in others:
        other.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="decision-mamba")


# A forked child inherits the books of its parent's threads but not the threads: to wait for them is to hang.
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
