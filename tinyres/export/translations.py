"""Each operation of `tinyres.ops` in the operators of ONNX.

    https://onnx.ai/onnx/operators

A translation gets the graph, the call and the names of its inputs, adds nodes, and returns the name of its result. Which
operation it is for says `translates`; an operation of your own gets one in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyres import ops
from tinyres.autograd import Function
from tinyres.errors import UsageError
from tinyres.export.graph import Graph
from tinyres.export.trace import Call, Shape
from tinyres.kernels.arrays import ceil_div
from tinyres.ops.check import pair
from tinyres.ops.shape import axes_of

Translation = Callable[[Graph, Call, Sequence[str]], str]
TRANSLATIONS: dict[type[Function], Translation] = {}


def translates(*operations: type[Function]) -> Callable[[Translation], Translation]:
    """Makes the function that follows the translation of these operations.

    >>> @translates(Square)
    ... def square(graph, call, x):
    ...     return graph.add("Mul", x[0], x[0])
    """

    def register(translation: Translation) -> Translation:
        TRANSLATIONS.update(dict.fromkeys(operations, translation))
        return translation

    return register


def translate(graph: Graph, call: Call) -> str:
    """Adds the nodes of one call; the name of its result. Raises `UsageError` for an operation that has no translation."""
    translation = TRANSLATIONS.get(call.op)
    if translation is None:
        raise UsageError(
            f"export: the operation {call.op.__name__} has no translation to ONNX; "
            "tinyres.export.translates gives it one, see docs/export.md"
        )
    result = translation(graph, call, [graph.name(array) for array in call.inputs])
    if not call.steady and call.op is not ops.Reshape:
        raise UsageError(f"export: {call.op.__name__} is given other options for 3 images than for 2, so it is no one graph")
    return result


def _alike(*operations: type[Function], as_: str) -> None:
    """Operations that ONNX has as they are."""
    translates(*operations)(lambda graph, call, x: graph.add(as_, *x))


_alike(ops.Add, as_="Add")
_alike(ops.Sub, as_="Sub")
_alike(ops.Mul, as_="Mul")
_alike(ops.Div, as_="Div")
_alike(ops.Neg, as_="Neg")
_alike(ops.Power, as_="Pow")
_alike(ops.MatMul, as_="MatMul")
_alike(ops.ReLU, as_="Relu")
_alike(ops.Abs, as_="Abs")
_alike(ops.Exp, as_="Exp")
_alike(ops.Log, as_="Log")
_alike(ops.Sqrt, as_="Sqrt")
_alike(ops.Tanh, as_="Tanh")
_alike(ops.Sigmoid, as_="Sigmoid")


@translates(ops.Pow)
def power(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("Pow", x[0], graph.number(call.attributes["exponent"]))


@translates(ops.Move, ops.Cast, ops.Clone, ops.Alias)
def same(graph: Graph, call: Call, x: Sequence[str]) -> str:
    """In the graph all numbers are float32."""
    if call.output.dtype.itemsize < 4:
        raise UsageError("export: the network computes in 16 bits, and the graph in float32; leave .half() out")
    return x[0]


# --- activations -----------------------------------------------------------------------------------------------------


@translates(ops.LeakyReLU)
def leaky_relu(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("LeakyRelu", x[0], alpha=float(call.attributes["slope"]))


@translates(ops.SiLU)
def silu(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("Mul", x[0], graph.add("Sigmoid", x[0]))


@translates(ops.GELU)
def gelu(graph: Graph, call: Call, x: Sequence[str]) -> str:
    """x (1 + erf(x / sqrt 2)) / 2, or with tanh(sqrt(2 / pi) (x + 0.044715 x^3)) in place of erf."""
    if call.attributes["approximate"] == "tanh":
        cube = graph.add("Mul", graph.number(0.044715), graph.add("Pow", x[0], graph.number(3)))
        inside = graph.add("Mul", graph.number((2 / np.pi) ** 0.5), graph.add("Add", x[0], cube))
        curve = graph.add("Tanh", inside)
    else:
        curve = graph.add("Erf", graph.add("Mul", x[0], graph.number(0.5**0.5)))
    return graph.add("Mul", x[0], graph.add("Mul", graph.number(0.5), graph.add("Add", curve, graph.number(1))))


@translates(ops.Softmax)
def softmax(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("Softmax", x[0], axis=call.attributes["dim"])


# --- layers ----------------------------------------------------------------------------------------------------------


@translates(ops.Conv2d)
def conv2d(graph: Graph, call: Call, x: Sequence[str]) -> str:
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | call.attributes
    strides, padding, dilations = (pair("conv2d", key, given[key], 0) for key in ("stride", "padding", "dilation"))
    return graph.add("Conv", *x, strides=strides, pads=padding * 2, dilations=dilations, group=int(given["groups"]))


@translates(ops.Linear)
def linear(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("Gemm", *x, transB=1)


@translates(ops.BatchNorm)
def batch_norm(graph: Graph, call: Call, x: Sequence[str]) -> str:
    y = _normalised(graph, call, *x)
    return graph.add("Relu", y) if call.attributes["relu"] else y


@translates(ops.BatchNormAddReLU)
def batch_norm_add_relu(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("Relu", graph.add("Add", _normalised(graph, call, x[0], *x[2:]), x[1]))


def _normalised(graph: Graph, call: Call, x: str, weight: str, bias: str) -> str:
    given = call.attributes
    if given["training"]:
        raise UsageError(
            "export: a batch norm without running statistics normalises by the batch that it is given, so that the answer "
            "for one image would depend on the others"
        )
    statistics = [graph.name(given[key]) for key in ("running_mean", "running_var")]
    return graph.add("BatchNormalization", x, weight, bias, *statistics, epsilon=float(given["eps"]))


@translates(ops.AddReLU)
def add_relu(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("Relu", graph.add("Add", *x))


@translates(ops.ReLU6)
def relu6(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("Clip", x[0], graph.number(0), graph.number(6))


@translates(ops.SubsamplePad)
def subsample_pad(graph: Graph, call: Call, x: Sequence[str]) -> str:
    step, channels = call.attributes["stride"], call.inputs[0].shape[1]
    y = graph.slice(x[0], {2: (0, None, step), 3: (0, None, step)}) if step > 1 else x[0]
    more = call.attributes["out_channels"] - channels
    return graph.pad(y, [(0, 0), (more // 2, more - more // 2), (0, 0), (0, 0)]) if more else y


@translates(ops.LogSoftmax)
def log_softmax(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("LogSoftmax", x[0], axis=call.attributes["dim"])


@translates(ops.LayerNorm)
def layer_norm(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("LayerNormalization", *x, axis=-call.inputs[1].ndim, epsilon=float(call.attributes["eps"]))


@translates(ops.GroupNorm)
def group_norm(graph: Graph, call: Call, x: Sequence[str]) -> str:
    """An instance norm of (N, groups, all others), in its old shape again; then weight and bias per channel."""
    groups, (_, channels, *others) = call.attributes["num_groups"], call.inputs[0].shape
    one, zero = graph.constant(np.ones(groups)), graph.constant(np.zeros(groups))
    y = graph.add("Reshape", x[0], graph.integers((0, groups, -1)))
    y = graph.add("InstanceNormalization", y, one, zero, epsilon=float(call.attributes["eps"]))
    y = graph.add("Reshape", y, graph.integers((0, channels, *others)))
    weight, bias = (graph.add("Reshape", v, graph.integers((channels, *(1 for _ in others)))) for v in x[1:])
    return graph.add("Add", graph.add("Mul", y, weight), bias)


# --- pooling ---------------------------------------------------------------------------------------------------------


@translates(ops.MaxPool2d, ops.AvgPool2d)
def pool(graph: Graph, call: Call, x: Sequence[str]) -> str:
    given = {"stride": None, "padding": 0} | call.attributes
    kernel, padding = (pair("pool", key, given[key], 0) for key in ("kernel_size", "padding"))
    strides = kernel if given["stride"] is None else pair("pool", "stride", given["stride"], 1)
    window: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": padding * 2}
    if call.op is ops.MaxPool2d:
        return graph.add("MaxPool", x[0], **window)
    return graph.add("AveragePool", x[0], **window, count_include_pad=1)


@translates(ops.GlobalAvgPool2d)
def global_avg_pool2d(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("Flatten", graph.add("GlobalAveragePool", x[0]), axis=1)


@translates(ops.AdaptiveAvgPool2d)
def adaptive_avg_pool2d(graph: Graph, call: Call, x: Sequence[str]) -> str:
    """R x C^T, where the rows of R and of C average over a window each."""
    rows, columns = (
        np.stack([_window(i, n, k) for i in range(k)])
        for n, k in zip(call.inputs[0].shape[2:], call.output.shape[2:], strict=True)
    )
    return graph.add("MatMul", graph.constant(rows), graph.add("MatMul", x[0], graph.constant(columns.T)))


def _window(i: int, n: int, k: int) -> np.ndarray:
    inside = np.zeros(n)
    inside[i * n // k : ceil_div((i + 1) * n, k)] = 1
    return inside / inside.sum()


# --- shapes ----------------------------------------------------------------------------------------------------------


@translates(ops.Sum)
def total(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("ReduceSum", x[0], graph.integers(_reduced(call)), keepdims=int(call.attributes["keepdim"]))


@translates(ops.Mean)
def mean(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("ReduceMean", x[0], axes=_reduced(call), keepdims=int(call.attributes["keepdim"]))


@translates(ops.Max)
def largest(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("ReduceMax", x[0], axes=_reduced(call), keepdims=int(call.attributes["keepdim"]))


@translates(ops.Min)
def smallest(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("ReduceMin", x[0], axes=_reduced(call), keepdims=int(call.attributes["keepdim"]))


@translates(ops.Std)
def std(graph: Graph, call: Call, x: Sequence[str]) -> str:
    axes = _reduced(call)
    if any(call.shapes[0][axis] is None for axis in axes):
        raise UsageError("export: std over the images of a batch, whose number is not fixed in ONNX")
    away = graph.add("Sub", x[0], graph.add("ReduceMean", x[0], axes=axes, keepdims=1))
    terms = np.prod([call.inputs[0].shape[axis] for axis in axes]) - call.attributes["correction"]
    keep = int(call.attributes["keepdim"])
    total = graph.add("ReduceSum", graph.add("Mul", away, away), graph.integers(axes), keepdims=keep)
    return graph.add("Sqrt", graph.add("Div", total, graph.number(max(terms, 0))))


def _reduced(call: Call) -> tuple[int, ...]:
    return axes_of("export", call.inputs[0], call.attributes["dim"]) or axes_of("export", call.inputs[0], None)


@translates(ops.Reshape)
def reshape(graph: Graph, call: Call, x: Sequence[str]) -> str:
    """The length that is the batch's is left to be computed."""
    if list(call.shape).count(None) > 1:
        raise UsageError(f"export: a reshape to {call.output.shape} has the batch in more than one axis")
    return graph.add("Reshape", x[0], graph.integers([-1 if n is None else n for n in call.shape]))


@translates(ops.Transpose)
def transpose(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.add("Transpose", x[0], perm=axes_of("export", call.inputs[0], call.attributes["dims"]))


@translates(ops.Pad)
def pad(graph: Graph, call: Call, x: Sequence[str]) -> str:
    return graph.pad(x[0], call.attributes["margins"], call.attributes["value"])


@translates(ops.Index)
def index(graph: Graph, call: Call, x: Sequence[str]) -> str:
    """Slices, ints, None and ``...``: slices, then a reshape."""
    parts = call.attributes["index"]
    if not all(
        part is None or part is ... or (isinstance(part, int | slice) and part is not True and part is not False)
        for part in parts
    ):
        raise UsageError("export: x[...] with arrays has no translation to ONNX")
    slices = _slices(parts, call.shapes[0], call.inputs[0].shape)
    y = graph.slice(x[0], slices) if slices else x[0]
    if all(isinstance(part, slice) or part is ... for part in parts):
        return y
    return reshape(graph, call, [y])


def _slices(parts: Sequence[Any], shape: Shape, lengths: Sequence[int]) -> dict[int, tuple[int, int | None, int]]:
    """Of each axis that is cut: where it starts, where it ends (None: at its end) and its step."""
    taken = sum(part is not None and part is not ... for part in parts)
    axis, found = 0, dict[int, tuple[int, int | None, int]]()
    for part in parts:
        if part is ...:
            axis += len(shape) - taken
        elif part is not None:
            if part != slice(None):
                if shape[axis] is None:
                    raise UsageError("export: x[...] picks single images of the batch, which has no fixed length in ONNX")
                start, stop, step = (
                    part.indices(lengths[axis])
                    if isinstance(part, slice)
                    else (part % lengths[axis], part % lengths[axis] + 1, 1)
                )
                found[axis] = start, stop if stop >= 0 else None, step
            axis += 1
    return found
