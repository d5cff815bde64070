"""`summary`: what each layer of a model receives, returns, holds and costs.

The cost is the number of multiply-adds in one forward pass of one image, counted as papers do: those of convolutions
(padding included) and linear layers, without biases, batch norm, pooling and additions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres import markup
from tinyres.errors import UsageError
from tinyres.guards import no_grad
from tinyres.kernels.arrays import array_module
from tinyres.nn.layers import Conv2d, Linear
from tinyres.nn.module import Module, Parameter, evaluating
from tinyres.tensor import Tensor

COLUMNS = ("layer", "type", "input", "output", "parameters", "multiply-adds")


@dataclass(frozen=True)
class Row:
    """One call of one layer. Shapes leave out the batch; a layer's parameters are counted at its first call."""

    name: str
    type: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int

    def cells(self) -> tuple[str, ...]:
        sizes = ("x".join(map(str, shape)) or "1" for shape in (self.input_shape, self.output_shape))
        return self.name, self.type, *sizes, f"{self.parameters:,}", f"{self.multiply_adds:,}"


@dataclass(frozen=True)
class Summary:
    """The table as data: ``model`` is the name of its class, ``rows`` has one `Row` for each call of a layer, ``parameters``
    and ``multiply_adds`` are the sums.

    ``print(summary)`` shows all of it as text, rich and notebooks show it as a table.
    """

    model: str
    rows: tuple[Row, ...]
    parameters: int
    multiply_adds: int

    def _totals(self) -> tuple[str, ...]:
        return "total", self.model, "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}"

    def __str__(self) -> str:
        lines = [COLUMNS, *(row.cells() for row in self.rows), self._totals()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = []
        for line in lines:
            left = [cell.ljust(width) for cell, width in zip(line[:4], widths, strict=False)]
            right = [cell.rjust(width) for cell, width in zip(line[4:], widths[4:], strict=True)]
            text.append("  ".join(left + right))
        rule = "-" * max(map(len, text))
        return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])

    def __repr__(self) -> str:
        sums = f"{self.parameters:,} parameters, {self.multiply_adds:,} multiply-adds"
        return f"Summary({self.model}: {len(self.rows)} calls of layers, {sums})"

    def _repr_html_(self) -> str:
        return markup.table(COLUMNS, [row.cells() for row in self.rows], self._totals(), left=4)

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(show_footer=True)
        for i, (heading, total) in enumerate(zip(COLUMNS, self._totals(), strict=True)):
            table.add_column(heading, footer=total, justify="right" if i > 3 else "left")
        for row in self.rows:
            table.add_row(*row.cells())
        return table


def summary(model: Module, input_shape: Sequence[int] = (3, 32, 32)) -> Summary:
    """Runs one image of zeros, of shape ``input_shape`` (without the batch), through ``model`` and notes each layer's call.

    A row is a module that has no children, or parameters of its own. The model runs in evaluation mode, without a graph,
    and is left as it was. What a ``forward`` computes itself, not through a module, has no row. Raises `UsageError` for an
    ``input_shape`` that is no image's.
    """
    if not input_shape or any(not isinstance(n, int) or n < 1 for n in input_shape):
        raise UsageError(f"summary: input_shape is one image's shape, such as (3, 32, 32), got {input_shape!r}")
    parameters = list(model.parameters())
    rows: list[Row] = []
    counted: set[int] = set()

    def note(name: str, module: Module, args: tuple, output: Tensor) -> None:
        fresh = [p for p in vars(module).values() if isinstance(p, Parameter) and id(p) not in counted]
        counted.update(map(id, fresh))
        shapes, size = (args[0].shape[1:], output.shape[1:]), sum(p.numel() for p in fresh)
        rows.append(Row(name, type(module).__name__, *shapes, size, multiply_adds(module, output.shape)))

    handles = []
    for name, module in model.named_modules():
        owns = any(isinstance(value, Parameter) for value in vars(module).values())
        if owns or next(module.children(), None) is None:
            handles.append(module.register_forward_hook(lambda *call, name=name: note(name, *call)))
    try:
        with no_grad(), evaluating(model):
            like = parameters[0] if parameters else Tensor(np.zeros(0, np.float32))
            model(Tensor(array_module(like.data).zeros((1, *input_shape), like.dtype)))
    finally:
        for handle in handles:
            handle.remove()
    total = sum(p.numel() for p in parameters)
    return Summary(type(model).__name__, tuple(rows), total, sum(row.multiply_adds for row in rows))


def multiply_adds(module: Module, output_shape: Sequence[int]) -> int:
    """The multiply-adds behind an output of ``output_shape`` (with the batch): each element needs its window or its row."""
    if isinstance(module, Conv2d | Linear):
        return math.prod(output_shape) * math.prod(module.weight.shape[1:])
    return 0
