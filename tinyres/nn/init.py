"""Initialisation: each function fills a tensor in place and returns it.

He et al. 2015 (arXiv 1502.01852) ask that a layer followed by a ReLU keep the size of what passes through it. The ReLU
halves the second moment, and a weighted sum over ``fan`` inputs multiplies it by fan * Var(w); so Var(w) = 2 / fan. With
fan_in the activations keep their size (eq. 10), with fan_out the gradients do (eq. 14).
"""

from __future__ import annotations

import math

import numpy as np

from tinyres.errors import ShapeError, UsageError
from tinyres.kernels.arrays import array_module
from tinyres.locks import unshare
from tinyres.random import default_generator
from tinyres.tensor import Tensor

__all__ = ["constant_", "fans", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_", "uniform_", "zeros_"]


def fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, *kernel): its connections to one output and to one input.

    As in PyTorch, ``in`` is the weight's second size whatever the number of groups. Raises `ShapeError` for fewer axes.
    """
    if tensor.ndim < 2:
        raise ShapeError(f"fans need a weight of 2 dimensions or more (out, in, ...), got shape {tensor.shape}")
    window = math.prod(tensor.shape[2:])
    return tensor.shape[1] * window, tensor.shape[0] * window


def _he_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise UsageError(f'mode must be "fan_in" or "fan_out", got {mode!r}')
    if nonlinearity not in ("relu", "leaky_relu"):
        raise UsageError(f'nonlinearity must be "leaky_relu" or "relu", got {nonlinearity!r}')
    slope = a if nonlinearity == "leaky_relu" else 0.0
    fan_in, fan_out = fans(tensor)
    return math.sqrt(2.0 / ((1.0 + slope * slope) * (fan_in if mode == "fan_in" else fan_out)))


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: np.random.Generator | None = None,
) -> Tensor:
    """Normal with variance 2 / ((1 + a^2) fan). ``a`` is the negative slope of a leaky ReLU (eq. 15), 0 for a ReLU."""
    return normal_(tensor, 0.0, _he_std(tensor, a, mode, nonlinearity), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: np.random.Generator | None = None,
) -> Tensor:
    """Uniform with the variance of `kaiming_normal_`: bounds of plus and minus sqrt(3) standard deviations."""
    bound = math.sqrt(3.0) * _he_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: np.random.Generator | None = None) -> Tensor:
    """Normal, with standard deviation ``std``. Here and above, ``generator`` is by default the one of `tr.manual_seed`."""
    drawn = (generator or default_generator()).standard_normal(tensor.shape, dtype=np.float32)
    return _fill(tensor, drawn * np.float32(std) + np.float32(mean))


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: np.random.Generator | None = None) -> Tensor:
    """Uniform in [a, b)."""
    drawn = (generator or default_generator()).random(tensor.shape, dtype=np.float32)
    return _fill(tensor, (2 * drawn - 1) * np.float32((b - a) / 2) + np.float32((a + b) / 2))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Every element is ``val``."""
    return _fill(tensor, val)


def zeros_(tensor: Tensor) -> Tensor:
    """Every element is 0."""
    return _fill(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Every element is 1."""
    return _fill(tensor, 1.0)


def _fill(tensor: Tensor, values: np.ndarray | float) -> Tensor:
    unshare([tensor])
    tensor.data[...] = array_module(tensor.data).asarray(values)
    return tensor


def __dir__() -> list[str]:
    return __all__
