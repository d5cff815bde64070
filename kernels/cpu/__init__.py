"""Kernels for the CPU, compiled by Numba: SIMD code on channels-last memory, spread over the cores.

What is matrix products (the linear layer) or on small arrays (the loss) is the reference's own: NumPy is no slower.
"""

from tinyres.kernels.contract import kernels_of
from tinyres.kernels.cpu import choose
from tinyres.kernels.cpu.buffers import trim as empty_cache  # noqa: F401
from tinyres.kernels.cpu.graph import Graph  # noqa: F401

globals().update(kernels_of(__name__))


def describe() -> list[str]:
    """How the convolutions of ResNet-20 at batch 128 are done."""
    layers = [(3, 16, 32, 1), (16, 16, 32, 1), (16, 32, 16, 2), (32, 32, 16, 1), (32, 64, 8, 2), (64, 64, 8, 1)]
    return [choose.describe(128, c, f, (size, size), stride=(stride, stride)) for c, f, size, stride in layers]
