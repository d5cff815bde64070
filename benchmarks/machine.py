"""What the machine is, and how fast it can multiply and copy: the limits with which results are compared."""

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tinyres.kernels.arrays import for_blocks, threads


def describe() -> dict[str, Any]:
    """Processor, threads, versions, and the settings that affect speed."""
    versions = {"python": platform.python_version()}
    for package in ("tinyres", "numpy", "numba", "llvmlite", "torch"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    settings = ("TINYRES_", "OPENBLAS_", "OMP_", "MKL_", "NUMBA_")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "system": platform.system(),
        "threads": threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # other work makes every figure doubtful
        "versions": versions,
        "blas": _blas(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(settings)},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _blas() -> list[str]:
    from threadpoolctl import threadpool_info

    return [f"{i['internal_api']} {i.get('architecture', '')}".strip() for i in threadpool_info() if i["user_api"] == "blas"]


def limits(seconds: float = 1.0) -> dict[str, float]:
    """GFLOP/s of a 2048^3 single-precision matrix product, and GB/s (read + written) of a copy of 256 MB, the best of
    repetitions within ``seconds`` each; with numba, also the fused multiply-add peak of the registers.
    """
    a, b = (np.random.default_rng(i).standard_normal((2048, 2048), np.float32) for i in (0, 1))
    product = np.empty_like(a)
    source, target = np.ones(1 << 26, np.float32), np.zeros(1 << 26, np.float32)

    def copy() -> None:
        for_blocks(lambda part: np.copyto(target[part], source[part]), len(source), len(source) // threads() + 1)

    found = {
        "matmul_gflops": 2 * 2048**3 / _best(lambda: np.matmul(a, b, out=product), seconds) / 1e9,
        "copy_gb_per_s": 2 * source.nbytes / _best(copy, seconds) / 1e9,
    }
    try:
        from tinyres.kernels.cpu.peak import fma_peak
    except ImportError:
        return found
    return {**found, "fma_peak_gflops": fma_peak() / 1e9}


def _best(run: Any, seconds: float) -> float:
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
