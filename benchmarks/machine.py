"""What the machine is, and how fast it can multiply and copy: the limits with which results are compared."""

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import tinyres
from tinyres.kernels.arrays import for_blocks, threads

GFLOPS = "direct-convolution equivalent: Winograd multiplies less than is counted, and can exceed the peak"
PACKAGES = ("numpy", "numba", "llvmlite", "torch", "jax", "jaxlib", "onnxruntime", "onnx", "openvino")
SETTINGS = (
    *("TINYRES_", "NUMBA_", "OMP_", "OPENBLAS_", "MKL_", "KMP_", "ONEDNN_", "DNNL_", "TORCH", "XLA_", "JAX_", "OPENVINO_"),
    *("OV_", "LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES"),
)


def load() -> float | None:
    """How many processes want to run, the mean over the last minute. To be read before the benchmark itself is busy."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def begin(argv: list[str]) -> dict[str, Any]:
    """What must be noted before anything is loaded or measured: the command, the time, and the load of the machine, since
    other work makes every figure doubtful.
    """
    return {"argv": argv, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "commit": _commit(), "machine": {"load": load()}}


def result(benchmark: str, about: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """A result without rows, for JSON; ``about`` is what `begin` noted, if anything."""
    about = about or {}
    here = {**describe(), **about.get("machine", {})}
    return {
        "benchmark": benchmark,
        "complete": False,
        **about,
        "machine": here,
        "limits": limits(),
        "gflops_are": GFLOPS,
        **more,
    }


def _commit() -> str | None:
    """Of the checkout in which tinyres lies, with "+" if files have changed since; None if it is installed."""
    folder = Path(tinyres.__file__).parent.parent
    if not (folder / ".git").exists():  # (not that of a project around it)
        return None
    try:
        words = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe() -> dict[str, Any]:
    """Processor, cores, SIMD width, threads, memory, versions, and the settings that affect speed."""
    versions = {"python": platform.python_version(), "tinyres": tinyres.__version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "simd_bits": _simd_bits(),
        "memory_gib": _memory_gib(),
        "threads": threads(),
        "versions": versions,
        "blas": _blas(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(SETTINGS)},
    }


def _simd_bits() -> int | None:
    """The width of the vectors that our kernels use."""
    try:
        from tinyres.kernels.cpu.simd import host_lanes
    except ImportError:
        return None
    return 32 * host_lanes()


def _memory_gib() -> float | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


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
