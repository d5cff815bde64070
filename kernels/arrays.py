"""What all implementations need to know about arrays: where they live, how they lie in memory, and the threads."""

import functools
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray  # or CuPy's, which has the same methods
Pair = tuple[int, int]
Shape = tuple[int, ...]
MOST_THREADS = 1024


class BackendError(ValueError):
    """A backend does not exist, cannot run on this machine, or in strict mode lacks a kernel; or a setting of the kernels
    makes no sense. The text says what to do.
    """


def array_module(array: Array) -> Any:
    """NumPy or CuPy, whichever ``array`` belongs to: written ``xp`` wherever code serves both."""
    if type(array).__module__.startswith("cupy"):
        import cupy

        return cupy
    return np


def is_floating(dtype: Any) -> bool:
    """Whether numbers of this dtype have fractions. (To NumPy, bfloat16 is a dtype of no kind that it knows.)"""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def is_half(dtype: Any) -> bool:
    """float16 or bfloat16: the dtypes of activations in mixed precision."""
    return dtype.itemsize == 2 and is_floating(dtype)


@functools.cache
def name_of(dtype: Any) -> str:
    """What C calls it: "float32". Numbers in another byte order than the machine's have no such name: ">f4"."""
    return dtype.name if dtype.isnative else dtype.str


def native(x: Array) -> Array:
    """``x`` itself, or a copy of it in the machine's byte order."""
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def convert(x: Array, dtype: Any) -> Array:
    """A copy in another dtype. What is too large for it becomes an infinity, without a warning."""
    with np.errstate(over="ignore"):
        return x.astype(dtype)


def added(dx: Array, total: Array | None, accumulate: Callable[[Array, Array], None]) -> Array:
    """``dx`` itself, or ``total`` after dx was added to it."""
    if total is None:
        return dx
    accumulate(total, dx)
    return total


def channels_last(x: Array) -> Array:
    """``x`` (N, C, H, W) as a contiguous (N, H, W, C) array: a view if it lies so in memory already, else a copy."""
    return array_module(x).ascontiguousarray(x.transpose(0, 2, 3, 1))


def channels_first(x: Array) -> Array:
    """The (N, C, H, W) view of a (N, H, W, C) array: what users see."""
    return x.transpose(0, 3, 1, 2)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up: how many pieces of b it takes to hold a."""
    return -(-a // b)


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """How many windows of a convolution or a pooling fit along one axis. What is left over at the end is not read."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@functools.cache
def threads() -> int:
    """How many threads the kernels use: ``TINYRES_THREADS``, or as many as this process may run on."""
    asked = os.environ.get("TINYRES_THREADS", "")
    if asked:
        if not re.fullmatch("[0-9]{1,4}", asked) or not 1 <= int(asked) <= MOST_THREADS:
            raise BackendError(f"TINYRES_THREADS is {asked[:20]!r}; it must be a whole number from 1 up to {MOST_THREADS}.")
        return int(asked)
    return min(cores(), MOST_THREADS)


def cores() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads(), "tinyres")


@functools.cache
def _blas() -> Any:
    """The handle on NumPy's BLAS that keeps it to one thread while our own threads run. None without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController().select(user_api="blas")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process has none of its parent's threads


# called with the seconds that a kernel took to compile: whoever measures a rate leaves them out
compile_listeners: list[Callable[[float], None]] = []


def for_blocks(work: Callable[[slice], Any], count: int, block: int) -> list[Any]:
    """``[work(slice) for each block of range(count)]``, spread over the threads, results in order.

    NumPy lets go of the interpreter while it computes, so that threads do run side by side. The blocks do not depend on
    the number of threads, and neither does a sum over their results.
    """
    slices: Iterable[slice] = [slice(i, min(i + block, count)) for i in range(0, count, block)]
    blas = _blas()
    with blas.limit(limits=1) if blas else nullcontext():
        if blas is None or threads() == 1 or count <= block:
            return [work(s) for s in slices]
        return list(_pool().map(work, slices))
