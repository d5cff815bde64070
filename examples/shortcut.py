"""The gradient of one shortcut, in five lines.

A residual block computes z = relu(F(x) + x). Here the branch F is a single linear layer, F(x) = x w^T. Backward,

    ds     = dz where z > 0, else 0      the join sends the same ds into the branch and into the shortcut
    x.grad = ds + ds w                   they meet where the block's input forks

With the numbers below x w^T + x = (-2, 7), so z = (0, 7). The loss is the sum of z, so dz = (1, 1) and ds = (0, 1).
The branch returns ds w = (3, 1), which is the second row of w, and the shortcut adds ds as it is.

This prints

    z      [[0. 7.]]
    x.grad [[3. 2.]] = ds [[0. 1.]] + ds w [[3. 1.]]
    w.grad [[0. 0.] [1. 2.]]
    x.grad [[0. 1.]] = ds, where w = 0

The last line is the point: a branch that returns nothing still lets the gradient through.
"""

import numpy as np

import tinyres as tr
import tinyres.functional as F

x = tr.tensor([[1.0, 2.0]], requires_grad=True)
w = tr.tensor([[1.0, -2.0], [3.0, 1.0]], requires_grad=True)

z = F.add_relu(F.linear(x, w), x)
z.sum().backward()

ds = np.where(z.data > 0, np.float32(1), np.float32(0))
print("z     ", z.data)
print("x.grad", x.grad, "= ds", ds, "+ ds w", ds @ w.data)
print("w.grad", str(w.grad).replace("\n", ""))
assert np.array_equal(x.grad, ds + ds @ w.data)

zero = tr.tensor(np.zeros((2, 2), np.float32))
x.grad = None
F.add_relu(F.linear(x, zero), x).backward(np.array([[0, 1]], np.float32))
print("x.grad", x.grad, "= ds, where w = 0")
