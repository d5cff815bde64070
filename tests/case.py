"""What a case of the table in cases.py is."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """``run`` on tensors, ``naive`` on arrays, ``torch`` on (torch, *its tensors); ``data`` is how inputs are drawn."""

    name: str
    run: Callable[..., Any]
    naive: Callable[..., np.ndarray]
    shapes: tuple[tuple[int, ...], ...]
    torch: Callable[..., Any] | None = None
    data: str = "normal"
    view: bool = False  # the result may share memory with the input

    def arrays(self) -> list[np.ndarray]:
        """Float64 inputs, the same at every call."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        drawn = [rng.standard_normal(shape) for shape in self.shapes]
        chosen = [np.exp(a / 2) if self.data == "positive" else 4 * a if self.data == "wide" else a for a in drawn]
        return [np.array(a) for a in chosen]

    def __str__(self) -> str:
        return self.name
