"""Which convolution runs: the first of these that does what is asked.

1. depthwise        its own kernels
2. tensor cores     implicit GEMM; float32 is rounded to TF32 (10 bits of mantissa), unless ``TINYRES_TF32=0`` asks for exact
                    products; float16 and bfloat16 as they are
3. exact            implicit GEMM in float32 or float64 on the ordinary cores
4. im2col           every geometry and type, through a column matrix
"""

import os
from types import ModuleType
from typing import Any

from tinyres.kernels.arrays import Array, Pair, added
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import conv_depthwise, conv_exact, conv_tensor, im2col
from tinyres.kernels.cuda.elementwise import accumulate


def tf32_allowed() -> bool:
    """Whether float32 convolutions may round their operands to TF32, as PyTorch's do by default."""
    return os.environ.get("TINYRES_TF32", "1") != "0"


def _candidates(x: Array) -> tuple[ModuleType, ...]:
    if x.dtype.name == "float32" and not tf32_allowed():
        return conv_depthwise, conv_exact
    return conv_depthwise, conv_tensor, conv_exact


def _first(name: str, x: Array, *args: Any, total: Array | None = None) -> Array:
    for module in _candidates(x):
        try:
            if total is not None and module is conv_tensor:
                return module.conv2d_backward_input(x, *args, total)
            return added(getattr(module, name)(x, *args), total, accumulate)
        except Unsupported:  # nor, on a GPU, what the card is too old for
            continue
    return added(getattr(im2col, name)(x, *args), total, accumulate)


def conv2d(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Array:
    return _first("conv2d", x, w, stride, padding, dilation, groups)


def conv2d_backward_input(
    dy: Array,
    w: Array,
    x_shape: tuple[int, ...],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    total: Array | None = None,
) -> Array:
    return _first("conv2d_backward_input", dy, w, x_shape, stride, padding, dilation, groups, total=total)


def conv2d_backward_weight(
    dy: Array, x: Array, w_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    return _first("conv2d_backward_weight", dy, x, w_shape, stride, padding, dilation, groups)
