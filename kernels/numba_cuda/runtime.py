"""How a kernel of this folder runs: compiled by Numba on a GPU, or in Numba's simulator on NumPy arrays.

Only this file imports numba.cuda (the built-in one, or NVIDIA's package numba-cuda, which takes its place).

A CUDA kernel is a function that many threads run at once. They come in blocks; `kernel[grid, block](...)` says how many
blocks, and how many threads each has. A thread asks `cuda.blockIdx` and `cuda.threadIdx` who it is, and works on its
share. The threads of a block can lend each other numbers through `cuda.shared.array`, and wait for each other at
`cuda.syncthreads()`; blocks know nothing of each other, and run in any order.

The simulator (NUMBA_ENABLE_CUDASIM=1 before numba is imported) starts a Python thread for each CUDA thread, so that blocks
are tiny there. It has no warp operations, and no kernel here needs one. Kernels for the CPU (numba.njit) run beside it.
"""

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
from numba import cuda

from tinyres.kernels.arrays import Array, array_module, ceil_div, channels_first, channels_last, name_of
from tinyres.kernels.contract import Unsupported

SIMULATED = bool(numba.config.ENABLE_CUDASIM)
if SIMULATED:
    try:
        from numba.cuda.simulator import kernel as simulated
        from numba.cuda.simulator import kernelapi
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
    except ImportError as error:
        raise RuntimeError("this numba.cuda has no simulator; the one that is built into Numba has") from error
    from tinyres.kernels.numba_cuda import simulator

    simulator.mend(simulated, kernelapi)
elif not cuda.is_available():
    raise RuntimeError("no CUDA device; NUMBA_ENABLE_CUDASIM=1 runs the kernels in Numba's simulator")
else:
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError("it needs CuPy: pip install -e '.[cuda12]' or '.[cuda13]' in a checkout of tinyres") from error
    numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # small arrays are no mistake
    numba.config.CUDA_ARRAY_INTERFACE_SYNC = 0  # kernels run on CuPy's stream, in order: nothing to wait for

BLOCK = 4 if SIMULATED else 256  # threads of a block that goes over elements, one after the other
MAX_BLOCKS = 2 if SIMULATED else 1024  # of them; a thread that has done its element goes on to the next
REAL = np.float32  # in a kernel: the dtype of its arrays, which `Kernel` puts in the place of this one


class Kernel:
    """``@Kernel`` makes a kernel of a function, one version for each floating-point type: there, ``REAL`` is that type.

    ``kernel[grid, block](*args)`` runs it on the stream that CuPy is on and does not wait for it. A grid without blocks,
    which an empty array gets, runs nothing.
    """

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
        arrays = [a for a in args if hasattr(a, "dtype")]
        kernel = self.version(next(a.dtype.type for a in arrays if a.dtype.kind == "f"))
        if SIMULATED:
            simulator.launch(kernel, grid, block, args, FakeCUDAArray)
        else:
            kernel[grid, block, cuda.external_stream(cupy.cuda.get_current_stream().ptr)](*args)


def blocks(items: int) -> int:
    """How many blocks of BLOCK threads go over ``items``, where a thread goes on to its next one."""
    return min(ceil_div(items, BLOCK), MAX_BLOCKS)


def check(*arrays: Array) -> None:
    """Raises Unsupported unless all arrays (None is left out) are of one dtype that is known here, on the right device."""
    given = [a for a in arrays if a is not None]
    names = sorted({name_of(a.dtype) for a in given})
    if len(names) != 1 or names[0] not in ("float32", "float64"):
        raise Unsupported("of dtype " + " and ".join(names))
    where = "numpy" if SIMULATED else "cupy"
    if any(array_module(a).__name__ != where for a in given):
        raise Unsupported("the simulator takes NumPy's arrays" if SIMULATED else "the arrays are in host memory")


def in_memory(x: Array) -> Array:
    """``x`` as the kernels read it: maps as (N, H, W, C), and contiguous. A view where it lies so, else a copy."""
    return channels_last(x) if x.ndim == 4 else array_module(x).ascontiguousarray(x).reshape(x.shape)


def as_seen(x: Array) -> Array:
    """The other way: maps as (N, C, H, W)."""
    return channels_first(x) if x.ndim == 4 else x


def empty(like: Array, *shape: int, dtype: Any = None) -> Array:
    """A contiguous array on the device of ``like``, whose content is undefined."""
    return array_module(like).empty(shape, like.dtype if dtype is None else dtype)


@contextlib.contextmanager
def flat(*arrays: Array) -> Iterator[list[Array]]:
    """The arrays as contiguous vectors that a kernel may write to: views, or copies that are copied back at the end."""
    vectors = [array_module(a).ascontiguousarray(a).reshape(-1) for a in arrays]
    yield vectors
    for a, vector in zip(arrays, vectors, strict=True):
        if not a.flags.c_contiguous:
            a[...] = vector.reshape(a.shape)
