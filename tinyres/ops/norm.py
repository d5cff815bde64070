"""Batch normalisation, alone or with the ReLU that follows it. With the addition between the two it is a join: see
`tinyres.ops.join`.
"""

import math

from tinyres.autograd import Cotangents, Function, Node
from tinyres.device import check_same_device
from tinyres.kernels.arrays import Array
from tinyres.ops.check import fail, mixed


class BatchNorm(Function):
    """y = weight (x - mean) / sqrt(var + eps) + bias   [then max(y, 0)],   (N, C, ...) -> the same

    per channel (Ioffe and Szegedy 2015, arXiv 1502.03167). In training, mean and var (biased) are the batch's, and the
    running statistics move by ``momentum`` towards them (unbiased variance, as PyTorch's); else the running ones serve.

    With dz = dy (where y > 0, if there is a ReLU), xhat = (x - mean) / sqrt(var + eps), and m elements per channel:

        dbias = sum dz,   dweight = sum dz xhat
        dx = weight / sqrt(var + eps) (dz - dbias / m - xhat dweight / m)     in training: mean and var depend on x
        dx = weight / sqrt(var + eps) dz                                      otherwise

    Keeps x, weight, the statistics and, with a ReLU, y.
    """

    fresh = True

    @staticmethod
    def forward(
        ctx: Node,
        x: Array,
        weight: Array,
        bias: Array,
        *,
        running_mean: Array,
        running_var: Array,
        training: bool,
        momentum: float,
        eps: float,
        relu: bool,
    ) -> Array:
        check_batch_norm("batch_norm", x, weight, bias, running_mean, running_var, training)
        if training:
            running = running_mean, running_var, momentum
            y, mean, var = ctx.kernels.batch_norm(as_maps(x), weight, bias, eps, relu, running)
        else:
            mean, var = frozen(ctx, running_mean, running_var)
            y = ctx.kernels.batch_norm_inference(as_maps(x), weight, bias, mean, var, eps, relu)
        y = in_shape(y, x.shape)
        ctx.save(x, y if relu else None, weight, mean, var)
        ctx.eps, ctx.training = eps, training
        return y

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        x, y, weight, mean, var = ctx.saved
        dx, dweight, dbias = ctx.kernels.batch_norm_backward(
            as_maps(dy), as_maps(x), None if y is None else as_maps(y), weight, mean, var, ctx.eps, ctx.training
        )
        return in_shape(dx, dy.shape), dweight, dbias


def check_batch_norm(
    op: str,
    x: Array,
    weight: Array,
    bias: Array,
    running_mean: Array,
    running_var: Array,
    training: bool,
    residual: Array | None = None,
) -> None:
    """Raises unless a batch norm of x is possible, and the ``residual``, if there is one, has the shape of x."""
    parameters = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    if x.ndim < 2:
        fail(op, "x must be (N, C, H, W), or (N, C) with any axes behind.", x=x)
    if any(v.shape != x.shape[1:2] for v in parameters.values()):
        fail(op, "weight, bias and the running statistics must be (C,).", x=x, **parameters)
    if residual is not None and residual.shape != x.shape:
        fail(op, "x and the residual must have the same shape.", x=x, residual=residual)
    check_same_device(op, x=x, **parameters)
    mixed(op, parameters, x=x, residual=residual)
    if training and x.size // max(x.shape[1], 1) < 2:
        fail(op, "training needs more than one value per channel: a larger batch, or eval().", x=x)


def frozen(ctx: Node, mean: Array, var: Array) -> tuple[Array, Array]:
    """The running statistics as backward will need them: copies, since they may move before it."""
    return (mean.copy(), var.copy()) if ctx.recording else (mean, var)


def as_maps(x: Array) -> Array:
    """(N, C) as (N, C, 1, 1), which is what the kernels take, (N, C, L) as (N, C, L, 1); (N, C, H, W) as it is."""
    return x if x.ndim == 4 else x[:, :, None, None] if x.ndim == 2 else x.reshape(*x.shape[:2], math.prod(x.shape[2:]), 1)


def in_shape(y: Array, shape: tuple[int, ...]) -> Array:
    """The way back from `as_maps`."""
    return y if y.shape == shape else y.reshape(shape)
