"""Peak memory of a training step, in a process of its own:  python -m tinyres.benchmarks.memory MODEL BATCH ROW

Prints how many MiB the process grows, at its peak, over what it holds after the model is made and a step on two images
has been run (libraries loaded, code compiled). Linux only.
"""

import subprocess
import sys
from pathlib import Path

from tinyres.errors import UsageError


def peak_of_step(model: str, batch: int, row: str) -> float | None:
    """MiB; None where the system does not tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, "-m", "tinyres.benchmarks.memory", model, str(batch), row]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"the memory of {row} could not be measured: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {key}")


def main(model: str, batch: int, row: str) -> None:
    from tinyres.benchmarks.steps import make_step

    make_step(model, 2, row)()
    step = make_step(model, batch, row)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        step()
    print(_status("VmHWM") - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
