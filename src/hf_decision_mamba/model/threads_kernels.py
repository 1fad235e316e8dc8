# Copyright 2026
"""What every thread of a team runs in a CPU kernel: take the next work item until none is left; see `threads_cpu`.

OpenMP hands a team nothing but an address, so a call is one int64 array: next item, number of items, then address and
size of each array in turn. Importing this module imports numba.
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


@intrinsic
def take_item(typingctx, call):
    """Return call[0] and raise it by one, as one step that no other thread can divide."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.IntType(64)(1), "monotonic")

    return types.int64(call), codegen


@intrinsic
def as_pointer(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


@inlined
def as_call(address, arrays):
    """The call at an address, which is one of so many arrays."""
    return carray(address, (2 + 2 * arrays,), np.int64)


@inlined
def part(call, k, dtype):
    """Array k of a call."""
    return carray(as_pointer(call[2 + 2 * k]), (call[3 + 2 * k],), dtype)


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
