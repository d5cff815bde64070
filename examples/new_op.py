"""A new operation, from its formula to gradcheck: the SiLU, y = x sigmoid(x) (Elfwing et al. 2017, arXiv 1702.03118).

1. The formula: y = x s, with s = sigmoid(x) = 1 / (1 + exp(-x)).
2. Its derivative: s' = s (1 - s), so y' = s + x s (1 - s) = s + y (1 - s).
3. The backward pass multiplies the derivative with the cotangent of y: dx = dy (s + y (1 - s)). It needs s and y, so the
   forward pass saves these two.
4. gradcheck compares dx with slopes that it measures on the forward pass.

After that the operation works in every network, for example in the branch of a residual block. This prints

    y      [ 0.73105858 -0.26894142]
    x.grad [0.92767051 0.07232949]
    gradcheck: the operation is right
    gradcheck: the block silu(x w^T) + x is right

The package's own operations call kernels where this one calls NumPy: CONTRIBUTING.md says where each part of one goes.
"""

import numpy as np

import tinyres as tr
import tinyres.functional as F
from tinyres.autograd import Function


class SiLU(Function):
    """y = x sigmoid(x).   (any shape) -> the same

    dx = dy (s + y (1 - s)) with s = sigmoid(x). Keeps s and y.
    """

    @staticmethod
    def forward(ctx, x):
        s = 1 / (1 + np.exp(-x))
        y = x * s
        ctx.save(s, y)
        return y

    @staticmethod
    def backward(ctx, dy):
        s, y = ctx.saved
        return dy * (s + y * (1 - s))


def silu(x):
    return SiLU.apply(x)


def block(x, w):
    return silu(F.linear(x, w)) + x


x = tr.tensor(np.array([1.0, -1.0]), requires_grad=True)
y = silu(x)
y.sum().backward()
print("y     ", y.data)
print("x.grad", x.grad)

rng = np.random.default_rng(0)
x, w = rng.standard_normal((4, 3)), rng.standard_normal((3, 3))  # float64: float32 is too coarse for differences
if tr.gradcheck(silu, [x]):
    print("gradcheck: the operation is right")
if tr.gradcheck(block, [x, w]):
    print("gradcheck: the block silu(x w^T) + x is right")
