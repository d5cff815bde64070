"""SIMD from Numba: intrinsics that emit LLVM vector code, for the jobs that `runtime` spreads over the threads.

A vector is ``lanes`` floats wide: 16 with AVX-512, 8 with AVX, 4 with SSE or NEON; every width compiles on every machine
(LLVM splits what the hardware lacks), so that each is tested anywhere. Addresses are plain integers, strides are bytes.

Jobs (see `runtime`) are compiled for one width and one set of constants, by functions that close over nothing but
integers: Numba's cache knows such closures apart by the integers' values. They take their parameters apart with `unpack`.
"""

import functools
import hashlib
import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tinyres.kernels.arrays import BackendError, ceil_div, threads
from tinyres.kernels.cpu import buffers, jit
from tinyres.kernels.cpu.jobs import Local
from tinyres.kernels.cpu.runtime import spread

I1, I32, I64, F32 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType()
LARGE = 1 << 22  # bytes: the least that surely has pages of 2 MB in it, however it is aligned
JOB = types.void(types.intp, types.intp, types.intp)  # the signature of a job


@functools.cache
def host_lanes() -> int:
    """Floats in the widest vector of this machine; ``TINYRES_LANES`` = 4, 8 or 16 says otherwise.

    Raises ValueError for any other value of ``TINYRES_LANES``.
    """
    asked = os.environ.get("TINYRES_LANES", "")
    if asked:
        if asked not in ("4", "8", "16"):
            raise BackendError(f"TINYRES_LANES is {asked!r}; it must be 4, 8 or 16.")
        return int(asked)
    features = binding.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx") else 4


# --- pieces of emission: each takes the IR builder first ---


def vector_type(lanes: int) -> ir.VectorType:
    return ir.VectorType(F32, lanes)


def constant(lanes: int, value: float) -> ir.Constant:
    return ir.Constant(vector_type(lanes), [value] * lanes)


def offset(builder: Any, base: Any, step: Any, times: int) -> Any:
    """base + times * step, addresses."""
    return base if times == 0 else builder.add(base, builder.mul(step, ir.Constant(I64, times)))


def load(builder: Any, lanes: int, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, vector_type(lanes).as_pointer()), align=4)


def store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)


def broadcast(builder: Any, lanes: int, address: Any) -> Any:
    """One float from memory in all lanes."""
    value = builder.load(builder.inttoptr(address, F32.as_pointer()), align=4)
    undefined = ir.Constant(vector_type(lanes), ir.Undefined)
    lane0 = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(lane0, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding."""
    kind = ir.FunctionType(a.type, [a.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{a.type.count}f32")
    return builder.call(function, [a, b, c])


def scaled_sum(builder: Any, terms: list[tuple[float, Any]]) -> Any:
    """The sum of coefficient * vector, terms of coefficient 0 left out; None if nothing is left."""
    terms = sorted((t for t in terms if t[0] != 0 and t[1] is not None), key=lambda t: abs(t[0]) != 1 or t[0] < 0)
    total = None
    for factor, value in terms:
        if total is None:
            total = value if factor == 1 else builder.fmul(value, constant(value.type.count, factor))
        elif abs(factor) == 1:
            total = builder.fadd(total, value) if factor == 1 else builder.fsub(total, value)
        else:
            total = fma(builder, value, constant(value.type.count, factor), total)
    return total


def call(builder: Any, name: str, emit: Callable[..., None], args: Sequence[Any]) -> None:
    """Call a function of integers that ``emit(builder, *args)`` writes, one for each name and module.

    Not inlined: the compiler spills half as many registers in it as in the middle of a job.
    """
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [I64] * len(args)), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        inside = ir.IRBuilder(function.append_basic_block())
        emit(inside, *function.args)
        inside.ret_void()
    builder.call(function, args)


# --- intrinsics for the code of jobs ---


@intrinsic(prefer_literal=True)
def unpack(typing: Any, address: Any, count: Any) -> Any:
    """``unpack(address, 5)``: five int64 from memory, as a tuple."""
    size = count.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        values = [builder.load(builder.gep(pointer, [ir.Constant(I64, i)])) for i in range(size)]
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(types.intp, size)(types.intp, count), emit


@intrinsic
def copy(typing: Any, target: Any, source: Any, size: Any) -> Any:
    """Copy ``size`` bytes between places that do not overlap."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        cgutils.raw_memcpy(builder, builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte), args[2], 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), emit


@intrinsic
def clear(typing: Any, target: Any, size: Any) -> Any:
    """Set ``size`` bytes to zero."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        cgutils.memset(builder, pointer, args[1], 0)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), emit


@intrinsic(prefer_literal=True)
def _prefetch(typing: Any, write: Any, address: Any) -> Any:
    """Ask for the cache line at an address, to be read or written. Harmless at any address."""
    writes = write.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        numbers = [ir.Constant(I32, number) for number in (writes, 3, 1)]
        builder.call(function, [builder.inttoptr(args[1], byte), *numbers])
        return context.get_dummy_value()

    return types.void(write, types.intp), emit


@njit
def prefetch_read(start: int, end: int) -> None:
    for address in range(start, end, 64):
        _prefetch(0, address)


@njit
def prefetch_write(start: int, end: int) -> None:
    for address in range(start, end, 64):
        _prefetch(1, address)


@intrinsic
def get_float(typing: Any, address: Any) -> Any:
    """The float at an address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], F32.as_pointer()), align=4)

    return types.float32(types.intp), emit


@intrinsic
def set_float(typing: Any, address: Any, value: Any) -> Any:
    """Write a float to an address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], F32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32), emit


def round_up(number: int, multiple: int) -> int:
    """The next multiple: ``number`` itself if it is one."""
    return ceil_div(number, multiple) * multiple


def workspace(size: int) -> np.ndarray:
    """Working memory of at least ``size`` bytes, of any content.

    It is asked for in pieces of 4 MB, for which the system uses pages of 2 MB: in pages of 4 KB, which lie anywhere, half
    a megabyte of transformed weights would meet itself in the sets of a 1 MB cache (measured: a tenth of the time).
    """
    return buffers.empty((max(size, LARGE),), np.uint8)


def run(
    job: Any, parameters: list[int], count: int, scratch_size: int, local: Callable[[], Local | None] | None = None
) -> None:
    """job(parameters, i, scratch) for i in 0 .. count - 1, over the threads. ``scratch_size`` is in bytes per thread; the
    memory comes aligned to cache lines, in large pages, with whatever was in it. ``local``: see `spread`.
    """
    if scratch_size:
        scratch_size = max(scratch_size, LARGE // threads())
    spread(job.address, array("q", parameters), count, scratch_size, local=local)


@functools.cache
def _sources() -> str:
    """A digest of the files whose code is compiled into jobs that lie in other files."""
    folder = Path(__file__).parent
    texts = [(folder / name).read_bytes() for name in ("simd.py", "conv_blocks.py", "winograd_math.py")]
    return hashlib.sha256(b"".join(texts)).hexdigest()


def compiled_job(function: Callable[..., None]) -> Any:
    """A job compiled to machine code, from the cache on disk if it is there; its ``address`` is what `run` calls."""
    return jit.compiled_job(function, JOB, _sources())
