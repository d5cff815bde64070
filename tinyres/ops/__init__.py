"""The operations, one class each: formula, forward, and the backward pass written by hand.

A shape note such as ``(N, C, H, W) * (F, C, KH, KW) -> (N, F, OH, OW)`` gives inputs and output. In ``backward``, ``dy``
is the cotangent of the output ``y``: the derivative of the loss by it.
"""

from tinyres.ops.activations import GELU, LeakyReLU, Sigmoid, SiLU, Tanh
from tinyres.ops.arithmetic import Add, Div, MatMul, Mul, Neg, Pow, Power, Sub
from tinyres.ops.conv import Conv2d
from tinyres.ops.dropout import Dropout
from tinyres.ops.elementwise import Cast, ReLU, ReLU6
from tinyres.ops.group_norm import GroupNorm, LayerNorm
from tinyres.ops.join import AddReLU, BatchNormAddReLU, SubsamplePad
from tinyres.ops.linear import Linear
from tinyres.ops.loss import CrossEntropy, LogSoftmax, SoftCrossEntropy, Softmax, SquaredError
from tinyres.ops.move import Move
from tinyres.ops.norm import BatchNorm
from tinyres.ops.pointwise import Abs, Clone, Exp, Log, Sqrt
from tinyres.ops.pool import AdaptiveAvgPool2d, AvgPool2d, GlobalAvgPool2d, MaxPool2d
from tinyres.ops.reduce import AlongAxis, Max, Min, Std
from tinyres.ops.shape import Alias, Index, Mean, Pad, Reshape, Sum, Transpose

__all__ = [
    "GELU",
    "Abs",
    "AdaptiveAvgPool2d",
    "Add",
    "AddReLU",
    "Alias",
    "AlongAxis",
    "AvgPool2d",
    "BatchNorm",
    "BatchNormAddReLU",
    "Cast",
    "Clone",
    "Conv2d",
    "CrossEntropy",
    "Div",
    "Dropout",
    "Exp",
    "GlobalAvgPool2d",
    "GroupNorm",
    "Index",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "Log",
    "LogSoftmax",
    "MatMul",
    "Max",
    "MaxPool2d",
    "Mean",
    "Min",
    "Move",
    "Mul",
    "Neg",
    "Pad",
    "Pow",
    "Power",
    "ReLU",
    "ReLU6",
    "Reshape",
    "SiLU",
    "Sigmoid",
    "SoftCrossEntropy",
    "Softmax",
    "Sqrt",
    "SquaredError",
    "Std",
    "Sub",
    "SubsamplePad",
    "Sum",
    "Tanh",
    "Transpose",
]


def __dir__() -> list[str]:
    return __all__
