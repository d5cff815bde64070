"""Arrays that a graph still needs are read-only: a write between forward and backward fails, instead of giving wrong
gradients.

A node locks what it saves, and unlocks it when its backward pass has used it or the graph is dropped. An array may be held
by many nodes, and may be a view of another: the table counts holders, and a view becomes writable only after its base.

Nobody has to wait for that. Whoever updates a tensor (an optimizer, a checkpoint that is loaded) asks `unshare` first: where
a graph holds the array, the tensor gets a copy to go on with, and the graph keeps the old one and stays right.
"""

import os
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np

from tinyres.kernels.arrays import Array

_locked: dict[int, "_Lock"] = {}  # by id of the array
_lock_guard = threading.RLock()
_to_unlock: list[np.ndarray] = []
_busy = False  # whether the thread that holds the guard is changing the table


class _Lock:
    """How many nodes hold an array, and the views of it that can become writable only after it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.holders, self.waiting = array, 0, list[np.ndarray]()
        array.flags.writeable = False


def lock(arrays: tuple[Any, ...]) -> list[np.ndarray]:
    """Makes arrays, and those that they are views of, read-only until `unlock`: a write between forward and backward
    fails instead of giving wrong gradients. Returns what was locked. Two things escape: CuPy arrays, which have no such
    protection, and a view that somebody took before the array was locked.
    """
    global _busy
    taken = []
    with _lock_guard:
        _busy = True
        try:
            for array in arrays:
                while isinstance(array, np.ndarray):
                    entry = _locked.get(id(array))
                    if entry is None and array.flags.writeable and _may_become_writable(array):
                        entry = _locked[id(array)] = _Lock(array)
                    if entry is not None:
                        entry.holders += 1
                        taken.append(array)
                    array = array.base
        finally:
            _busy = False
        unlock([])  # what came meanwhile
    return taken


def _may_become_writable(array: np.ndarray) -> bool:
    """Whether NumPy would make it writable again: at the bottom is an array, or something that allows it."""
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    try:
        return isinstance(owner, np.ndarray) or not memoryview(owner).readonly
    except TypeError:
        return False


def unlock(taken: list[np.ndarray]) -> None:
    """Undoes `lock`. The garbage collector may call this in the middle of `lock` or of itself, in the same thread: then
    the work is left to the call that was interrupted.
    """
    global _busy
    with _lock_guard:
        _to_unlock.extend(reversed(taken))
        if _busy:
            return
        _busy = True
        try:
            while _to_unlock:
                _let_go(_to_unlock.pop(0))
        finally:
            _busy = False


def _let_go(array: np.ndarray) -> None:
    entry = _locked.get(id(array))
    if entry is None or entry.array is not array:  # (of a node that was copied past its constructor)
        return
    entry.holders -= 1
    if entry.holders == 0:
        del _locked[id(array)]
        for free in (array, *entry.waiting):
            if id(free.base) in _locked:
                _locked[id(free.base)].waiting.append(free)
            else:
                free.flags.writeable = True


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


if hasattr(os, "register_at_fork"):  # a child has the thread that forks and no other: none may be in the midst of the table
    os.register_at_fork(before=_lock_guard.acquire, after_in_parent=_lock_guard.release, after_in_child=_lock_guard.release)
