"""Batch normalisation, alone or with the addition and the ReLU that follow it in a residual block."""

from typing import Any

from tinyres.autograd import Function
from tinyres.device import check_same_device
from tinyres.ops.check import fail, mixed


class BatchNorm(Function):
    """y = weight (x - mean) / sqrt(var + eps) + bias  [+ residual]  [then max(., 0)]   (N, C, H, W) or (N, C) -> the same

    by channel (Ioffe and Szegedy 2015, arXiv 1502.03167). In training, mean and var (biased) are the batch's, and the
    running statistics move by ``momentum`` towards them (unbiased variance, as PyTorch's); else the running ones serve.

    With dz = dy (where y > 0, if there is a ReLU), xhat = (x - mean) / sqrt(var + eps), and m elements a channel:

        dbias = sum dz,   dweight = sum dz xhat,   dresidual = dz
        dx = weight / sqrt(var + eps) (dz - dbias / m - xhat dweight / m)     in training: mean and var depend on x
        dx = weight / sqrt(var + eps) dz                                      otherwise

    Keeps x, weight, the statistics and, with a ReLU, y.
    """

    fresh = True

    @staticmethod
    def forward(
        ctx: Any,
        x: Any,
        weight: Any,
        bias: Any,
        residual: Any = None,
        *,
        running_mean: Any,
        running_var: Any,
        training: bool,
        momentum: float,
        eps: float,
        relu: bool,
    ) -> Any:
        if x.ndim not in (2, 4):
            fail("batch_norm", "x must be (N, C, H, W) or (N, C).", x=x)
        if any(v.shape != x.shape[1:2] for v in (weight, bias, running_mean, running_var)):
            fail(
                "batch_norm",
                "weight, bias and the running statistics must be (C,).",
                x=x,
                weight=weight,
                bias=bias,
                running_mean=running_mean,
                running_var=running_var,
            )
        if residual is not None and residual.shape != x.shape:
            fail("batch_norm_add_relu", "x and the residual must have the same shape.", x=x, residual=residual)
        parameters = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
        check_same_device("batch_norm", x=x, **parameters)
        mixed("batch_norm", parameters, x=x, residual=residual)
        m = x.size // max(x.shape[1], 1)
        if training and m < 2:
            fail("batch_norm", "training needs more than one value a channel: a larger batch, or eval().", x=x)
        images, joined = (a if a is None or a.ndim == 4 else a[:, :, None, None] for a in (x, residual))
        if training:
            running = running_mean, running_var, momentum
            y, mean, var = ctx.kernels.batch_norm(images, weight, bias, eps, joined, relu, running)
        else:
            mean, var = running_mean, running_var
            if ctx.recording:  # they may move before the backward pass
                mean, var = mean.copy(), var.copy()
            y = ctx.kernels.batch_norm_inference(images, weight, bias, mean, var, eps, joined, relu)
        ctx.options = (eps, training, joined is not None)
        y = y if x.ndim == 4 else y.reshape(x.shape)
        ctx.save(x, y if relu else None, weight, mean, var)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        (x, y, weight, mean, var), (eps, training, residual) = ctx.saved, ctx.options
        dz, x, y = (a if a is None or a.ndim == 4 else a[:, :, None, None] for a in (dy, x, y))
        dx, dweight, dbias, joined = ctx.kernels.batch_norm_backward(dz, x, y, weight, mean, var, eps, training, residual)
        grads = dx.reshape(dy.shape), dweight, dbias
        return (*grads, joined.reshape(dy.shape)) if residual else grads
