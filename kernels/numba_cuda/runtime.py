"""How a kernel of this folder runs: compiled by Numba on a GPU, or in Numba's simulator on NumPy arrays.

This is the one file that imports numba.cuda (the built-in one, or NVIDIA's package numba-cuda, which takes its place).  A
CUDA kernel is a function that many threads run at once.  They come in blocks; `kernel[grid, block](...)` says how many
blocks, and how many threads each has.  A thread asks `cuda.blockIdx` and `cuda.threadIdx` who it is, and works on its
share.  The threads of a block can lend each other numbers through `cuda.shared.array`, and wait for each other at
`cuda.syncthreads()`; blocks know nothing of each other, and run in any order.

The simulator (NUMBA_ENABLE_CUDASIM=1 before numba is imported) starts a Python thread for each CUDA thread, so that blocks
are tiny there.  It has no warp operations, and no kernel here needs one.
"""

import contextlib
import functools
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
from numba import cuda

from tinyres.kernels.arrays import array_module, channels_first, channels_last
from tinyres.kernels.contract import Unsupported

SIMULATED = bool(numba.config.ENABLE_CUDASIM)
if not SIMULATED and not cuda.is_available():
    raise RuntimeError("no CUDA device; NUMBA_ENABLE_CUDASIM=1 runs the kernels in Numba's simulator")

BLOCK = 4 if SIMULATED else 256  # threads of a block that goes over elements, one after the other
MAX_BLOCKS = 2 if SIMULATED else 1024  # of them; a thread that has done its element goes on to the next
REAL = np.float32  # in a kernel: the dtype of its arrays, which `Kernel` puts in the place of this one


class Kernel:
    """``@Kernel`` makes a kernel of a function, one version for each floating-point type: there, ``REAL`` is that type.

    ``kernel[grid, block](*args)`` runs it on the stream that CuPy is on and does not wait for it.  A grid without blocks,
    which an empty array gets, runs nothing."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @functools.cache  # noqa: B019  (kernels live as long as the process)
    def version(self, real: type) -> Any:
        """The kernel as Numba's, where REAL is ``real``."""
        scope = {**self.function.__globals__, "REAL": real}
        return cuda.jit(types.FunctionType(self.function.__code__, scope, self.function.__name__))

    def __getitem__(self, sizes: tuple[Any, Any]) -> Callable[..., None]:
        return functools.partial(self._launch, *sizes)

    def _launch(self, grid: Any, block: Any, *args: Any) -> None:
        if 0 in np.atleast_1d(grid):
            return
        kernel = self.version(next(a.dtype.type for a in args if isinstance(getattr(a, "dtype", None), np.dtype) and a.dtype.kind == "f"))
        if SIMULATED:
            with _quietly():
                kernel[grid, block](*(FakeCUDAArray(a) if isinstance(a, np.ndarray) else a for a in args))
        else:
            import cupy

            kernel[grid, block, cuda.external_stream(cupy.cuda.get_current_stream().ptr)](*args)


def blocks(items: int) -> int:
    """How many blocks of BLOCK threads go over ``items``, where a thread goes on to its next one."""
    return min(-(-items // BLOCK), MAX_BLOCKS)


def check(*arrays: Any) -> None:
    """Raises Unsupported unless the arrays (None is left out) are of one dtype that the kernels know, and lie where they run."""
    given = [a for a in arrays if a is not None]
    names = sorted({a.dtype.name for a in given})
    if len(names) != 1 or names[0] not in ("float32", "float64"):
        raise Unsupported("of dtype " + " and ".join(names))
    where = "numpy" if SIMULATED else "cupy"
    if any(array_module(a).__name__ != where for a in given):
        raise Unsupported("the simulator takes NumPy's arrays" if SIMULATED else "the arrays are in host memory")


def in_memory(x: Any) -> Any:
    """``x`` as the kernels read it: (N, H, W, C) for an image, and contiguous.  A view where it lies so, else a copy."""
    return channels_last(x) if x.ndim == 4 else array_module(x).ascontiguousarray(x)


def as_seen(x: Any) -> Any:
    """The other way: the (N, C, H, W) view of an image."""
    return channels_first(x) if x.ndim == 4 else x


def empty(like: Any, *shape: int, dtype: Any = None) -> Any:
    """A contiguous array on the device of ``like``, whose content is undefined."""
    return array_module(like).empty(shape, like.dtype if dtype is None else dtype)


@contextlib.contextmanager
def flat(*arrays: Any) -> Iterator[list[Any]]:
    """The arrays as contiguous vectors that a kernel may write to: views, or copies that are copied back at the end."""
    vectors = [array_module(a).ascontiguousarray(a).reshape(-1) for a in arrays]
    yield vectors
    for a, vector in zip(arrays, vectors, strict=True):
        if not a.flags.c_contiguous:
            a[...] = vector.reshape(a.shape)


if SIMULATED:
    try:
        from numba.cuda.simulator import kernelapi
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray  # an array as it is: no copy, read-only or not
    except ImportError as error:
        raise RuntimeError("this numba.cuda has no simulator; the one built into Numba 0.60 to 0.68 has") from error

    _lock = threading.Lock()

    def _shared_array(self: Any, shape: Any, dtype: Any) -> Any:
        """Shared memory, of NaN, known by the line that asks for it.  In the simulator's own, two threads that arrive at
        once each get an array of their own."""
        frame = sys._getframe(1)
        with _lock:
            key = frame.f_code, frame.f_lineno
            if key not in self._allocations:
                self._allocations[key] = np.full(shape, np.nan, dtype)
            return self._allocations[key]

    kernelapi.FakeCUDAShared.array = _shared_array
else:
    numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # small arrays are no mistake
    numba.config.CUDA_ARRAY_INTERFACE_SYNC = 0  # kernels run on CuPy's stream: nothing to wait for


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Like on a GPU, inf - inf is no warning.  And threads take turns often: most of the time all but one wait at a barrier."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.setswitchinterval(interval)
