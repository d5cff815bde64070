"""The definitions in loops: every kernel of the contract as its formula says, one window, one channel or one row at a time.

For tiny arrays: to read, and to break on purpose. The tests compare every other implementation with these. Nothing here is
clever, and nothing is imported from the other implementations.

    conv          y[n, f, i, j] = sum of w[f] * window, and its two gradients
    linear        y = x w^T + b
    norm          batch norm, and the three ways in which x reaches its result
    join          the end of a residual block, where one cotangent goes to two
    elementwise   the rectifiers
    pool, loss, update, augment, step
"""

import functools
from collections.abc import Callable
from typing import Any

from tinyres.kernels.arrays import is_half
from tinyres.kernels.contract import Unsupported, kernels_of


def _wide(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel``, for 32 and 64 bits alone: with 16, sums are taken in float32, which every line would have to spell out."""

    @functools.wraps(kernel)
    def run(*args: Any) -> Any:
        if any(is_half(a.dtype) for a in args if hasattr(a, "dtype")):
            raise Unsupported("16 bits: the definitions are for float32 and float64")
        return kernel(*args)

    return run


globals().update({name: _wide(kernel) for name, kernel in kernels_of(__name__).items()})
