"""Where a residual block ends, and the shortcut that has no parameters: `src/join.cu`, and `src/norm.cu`.

    z = relu(bn(x) + residual)          ds = dz where z > 0          dresidual = ds          dx = bn's gradient, from ds

The batch norm's kernels do it in the same passes over memory: forward, the residual is read and the ReLU applied where y is
written; backward, ds is written where dz and z are read for the sums, and the second kernel reads ds in their place.
"""

from tinyres.kernels.arrays import Array, ceil_div
from tinyres.kernels.cuda import norm
from tinyres.kernels.cuda.common import BLOCK, as_seen, blocks, c_type, empty, in_memory
from tinyres.kernels.cuda.elementwise import run_new
from tinyres.kernels.cuda.launch import kernel
from tinyres.kernels.cuda.pool import new_maps, width_of

Shape = tuple[int, ...]


def add_relu(x: Array, y: Array) -> Array:
    return run_new(kernel("join", "add_relu", REAL=c_type(x, y), WIDTH=16 // x.itemsize), x, y)


def batch_norm_add_relu(
    x: Array, residual: Array, weight: Array, bias: Array, eps: float, running: tuple[Array, Array, float] | None = None
) -> tuple[Array, Array, Array]:
    return norm.forward(x, residual, weight, bias, eps, True, running)


def batch_norm_add_relu_inference(
    x: Array, residual: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float
) -> Array:
    return norm.inference(x, residual, weight, bias, mean, var, eps, True)


def batch_norm_add_relu_backward(
    dz: Array, x: Array, z: Array, weight: Array, mean: Array, var: Array, eps: float, training: bool
) -> tuple[Array, Array, Array, Array]:
    return norm.backward(dz, x, z, weight, mean, var, eps, training, True)


def subsample_pad(x: Array, out_channels: int, stride: int) -> Array:
    x = in_memory(x)
    y = empty(x, (len(x), ceil_div(x.shape[1], stride), ceil_div(x.shape[2], stride), out_channels))
    _subsample("subsample_pad", x, y, x.shape, y.shape, stride)
    return as_seen(y)


def subsample_pad_backward(dy: Array, x_shape: Shape, stride: int) -> Array:
    dx, dy = new_maps(dy, x_shape), in_memory(dy)
    _subsample("subsample_pad_backward", dy, dx, dx.shape, dy.shape, stride)
    return as_seen(dx)


def _subsample(name: str, source: Array, out: Array, wide: Shape, narrow: Shape, stride: int) -> None:
    """``wide`` is the shape of x, ``narrow`` that of y, both (N, H, W, C)."""
    before = (narrow[3] - wide[3]) // 2
    width = width_of((source, out), wide[3], narrow[3], before)
    sizes = (*wide[1:3], wide[3] // width, *narrow[1:3], narrow[3] // width, before // width, stride)
    macros, groups = {"REAL": c_type(source, out), "WIDTH": width}, out.size // width
    if groups:
        kernel("join", name, **macros)(blocks(groups, BLOCK), BLOCK, source, out, groups, *sizes)
