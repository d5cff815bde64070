"""The contract's kernels once more, in Numba's dialect of CUDA: Python, to read for those who do not write C++.

The same plan as `kernels/cuda`, in its plainest form. To begin with: `elementwise` (a thread an element), `conv` (im2col
and its way back), `matmul` (shared memory and barriers), `norm` (sums as trees). `runtime` is how kernels are started.

On a GPU it takes CuPy's arrays; with NUMBA_ENABLE_CUDASIM=1 it runs on NumPy's in Numba's simulator, very slowly.
"""

from tinyres.kernels.arrays import convert as cast
from tinyres.kernels.numba_cuda.augment import crop_flip
from tinyres.kernels.numba_cuda.conv import conv2d, conv2d_backward_input, conv2d_backward_weight
from tinyres.kernels.numba_cuda.elementwise import accumulate, add_relu, relu, relu6, relu6_backward, relu_backward
from tinyres.kernels.numba_cuda.linear import linear, linear_backward_bias, linear_backward_input, linear_backward_weight
from tinyres.kernels.numba_cuda.loss import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_mean,
    cross_entropy_mean_backward,
)
from tinyres.kernels.numba_cuda.norm import batch_norm, batch_norm_backward, batch_norm_inference
from tinyres.kernels.numba_cuda.pool import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
    subsample_pad,
    subsample_pad_backward,
)
from tinyres.kernels.numba_cuda.runtime import SIMULATED
from tinyres.kernels.numba_cuda.update import sgd, unscale, update_scale

DEVICE = "cpu" if SIMULATED else "cuda"  # where its arrays live

__all__ = [
    "accumulate",
    "add_relu",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "cast",
    "conv2d",
    "conv2d_backward_input",
    "conv2d_backward_weight",
    "crop_flip",
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_mean",
    "cross_entropy_mean_backward",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "linear",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
    "max_pool2d",
    "max_pool2d_backward",
    "relu",
    "relu6",
    "relu6_backward",
    "relu_backward",
    "sgd",
    "subsample_pad",
    "subsample_pad_backward",
    "unscale",
    "update_scale",
]
