"""Neural network modules: layers, containers, initialisation and the summary of a model."""

from tinyres.nn import init
from tinyres.nn.containers import ModuleList, Sequential
from tinyres.nn.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Conv2d,
    CrossEntropyLoss,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Identity,
    Linear,
    MaxPool2d,
    ReLU,
    ReLU6,
)
from tinyres.nn.module import HookHandle, Module, Parameter
from tinyres.nn.summary import Summary, summary

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "HookHandle",
    "Identity",
    "Linear",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "Parameter",
    "ReLU",
    "ReLU6",
    "Sequential",
    "Summary",
    "init",
    "summary",
]


def __dir__() -> list[str]:
    return __all__
