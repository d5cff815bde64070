"""CUDA C++ kernels (`src/*.cu`) for the contract: on CuPy arrays they run on the GPU, on NumPy arrays in an emulation.

`on_gpu` and `on_host` are the two backends made of them.
"""

from tinyres.kernels.cuda.augment import crop_flip
from tinyres.kernels.cuda.conv import conv2d, conv2d_backward_input, conv2d_backward_weight
from tinyres.kernels.cuda.elementwise import accumulate, add_relu, cast, relu, relu6, relu6_backward, relu_backward
from tinyres.kernels.cuda.linear import linear, linear_backward_bias, linear_backward_input, linear_backward_weight
from tinyres.kernels.cuda.loss import cross_entropy, cross_entropy_backward, cross_entropy_mean, cross_entropy_mean_backward
from tinyres.kernels.cuda.norm import batch_norm, batch_norm_backward, batch_norm_inference
from tinyres.kernels.cuda.pool import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
    subsample_pad,
    subsample_pad_backward,
)
from tinyres.kernels.cuda.update import sgd, unscale, update_scale

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
