"""What makes a network residual: the shortcut, and the join where it meets the branch.

    z = relu(F(x) + shortcut(x))                                 He et al. 2015 (arXiv 1512.03385), eq. 1

Backward, the join turns the cotangent dz of z into that of the sum, ds = dz where z > 0, and hands the same ds to both
sides: the branch, which returns J_F^T ds, and the shortcut, which for an identity returns ds as it is. Where the block's
input forks, at the top, the two meet:

    dx = ds + J_F^T ds

The first term has passed through no weight at all. It reaches x whatever F is.

In a CIFAR ResNet the branch ends in a batch norm, F(x) = bn(h), and the two operations run as one, `BatchNormAddReLU`: the
join that the networks here run. `AddReLU` is the same join alone, for branches that end in something else.
"""

from tinyres.autograd import Cotangents, Function, Node
from tinyres.kernels.arrays import Array
from tinyres.ops.check import fail, images, mixed
from tinyres.ops.norm import as_maps, check_batch_norm, frozen, in_shape


class AddReLU(Function):
    """z = max(x + y, 0): the join, in one pass over memory.   (any shape, twice) -> the same

    dx = dy = ds = dz where z > 0, else 0: one array, lent to both parents, so nobody may write into it. Keeps z.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, y: Array) -> Array:
        if x.shape != y.shape:
            fail("add_relu", "the branch and the shortcut must have the same shape.", x=x, y=y)
        mixed("add_relu", {}, x=x, y=y)
        return ctx.save(ctx.kernels.add_relu(x, y))

    @staticmethod
    def backward(ctx: Node, dz: Array) -> Cotangents:
        (z,) = ctx.saved
        ds = ctx.kernels.relu_backward(dz, z)
        return ds, ds


class BatchNormAddReLU(Function):
    """z = max(bn(x) + residual, 0): the branch's last batch norm and the join, in the same passes over memory.

    (N, C, H, W) or (N, C), twice -> the same. x is what the branch's last layer gave, ``residual`` the shortcut's result,
    and bn(x) = weight (x - mean) / sqrt(var + eps) + bias as in `BatchNorm`, with its statistics and their update.

    With xhat = (x - mean) / sqrt(var + eps) and m elements per channel:

        ds        = dz where z > 0, else 0            the cotangent of the sum, for both sides
        dresidual = ds                                the shortcut gets it as it is: no weight, no batch norm
        dbias     = sum ds,   dweight = sum ds xhat   the branch gets it through the batch norm:
        dx        = weight / sqrt(var + eps) (ds - dbias / m - xhat dweight / m)     in training
        dx        = weight / sqrt(var + eps) ds                                      otherwise

    All four are new arrays. Keeps x, z, weight and the statistics. Raises `ShapeError` for shapes or dtypes that do not fit.
    """

    fresh = True

    @staticmethod
    def forward(
        ctx: Node,
        x: Array,
        residual: Array,
        weight: Array,
        bias: Array,
        *,
        running_mean: Array,
        running_var: Array,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Array:
        check_batch_norm("batch_norm_add_relu", x, weight, bias, running_mean, running_var, training, residual)
        if training:
            running = running_mean, running_var, momentum
            z, mean, var = ctx.kernels.batch_norm_add_relu(as_maps(x), as_maps(residual), weight, bias, eps, running)
        else:
            mean, var = frozen(ctx, running_mean, running_var)
            joined = as_maps(x), as_maps(residual)
            z = ctx.kernels.batch_norm_add_relu_inference(*joined, weight, bias, mean, var, eps)
        z = in_shape(z, x.shape)
        ctx.save(x, z, weight, mean, var)
        ctx.eps, ctx.training = eps, training
        return z

    @staticmethod
    def backward(ctx: Node, dz: Array) -> Cotangents:
        x, z, weight, mean, var = ctx.saved
        dx, dweight, dbias, ds = ctx.kernels.batch_norm_add_relu_backward(
            as_maps(dz), as_maps(x), as_maps(z), weight, mean, var, ctx.eps, ctx.training
        )
        return in_shape(dx, dz.shape), in_shape(ds, dz.shape), dweight, dbias


class SubsamplePad(Function):
    """y = every ``stride``-th row and column of x, between zero channels: the shortcut without parameters, option A of He
    et al. 2015 (section 4.2).   (N, C, H, W) -> (N, C', ceil(H / s), ceil(W / s))

    (C' - C) // 2 zero channels stand before those of x, the rest behind. dx = dy where x was read, else 0.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, out_channels: int, stride: int) -> Array:
        images("subsample_pad", x)
        if out_channels < x.shape[1] or stride < 1:
            fail("subsample_pad", f"out_channels ({out_channels}) must be at least C, stride ({stride}) at least 1.", x=x)
        ctx.shape, ctx.stride = x.shape, stride
        return ctx.kernels.subsample_pad(x, out_channels, stride)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return ctx.kernels.subsample_pad_backward(dy, ctx.shape, ctx.stride)
