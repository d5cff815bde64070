"""Kernels for the CPU, compiled by Numba: SIMD code on channels-last memory, spread over the cores.

What is matrix products (the linear layer) or on small arrays (the loss) is the reference's own: NumPy is no slower.
"""

from tinyres.kernels.contract import kernels_of
from tinyres.kernels.cpu.buffers import trim as empty_cache  # noqa: F401

globals().update(kernels_of(__name__))
