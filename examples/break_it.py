"""Break a backward pass, and let gradcheck find it.

`gradcheck` compares the gradients that a backward pass returns with slopes that it measures on the forward pass: it moves an
input a little to either side and looks at the change of the output. So it needs no second implementation to see that a
gradient is wrong, and its error names the input, the worst element, and both values.

The join of a residual block, z = max(x + y, 0), has the backward pass dx = dy = ds, with ds = dz where z > 0, else 0. Here
it is broken three times. This prints

    AddReLU: right
    ForgetsTheMask: gradcheck: the gradient of input 0 (shape (2, 3)) is wrong, worst at [0, 2]: backward gives 0.64042265,
        the central difference 0.
    CutsTheShortcut: gradcheck: the gradient of input 1 (shape (2, 3)) is wrong, worst at [1, 2]: backward gives 0,
        the central difference 0.36159505.
    SharesInHalves: gradcheck: the gradient of input 0 (shape (2, 3)) is wrong, worst at [1, 2]: backward gives 0.18079753,
        the central difference 0.36159505. All of it is off by one factor: the difference is 2 times what backward gives.

Now break a real one: change a sign in the backward pass of tinyres/ops/join.py, and run this file again.
"""

import numpy as np

import tinyres as tr
from tinyres import ops
from tinyres.errors import GraphError


class ForgetsTheMask(ops.AddReLU):
    """Passes dz on where z is 0, too."""

    @staticmethod
    def backward(ctx, dz):
        return dz, dz


class CutsTheShortcut(ops.AddReLU):
    """Gives ds to the branch and nothing to the shortcut, as in a plain net."""

    @staticmethod
    def backward(ctx, dz):
        ds, _ = ops.AddReLU.backward(ctx, dz)
        return ds, np.zeros_like(ds)


class SharesInHalves(ops.AddReLU):
    """Gives each side half of ds. That looks fair, but each side alone moves z by the whole of its change."""

    @staticmethod
    def backward(ctx, dz):
        ds, _ = ops.AddReLU.backward(ctx, dz)
        return ds / 2, ds / 2


rng = np.random.default_rng(0)
x, y = rng.standard_normal((2, 2, 3))  # float64: float32 is too coarse for differences

assert tr.gradcheck(ops.AddReLU.apply, [x, y])
print("AddReLU: right")
for join in (ForgetsTheMask, CutsTheShortcut, SharesInHalves):
    try:
        tr.gradcheck(join.apply, [x, y])
    except GraphError as error:
        print(f"{join.__name__}: {error}")
