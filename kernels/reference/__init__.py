"""The reference: every kernel of the contract in plain array operations, for NumPy and CuPy arrays.

It is the path to read, the baseline of every benchmark and the oracle of every test, so it is written with the memory
layout that makes NumPy fast: channels last, and blocks of a few images, so that what one step writes is still in the
cache when the next step reads it.
"""

from tinyres.kernels.arrays import convert as cast
from tinyres.kernels.reference.augment import crop_flip
from tinyres.kernels.reference.conv import conv2d, conv2d_backward_input, conv2d_backward_weight
from tinyres.kernels.reference.elementwise import accumulate, add_relu, relu, relu6, relu6_backward, relu_backward
from tinyres.kernels.reference.linear import linear, linear_backward_bias, linear_backward_input, linear_backward_weight
from tinyres.kernels.reference.loss import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_mean,
    cross_entropy_mean_backward,
)
from tinyres.kernels.reference.norm import batch_norm, batch_norm_backward, batch_norm_inference
from tinyres.kernels.reference.pool import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
    subsample_pad,
    subsample_pad_backward,
)
from tinyres.kernels.reference.update import sgd, unscale, update_scale

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
