"""The folder of a run: its files, and the processes that ran there.

last.safetensors    the checkpoint to resume from; this file alone decides how far the run is
best.safetensors    the network after the epoch with the lowest error, written before the checkpoint that counts it:
                    a run that is killed between the two repeats the end of the epoch and writes the same bytes again
metrics.jsonl       one line per epoch; a copy of what the checkpoint holds
curves.png          the curves of these lines
config.json         the settings and the command's options, which `tinyres train --config` takes; and command, versions and
                    machine of each process that worked here
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import tinyres
from tinyres.errors import UsageError
from tinyres.files import read_json, shown, write_atomically
from tinyres.kernels.arrays import threads
from tinyres.train.curves import write_curves

CURVES_EVERY = 30.0  # seconds; drawing takes one


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Holds a lock on the folder, which the system lets go of when the process ends, however it ends.

    Raises `UsageError` if another process has it; ``doing`` says what that does there.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process is {doing} in {folder}, and nothing was changed; wait for it, or choose another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


class RunFolder:
    """Makes the folder and knows the files in it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.last, self.best = self.path / "last.safetensors", self.path / "best.safetensors"
        self.metrics, self.curves = self.path / "metrics.jsonl", self.path / "curves.png"
        self.config = self.path / "config.json"
        self.drawn = -CURVES_EVERY

    @contextmanager
    def claimed(self, resume: bool) -> Iterator[None]:
        """Prepares the folder, and keeps other processes from running in it at the same time.

        Raises `UsageError`, and changes nothing, if another process runs there; if it holds a run and ``resume`` is False;
        if ``resume`` is True and there is no folder, or one of a run without a checkpoint; and if what is in the place
        of its files is none.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is no folder, and a run needs one of its own; choose another with --out")
        files = (self.last, self.best, self.metrics, self.curves, self.config)
        there = [file.name for file in files if file.exists()]
        if resume and not self.path.is_dir():
            raise UsageError(
                f"{self.path} does not exist, so there is no run to resume; without --resume a new one begins there"
            )
        if resume and there and not self.last.exists():
            raise UsageError(
                f"{self.path} holds {', '.join(there)}, but not the checkpoint {self.last.name}: the run cannot be resumed, "
                "and nothing was changed; put the file back, or begin anew in another folder"
            )
        if there and not resume:
            raise UsageError(
                f"{self.path} already holds a run ({', '.join(there)}), and nothing was changed; "
                "continue it with --resume (in Python: fit(resume=True)), or choose another folder with --out"
            )
        if odd := [file.name for file in files if file.exists() and not file.is_file()]:
            raise UsageError(f"{self.path}: {', '.join(odd)} is a folder, a pipe or a device, and the run would write there")
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path, "training"):
            for file in files:
                for left in self.path.glob(f".{file.name}.*.tmp"):  # left by a process that was killed while it wrote
                    left.unlink(missing_ok=True)
            yield

    def other_process(self) -> str:
        """What was different when the last process worked here, and may show in the last bits of a sum; "" if nothing."""
        try:
            last, now = read_json(self.config)["processes"][-1], this_process()
            changed = [k for k in ("backend", "threads", "numpy") if now[k] != last[k]]
            return ", ".join(f"{k} {now[k]} instead of {shown(last[k])}" for k in changed)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return ""

    def write_config(self, settings: dict[str, Any], options: list[str], changes: list[Any]) -> None:
        """Writes the settings, the command's options and what was changed on resuming, and adds this process to those that
        have worked here.
        """
        try:
            processes = list(read_json(self.config)["processes"])
        except (OSError, ValueError, KeyError, TypeError):
            processes = []
        config: dict[str, Any] = {"settings": settings, "options": options, "processes": [*processes, this_process()]}
        config |= {"changes": changes} if changes else {}
        write_atomically(self.config, (json.dumps(config, indent=2) + "\n").encode())

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        write_atomically(self.metrics, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def draw(self, title: str, lines: list[dict[str, Any]], held_out: str, warn: Callable[[str], None], now: bool) -> None:
        """Draws the curves, unless that was done a moment ago and need not be done ``now``."""
        if not lines or (time.monotonic() - self.drawn < CURVES_EVERY and not now):
            return
        try:
            write_curves(self.curves, title, lines, held_out)
        except Exception as error:  # whatever a plotting library does must not cost a training run
            if self.drawn < 0:
                advice = " (pip install matplotlib)" if isinstance(error, ImportError) else ""
                warn(f"no curves.png: {type(error).__name__}: {error}{advice}")
        self.drawn = time.monotonic()


def this_process() -> dict[str, Any]:
    """What may explain a difference between two runs of the same settings."""
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "backend": tinyres.get_backend(),
        "threads": threads(),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tinyres": tinyres.__version__,
    }
