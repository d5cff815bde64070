"""A graph of ONNX in the making: nodes, constants, and the names of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tinyres.errors import UsageError
from tinyres.kernels.arrays import Array
from tinyres.nn import Module

OPSET, IR_VERSION = 17, 8  # of 2022: what runs models today knows them
END = 2**63 - 1  # of a slice: as far as there is


def package() -> ModuleType:
    """The library onnx."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError:
        raise UsageError("export to ONNX needs the package onnx: pip install onnx onnxruntime") from None
    return onnx


class Graph:
    """Collects nodes and constants. Everything in it has a name; all numbers are of ``dtype``, but for shapes and axes."""

    def __init__(self, model: Module, dtype: Any = np.float32) -> None:
        self.onnx, self.dtype = package(), dtype
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self._names = {id(tensor.data): name for name, tensor in tensors}
        self._parameters = frozenset(self._names)
        self._held: list[Array] = []  # an id is one array's for as long as that lives

    def set_name(self, array: Array, name: str) -> None:
        """From now on ``array`` is the value called ``name``."""
        self._names[id(array)] = name
        self._held.append(array)

    def name(self, array: Array) -> str:
        """The name of a value; an array that no node has made is a constant."""
        key = id(array)
        if key in self._names and key not in self._parameters:
            return self._names[key]
        host = array if isinstance(array, np.ndarray | np.generic) else array.get()
        self.set_name(array, self.constant(np.asarray(host), self._names.get(key, "")))
        return self._names[key]

    def constant(self, array: np.ndarray, name: str = "") -> str:
        """A new constant."""
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(array, self.dtype, order="C")
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value))

    def integers(self, values: Sequence[int]) -> str:
        """A constant for shapes and axes, which are int64."""
        name = self.constant(np.zeros(0))
        self.constants[name] = np.array(values, np.int64)
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node of the operator ``op``; the name of its output."""
        output = f"{op}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def slice(self, x: str, axes: Mapping[int, tuple[int, int | None, int]]) -> str:
        """x from start to stop by step along some axes; a stop of None is the end."""
        starts, stops, steps = zip(*axes.values(), strict=True)
        ends = [(END if step > 0 else -END) if stop is None else stop for stop, step in zip(stops, steps, strict=True)]
        return self.add("Slice", x, *map(self.integers, (starts, ends, list(axes), steps)))

    def pad(self, x: str, margins: Sequence[tuple[int, int]], value: float = 0.0) -> str:
        """x with (before, behind) of ``value`` along each axis."""
        before, behind = zip(*margins, strict=True)
        return self.add("Pad", x, self.integers([*before, *behind]), self.number(value))

    def finish(self, y: str, name: str) -> None:
        """The output of the graph: the value ``y``, which is now called ``name``."""
        if not self.nodes or self.nodes[-1].output[0] != y:
            self.add("Identity", y)
        self.nodes[-1].output[0] = name
