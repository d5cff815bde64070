"""Arrays that a graph still needs are read-only: a write between forward and backward fails, instead of giving wrong
gradients.

A node locks what it saves, and unlocks it when its backward pass has used it or the graph is dropped. An array may be held
by many nodes, and may be a view of another: the table counts holders, and a view becomes writable only after its base.
"""

import threading
from typing import Any

import numpy as np

from tinyres.errors import GraphError
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
    entry = _locked[id(array)]
    entry.holders -= 1
    if entry.holders == 0:
        del _locked[id(array)]
        for free in (array, *entry.waiting):
            if id(free.base) in _locked:
                _locked[id(free.base)].waiting.append(free)
            else:
                free.flags.writeable = True


def check_writable(array: Array, name: str = "this array") -> None:
    """Raises `GraphError` if a graph whose backward pass is still to come needs ``array`` as it is."""
    if id(array) in _locked:
        raise GraphError(
            f"{name} may not be changed now: it was used in a forward pass whose backward pass is still to come. "
            "Call backward() first, let go of the loss, or compute under tinyres.no_grad()."
        )
