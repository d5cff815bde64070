"""The backends that the tests run on, and what each of them declares it does not do."""

import contextlib
import os
import re
import warnings
from collections.abc import Iterator

import numpy as np
import pytest

import tinyres as tr

# Why a backend cannot run on this machine, "" if it can. Decided once, when the tests are collected: a case that cannot run
# is not collected, and the first lines of pytest's report say which backends those are.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # CuPy warns where it finds no toolkit
    REASONS = tr.available_backends()
if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
    REASONS["numba"] = REASONS["numba"] or "NUMBA_DISABLE_JIT is set: its kernels leave everything to the reference"
BACKENDS = sorted(name for name, why in REASONS.items() if not why)

# backend -> {pattern found in "name of the case, dtype": why}. What stands here must raise in strict mode, and nothing
# else may.
UNSUPPORTED: dict[str, dict[str, str]] = {
    "numba": {
        r"^conv2d.* float64$": "convolutions are float32",
        r"^conv2d.*-d(2|\()": "dilation",
        r"^conv2d.*(-g2|\[6,1,5,5\].*-g3)": "groups other than 1 or one for each channel",
    }
}


def require(backend: str) -> None:
    """For a single test in a file of others; what is parametrised is so over `BACKENDS`."""
    if backend not in BACKENDS:
        pytest.skip(f"{backend} cannot run here: {REASONS[backend]}")


def supports(backend: str, name: str, dtype: str) -> bool:
    """Whether ``backend`` must run the case: it does not declare that it cannot."""
    return not any(re.search(pattern, f"{name} {dtype}") for pattern in UNSUPPORTED.get(backend, ()))


def sweep(*values: object) -> list[object]:
    """Values of a parameter that add nothing unless kernels change: the plain run leaves them out."""
    return [pytest.param(value, marks=pytest.mark.kernels) for value in values]


@contextlib.contextmanager
def running(backend: str) -> Iterator[None]:
    """The block runs on ``backend``, without fall-back."""
    with tr.use_backend(backend), tr.strict():
        yield


def tolerance(dtype: str, expected: np.ndarray, factor: float = 1.0) -> dict[str, float]:
    """Relative to the largest element: sums of terms that cancel are as exact as their terms."""
    scale = float(np.abs(expected).max(initial=0.1))
    return {"rtol": 0.0, "atol": factor * scale * (1e-12 if dtype == "float64" else 1e-5)}
