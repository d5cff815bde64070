"""What the parts of ``tinyres bench gpu`` share: the sizes, the clock, the device, and commands."""

import contextlib
import gc
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

import tinyres as tr
from tinyres.benchmarks import gpu_peers, spread
from tinyres.kernels import dispatch
from tinyres.kernels.arrays import channels_first
from tinyres.kernels.cuda import launch

T = TypeVar("T")
SECONDS = 0.3  # per measurement, at most, unless a single repetition takes longer
TIMES = spread.LEAST_OF_TWO  # measurements, so that every ratio has an interval
MARGIN = 30.0  # seconds: the longest measurement that cannot be stopped


class Plan(NamedTuple):
    """The sizes of everything."""

    batch: int  # of the kernels and of their parity
    elements: int  # of the arrays whose bandwidth is measured
    steps: dict[str, list[int]]  # batch sizes by network
    repeats: int
    parity: tuple[str, int, int]  # of whole steps: network, batch size, how many
    training: dict[str, Any]  # arguments of the Trainer
    seconds: float  # for everything together


FULL = Plan(
    128,
    1 << 26,
    {"resnet20": [128, 512, 2048], "resnet56": [128, 512], "resnet110": [128], "resnet9": [512, 2048]},
    30,
    ("resnet20", 128, 3),
    {"model": "resnet20", "batch_size": 512, "epochs": 10},
    460.0,
)
TINY = Plan(2, 1 << 10, {"resnet8": [2]}, 1, ("resnet8", 2, 3), {"model": "resnet8", "batch_size": 8, "epochs": 1}, 600.0)


class OutOfTime(Exception):
    """A part was stopped because the time was up; the text says how far it got."""


class Run:
    """One run of the command: the backend's arrays, the clock, and what was found so far."""

    def __init__(self, backend: str, plan: Plan, say: Callable[[str], None]) -> None:
        self.backend, self.plan, self.say = backend, plan, say
        self.began = time.perf_counter()
        self.limits: dict[str, float] = {}  # of the card, once they are measured
        self.cut_short: dict[str, str] = {}  # parts that ran out of time, and how far they got
        with tr.use_backend(backend):
            self.kernels = dispatch.current()
        if self.kernels.device == "cuda":
            import cupy

            self.xp: Any = cupy
        else:
            self.xp = np
        self.device = launch.device(self.xp)

    # --- the clock ----------------------------------------------------------------------------------------------------

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.began

    def left(self) -> float:
        """Seconds until everything must be finished."""
        return self.plan.seconds - self.elapsed()

    def late(self) -> bool:
        """Whether it is too late for another measurement."""
        return self.left() < MARGIN

    def in_time(self, part: str, items: Sequence[T]) -> Iterator[T]:
        """The items, as long as there is time; when it is up, ``cut_short`` says how many were done."""
        for done, item in enumerate(items):
            if self.late():
                self.cut_short[part] = f"{done} of {len(items)}"
                self.say(f"cut short: no time after {self.cut_short[part]}")
                return
            yield item

    # --- the device ---------------------------------------------------------------------------------------------------

    def upload(self, value: Any) -> Any:
        """Arguments of a kernel, on the device; activations lie channels-last."""
        if isinstance(value, list):
            return [self.upload(v) for v in value]
        if not isinstance(value, np.ndarray):
            return value
        if value.ndim == 4 and value.dtype != np.uint8:
            return channels_first(self.xp.asarray(value.transpose(0, 2, 3, 1)))
        return self.xp.asarray(value)

    def milliseconds(self, run: Callable[[], Any]) -> list[float]:
        """Milliseconds of one run, from a captured graph of ten, without Python's launches: `TIMES` times."""
        graph, many = self.device.Graph(), 10 if self.plan.repeats > 1 else 1
        with graph.memory():
            run()
        with graph.capture():
            for _ in range(many):
                run()
        repeats = self.repeats(lambda count: self.device.elapsed_ms(graph.replay, count))
        return [self.device.elapsed_ms(graph.replay, repeats) / many for _ in range(TIMES)]

    def repeats(self, measure: Callable[[int], float]) -> int:
        """How often to repeat a run of ``measure(1)`` milliseconds: the plan's number, or less if that takes too long."""
        measure(1)  # the first one takes longer
        if self.plan.repeats == 1:
            return 1
        return max(1, min(self.plan.repeats, int(1e3 * SECONDS / max(measure(1), 1e-3))))

    def release(self) -> None:
        """Gives free memory back to the card: CuPy and PyTorch each have a reserve that the other cannot use.

        The garbage collector runs first. A graph of ours and its pool refer to each other, so only the collector frees
        them; and if it did that while PyTorch captures a graph, that capture would fail.
        """
        gc.collect()
        with contextlib.suppress(Exception):  # after a fault in a kernel everything fails, and that has been reported
            if self.xp is not np:
                self.xp.get_default_memory_pool().free_all_blocks()
            gpu_peers.release()


def command(words: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """The exit status of a command, and what it printed. After ``seconds`` it is killed, with all that it started, and the
    status is None.
    """
    # Into a file: a process that outlives the command would keep a pipe open, and us waiting.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        status = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(max(seconds, 0))
        finally:  # at Ctrl-C too: a process in its own session does not get it
            if status is None:
                _kill(process)
        output.seek(0)
        return status, output.read()


def _kill(process: subprocess.Popen[Any]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
