"""The linear layer."""

from tinyres.autograd import Cotangents, Function, Node
from tinyres.kernels.arrays import Array
from tinyres.ops.check import fail, mixed


class Linear(Function):
    """y = x w^T + b: (N, I) * (O, I) + (O,) -> (N, O)

    dx = dy w,  dw = dy^T x,  db = sum of dy over N. Keeps x and w. In mixed precision x and dx have 16 bits, while y, as a
    rule the logits, is float32.
    """

    fresh = True

    @staticmethod
    def forward(ctx: Node, x: Array, w: Array, b: Array | None = None) -> Array:
        if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
            fail("linear", "x must be (N, I) and weight (O, I), with the same I.", x=x, weight=w)
        if b is not None and b.shape != w.shape[:1]:
            fail("linear", "bias must be (O,), one number per row of weight.", weight=w, bias=b)
        mixed("linear", {"weight": w, "bias": b}, x=x)
        ctx.save(x, w)
        return ctx.kernels.linear(x, w, b)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        (x, w), needs, kernels = ctx.saved, ctx.needs_input_grad, ctx.kernels
        dx = kernels.linear_backward_input(dy, w) if needs[0] else None
        if dx is not None and dx.dtype != x.dtype:
            dx = kernels.cast(dx, x.dtype)
        dw = kernels.linear_backward_weight(dy, x) if needs[1] else None
        if len(needs) == 2:
            return dx, dw
        return dx, dw, kernels.linear_backward_bias(dy) if needs[2] else None
