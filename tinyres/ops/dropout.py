"""Dropout."""

import numpy as np

from tinyres.autograd import Cotangents, Function, Node
from tinyres.errors import ShapeError
from tinyres.kernels.arrays import Array, array_module


class Dropout(Function):
    """y = x mask / (1 - p), where each element of the mask is 0 with probability p, else 1 (Srivastava et al. 2014).

    dx = dy mask / (1 - p). Keeps the scaled mask. The mask comes from a NumPy generator, on every device.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, p: float, generator: np.random.Generator) -> Array:
        if not 0 <= p <= 1:
            raise ShapeError(f"dropout: p must be a probability from 0 to 1, got {p}.")
        keep = generator.random(x.shape, np.float32) >= p
        mask = array_module(x).asarray(keep * x.dtype.type(1 / (1 - p) if p < 1 else 0))
        ctx.save(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        (mask,) = ctx.saved
        return dy * mask
