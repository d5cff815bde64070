"""What makes a network residual: the shortcut, and the join where it meets the branch.

    z = relu(F(x) + s(x))

The join lends one cotangent, ds, to both branches. The branch returns J_F^T ds. Where the block's input forks they meet
again: for an identity shortcut, dx = ds + J_F^T ds. The first term has passed through no weight at all.
"""

from typing import Any

from tinyres.autograd import Function
from tinyres.ops.check import fail, images, mixed


class AddReLU(Function):
    """z = max(x + y, 0): the join that ends a residual block, in one pass over memory.   (any shape, twice) -> the same

    dx = dy = dz where z > 0, else 0: one array, lent to both parents, so nobody may write into it. Keeps z.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, y: Any) -> Any:
        if x.shape != y.shape:
            fail("add_relu", "the branch and the shortcut must have the same shape.", x=x, y=y)
        mixed("add_relu", {}, x=x, y=y)
        return ctx.save(ctx.kernels.add_relu(x, y))

    @staticmethod
    def backward(ctx: Any, dz: Any) -> Any:
        (z,) = ctx.saved
        return (ctx.kernels.relu_backward(dz, z),) * 2


class SubsamplePad(Function):
    """y = every ``stride``-th row and column of x, between zero channels: the shortcut without parameters, option A of He
    et al. 2015 (arXiv 1512.03385, section 4.2).   (N, C, H, W) -> (N, C', ceil(H / s), ceil(W / s))

    (C' - C) // 2 zero channels stand before those of x, the rest behind.  dx = dy where x was read, else 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, *, out_channels: int, stride: int) -> Any:
        images("subsample_pad", x)
        if out_channels < x.shape[1] or stride < 1:
            fail("subsample_pad", f"out_channels ({out_channels}) must be at least C, stride ({stride}) at least 1.", x=x)
        ctx.shape, ctx.stride = x.shape, stride
        return ctx.kernels.subsample_pad(x, out_channels, stride)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        return ctx.kernels.subsample_pad_backward(dy, ctx.shape, ctx.stride)
