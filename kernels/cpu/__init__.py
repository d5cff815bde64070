"""Kernels for the CPU, compiled by Numba: SIMD code on channels-last memory, spread over the cores.

The linear layer and the loss are the reference's own: matrix products and small arrays, at which NumPy is no slower.
"""

from tinyres.kernels.arrays import convert as cast
from tinyres.kernels.cpu.augment import crop_flip
from tinyres.kernels.cpu.conv import conv2d, conv2d_backward_input, conv2d_backward_weight
from tinyres.kernels.cpu.elementwise import accumulate, add_relu, relu, relu6, relu6_backward, relu_backward
from tinyres.kernels.cpu.norm import batch_norm, batch_norm_backward, batch_norm_inference
from tinyres.kernels.cpu.pool import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
    subsample_pad,
    subsample_pad_backward,
)
from tinyres.kernels.cpu.update import sgd
from tinyres.kernels.reference.linear import linear, linear_backward_bias, linear_backward_input, linear_backward_weight
from tinyres.kernels.reference.loss import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_mean,
    cross_entropy_mean_backward,
)
from tinyres.kernels.reference.update import unscale, update_scale

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
