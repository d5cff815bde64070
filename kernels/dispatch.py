"""Which implementation runs: the choice of a backend, the fall-back to the reference, and its record.

A backend is an object with one attribute for each kernel of the contract. Where its implementation does not do what is
asked (a dtype, groups), the reference does it, and `explain_dispatch` tells; in strict mode that is an error.

An implementation is a module with a function for each of its kernels: a folder with the contract's files, see `kernels_of`.
Importing it raises ImportError or RuntimeError where it cannot run. It may also say:

    DEVICE           where its arrays live: "cpu", unless it says "cuda"
    Graph            records a step and replays it: see `cuda.gpu.Graph` and `cpu.graph.Graph`
    empty_cache()    gives memory that it keeps for later back to the system, and returns how many bytes
    describe()       lines of text: which of several algorithms it takes where
"""

import contextlib
import difflib
import functools
import importlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from tinyres.kernels import recording
from tinyres.kernels.arrays import BackendError
from tinyres.kernels.contract import NAMES, Unsupported
from tinyres.kernels.forks import held_across_fork

BACKENDS = {
    "numpy": "tinyres.kernels.reference",  # NumPy: the reference, on any machine
    "naive": "tinyres.kernels.naive",  # the definitions in loops: tiny arrays, to read and to break on purpose
    "numba": "tinyres.kernels.cpu",  # SIMD code compiled for this machine's CPU by Numba, on all cores
    "cupy": "tinyres.kernels.cuda.on_gpu",  # CUDA C++ kernels on an NVIDIA GPU
    "cuda-emulated": "tinyres.kernels.cuda.on_host",  # the same, compiled for the CPU: slow, to test and read
    "numba-cuda": "tinyres.kernels.numba_cuda",  # CUDA kernels in Python, on an NVIDIA GPU or in Numba's simulator
}
PREFERRED = ("numba", "numpy")  # the default is the first that can run here

_record: dict[tuple[str, str, str], int] = {}  # (backend, kernel, reason) -> how often the reference ran instead
_strict = False
_importing = held_across_fork(threading.RLock())  # Python's own locks of imports are not
_chosen: "list[use_backend]" = []  # for the process; the last one holds


class Backend:
    """The kernels of one backend, as attributes."""

    def __init__(self, name: str) -> None:
        self.name = name
        implementation = importlib.import_module(BACKENDS[name])
        reference = importlib.import_module(BACKENDS["numpy"])
        self.device: str = getattr(implementation, "DEVICE", "cpu")
        self.graph: Callable[[], Any] | None = getattr(implementation, "Graph", None)
        self.describe: Callable[[], list[str]] = getattr(implementation, "describe", list)
        self.by_reference: set[str] = set()  # the kernels that NumPy does by choice
        for kernel in NAMES:
            setattr(self, kernel, self._choose(kernel, getattr(implementation, kernel, None), getattr(reference, kernel)))

    def _choose(self, kernel: str, own: Callable[..., Any] | None, reference: Callable[..., Any]) -> Callable[..., Any]:
        if own is reference:
            self.by_reference.add(kernel)
            return reference

        @functools.wraps(reference)
        def run(*args: Any) -> Any:
            try:
                if own is None:
                    raise Unsupported("not implemented")
                return own(*args)
            except Unsupported as reason:
                if _strict:
                    raise BackendError(f"backend {self.name!r} does not do this {kernel}: {reason} (strict mode).") from None
                key = (self.name, kernel, str(reason))
                _record[key] = _record.get(key, 0) + 1
                recording.refuse_on_host(f"NumPy does the {kernel}: {reason}")
                return reference(*args)

        return run

    def __getattr__(self, name: str) -> Any:  # for the type checker: the kernels are set in __init__
        raise AttributeError(f"the contract has no kernel {name!r}")


def check_name(name: str) -> None:
    """Raises `BackendError`, with the closest name if one is close, for a name that no backend has."""
    if name not in BACKENDS:
        close = difflib.get_close_matches(name, BACKENDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(BACKENDS)}."
        raise BackendError(f"there is no backend {name!r}; {hint}")


@functools.cache
def _load(name: str) -> Backend:
    check_name(name)
    try:
        with _importing:
            return Backend(name)
    except (ImportError, RuntimeError) as error:
        raise BackendError(f"backend {name!r} cannot run here: {error}") from error


class _Blocks(threading.local):
    """The backends of the blocks that this thread is in, the innermost last."""

    def __init__(self) -> None:
        self.backends: list[Any] = []


def current() -> Backend:
    """The backend in use: that of the block that this thread is in, or the last one chosen for the process, else
    ``TINYRES_BACKEND``, else the first of `PREFERRED` that can run.
    """
    if _blocks.backends:
        return _blocks.backends[-1]
    return _chosen[-1].backend if _chosen else _default()


@functools.cache
def _default() -> Backend:
    name = os.environ.get("TINYRES_BACKEND")
    try:
        backend = _load(name or next(name for name in PREFERRED if not _reason(name)))
    except BackendError as error:
        raise BackendError(f"{error} It was named by TINYRES_BACKEND.") from None
    if not name and backend.name != PREFERRED[0]:
        warnings.warn(
            f"the backend {PREFERRED[0]!r} cannot run here, and {backend.name!r} is several times slower: "
            f"{_reason(PREFERRED[0])} (TINYRES_BACKEND={backend.name} chooses it without this message)",
            stacklevel=3,
        )
    return backend


@contextlib.contextmanager
def using(backend: Any) -> Iterator[list[Any]]:
    """A block of this thread with any object that has the contract's kernels as its backend. It is the last one of the list
    that this yields, and may be replaced there.
    """
    _blocks.backends.append(backend)
    try:
        yield _blocks.backends
    finally:
        _blocks.backends.pop()


def get_backend() -> str:
    """The name of the backend in use."""
    return current().name


class use_backend:
    """``use_backend("numpy")`` sets the backend of the process, or of the block that it is called in, from here on;
    ``with use_backend("numpy"):`` that of a block, in this thread alone.

    Raises `BackendError` if there is none of that name or it cannot run on this machine.
    """

    def __init__(self, name: str) -> None:
        recording.refuse("it chooses a backend; do that outside of the function")
        self.backend, blocks = _load(name), _blocks.backends
        self._outer = blocks[-1] if blocks else None
        if blocks:
            blocks[-1] = self.backend
        else:
            _chosen.append(self)
            del _chosen[:-100]  # choices that were made long ago and hold no more

    def __enter__(self) -> "use_backend":
        blocks = _blocks.backends
        if self._outer is not None:  # so it is a block of its own, and what it was called in is as before
            blocks[-1] = self._outer
        elif self in _chosen:
            _chosen.remove(self)
        blocks.append(self.backend)
        return self

    def __exit__(self, *error: object) -> None:
        _blocks.backends.pop()


class strict:
    """``with strict():`` a kernel that a backend lacks is a `BackendError`, not a fall-back: for tests and benchmarks."""

    def __enter__(self) -> None:
        global _strict
        self.before, _strict = _strict, True

    def __exit__(self, *error: object) -> None:
        global _strict
        _strict = self.before


_blocks = _Blocks()


def available_backends() -> dict[str, str]:
    """Every backend's name, and "" if it can run here, else why not."""
    return {name: _reason(name) for name in BACKENDS}


def describe() -> list[str]:
    """What the backends that can run here say of themselves, in lines of text."""
    return [line for name, reason in available_backends().items() if not reason for line in _load(name).describe()]


def _reason(name: str) -> str:
    try:
        _load(name)
    except BackendError as error:
        return str(error.__cause__ or error)
    return ""


def empty_cache() -> int:
    """Gives the memory that the kernels keep for their next results back to the system; returns how many bytes."""
    loaded = [sys.modules[module] for module in BACKENDS.values() if module in sys.modules]
    return sum(module.empty_cache() for module in loaded if hasattr(module, "empty_cache"))


def explain_dispatch() -> list[tuple[str, str, str, int]]:
    """What fell back to the reference in this process: (backend, kernel, reason, how often)."""
    return [(*key, times) for key, times in sorted(_record.items())]
