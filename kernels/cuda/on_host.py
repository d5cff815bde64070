"""The backend ``cuda-emulated``: the CUDA kernels on NumPy arrays."""

from tinyres.kernels.contract import kernels_of
from tinyres.kernels.cuda import emulator
from tinyres.kernels.cuda.emulator import Graph  # noqa: F401

emulator.check()
globals().update(kernels_of("tinyres.kernels.cuda"))
