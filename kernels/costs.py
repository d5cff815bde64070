"""What each kernel of the contract must do at least: floating-point operations, and bytes moved once each.

`cost` turns a call into (FLOPs, bytes). A multiplication and an addition count as two; bytes are those of the arrays
that the kernel reads and writes, each once, so that bytes / copy bandwidth is a floor for its time.
"""

import math
from typing import Any

# elementwise kernels: floating-point operations for each element of the first array, or of all arrays of the first list
_ELEMENTWISE = {
    "batch_norm": 7,
    "batch_norm_inference": 4,
    "batch_norm_backward": 11,
    "batch_norm_add_relu": 9,
    "batch_norm_add_relu_inference": 6,
    "batch_norm_add_relu_backward": 12,
    "relu": 1,
    "relu_backward": 1,
    "relu6": 2,
    "relu6_backward": 2,
    "add_relu": 2,
    "add": 1,
    "accumulate": 1,
    "cross_entropy": 5,
    "cross_entropy_backward": 3,
    "cross_entropy_mean": 5,
    "cross_entropy_mean_backward": 3,
    "global_avg_pool2d_backward": 1,
    "crop_flip": 3,
    "max_pool2d": 1,
    "avg_pool2d": 1,
    "global_avg_pool2d": 1,
    "linear_backward_bias": 1,
    "sgd": 6,
    "adamw": 12,
    "unscale": 1,
}

_WRITTEN = {"accumulate": (0,), "sgd": (0, 2), "adamw": (0, 2, 3), "unscale": (0,)}  # in place, after they were read


def cost(kernel: str, args: tuple[Any, ...], result: Any) -> tuple[int, int]:
    """(FLOPs, bytes) of ``result = kernel(*args)``."""
    in_place = _WRITTEN.get(kernel, ())
    return _flops(kernel, args, result), _bytes(args) + _bytes(result) + _bytes([args[i] for i in in_place])


def _flops(kernel: str, args: tuple[Any, ...], result: Any) -> int:
    if kernel == "conv2d":
        return 2 * result.size * math.prod(args[1].shape[1:])
    if kernel == "conv2d_backward_input":
        return 2 * args[0].size * math.prod(args[1].shape[1:])
    if kernel == "conv2d_backward_weight":
        return 2 * args[0].size * math.prod(args[2][1:])
    if kernel in ("linear", "linear_backward_input"):
        return 2 * args[0].shape[0] * math.prod(args[1].shape)
    if kernel == "linear_backward_weight":
        return 2 * args[0].size * args[1].shape[1]
    size = sum(a.size for a in args[0]) if isinstance(args[0], list) else args[0].size
    return _ELEMENTWISE.get(kernel, 0) * size


def _bytes(value: Any) -> int:
    if isinstance(value, list | tuple):
        return sum(_bytes(v) for v in value)
    return getattr(value, "nbytes", 0)
