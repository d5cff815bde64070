"""Dropout."""

import numpy as np

from tinyres.autograd import Cotangents, Function, Node
from tinyres.errors import ShapeError
from tinyres.kernels import recording
from tinyres.kernels.arrays import Array, array_module


class Dropout(Function):
    """y = x / (1 - p) where the mask is True, else 0; it is False with probability p (Srivastava et al. 2014).

    dx = dy / (1 - p) where the mask is True, else 0. Keeps the mask, which comes from a NumPy generator, on every device.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, p: float, generator: np.random.Generator) -> Array:
        recording.refuse("dropout draws its masks on the host")
        if not 0 <= p <= 1:
            raise ShapeError(f"dropout: p must be a probability from 0 to 1, got {p}.")
        mask = array_module(x).asarray(generator.random(x.shape, np.float32) >= p)
        ctx.scale = x.dtype.type(1 / (1 - p) if p < 1 else 0)
        ctx.save(mask)
        return array_module(x).where(mask, x * ctx.scale, x.dtype.type(0))

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        (mask,) = ctx.saved
        return array_module(dy).where(mask, dy * ctx.scale, dy.dtype.type(0))
