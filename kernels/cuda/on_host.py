"""The backend ``cuda-emulated``: the CUDA kernels on NumPy arrays."""

import os

from tinyres.kernels.cuda import *  # noqa: F403
from tinyres.kernels.cuda import emulator

if os.name != "posix" or emulator.compiler() is None:
    raise RuntimeError("it needs a C++ compiler (g++ or clang++, or the one that CXX names) on Linux or macOS")
