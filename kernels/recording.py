"""What is noticed while a step is recorded (see `tinyres.captured`): which modules, tensors and arrays it uses, and what
could not be replayed.

A recording knows the kernels that run, and no other work. What NumPy computes in between would be missing from a replay. So
while a step is recorded, the kernels' results are arrays of the class `Recorded`, which report whoever computes with them,
and every kernel is called through `Watching`, which reports what the reference does in place of a kernel.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np

from tinyres.kernels.contract import NAMES

# functions of NumPy that look at an array's shape, not at its numbers
_HARMLESS = {
    *(np.ones_like, np.zeros_like, np.empty_like, np.full_like, np.shape, np.ndim, np.size, np.result_type, np.can_cast),
    *(np.transpose, np.expand_dims, np.squeeze, np.broadcast_to, np.swapaxes, np.moveaxis, np.may_share_memory),
    np.shares_memory,
}


class Notes:
    """What a recording has noticed. ``reason``: why the step cannot be replayed, "" if it can. ``host``: whether arrays are
    NumPy's, and so what it computes is missing from the recording. (What CuPy computes is captured with the rest.) ``owns``
    says whether an array lies in the recording's own memory, where the results of operations are.
    """

    def __init__(self, host: bool, owns: Callable[[Any], bool]) -> None:
        self.host, self.owns, self.reason = host, owns, ""
        self.modules: dict[Any, bool] = {}  # those that were called, and whether they were in training mode
        self.leaves: dict[int, Any] = {}  # tensors that no operation made, by their id
        self.arrays: dict[int, np.ndarray] = {}  # that kernels were given, and that are not the recording's own
        self.refreshers: list[Callable[[], object]] = []
        self.checks: list[Callable[[], bool]] = []

    def finish(self) -> None:
        """After the recording: lets go of what only that needed."""
        self.owns = lambda array: True

    def refuse(self, reason: str) -> None:
        self.reason = self.reason or reason

    def before_replay(self, refresh: Callable[[], object]) -> None:
        """``refresh()`` is called before each replay: it writes a number that the host decides upon, such as a learning
        rate, to where the kernels read it.
        """
        self.refreshers.append(refresh)

    def requires(self, check: Callable[[], bool]) -> None:
        """Where ``check()`` is not true any more, the step is recorded anew."""
        self.checks.append(check)


class _Local(threading.local):
    notes: Notes | None = None


_local = _Local()


def active() -> Notes | None:
    """The notes of what this thread is recording."""
    return _local.notes


def begin(notes: Notes | None) -> Notes | None:
    """From now on this thread records into ``notes``, or not at all; returns what it did before."""
    before, _local.notes = _local.notes, notes
    return before


def refuse(reason: str) -> None:
    """If this thread records a step: it cannot be replayed."""
    if _local.notes is not None:
        _local.notes.refuse(reason)


def refuse_on_host(reason: str) -> None:
    """The same, unless a GPU records whatever is launched on it."""
    if _local.notes is not None and _local.notes.host:
        _local.notes.refuse(reason)


# --- arrays that tell who computes with them -------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if isinstance(value, Recorded):
        return value.view(np.ndarray)
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    return value


class Recorded(np.ndarray):
    """An array that a recorded kernel has written, or that the step is given anew each time."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        refuse(f"NumPy computes with it: np.{ufunc.__name__}")
        return getattr(ufunc, method)(*map(_plain, inputs), **{k: _plain(v) for k, v in kwargs.items()})

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func not in _HARMLESS:
            refuse(f"NumPy computes with it: np.{func.__name__}")
        return func(*_plain(args), **{k: _plain(v) for k, v in kwargs.items()})

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        if not isinstance(part, Recorded) or (part.size and not np.may_share_memory(_plain(part), _plain(self))):
            refuse("it reads single numbers of an array, or a selection of them")
        return part

    def __iter__(self) -> Iterator[Any]:
        refuse("it goes through an array in Python")
        return super().__iter__()

    def reshape(self, *args: Any, **kwargs: Any) -> Any:
        other = super().reshape(*args, **kwargs)
        if other.size and not np.may_share_memory(_plain(other), _plain(self)):
            refuse("NumPy copies it: reshape")
        return other


def _told(name: str, what: str) -> Any:
    method = getattr(np.ndarray, name)

    def tell(self: Any, *args: Any, **kwargs: Any) -> Any:
        refuse(what)
        return method(_plain(self), *_plain(args), **{k: _plain(v) for k, v in kwargs.items()})

    return tell


for _name in ("item", "tolist", "tobytes", "__bool__", "__float__", "__int__", "__index__", "__complex__"):
    setattr(Recorded, _name, _told(_name, "it reads numbers back to Python"))
for _name in ("copy", "astype", "flatten", "__copy__", "__deepcopy__"):
    setattr(Recorded, _name, _told(_name, "NumPy copies it"))
for _name in ("__setitem__", "fill", "sort", "partition", "put", "itemset", "byteswap", "resize", "setfield"):
    if hasattr(np.ndarray, _name):
        setattr(Recorded, _name, _told(_name, "NumPy writes to it"))
for _name in ("argmax", "argmin", "argsort", "argpartition", "searchsorted", "nonzero", "choose", "take", "compress", "dot"):
    setattr(Recorded, _name, _told(_name, f"NumPy computes with it: {_name}"))
for _name in ("cumsum", "cumprod", "round", "trace", "repeat", "sum", "prod", "mean", "std", "var", "max", "min"):
    setattr(Recorded, _name, _told(_name, f"NumPy computes with it: {_name}"))


def plain(array: Any) -> Any:
    """The array itself, of NumPy's own class."""
    return _plain(array)


# --- kernels that tell what they were given --------------------------------------------------------------------------


class Watching:
    """A backend whose kernels run as ever; the arrays that they are given are kept: a recording knows them by address."""

    def __init__(self, backend: Any, notes: Notes) -> None:
        self.backend, self._notes = backend, notes
        self.name, self.device, self.graph, self.describe = backend.name, backend.device, backend.graph, backend.describe
        for kernel in NAMES:
            setattr(self, kernel, self._watched(kernel, getattr(backend, kernel)))

    def _watched(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        if name in self.backend.by_reference:

            def refused(*args: Any) -> Any:
                self._notes.refuse(f"NumPy does what no kernel of {self.name} does: {name}")
                return kernel(*args)

            return refused

        def watched(*args: Any) -> Any:
            self._keep(args)
            return kernel(*args)

        return watched

    def _keep(self, value: Any) -> None:
        if isinstance(value, np.ndarray):
            if not self._notes.owns(value):
                self._notes.arrays[id(value)] = value
        elif isinstance(value, tuple | list):
            for part in value:
                self._keep(part)

    def __getattr__(self, name: str) -> NoReturn:  # for the type checker: the kernels are set in __init__
        raise AttributeError(f"the contract has no kernel {name!r}")
