"""The backend ``cuda-emulated``: the CUDA kernels on NumPy arrays."""

from tinyres.kernels.cuda import *  # noqa: F403
from tinyres.kernels.cuda import emulator

emulator.check()
