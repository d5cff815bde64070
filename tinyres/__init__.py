"""tinyres: residual networks from scratch, with every backward pass written by hand.

    import tinyres as tr
    import tinyres.functional as F

Importing it needs NumPy alone. What a job needs beyond that is loaded when the job starts.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

_root = Path(__file__).resolve().parent
if not (_root / "kernels").exists() and (_root.parent / "kernels" / "contract.py").exists():
    __path__.append(str(_root.parent))  # a bare checkout: tinyres.kernels and tinyres.benchmarks lie beside this folder

from tinyres.gradcheck import gradcheck  # noqa: E402
from tinyres.guards import detect_anomaly, enable_grad, is_grad_enabled, no_grad  # noqa: E402
from tinyres.kernels import dispatch  # noqa: E402
from tinyres.random import default_generator, manual_seed  # noqa: E402
from tinyres.tensor import Tensor, tensor  # noqa: E402

__version__ = "0.1.0"

# with their types, for in a checkout no type checker finds tinyres.kernels
available_backends: Callable[[], dict[str, str]] = dispatch.available_backends
empty_cache: Callable[[], int] = dispatch.empty_cache
explain_dispatch: Callable[[], list[tuple[str, str, str, int]]] = dispatch.explain_dispatch
get_backend: Callable[[], str] = dispatch.get_backend
strict: Callable[[], AbstractContextManager[None]] = dispatch.strict
use_backend: Callable[[str], AbstractContextManager[Any]] = dispatch.use_backend

__all__ = [
    "Tensor",
    "available_backends",
    "default_generator",
    "detect_anomaly",
    "empty_cache",
    "enable_grad",
    "explain_dispatch",
    "get_backend",
    "gradcheck",
    "is_grad_enabled",
    "manual_seed",
    "no_grad",
    "strict",
    "tensor",
    "use_backend",
]

# loaded when they are used
_modules = {"autograd", "data", "errors", "explain", "export", "functional", "lab", "models", "nn", "ops", "optim", "train"}
_modules |= {"weights"}
_from = {"profile": "profiler", "watch": "explain", "trace": "explain", "gradient_ledger": "explain", "draw": "explain"}
_from |= {"capture": "captured"}

if TYPE_CHECKING:  # the same for type checkers, which see no __getattr__: it would let every name pass
    from tinyres import autograd as autograd
    from tinyres import data as data
    from tinyres import errors as errors
    from tinyres import explain as explain
    from tinyres import export as export
    from tinyres import functional as functional
    from tinyres import lab as lab
    from tinyres import models as models
    from tinyres import nn as nn
    from tinyres import ops as ops
    from tinyres import optim as optim
    from tinyres import train as train
    from tinyres import weights as weights
    from tinyres.captured import capture as capture
    from tinyres.explain.draw import draw as draw
    from tinyres.explain.ledger import gradient_ledger as gradient_ledger
    from tinyres.explain.trace import trace as trace
    from tinyres.explain.watch import watch as watch
    from tinyres.profiler import profile as profile
else:

    def __getattr__(name: str) -> Any:
        if name in _from:
            return getattr(importlib.import_module(f"tinyres.{_from[name]}"), name)
        if name in _modules:
            return importlib.import_module(f"tinyres.{name}")
        raise AttributeError(f"module 'tinyres' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_modules, *_from, *(name for name in globals() if name.startswith("__"))]
