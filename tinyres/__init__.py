"""tinyres: residual networks from scratch, with every backward pass written by hand.

    import tinyres as tr
    import tinyres.functional as F

Importing it needs NumPy alone. What a job needs beyond that is loaded when the job starts.
"""

import importlib
from pathlib import Path
from typing import Any

_root = Path(__file__).resolve().parent
if not (_root / "kernels").exists() and (_root.parent / "kernels" / "contract.py").exists():
    __path__.append(str(_root.parent))  # a bare checkout: tinyres.kernels and tinyres.benchmarks lie beside this folder

from tinyres.gradcheck import gradcheck  # noqa: E402
from tinyres.guards import detect_anomaly, enable_grad, is_grad_enabled, no_grad  # noqa: E402
from tinyres.kernels.dispatch import available_backends, empty_cache, explain_dispatch, get_backend, strict, use_backend  # noqa: E402
from tinyres.random import default_generator, manual_seed  # noqa: E402
from tinyres.tensor import Tensor, tensor  # noqa: E402

__version__ = "0.1.0"

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

_on_demand = {"data", "explain", "export", "functional", "models", "nn", "optim", "train", "weights"}
_from = {"profile": "profiler", "watch": "explain", "trace": "explain", "gradient_ledger": "explain", "draw": "explain"}


def __getattr__(name: str) -> Any:
    if name in _from:
        return getattr(importlib.import_module(f"tinyres.{_from[name]}"), name)
    if name in _on_demand:
        return importlib.import_module(f"tinyres.{name}")
    raise AttributeError(f"module 'tinyres' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_on_demand, *_from})
