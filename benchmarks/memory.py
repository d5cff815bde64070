"""Peak memory of a step, measured in a process of its own. Linux only."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tinyres.errors import UsageError


def peak_of_process(module: str, *arguments: str) -> float | None:
    """What ``python -m MODULE ARGUMENTS`` prints last: its `growth` in MiB. None if the system does not tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1]
        raise UsageError(f"the memory of {' '.join(arguments)} could not be measured: {last}")
    return float(done.stdout.split()[-1])


def growth(step: Callable[[], object]) -> float:
    """By how many MiB this process grows, at its peak, while it runs three steps."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        step()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {key}")
