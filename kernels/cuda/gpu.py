"""Runs CUDA kernels on CuPy arrays: compiles them with NVRTC, and launches them on the current stream."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from tinyres.kernels.cuda.launch import Kernel, Macros, source

OPTIONS = ("--std=c++17",)


@functools.cache
def _module(text: str, macros: Macros, device: int) -> Any:
    """A module of one source and set of macros, compiled for the card in use.  CuPy keeps the result on disk."""
    import cupy

    options = (*OPTIONS, *(f"-D{name}={value}" for name, value in macros))
    return cupy.RawModule(code=text, options=options, backend="nvrtc")


@functools.cache
def _function(kernel: Kernel, device: int) -> Any:
    return _module(source(kernel.file), kernel.macros, device).get_function(kernel.name)


def launch(kernel: Kernel, grid: tuple[int, ...], block: tuple[int, ...], shared: int, values: list[Any]) -> None:
    """Launches a kernel whose arguments have been checked; it runs in its turn on the current stream."""
    import cupy

    function = _function(kernel, cupy.cuda.Device().id)
    if shared > function.max_dynamic_shared_size_bytes:
        function.max_dynamic_shared_size_bytes = shared
    function(grid, block, tuple(0 if value is None else value for value in values), shared_mem=shared)


class Graph:
    """A captured CUDA graph, and the memory that it works in: no other array may use that while the graph lives."""

    def __init__(self, pool: Any) -> None:
        self.pool, self.graph = pool, None

    def replay(self) -> None:
        import cupy

        self.graph.launch(cupy.cuda.get_current_stream())


@contextlib.contextmanager
def capture() -> Iterator[Graph]:
    """``with capture() as graph:`` records the block's launches in ``graph`` without running them.  Everything that it
    allocates comes from the graph's own pool."""
    raise NotImplementedError
    yield
