"""The backend ``cupy``: the CUDA kernels on CuPy arrays. Arrays in host memory are left to the reference."""

import functools
from collections.abc import Callable
from typing import Any

from tinyres.kernels.arrays import array_module
from tinyres.kernels.contract import Unsupported, kernels_of
from tinyres.kernels.cuda.gpu import Graph  # noqa: F401

DEVICE = "cuda"  # where the arrays must be


def _check() -> None:
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError("it needs CuPy: pip install -e '.[cuda12]' or '.[cuda13]' in a checkout of tinyres") from error
    if not cupy.cuda.is_available():
        raise RuntimeError("no CUDA device, or no driver for it, was found")


def _on_gpu(kernel: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(kernel)
    def run(*args: Any) -> Any:
        first = args[0][0] if isinstance(args[0], list) else args[0]
        if array_module(first).__name__ != "cupy":
            raise Unsupported("the arrays are in host memory; .to('cuda') moves a model or a tensor to the GPU")
        return kernel(*args)

    return run


_check()
globals().update({name: _on_gpu(kernel) for name, kernel in kernels_of("tinyres.kernels.cuda").items()})
