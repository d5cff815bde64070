"""Which implementation runs: the choice of a backend, the fall-back to the reference, and its record.

A backend is an object with one attribute for each kernel of the contract. Where its implementation does not do what is
asked (a dtype, groups), the reference does it, and `explain_dispatch` tells; in strict mode that is an error.

An implementation is a module with a function for each of its kernels: a folder with the contract's files, see `kernels_of`.
Importing it raises ImportError or RuntimeError where it cannot run. It may also say:

    DEVICE           where its arrays live: "cpu", unless it says "cuda"
    Graph            records a step and replays it (see `cuda.gpu.Graph`): then a step can do without the host
    empty_cache()    gives memory that it keeps for later back to the system, and returns how many bytes
    describe()       lines of text: which of several algorithms it takes where
"""

import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from tinyres.kernels.arrays import BackendError
from tinyres.kernels.contract import NAMES, Unsupported

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
_current: "Backend | None" = None


class Backend:
    """The kernels of one backend, as attributes."""

    def __init__(self, name: str) -> None:
        self.name = name
        implementation = importlib.import_module(BACKENDS[name])
        reference = importlib.import_module(BACKENDS["numpy"])
        self.device: str = getattr(implementation, "DEVICE", "cpu")
        self.graph: Callable[[], Any] | None = getattr(implementation, "Graph", None)
        self.describe: Callable[[], list[str]] = getattr(implementation, "describe", list)
        for kernel in NAMES:
            setattr(self, kernel, self._choose(kernel, getattr(implementation, kernel, None), getattr(reference, kernel)))

    def _choose(self, kernel: str, own: Callable[..., Any] | None, reference: Callable[..., Any]) -> Callable[..., Any]:
        if own is reference:
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
                return reference(*args)

        return run

    def __getattr__(self, name: str) -> Any:  # for the type checker: the kernels are set in __init__
        raise AttributeError(f"the contract has no kernel {name!r}")


@functools.cache
def _load(name: str) -> Backend:
    if name not in BACKENDS:
        raise BackendError(f"there is no backend {name!r}; there is {', '.join(BACKENDS)}.")
    try:
        return Backend(name)
    except (ImportError, RuntimeError) as error:
        raise BackendError(f"backend {name!r} cannot run here: {error}") from error


def current() -> Backend:
    """The backend in use: the last `use_backend`, else ``TINYRES_BACKEND``, else the first of `PREFERRED` that can run."""
    global _current
    if _current is None:
        name = os.environ.get("TINYRES_BACKEND")
        try:
            _current = _load(name or next(name for name in PREFERRED if not _reason(name)))
        except BackendError as error:
            raise BackendError(f"{error} It was named by TINYRES_BACKEND.") from None
        if not name and _current.name != PREFERRED[0]:
            warnings.warn(
                f"the backend {PREFERRED[0]!r} cannot run here, and {_current.name!r} is several times slower: "
                f"{_reason(PREFERRED[0])} (TINYRES_BACKEND={_current.name} chooses it without this message)",
                stacklevel=2,
            )
    return _current


def replace(backend: Any) -> None:
    """Puts an object with the contract's kernels in the place of the backend in use."""
    global _current
    _current = backend


def get_backend() -> str:
    """The name of the backend in use."""
    return current().name


class use_backend:
    """``use_backend("numpy")`` sets the backend from here on; ``with use_backend("numpy"):`` for a block.

    Raises `BackendError` if there is none of that name or it cannot run on this machine.
    """

    def __init__(self, name: str) -> None:
        global _current
        self.before = _current
        _current = _load(name)

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(self, *error: object) -> None:
        global _current
        _current = self.before


class strict:
    """``with strict():`` a kernel that a backend lacks is a `BackendError`, not a fall-back: for tests and benchmarks."""

    def __enter__(self) -> None:
        global _strict
        self.before, _strict = _strict, True

    def __exit__(self, *error: object) -> None:
        global _strict
        _strict = self.before


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
