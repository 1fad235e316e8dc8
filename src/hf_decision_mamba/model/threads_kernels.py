# Copyright 2026
"""What every thread of a team runs in a CPU kernel: take the next work item until none is left; see `threads_cpu`.

OpenMP hands a team nothing but an address, so a call is one int64 array: next item, items finished, number of items,
then address and size of each array in turn. A thread whose kernel raises ends there, and only prints what was raised:
the items that were finished are counted, so that `run_items` can raise. Importing this module imports numba.
"""

import functools
import inspect

import numpy as np

try:
    from llvmlite import ir
    from numba import carray, cfunc, types
    from numba.extending import intrinsic
except ImportError as error:
    raise ImportError("the CPU kernels of Decision Mamba need numba: pip install numba") from error

from .sizes_cpu import LANES
from .vector_cpu import compiled, fill, inlined, read, softplus, total, write

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
    """Take the next item that no thread has taken; beyond the last one when all are taken."""
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
    """View the call at an address, which is one of so many arrays."""
    return carray(address, (HEAD + 2 * arrays,), np.int64)


@inlined
def part(call, k, dtype):
    """View array k of a call."""
    return carray(as_pointer(call[HEAD + 2 * k]), (call[HEAD + 1 + 2 * k],), dtype)


@functools.cache
def team_address(kernel, dtypes):
    """Return the address of what every thread runs: `kernel`, for arrays of these dtypes (characters of numpy).

    The function is written from the kernel's own signature, compiled, or loaded from the disk.
    """
    arrays = list(inspect.signature(kernel.py_func).parameters)[2:]
    types_of = zip(arrays, (np.dtype(character).type.__name__ for character in dtypes), strict=True)
    name = f"{kernel.__name__}_team_{dtypes.replace('?', 'b')}"
    parts = [f"    {array} = part(call, {k}, np.{dtype})" for k, (array, dtype) in enumerate(types_of)]
    source = TEAM.format(name=name, count=len(arrays), parts="\n".join(parts), arrays=", ".join(arrays))
    names = {**globals(), "kernel": kernel}
    exec(compile(source, kernel.py_func.__code__.co_filename, "exec"), names)
    names[name].__module__ = kernel.__module__
    team = compiled(names[name], functools.partial(cfunc, types.void(types.voidptr)))
    teams.append(team)  # its machine code lives as long as it does
    return team.address


TEAM = """
def {name}(address):
    call = as_call(address, {count})
{parts}
    item = take_item(call)
    while item < call[2]:
        kernel(item, item + 1, {arrays})
        finish_item(call)
        item = take_item(call)
"""
teams: list[object] = []


@compiled
def example(first, last, x, y):
    """Compute, of every 40 numbers x, softplus(x), plus the first times a vector's sum; `selective_scan_cpu` tries it.

    It is made of what the kernels use of numba although numba does not promise to keep it.
    """
    for item in range(first, last):
        for j in range(0, 40, LANES):
            part = read(x, 40 * item + j, 40 - j)
            write(y, 40 * item + j, 40 - j, softplus(part) + fill(x, 40 * item) * total(part))
