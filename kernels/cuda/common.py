"""What the wrappers share: which arrays the kernels take, how they lie in memory, and how many blocks go over them."""

from typing import Any

import numpy as np

from tinyres.kernels.arrays import Array, array_module, ceil_div, channels_first, name_of
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import emulator

BLOCK = 256  # threads of a block, where nothing speaks for another number
MAX_BLOCKS = 132 * 8  # of kernels that go on to the next element: enough for any card, and a last wave that is short
C_TYPES = {"float32": "float", "float64": "double", "float16": "half", "bfloat16": "bfloat16"}


def c_type(*arrays: Array, allowed: tuple[str, ...] = tuple(C_TYPES)) -> str:
    """The macro REAL for arrays of one dtype (None is left out). Raises Unsupported for others, and for two at once."""
    names = {name_of(a.dtype) for a in arrays if a is not None}
    if len(names) != 1 or not names <= set(allowed):
        raise Unsupported("of dtype " + " and ".join(sorted(names)))
    return C_TYPES[names.pop()]


def address(array: Array) -> int:
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def blocks(items: int, per_block: int) -> int:
    """How many blocks go over ``items``, each ``per_block`` at a time."""
    return max(1, min(ceil_div(items, per_block), MAX_BLOCKS))


def in_memory(x: Array) -> Array:
    """``x`` as the kernels read it: maps as (N, H, W, C), and contiguous. A view where it lies so, else a copy."""
    return contiguous(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x)


def contiguous(x: Array) -> Array:
    """``x`` itself if it is contiguous, else a copy, which a graph that is captured makes anew when it is replayed."""
    if x.flags.c_contiguous:
        return x
    inside = array_module(x).empty(x.shape, x.dtype)
    copy(inside, x)
    return inside


def copy(target: Array, array: Array) -> None:
    """target[...] = array, of any layout each. A graph that is captured copies, too, when it is replayed."""
    if isinstance(target, np.ndarray):
        emulator.copy(target, array)
    else:
        target[...] = array


def as_seen(x: Array) -> Array:
    """The other way: maps as (N, C, H, W)."""
    return channels_first(x) if x.ndim == 4 else x


def empty(like: Array, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """A contiguous array on the device of ``like`` (and of its dtype) whose content is undefined: where launches are
    checked, every byte is 0xff, a NaN in every floating-point type.
    """
    xp = array_module(like)
    array = xp.empty(shape, like.dtype if dtype is None else dtype)
    if xp is np and emulator.checked():
        array.reshape(-1).view(np.uint8)[...] = 0xFF
    return array
