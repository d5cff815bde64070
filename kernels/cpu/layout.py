"""How arrays must lie in memory for the kernels: in C order, activations channels-last. What lies otherwise is copied by a
job, which a recording knows about, as it would not know about NumPy's copy.
"""

import math
from typing import Any

import numpy as np

from tinyres.kernels import recording
from tinyres.kernels.arrays import Array
from tinyres.kernels.cpu import buffers
from tinyres.kernels.cpu.runtime import DTYPES, Kernel, advance, numbers

AXES = 4  # of the arrays that a job copies


def channels_last(x: Array) -> Array:
    """``x`` (N, C, H, W) as a contiguous (N, H, W, C) array: a view if it lies so in memory already, else a copy."""
    return contiguous(x.transpose(0, 2, 3, 1))


def contiguous(x: Array, dtype: Any = None) -> Array:
    """``x`` itself if it is contiguous and of the dtype (by default its own), else a copy."""
    x = np.asarray(x) if isinstance(x, np.generic) else x  # what NumPy gives in the place of an array ()
    if x.flags.c_contiguous and (dtype is None or x.dtype == dtype):
        return x
    regular = x.ndim <= AXES and x.size and all(step % x.itemsize == 0 for step in x.strides) and x.flags.aligned
    if (dtype is not None and x.dtype != dtype) or x.dtype not in DTYPES or not regular:
        recording.refuse("NumPy copies an array into the layout or the dtype that a kernel needs")
        return np.ascontiguousarray(x, dtype)
    y = buffers.empty(x.shape, x.dtype)
    missing = AXES - x.ndim
    shape, steps = (1,) * missing + x.shape, (0,) * missing + tuple(step // x.itemsize for step in x.strides)
    _copy(math.prod(shape[:2]), [y, x], [*shape, *steps])
    return y


@Kernel
def _copy(a: Any, index: int, scratch: Any) -> None:
    """The plane ``index`` of the last two axes."""
    n = numbers(a)
    second, rows, columns, step0, step1, row_step, column_step = n[3], n[4], n[5], n[6], n[7], n[8], n[9]
    y = advance(a[0], index * rows * columns)
    x = advance(a[1], index // second * step0 + index % second * step1)
    for i in range(rows):
        for j in range(columns):
            y[i * columns + j] = x[i * row_step + j * column_step]
