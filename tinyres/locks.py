"""Arrays that a graph still needs are read-only: a write between forward and backward fails, instead of giving wrong
gradients.

Who holds an array is not counted but derived. A node keeps a `Lease` of each memory that it needs; nodes that need the same
memory, or views of it, keep the same lease. When the last of them is gone, so is the lease, and its arrays become writable.
That is a callback made of functions in C, since a signal (Ctrl-C) may raise an exception in any that is written in Python,
and the arrays would stay read-only for good. For the same reason there is no lock here: each step is one atomic call.

Nobody has to wait for that. Whoever updates a tensor (an optimizer, a checkpoint that is loaded) asks `unshare` first: where
a graph holds the array, the tensor gets a copy to go on with, and the graph keeps the old one and stays right.
"""

import weakref
from collections.abc import Iterable
from functools import partial
from itertools import repeat
from operator import countOf
from typing import Any

import numpy as np

from tinyres.kernels.arrays import Array

_locked: dict[int, "weakref.ref[Lease]"] = {}  # by id of the array
_setflags: Any = np.ndarray.setflags  # (returns None, the default of `pop`)
_TRUES = repeat(True)


class Lease:
    """As long as somebody keeps it, its arrays are read-only: a memory, and those of its views that could be written to."""

    __slots__ = ("__weakref__", "arrays")
    arrays: list[np.ndarray]


def lock(arrays: tuple[Any, ...]) -> list[Lease]:
    """Makes arrays, and those that they are views of, read-only as long as the leases that it returns are kept. Two things
    escape: CuPy arrays, which have no such protection, and a view that somebody took before the array was locked.
    """
    leases = []
    for array in arrays:
        if isinstance(array, np.ndarray):
            entry = _locked.get(id(array))
            lease = (entry() if entry else None) or _lease(array)
            if lease is not None:
                leases.append(lease)
    return leases


def _lease(array: Any) -> Lease | None:
    """The lease of an array's memory, with the array in it; None where nobody could make it writable again."""
    memory = array
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    writable, entry = memory.flags.writeable, _locked.get(id(memory))
    lease = entry() if entry else None
    if entry is None or lease is None:
        if not (writable and _may_become_writable(memory)):
            return None
        new = Lease()
        new.arrays = [memory]
        entry = _locked.setdefault(id(memory), _entry(new))  # another thread may be here too: one of them is the first
        lease = entry()
        if lease is None:  # another thread's, which is gone already
            return None
        memory.flags.writeable = False
    while array is not memory:
        if array.flags.writeable:
            lease.arrays.append(array)  # first of all: so its id is its own as long as the lease lives
            _locked[id(array)] = entry
            array.flags.writeable = False
        array = array.base
    return lease


def _entry(lease: Lease) -> "weakref.ref[Lease]":
    """What stands in the table. When the lease is gone it makes the arrays writable, the memory before its views as NumPy
    demands, and takes them out of the table.
    """
    unlocking = map(_setflags, lease.arrays, _TRUES)
    return weakref.ref(lease, partial(countOf, map(_locked.pop, map(id, lease.arrays), unlocking)))  # goes through all, in C


def _may_become_writable(memory: Any) -> bool:
    """Whether NumPy would make it writable again: it is its own, or that of an object that allows it."""
    try:
        return memory.base is None or not memoryview(memory.base).readonly
    except TypeError:
        return False


def unshared(array: Array) -> Array:
    """An array to write to in the place of ``array``: itself, or a copy in the same memory layout if a graph holds it."""
    return array.copy(order="K") if id(array) in _locked else array


def unshare(tensors: Iterable[Any]) -> None:
    """Before tensors are updated in place: each whose array a graph holds gets a copy. Tensors that share an array go on
    sharing one.
    """
    arrays: dict[int, Array] = {}
    for tensor in tensors:
        known = arrays.get(id(tensor.data))
        if known is None:
            known = arrays[id(tensor.data)] = unshared(tensor.data)
        tensor.data = known
