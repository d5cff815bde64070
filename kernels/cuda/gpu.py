"""Runs CUDA kernels on CuPy arrays: compiles them with NVRTC, launches them on the current stream, captures CUDA graphs."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import variants
from tinyres.kernels.cuda.sources import KernelSource, Macros, source

OPTIONS = ("--std=c++17",)
NULL = np.uint64(0)  # (for None, some versions of CuPy pass no argument at all)


@functools.cache
def _module(file: str, macros: Macros, device: int) -> Any:
    """A module of one source and set of macros, compiled for the card in use. CuPy keeps the result on disk.

    Raises Unsupported if the card is too old for it.
    """
    import cupy

    needed, capability = variants.check(file, macros).capability, int(cupy.cuda.Device(device).compute_capability)
    if capability < needed:
        raise Unsupported(f"on a GPU of compute capability {capability / 10}: it needs {needed / 10}")
    options = (*OPTIONS, *(f"-D{name}={value}" for name, value in macros))
    return cupy.RawModule(code=source(file), options=options, backend="nvrtc")


@functools.cache
def _function(kernel: KernelSource, device: int) -> Any:
    return _module(kernel.file, kernel.macros, device).get_function(kernel.name)


@functools.cache
def _shared_limit(device: int) -> int:
    """The most shared memory in bytes that a block may ask for."""
    from cupy.cuda import runtime

    return runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, device)


def launch(kernel: KernelSource, grid: tuple[int, ...], block: tuple[int, ...], shared: int, values: list[Any]) -> None:
    """Launches a kernel whose arguments have been checked; it runs in its turn on the current stream.

    Raises Unsupported if the card is too old for it or has too little shared memory.
    """
    import cupy

    device = cupy.cuda.Device().id
    function = _function(kernel, device)
    if shared and shared > function.max_dynamic_shared_size_bytes:  # more than 48 KB: only if asked for
        limit = _shared_limit(device) - function.shared_size_bytes
        if shared > limit:
            raise Unsupported(f"on this GPU: {kernel.name} needs {shared} bytes of shared memory, {limit} are left")
        function.max_dynamic_shared_size_bytes = shared
    function(grid, block, tuple(NULL if value is None else value for value in values), shared_mem=shared)


# --- graphs ----------------------------------------------------------------------------------------------------------


class Graph:
    """A CUDA graph: work that was captured once and is launched as a whole.

    The captured kernels know their arrays by address. So what the block allocates comes from memory of the graph's own,
    which nobody else is given and which is kept as long as the graph; and arrays from before that it uses must not be freed.

        graph = Graph()
        with graph.memory():    # as it is, once or more: compiles the kernels, fills tables, allocates
            step()
        with graph.capture():   # recorded, not run
            step()
        graph.replay()

    While it captures, CuPy refuses cuBLAS and cuRAND, and the driver whatever waits for the GPU: reading an array,
    `synchronize`. An upload is not refused and would copy from host memory that may be gone by then: see `to_device`.
    """

    runs = False  # what is captured runs in replays alone

    def __init__(self) -> None:
        import cupy

        self._kept: list[Any] = []
        self._pool = cupy.cuda.MemoryPool(self._allocate)
        self._stream = cupy.cuda.Stream(non_blocking=True)  # the pool hands a block out again on the same stream only
        self._graph: Any = None

    def _allocate(self, size: int) -> Any:
        """The pool's new memory. Kept, since a pool gives free blocks back to the device when memory runs out."""
        import cupy

        memory = cupy.cuda.Memory(size)
        self._kept.append(memory)
        return cupy.cuda.MemoryPointer(memory, 0)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        import cupy

        with self._stream, cupy.cuda.using_allocator(self._pool.malloc):
            yield

    @contextlib.contextmanager
    def memory(self) -> Iterator[None]:
        """The block runs as it is, after what the current stream has to do and before what comes next there, and allocates
        from the graph's memory.
        """
        import cupy

        outside = cupy.cuda.get_current_stream()
        self._stream.wait_event(outside.record())
        try:
            with self._inside():
                yield
        finally:
            outside.wait_event(self._stream.record())

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """The block's launches are recorded and do not run. If it raises, the graph is as it was before."""
        with self._inside():
            self._stream.begin_capture()  # relaxed, CuPy's default: the pool may still allocate
            try:
                yield
            except BaseException:
                with contextlib.suppress(Exception):  # what went wrong has spoilt the capture: it still has to be ended
                    self._stream.end_capture()
                raise
            self._graph = self._stream.end_capture()

    def replay(self) -> None:
        """Launches all of it on the current stream."""
        if self._graph is None:
            raise RuntimeError("nothing has been captured in this graph")
        self._graph.launch()


# --- what is around the kernels --------------------------------------------------------------------------------------


def to_device(array: Any) -> Any:
    """A host array's copy on the GPU. Raises RuntimeError while a graph is being captured: a replay would copy again from
    an address where the array no longer is.
    """
    import cupy

    if cupy.cuda.get_current_stream().is_capturing():
        raise RuntimeError("an array is uploaded while a CUDA graph is captured: upload it before, and keep it")
    return cupy.asarray(array)


def synchronize() -> None:
    """Waits until the GPU has done everything."""
    import cupy

    cupy.cuda.Device().synchronize()


def elapsed_ms(run: Callable[[], Any], repeats: int = 1) -> float:
    """Milliseconds of GPU time of a ``run()``, the mean over ``repeats`` in a row."""
    import cupy

    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) / repeats


def describe() -> dict[str, Any]:
    """The card in use and the software below us: to stand beside a measurement."""
    import cupy
    from cupy.cuda import nvrtc, runtime

    def dotted(version: int) -> str:
        return f"{version // 1000}.{version % 1000 // 10}"

    device = cupy.cuda.Device()
    capability = int(device.compute_capability)
    return {
        "gpu": runtime.getDeviceProperties(device.id)["name"].decode(),
        "compute_capability": f"{capability // 10}.{capability % 10}",
        "multiprocessors": runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, device.id),
        "clock_mhz": runtime.deviceGetAttribute(runtime.cudaDevAttrClockRate, device.id) // 1000,
        "memory_gib": round(device.mem_info[1] / 2**30, 1),
        "driver": dotted(runtime.driverGetVersion()),  # the newest CUDA that it runs
        "cuda": dotted(runtime.runtimeGetVersion()),
        "nvrtc": ".".join(map(str, nvrtc.getVersion())),
        "cupy": cupy.__version__,
    }
