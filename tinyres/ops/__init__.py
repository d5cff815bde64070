"""The operations, one class each: formula, forward, and the backward pass written by hand.

A shape note such as ``(N, C, H, W) * (F, C, KH, KW) -> (N, F, OH, OW)`` gives inputs and output. In ``backward``, ``dy``
is the cotangent of the output ``y``: the derivative of the loss by it.
"""

from tinyres.ops.arithmetic import Add, Div, MatMul, Mul, Neg, Pow, Power, Sub
from tinyres.ops.conv import Conv2d
from tinyres.ops.dropout import Dropout
from tinyres.ops.elementwise import Cast, ReLU, ReLU6
from tinyres.ops.join import AddReLU, BatchNormAddReLU, SubsamplePad
from tinyres.ops.linear import Linear
from tinyres.ops.loss import CrossEntropy, LogSoftmax, SoftCrossEntropy
from tinyres.ops.move import Move
from tinyres.ops.norm import BatchNorm
from tinyres.ops.pool import AdaptiveAvgPool2d, AvgPool2d, GlobalAvgPool2d, MaxPool2d
from tinyres.ops.shape import Index, Mean, Pad, Reshape, Sum, Transpose

__all__ = [
    "AdaptiveAvgPool2d",
    "Add",
    "AddReLU",
    "AvgPool2d",
    "BatchNorm",
    "BatchNormAddReLU",
    "Cast",
    "Conv2d",
    "CrossEntropy",
    "Div",
    "Dropout",
    "GlobalAvgPool2d",
    "Index",
    "Linear",
    "LogSoftmax",
    "MatMul",
    "MaxPool2d",
    "Mean",
    "Move",
    "Mul",
    "Neg",
    "Pad",
    "Pow",
    "Power",
    "ReLU",
    "ReLU6",
    "Reshape",
    "SoftCrossEntropy",
    "Sub",
    "SubsamplePad",
    "Sum",
    "Transpose",
]


def __dir__() -> list[str]:
    return __all__
