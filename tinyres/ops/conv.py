"""Two-dimensional convolution."""

from typing import Any

from tinyres.autograd import Cotangents, Function, Node
from tinyres.kernels.arrays import Array, array_module, output_size
from tinyres.ops.check import fail, images, mixed, pair


class Conv2d(Function):
    """y[n, f, i, j] = b[f] + sum over c, a, b of w[f, c, a, b] x[n, c, i s - p + a d, j s - p + b d]

    with stride s, padding p (zeros) and dilation d; like everywhere in the field, it is a correlation: filters are not
    flipped.   (N, C, H, W) * (F, C / groups, KH, KW) -> (N, F, OH, OW),  OH = (H + 2 p - d (KH - 1) - 1) // s + 1

    Every output pixel reads a window; backward, each pixel of dx collects from all windows that read it, and dw is the
    sum over windows of the input under them times dy:

        dx[n, c, i s - p + a d, j s - p + b d] += w[f, c, a, b] dy[n, f, i, j]
        dw[f, c, a, b] = sum over n, i, j of dy[n, f, i, j] x[n, c, i s - p + a d, j s - p + b d],   db = sum of dy

    Where (H + 2 p - d (KH - 1) - 1) is no multiple of s, the last rows of x are in no window and their dx is 0.
    Keeps x and w: no columns.
    """

    fresh = True

    @staticmethod
    def forward(
        ctx: Node,
        x: Array,
        w: Array,
        b: Array | None = None,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Array:
        images("conv2d", x)
        ctx.geometry = (
            pair("conv2d", "stride", stride, 1),
            pair("conv2d", "padding", padding, 0),
            pair("conv2d", "dilation", dilation, 1),
            pair("conv2d", "groups", groups, 1)[0],
        )
        s, p, d, groups = ctx.geometry
        if w.ndim != 4 or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
            fail("conv2d", f"weight must be (F, C / {groups}, KH, KW), with F a multiple of groups={groups}.", x=x, weight=w)
        if not w.size:
            fail("conv2d", "there must be at least one channel, one filter and one tap.", x=x, weight=w)
        if b is not None and b.shape != w.shape[:1]:
            fail("conv2d", "bias must be (F,), one number per filter.", weight=w, bias=b)
        mixed("conv2d", {"weight": w, "bias": b}, x=x)
        if any(output_size(x.shape[i + 2], w.shape[i + 2], s[i], p[i], d[i]) < 1 for i in (0, 1)):
            fail("conv2d", f"the window, with dilation={d}, is larger than the image with padding={p}.", x=x, weight=w)
        ctx.save(x, w)
        y = ctx.kernels.conv2d(x, w, *ctx.geometry)
        if b is not None:
            array_module(y).add(y, b[:, None, None], out=y, casting="same_kind")  # into 16 bits too
        return y

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        (x, w), needs = ctx.saved, ctx.needs_input_grad
        dx = ctx.kernels.conv2d_backward_input(dy, w, x.shape, *ctx.geometry, ctx.arrived[0]) if needs[0] else None
        dw = ctx.kernels.conv2d_backward_weight(dy, x, w.shape, *ctx.geometry) if needs[1] else None
        if len(needs) == 2:
            return dx, dw
        return dx, dw, dy.sum(axis=(0, 2, 3), dtype=w.dtype) if needs[2] else None
