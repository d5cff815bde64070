"""Numba's simulator of CUDA, with what these kernels need of it mended. Built into Numba (0.60 to 0.68); NVIDIA's package
numba-cuda is about to drop it.

It starts a Python thread for each CUDA thread and runs one block after the other. Here its threads meet at a real barrier:
its own loop asks each of them, again and again, whether it has arrived, which costs three times the time.
"""

import sys
import threading
import warnings
from typing import Any

import numpy as np

from tinyres.kernels.forks import held_across_fork

_PATIENCE = 60  # seconds that threads wait at a barrier for one that has ended without reaching it
_lock = held_across_fork(threading.RLock())


def mend(kernel: Any, kernelapi: Any) -> None:
    """Puts ours in the place of what does not do, in the simulator's modules of these names."""

    def run(self: Any, place: Any, *args: Any) -> None:
        """Of a BlockManager: runs the threads of a block; the first error of one of them ends them all."""
        barrier = threading.Barrier(int(np.prod(self._block_dim)), timeout=_PATIENCE)

        def work() -> None:
            try:
                self._f(*args)
            except BaseException:
                barrier.abort()
                raise

        threads = [kernel.BlockThread(work, self, place, index, self._debug) for index in np.ndindex(*self._block_dim)]
        for thread in threads:
            thread.syncthreads = barrier.wait
            thread.start()
        for thread in threads:
            thread.join()
        errors = [thread.exception for thread in threads if thread.exception]
        for error, traceback in sorted(errors, key=lambda e: isinstance(e[0], threading.BrokenBarrierError)):
            raise error.with_traceback(traceback)

    kernel.BlockManager.run = run
    kernelapi.FakeCUDAShared.array = _shared_array


def _shared_array(self: Any, shape: Any, dtype: Any) -> Any:
    """Shared memory, known by the line that asks for it, and full of NaN. In Numba's own, two threads that arrive at the
    same moment can each get an array for itself.
    """
    frame = sys._getframe(1)
    with _lock:
        key = frame.f_code, frame.f_lineno
        if key not in self._allocations:
            self._allocations[key] = np.full(shape, np.nan, dtype)
        return self._allocations[key]


def launch(function: Any, grid: Any, block: Any, args: tuple[Any, ...], device_array: Any) -> None:
    """Runs a kernel on arrays as they are, each as a ``device_array``, the simulator's class for those of a GPU (Numba would
    copy them there and back, also those that are read-only).

    As on a GPU, inf - inf is no warning.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        function[grid, block](*(device_array(a) if isinstance(a, np.ndarray) else a for a in args))
