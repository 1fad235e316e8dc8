# Copyright 2026
"""What every thread of a team runs in a CPU kernel: take the next work item until none is left; see `threads_cpu`.

OpenMP hands a team nothing but an address, so a call is one int64 array: next item, items finished, number of items,
then address and size of each array in turn. A thread whose kernel raises ends there, and only prints what was raised:
the items that were finished are counted, so that `run_items` can raise. Importing this module imports numba.
"""

import functools
from collections.abc import Callable

import numpy as np

try:
    from llvmlite import ir
    from numba import carray, cfunc, types
    from numba.extending import intrinsic
except ImportError as error:
    raise ImportError("the CPU kernels of Decision Mamba need numba: pip install numba") from error

from .vector_cpu import inlined

HEAD = 3  # numbers of a call before its arrays


@intrinsic
def count(typingctx, call, k):
    """Return call[k] and raise it by one, as one step that no other thread can divide."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [args[1]]), ir.IntType(64)(1), "monotonic")

    return types.int64(call, types.intp), codegen


@inlined
def take_item(call):
    """The next item that no thread has taken; beyond the last one when all are taken."""
    return count(call, 0)


@inlined
def finish_item(call):
    """Note that an item is done."""
    count(call, 1)


@intrinsic
def as_pointer(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


@inlined
def as_call(address, arrays):
    """The call at an address, which is one of so many arrays."""
    return carray(address, (HEAD + 2 * arrays,), np.int64)


@inlined
def part(call, k, dtype):
    """Array k of a call."""
    return carray(as_pointer(call[HEAD + 2 * k]), (call[HEAD + 1 + 2 * k],), dtype)


def team_of(kernel):
    """Note that the decorated function makes, for a dtype, what every thread runs in a team that runs `kernel`."""

    def note(make):
        makers[kernel] = make
        return make

    return note


@functools.cache
def team_address(kernel, precision):
    """Address of a kernel's team function, compiled or from the disk, for `"float32"` or `"float64"`."""
    signature, function = types.void(types.voidptr), makers[kernel](getattr(np, precision))
    try:
        team = cfunc(signature, cache=True)(function)
    except RuntimeError:  # "no locator available", as in `vector_cpu.compiled`
        team = cfunc(signature)(function)
    teams.append(team)  # its machine code lives as long as it does
    return team.address


makers: dict[object, Callable] = {}
teams: list[object] = []
