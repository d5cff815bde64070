"""Memory for results, used again and again.

A fresh array of some megabytes costs more than what a kernel does with it: the system hands it out page by page, each
page through a fault that also clears it. A training step asks for the same sizes every time, so memory that nobody
looks at any more comes back here and is handed out again, most recently used first, while it may still be in the cache.

Memory counts as used until the array that `empty` returned *and every view of it* are gone. Each array has an owner at
the bottom of its chain of bases, an object that no view can drop; its finaliser gives the memory back. Free memory is in
lists whose `append` and `pop` are atomic, so that a finaliser, which may run in any thread at any moment, takes no lock.

A program that goes through many sizes (batches of 8, 16, 24 ...) would gather idle memory of each. So whenever new memory is
asked of the system, idle memory goes back to it as long as more than twice of what was ever in use is held.
"""

import contextlib
import ctypes
import functools
import math
import mmap
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from tinyres.kernels.arrays import ceil_div
from tinyres.kernels.forks import held_across_fork

PAGE = 4096
_DATA = object.__basicsize__  # where in NumPy's struct of an array the address of its memory stands: behind Python's head
HUGE = 1 << 21  # bytes from which huge pages pay
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}

SPARE = 1 << 26  # bytes that may always be held: with so little, giving back is not worth the faults

_guard = held_across_fork(threading.RLock())  # for _held, _peak and _owners; the garbage collector may come in its midst
_held = 0
_peak = 0  # the most that was in use when new memory was asked for
_scratch = threading.local()  # of each thread: `scratch`
_owners: list[Any] = []  # the type of owner of each size, with its list of free memory


class Arena:
    """Memory of a recording's own: `empty` takes it from here in the blocks of this thread that say so (`within`).

    What is given back is handed out again, as ever, but only here: a replay repeats the order in which it was used.
    """

    def __init__(self) -> None:
        self.free: dict[int, list[mmap.mmap]] = {}  # by size
        self.memory: list[tuple[Any, mmap.mmap]] = []  # all of it, with the type of its owners
        self.kind: type[np.ndarray] = np.ndarray  # of the arrays

    @property
    def bytes(self) -> int:
        return sum(owner.size for owner, _ in self.memory)

    @contextlib.contextmanager
    def within(self, kind: type[np.ndarray] = np.ndarray) -> Iterator[None]:
        """A block in which arrays are of the class ``kind`` and lie in this memory."""
        before, self.kind = _local.arena, kind
        _local.arena = self
        try:
            yield
        finally:
            _local.arena = before

    def empty(self, owner_of_size: Any, shape: tuple[int, ...], dtype: Any, alone: bool = False) -> np.ndarray:
        free = [] if alone else self.free.setdefault(owner_of_size.size, [])
        if not free:
            free.append(_take(owner_of_size, shape))
            self.memory.append((owner_of_size, free[-1]))
        owner = owner_of_size.from_buffer(free[-1])
        owner.memory, owner.free, owner.arena = free.pop(), free, self
        return self.kind(shape, dtype, buffer=owner)

    def __contains__(self, array: Any) -> bool:
        """Whether an array lies here."""
        while isinstance(array.base, np.ndarray):
            array = array.base
        return getattr(array.base, "arena", None) is self

    def poison(self) -> None:
        """Fills it with NaN: a replay must write whatever it reads."""
        for _, memory in self.memory:
            np.frombuffer(memory, np.uint8)[:] = 0xFF

    def release(self) -> None:
        """Gives what no array uses back to the others' memory."""
        free = {id(memory) for memories in self.free.values() for memory in memories}
        self.free.clear()
        for owner_of_size, memory in self.memory:
            if id(memory) in free:
                owner_of_size.free.append(memory)
        self.memory = [(owner, memory) for owner, memory in self.memory if id(memory) not in free]

    def __del__(self) -> None:  # none of its arrays is alive: each owner keeps it
        for owner_of_size, memory in self.memory:
            owner_of_size.free.append(memory)


class _Local(threading.local):
    arena: Arena | None = None


_local = _Local()


def empty(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """A C-contiguous array of any content, aligned to a page."""
    dtype, arena = np.dtype(dtype), _local.arena
    owner_of_size = _owner(_rounded(math.prod(shape) * dtype.itemsize))
    if arena:
        return arena.empty(owner_of_size, shape, dtype)
    memory = _take(owner_of_size, shape)
    owner = owner_of_size.from_buffer(memory)
    owner.memory = memory
    return np.ndarray(shape, dtype, buffer=owner)


def alone(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """The same for a recording, in memory in which it has nothing else, neither before nor after."""
    assert _local.arena
    dtype = np.dtype(dtype)
    return _local.arena.empty(_owner(_rounded(math.prod(shape) * dtype.itemsize)), shape, dtype, alone=True)


def _take(owner_of_size: Any, shape: tuple[int, ...]) -> mmap.mmap:
    """Memory that is free, or new."""
    try:
        return owner_of_size.free.pop()
    except IndexError:
        return _map(owner_of_size.size, shape)


def empty_activations(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """The same for activations (N, C, H, W): laid out channels-last."""
    n, c, h, w = shape
    return empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)


def address(array: np.ndarray | None) -> int:
    """Of an array's memory; 0 for None. (``array.ctypes`` makes objects first: a step asks for a thousand addresses.)"""
    return 0 if array is None else ctypes.c_size_t.from_address(id(array) + _DATA).value


def scratch(size: int) -> np.ndarray:
    """At least ``size`` bytes of any content, which belong to the calling thread until it asks again."""
    memory = getattr(_scratch, "memory", None)
    if memory is None or len(memory) < size:
        before, _local.arena = _local.arena, None  # (a recording has none of its own)
        try:
            memory = _scratch.memory = empty((size,), np.uint8)
        finally:
            _local.arena = before
    return memory


def trim() -> int:
    """Gives all memory that is free back to the system; returns how many bytes."""
    global _scratch, _peak
    _scratch = threading.local()  # whoever computes with one now still holds it
    with _guard:
        released = _release(_held)
        _peak = _held
        return released


def _release(size: int) -> int:
    """Gives back free memory, of the sizes that were asked for first, until ``size`` bytes are gone or none is left; returns
    how many bytes. The caller has the guard.
    """
    global _held
    released = 0
    for owner in _owners:
        while owner.free and released < size:
            try:
                owner.free.pop()
            except IndexError:  # another thread took the last one
                break
            released += owner.size
    _held -= released
    return released


def statistics() -> dict[str, int]:
    """Bytes ``held`` from the system, and of these ``in_use`` by arrays that are alive."""
    with _guard:
        return {"held": _held, "in_use": _in_use()}


def _in_use() -> int:
    return _held - sum(len(owner.free) * owner.size for owner in _owners)


def _rounded(size: int) -> int:
    """Up to the next of eight steps between powers of two: sizes that are close share memory, at most 1/8 lies idle."""
    step = max(PAGE, 1 << max(size.bit_length() - 4, 0))
    return max(ceil_div(size, step), 1) * step


@functools.cache
def _owner(size: int) -> Any:
    """The type of the owners of ``size`` bytes: a ctypes array, which NumPy can ask whether its memory is writable."""

    def give_back(self: Any) -> None:
        self.free.append(self.memory)

    with _guard:
        for owner in _owners:  # two threads that come here at once get one type
            if owner.size == size:
                return owner
        name = f"Memory{size}"
        _owners.append(type(name, (ctypes.c_char * size,), {"size": size, "free": [], "__del__": give_back}))
        return _owners[-1]


def _map(size: int, shape: tuple[int, ...]) -> mmap.mmap:
    global _held, _peak
    try:
        memory = mmap.mmap(-1, size, **_PRIVATE)
    except OSError:
        trim()
        try:
            memory = mmap.mmap(-1, size, **_PRIVATE)
        except OSError as error:
            raise MemoryError(
                f"no memory for an array of shape {shape}, {size / 2**20:,.1f} MiB, beside the {_in_use() / 2**20:,.1f} MiB "
                f"that the kernels' other arrays hold ({error}). A smaller batch needs less; under tinyres.no_grad() "
                "nothing is kept for a backward pass."
            ) from None
    if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    with _guard:
        _held += size
        _peak = max(_peak, _in_use())
        _release(_held - max(2 * _peak, SPARE))
    return memory
