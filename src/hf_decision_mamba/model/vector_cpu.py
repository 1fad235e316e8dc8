# Copyright 2026
"""A vector type for numba kernels on a CPU, and the elementary functions that they need on it.

numba compiles loops over scalars and leaves it to LLVM to vectorise them, which LLVM gives up on long loops. So the
kernels are written over vectors: `load` takes LANES neighbouring numbers, arithmetic acts on all of them, `store` puts
them back, and LLVM maps that to whatever registers the machine has. Importing this module imports numba.
"""

import functools
import hashlib
import operator
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

try:
    from llvmlite import ir
    from numba import njit, types
    from numba.core.cgutils import alloca_once, get_or_insert_function, unpack_tuple
    from numba.extending import intrinsic, models, overload, register_model
    from numba.np.arrayobj import populate_array
except ImportError as error:
    raise ImportError("the CPU kernels of Decision Mamba need numba: pip install numba") from error

from .sizes_cpu import LANES

LN2 = float(np.log(2.0))
INT32, INTP = ir.IntType(32), ir.IntType(8 * np.dtype(np.intp).itemsize)
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
# Numbers too small for full precision are zero, and all else is as ever: where there are many, x86 is slow with them.
FLUSHING = np.int32(0x9FC0)
CHECKED = os.environ.get("DECISION_MAMBA_CHECK_BOUNDS") == "1"  # kernels raise instead of leaving an array: for tests
OUTSIDE = "a kernel reads or writes outside of an array"

# ------------------------------------------------------------------------------------------------------ the vector type


class Vector(types.Type):
    """LANES floats of one precision."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        element = dmm.lookup(fe_type.dtype).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(element, LANES))


def broadcast(context, builder, vector, value_type, value):
    """Make an LLVM vector of `value`, of a numba type; numbers are rounded to the precision of `vector`."""
    if isinstance(value_type, Vector):
        return value
    number = context.cast(builder, value, value_type, vector.dtype)
    first = builder.insert_element(ir.Constant(context.get_value_type(vector), ir.Undefined), number, INT32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES))


def define_operator(function, instruction):
    """Let `function` (+, -, *, /) act on vectors, or on a vector and a number; FMA contraction is allowed, no more."""

    @intrinsic
    def apply(typingctx, a, b):
        vector = a if isinstance(a, Vector) else b

        def codegen(context, builder, signature, args):
            operands = [broadcast(context, builder, vector, *pair) for pair in zip(signature.args, args, strict=True)]
            return getattr(builder, instruction)(*operands, flags=("contract",))

        return vector(a, b), codegen

    @overload(function)
    def operate(a, b):
        if isinstance(a, Vector) or isinstance(b, Vector):
            return lambda a, b: apply(a, b)
        return None


define_operator(operator.add, "fadd")
define_operator(operator.sub, "fsub")
define_operator(operator.mul, "fmul")
define_operator(operator.truediv, "fdiv")


@intrinsic
def if_less(typingctx, a, b, yes, no):
    """Choose, lane by lane, `yes` where a < b and else `no` (so also where a or b is NaN)."""
    vector = next(t for t in (a, b, yes, no) if isinstance(t, Vector))

    def codegen(context, builder, signature, args):
        pairs = zip(signature.args, args, strict=True)
        a, b, yes, no = (broadcast(context, builder, vector, *pair) for pair in pairs)
        return builder.select(builder.fcmp_ordered("<", a, b), yes, no)

    return vector(a, b, yes, no), codegen


@intrinsic
def power_of_two(typingctx, shifted):
    """Compute 2**n, where the lowest bits of the floats `shifted` hold the integer n: -bias gives 0, bias + 1 inf."""
    bias, bits = (127, 23) if shifted.dtype == types.float32 else (1023, 52)

    def codegen(context, builder, signature, args):
        floats = context.get_value_type(shifted)
        integers = ir.VectorType(ir.IntType(shifted.dtype.bitwidth), LANES)
        n = builder.bitcast(args[0], integers)
        n = builder.add(n, ir.Constant(integers, [bias] * LANES))
        n = builder.shl(n, ir.Constant(integers, [bits] * LANES))
        return builder.bitcast(n, floats)

    return shifted(shifted), codegen


def index_type(index):
    """Return the type of an index: one number, or a tuple of one for each dimension."""
    return types.UniTuple(types.intp, len(index)) if isinstance(index, types.BaseTuple) else types.intp


def pointer(context, builder, array, value, index, llvm_type, count):
    """Point to `count` numbers of a row from array[index] on; that they are inside is checked in checked mode only."""
    found = context.make_array(array)(context, builder, value)
    lengths = unpack_tuple(builder, found.shape)
    indices = [index] if index.type == INTP else unpack_tuple(builder, index)
    assert len(indices) == len(lengths), "one index for each dimension"
    at, counts = INTP(0), [INTP(1)] * (len(indices) - 1) + [count]
    for index, length, numbers in zip(indices, lengths, counts, strict=True):
        if CHECKED:
            outside = builder.icmp_signed(">", builder.add(index, numbers), length)
            outside = builder.or_(outside, builder.icmp_signed("<", index, INTP(0)))
            with builder.if_then(outside, likely=False):
                context.call_conv.return_user_exc(builder, IndexError, (OUTSIDE,))
        at = builder.add(builder.mul(at, length), index)
    return builder.bitcast(builder.gep(found.data, [at]), llvm_type.as_pointer())


def at_most_lanes(builder, left):
    return builder.select(builder.icmp_signed("<", left, INTP(LANES)), left, INTP(LANES))


@intrinsic
def load(typingctx, array, index):
    """Load the vector array[index : index + LANES]."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        at = pointer(context, builder, array, *args, context.get_value_type(vector), INTP(LANES))
        return builder.load(at, align=array.dtype.bitwidth // 8)

    return vector(array, index_type(index)), codegen


@intrinsic
def fill(typingctx, array, index):
    """Make a vector whose lanes all are array[index]."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        at = pointer(context, builder, array, *args, context.get_value_type(array.dtype), INTP(1))
        return broadcast(context, builder, vector, array.dtype, builder.load(at))

    return vector(array, index_type(index)), codegen


@intrinsic
def constant(typingctx, like, number):
    """Make a vector of the precision of the array `like` whose lanes all are `number`."""
    vector = Vector(like.dtype)

    def codegen(context, builder, signature, args):
        return broadcast(context, builder, vector, number, args[1])

    return vector(like, number), codegen


@intrinsic
def store(typingctx, array, index, value):
    """Set array[index : index + LANES] = value."""

    def codegen(context, builder, signature, args):
        at = pointer(context, builder, array, args[0], args[1], context.get_value_type(value), INTP(LANES))
        builder.store(args[2], at, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, index_type(index), value), codegen


@intrinsic
def total(typingctx, value):
    """Sum the lanes, halves first."""

    def codegen(context, builder, signature, args):
        (v,), lanes = args, LANES
        while lanes > 1:
            lanes //= 2
            low, high = (ir.Constant(ir.VectorType(INT32, lanes), list(range(i, i + lanes))) for i in (0, lanes))
            v = builder.fadd(builder.shuffle_vector(v, v, low), builder.shuffle_vector(v, v, high))
        return builder.extract_element(v, INT32(0))

    return value.dtype(value), codegen


@intrinsic
def exchange_mode(typingctx, mode):
    """Set this thread's mode of arithmetic on x86 (MXCSR), and return what it was; nothing where there is none."""

    def codegen(context, builder, signature, args):
        if not IS_X86:
            return INT32(0)
        old, new = (alloca_once(builder, INT32) for _ in range(2))
        builder.store(args[0], new)
        function_type = ir.FunctionType(ir.VoidType(), [old.type])
        builder.call(get_or_insert_function(builder.module, function_type, "llvm.x86.sse.stmxcsr"), [old])
        builder.call(get_or_insert_function(builder.module, function_type, "llvm.x86.sse.ldmxcsr"), [new])
        return builder.load(old)

    return types.int32(types.int32), codegen


# ------------------------------------------------------------------------------------------------ elementary functions
# Polynomials: there is no vector libm to count on. Minimax fits; the comments give their relative error.


def exp2(x):
    """Compute 2**x; zero below 2**-126.5 (float64: 2**-1022.5), infinity where the result is out of range."""


@overload(exp2)
def _exp2(x):
    if x.dtype == types.float32:

        def run(x):
            x = if_less(x, -127.0, -127.0, x)
            x = if_less(128.0, x, 128.0, x)
            shifted = x + 12582912.0  # 1.5 * 2**23: rounds x to an integer, which then stands in the lowest bits
            f = x - (shifted - 12582912.0)
            p = 0.0013390863364671234 + f * 0.0001545316294512069  # (2**f - 1) / f on [-1/2, 1/2], 8e-9
            p = 0.05550357114219078 + f * (0.009618082557277852 + f * p)
            p = 1.0 + f * (0.6931471880262288 + f * (0.24022650760568126 + f * p))
            return p * power_of_two(shifted)

    else:

        def run(x):
            x = if_less(x, -1023.0, -1023.0, x)
            x = if_less(1024.0, x, 1024.0, x)
            shifted = x + 6755399441055744.0  # 1.5 * 2**52
            f = x - (shifted - 6755399441055744.0)
            p = 7.072585949269223e-09 + f * 4.4549605981865186e-10  # as above, 2e-17
            p = 1.525273382983612e-05 + f * (1.321544258792169e-06 + f * (1.0178062445845774e-07 + f * p))
            p = 0.009618129107606888 + f * (0.0013333558146416936 + f * (0.0001540353044173605 + f * p))
            p = 0.6931471805599453 + f * (0.24022650695910097 + f * (0.0555041086648216 + f * p))
            return (1.0 + f * p) * power_of_two(shifted)

    return run


def twice_atanh(s):
    """Compute 2 atanh(s) for 0 <= s <= 1/3."""


@overload(twice_atanh)
def _twice_atanh(s):
    if s.dtype == types.float32:

        def run(s):
            q = s * s
            p = 0.40024595230703747 + q * (0.27965157745197267 + q * 0.2815777836310908)  # 4e-9
            return s * (2.000000007681759 + q * (0.6666632164137777 + q * p))

    else:

        def run(s):
            q = s * s
            p = 0.12110168728069218 + q * (0.0832450651186082 + q * 0.17044163562781398)  # 2e-18
            p = 0.18181740832504806 + q * (0.1538661404230401 + q * (0.13300374032674625 + q * p))
            p = 0.4000000000018575 + q * (0.28571428545454114 + q * (0.22222224080747674 + q * p))
            return s * (2.0 + q * (0.6666666666666615 + q * p))

    return run


OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", **({"boundscheck": True} if CHECKED else {})}


def compiled(function, compiler=None):
    """Compile as `numba.njit` does, keeping the machine code on disk wherever there is a folder that can be written to.

    numba takes machine code from the disk if the file that the function stands in has not been touched. It would not
    see a change of this file, so it is told to compare what stands in all of them.
    """
    compiler = compiler or functools.partial(njit, **OPTIONS)
    if CHECKED:
        function.__qualname__ += "_checked"  # numba names the file of the machine code after it
    try:
        kernel = compiler(cache=True)(function)
    except RuntimeError:  # "no locator available": compile again in every process
        return compiler()(function)
    source = Path(function.__code__.co_filename).read_bytes()
    kernel._cache._cache_file._source_stamp = hashlib.sha256(SHARED_SOURCES + source).hexdigest()
    return kernel


_SHARED = ("sizes_cpu.py", "vector_cpu.py", "threads_kernels.py")  # what all kernels are compiled from, too
SHARED_SOURCES = b"".join(Path(__file__).with_name(name).read_bytes() for name in _SHARED)
inlined = njit(forceinline=True, **OPTIONS)  # a call costs more than these do


@inlined
def exp_of_minus_abs(x):
    return exp2(if_less(x, 0.0, x, 0.0 - x) * (1.0 / LN2))


@inlined
def sigmoid(x):
    e = exp_of_minus_abs(x)
    return if_less(x, 0.0, e, 1.0) / (1.0 + e)


@inlined
def softplus(x):
    """Compute log(1 + exp(x)), the identity above 20 as in torch."""
    e = exp_of_minus_abs(x)
    return if_less(20.0, x, x, if_less(x, 0.0, 0.0, x) + twice_atanh(e / (2.0 + e)))


@inlined
def softplus_slope(x):
    return if_less(20.0, x, 1.0, sigmoid(x))


# -------------------------------------------------------------------------------------------------- blocks of channels
# A work item has at most BLOCK channels. `left` counts those from a vector's first to the block's end, which the last
# vector of a row may reach beyond. A `tile` holds LANES channels for each n: [BLOCK / LANES, n, LANES].


def allocate(size, like):
    """Allocate a flat array from a cache line's start on; what is in it is undefined."""
    spare = np.empty(size + 64 // like.itemsize, like.dtype)
    skip = (-spare.ctypes.data) % 64 // like.itemsize
    return spare[skip : skip + size]


@intrinsic
def allocate_arrays(typingctx, shapes, like):
    """Allocate arrays of these shapes, one behind another; in one piece, for numba keeps what it has when it raises."""
    flat = types.Array(like.dtype, 1, "C")  # slices of it, reshaped, would be the same, but take long to compile
    arrays = types.Tuple([types.Array(like.dtype, len(shape), "C") for shape in shapes])
    intps = types.Tuple([types.UniTuple(types.intp, len(shape)) for shape in shapes])

    def codegen(context, builder, signature, args):
        lengths = [unpack_tuple(builder, shape) for shape in unpack_tuple(builder, args[0])]
        sizes = [functools.reduce(builder.mul, shape) for shape in lengths]
        allocated = flat(types.intp, like), (functools.reduce(builder.add, sizes), args[1])
        whole = context.make_array(flat)(context, builder, context.compile_internal(builder, allocate, *allocated))
        at, parts, byte = whole.data, [], INTP(like.dtype.bitwidth // 8)
        for array, shape, size in zip(arrays, lengths, sizes, strict=True):
            strides = [functools.reduce(builder.mul, shape[i + 1 :], byte) for i in range(len(shape))]
            part = context.make_array(array)(context, builder)
            parts.append(populate_array(part, at, shape, strides, byte, whole.meminfo)._getvalue())
            at = builder.gep(at, [size])
        context.nrt.incref(builder, arrays, made := context.make_tuple(builder, arrays, parts))
        context.nrt.decref(builder, flat, whole._getvalue())
        return made

    return arrays(intps, like), codegen


def first_lanes(builder, left):
    """Make an LLVM vector that is true in the first `left` lanes."""
    counts = ir.VectorType(INT32, LANES)
    first = builder.insert_element(ir.Constant(counts, ir.Undefined), builder.trunc(left, INT32), INT32(0))
    limits = builder.shuffle_vector(first, first, ir.Constant(counts, [0] * LANES))
    return builder.icmp_signed("<", ir.Constant(counts, list(range(LANES))), limits)


@intrinsic
def load_first(typingctx, array, index, left):
    """Load the vector array[index:], touching only its first `left` numbers; zeros behind them."""
    vector, bits = Vector(array.dtype), array.dtype.bitwidth

    def codegen(context, builder, signature, args):
        llvm_type = context.get_value_type(vector)
        operands = [
            pointer(context, builder, array, args[0], args[1], llvm_type, at_most_lanes(builder, args[2])),
            INT32(bits // 8), first_lanes(builder, args[2]), ir.Constant(llvm_type, [0.0] * LANES),
        ]  # fmt: skip
        function = ir.FunctionType(llvm_type, [operand.type for operand in operands])
        name = f"llvm.masked.load.v{LANES}f{bits}.p0"
        return builder.call(get_or_insert_function(builder.module, function, name), operands)

    return vector(array, types.intp, types.intp), codegen


@intrinsic
def store_first(typingctx, array, index, left, value):
    """Set array[index : index + left] = the first `left` lanes of value."""
    bits = array.dtype.bitwidth

    def codegen(context, builder, signature, args):
        at = pointer(context, builder, array, args[0], args[1], args[3].type, at_most_lanes(builder, args[2]))
        operands = [args[3], at, INT32(bits // 8), first_lanes(builder, args[2])]
        function = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
        name = f"llvm.masked.store.v{LANES}f{bits}.p0"
        builder.call(get_or_insert_function(builder.module, function, name), operands)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, value), codegen


@inlined
def read(array, at, left):
    """Load the vector array[at:], with zeros beyond the block's end."""
    if left >= LANES:
        return load(array, at)
    return load_first(array, at, left)


@inlined
def write(array, at, left, value):
    """Set array[at:] = value, up to the block's end."""
    if left >= LANES:
        store(array, at, value)
    else:
        store_first(array, at, left, value)


@compiled
def clear(array):
    for j in range(array.size):
        array.flat[j] = 0


@compiled
def read_tiles(tiles, count, array, at):
    """Fill the tiles of a block from array[at:] of layout (channel, n); zeros beyond `count` channels."""
    clear(tiles)
    states = tiles.shape[1]
    for c in range(count):
        for n in range(states):
            tiles[c // LANES, n, c % LANES] = array[at + c * states + n]


@compiled
def write_tiles(tiles, count, array, at):
    """Undo `read_tiles`: write the tiles back to the array."""
    states = tiles.shape[1]
    for c in range(count):
        for n in range(states):
            array[at + c * states + n] = tiles[c // LANES, n, c % LANES]
