"""Gradient clipping before a step (Pascanu et al. 2013, arXiv 1211.5063). Both functions change ``.grad`` in place."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from tinyres.errors import NonFiniteError
from tinyres.kernels.arrays import array_module
from tinyres.tensor import Tensor


def clip_grad_norm_(parameters: Iterable[Tensor], max_norm: float, *, error_if_nonfinite: bool = False) -> float:
    """Scale all gradients by one number so that their common Euclidean norm is at most ``max_norm``; returns the norm that
    they had before. As in PyTorch, the factor is max_norm / (norm + 1e-6).

    Where the norm is NaN or infinite, no factor could repair the gradients, and they stay as they are: a `GradScaler` skips
    such a step. With ``error_if_nonfinite`` that raises `NonFiniteError`.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(float(sum((grad.astype(np.float64) ** 2).sum() for grad in grads)))
    if not math.isfinite(norm):
        if error_if_nonfinite:
            raise NonFiniteError(f"clip_grad_norm_: the gradients' norm is {norm}", op="clip_grad_norm_")
        return norm
    factor = max_norm / (norm + 1e-6)
    if factor < 1:
        for grad in grads:
            grad *= factor
    return norm


def clip_grad_value_(parameters: Iterable[Tensor], clip_value: float) -> None:
    """Move each element of each gradient into [-clip_value, clip_value]."""
    for parameter in parameters:
        if parameter.grad is not None:
            array_module(parameter.grad).clip(parameter.grad, -clip_value, clip_value, out=parameter.grad)
