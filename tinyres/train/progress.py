"""What a run shows while it runs: a live bar on a terminal or in a notebook, plain lines in a file, a pipe or a log."""

import contextlib
import sys
import threading
import time
from importlib.util import find_spec
from typing import Any

from tinyres.files import printable
from tinyres.kernels.arrays import compile_listeners
from tinyres.kernels.forks import held_across_fork

_printing = held_across_fork(threading.RLock())  # Python's own lock of a stream is not


def duration(seconds: float) -> str:
    """``75`` as ``1:15``, ``3675`` as ``1:01:15``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Silent:
    """Shows nothing: the base of the other displays, and useful in tests and notebooks.

    While it is entered it listens to the compilation of kernels: a message says that it has begun, and `compiled` how long
    it took, so that it counts in no rate.
    """

    _compiling = _in_all = 0.0

    def __enter__(self) -> "Silent":
        compile_listeners.append(self._compiled)
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the display."""
        with contextlib.suppress(ValueError):
            compile_listeners.remove(self._compiled)

    def _compiled(self, seconds: float) -> None:
        before, self._in_all = self._in_all, self._in_all + seconds
        self._compiling += seconds
        if before <= 0.5 < self._in_all:  # (to load kernels from the cache takes less)
            self.message("compiling kernels for this processor, once; later runs find them")

    def compiled(self) -> float:
        """Seconds of compilation since this was asked last."""
        seconds, self._compiling = self._compiling, 0.0
        return seconds

    def message(self, text: str) -> None:
        """Shows a line that stays."""

    def step(self, where: str, done: int, steps: int, numbers: str, left: float | None) -> None:
        """Shows ``done`` of ``steps`` of the epoch called ``where``; the run needs ``left`` more seconds."""


class Lines(Silent):
    """One line per epoch, and in a long epoch one every ten seconds."""

    def __init__(self, every: float = 10.0) -> None:
        self.every = every
        self.printed = time.monotonic()

    def message(self, text: str) -> None:
        with _printing:
            print(printable(text), flush=True)
        self.printed = time.monotonic()

    def step(self, where: str, done: int, steps: int, numbers: str, left: float | None) -> None:
        if time.monotonic() - self.printed >= self.every:
            to_go = "" if left is None else f"  {duration(left)} left"
            self.message(f"{where}  step {done}/{steps}  {numbers}{to_go}".rstrip())


class Bar(Silent):
    """A live bar for the current epoch, below the lines of the earlier ones."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.console = Console(highlight=False)
        self.bar: Any = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("[cyan]{task.fields[left]}"),
            console=self.console,
            transient=True,
            refresh_per_second=5,
        )
        self.task: Any = None

    def __enter__(self) -> "Bar":
        super().__enter__()
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        super().__exit__()

    def message(self, text: str) -> None:
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def step(self, where: str, done: int, steps: int, numbers: str, left: float | None) -> None:
        to_go = "" if left is None else f"{duration(left)} left"
        if self.task is None:
            self.task = self.bar.add_task(where, total=steps, numbers="", left="")
        self.bar.update(self.task, description=where, completed=done, total=steps, numbers=numbers, left=to_go)


def for_terminal() -> Silent:
    """The bar on a terminal that can move its cursor and in a notebook with ipywidgets; lines elsewhere."""
    notebook = "IPython" in sys.modules
    if sys.stdout.isatty() or notebook:
        try:
            from rich.console import Console
        except ImportError:
            return Lines()
        console = Console()
        if find_spec("ipywidgets") if console.is_jupyter else sys.stdout.isatty() and not console.is_dumb_terminal:
            return Bar()
    return Lines()
