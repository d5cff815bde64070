"""CUDA C++ kernels (`src/*.cu`) for the contract: on CuPy arrays they run on the GPU, on NumPy arrays in an emulation.

`on_gpu` and `on_host` are the two backends made of them."""

from tinyres.kernels.cuda.elementwise import accumulate, add_relu, relu, relu6, relu6_backward, relu_backward

__all__ = ["accumulate", "add_relu", "relu", "relu6", "relu6_backward", "relu_backward"]
