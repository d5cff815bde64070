"""Gradient clipping before a step (Pascanu et al. 2013, arXiv 1211.5063). Both functions change ``.grad`` in place."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from tinyres.errors import NonFiniteError, UsageError
from tinyres.kernels.arrays import array_module
from tinyres.tensor import Tensor


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> float:
    """Scale all gradients by one number so that their common norm is at most ``max_norm``; returns the norm that they had
    before. As in PyTorch, the factor is max_norm / (norm + 1e-6), and ``norm_type`` the p of the norm, ``inf`` for the
    largest magnitude.

    Where the norm is NaN or infinite, no factor could repair the gradients, and they stay as they are: a `GradScaler` skips
    such a step. With ``error_if_nonfinite`` that raises `NonFiniteError`. Raises `UsageError` for a ``max_norm`` or a
    ``norm_type`` out of range.
    """
    if not norm_type > 0:
        raise UsageError(f"clip_grad_norm_: norm_type must be above 0, got {norm_type}")
    grads = [parameter.grad for parameter in _listed(parameters) if parameter.grad is not None]
    if norm_type == math.inf:
        norm = float(max((abs(grad).max() for grad in grads if grad.size), default=0.0))
    elif norm_type == 2:
        norm = math.sqrt(float(sum((grad.astype(np.float64) ** 2).sum() for grad in grads)))
    else:
        norm = float(sum((abs(grad.astype(np.float64)) ** norm_type).sum() for grad in grads)) ** (1 / norm_type)
    if not math.isfinite(norm):
        if error_if_nonfinite:
            raise NonFiniteError(f"clip_grad_norm_: the gradients' norm is {norm}", op="clip_grad_norm_")
        return norm
    factor = max_norm / (norm + 1e-6)
    if factor < 1:
        for grad in grads:
            grad *= factor
    return norm


def _listed(parameters: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else parameters


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Move each element of each gradient into [-clip_value, clip_value]."""
    for parameter in _listed(parameters):
        if parameter.grad is not None:
            array_module(parameter.grad).clip(parameter.grad, -clip_value, clip_value, out=parameter.grad)
