"""Peak memory of a process: the kernel's high-water mark of its resident set. Linux only."""

import ctypes
import gc
from pathlib import Path

import tinyres as tr

STATUS, MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def known() -> bool:
    """Whether this system tells it."""
    return MARK.exists() and "VmHWM" in STATUS.read_text()


def now() -> float:
    """MiB that the process holds, after giving back what is idle."""
    gc.collect()
    tr.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)
    return _status("VmRSS")


def reset() -> None:
    """The peak begins anew, at what the process holds."""
    MARK.write_text("5")


def peak() -> float:
    """The most MiB that the process has held since `reset`."""
    return _status("VmHWM")


def _status(key: str) -> float:
    return next(int(line.split()[1]) / 1024 for line in STATUS.read_text().splitlines() if line.startswith(key))
