"""The backends that the tests run on, and what each of them declares it does not do."""

import contextlib
import os
import re
from collections.abc import Iterator

import numpy as np
import pytest

import tinyres as tr
from tinyres.kernels import dispatch

BACKENDS = sorted(dispatch.BACKENDS)

# backend -> {pattern found in "name of the case, dtype": why}.  What stands here must raise in strict mode, and nothing
# else may.
UNSUPPORTED: dict[str, dict[str, str]] = {
    "numba": {
        r"^conv2d.* float64$": "convolutions are float32",
        r"^conv2d.*-d(2|\()": "dilation",
        r"^conv2d.*(-g2|\[6,1,5,5\].*-g3)": "groups other than 1 or one for each channel",
    }
}


def reason(backend: str, name: str, dtype: str) -> str:
    """Why ``backend`` need not run the case, or "" if it must."""
    declared = UNSUPPORTED.get(backend, {})
    return next((why for pattern, why in declared.items() if re.search(pattern, f"{name} {dtype}")), "")


def require(backend: str) -> None:
    why = tr.available_backends()[backend]
    if why:
        pytest.skip(f"{backend} cannot run here: {why}")
    if backend == "numba" and os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        pytest.skip("NUMBA_DISABLE_JIT is set: the compiled kernels leave everything to the reference")


@contextlib.contextmanager
def running(backend: str, name: str, dtype: str) -> Iterator[None]:
    """The block runs on ``backend``, without fall-back; what the backend declares unsupported must fail and is skipped."""
    require(backend)
    why = reason(backend, name, dtype)
    with tr.use_backend(backend), tr.strict():
        if not why:
            yield
            return
        with pytest.raises(dispatch.BackendError):
            yield
    pytest.skip(f"{backend} does not do it: {why}")


def tolerance(dtype: str, expected: np.ndarray, factor: float = 1.0) -> dict[str, float]:
    """Relative to the largest element: sums of terms that cancel are as exact as their terms."""
    scale = float(np.abs(expected).max(initial=0.1))
    return {"rtol": 0.0, "atol": factor * scale * (1e-12 if dtype == "float64" else 1e-5)}
