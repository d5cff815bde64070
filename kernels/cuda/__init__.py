"""CUDA C++ kernels (`src/*.cu`) for the contract: on CuPy arrays they run on the GPU, on NumPy arrays in an emulation.

`on_gpu` and `on_host` are the two backends made of them.
"""

from tinyres.kernels.contract import kernels_of

globals().update(kernels_of(__name__))
