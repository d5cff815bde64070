"""A step as a list of jobs: recorded while it runs, and replayed by one call without the interpreter.

What Python does in a step, between its kernels, is to look which kernel comes next and where its arrays lie. That is the
same each time. So `Graph` keeps the jobs that `runtime.spread` was given, and the memory that they use.

A replay is itself one job, `_follow`: every thread goes through the list, takes indices of the job that is at hand, and waits
until all of them are done before it looks at the next. A thread that comes late finds the first jobs done and catches up.
"""

import contextlib
import functools
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import types

from tinyres.kernels import dispatch
from tinyres.kernels.arrays import threads
from tinyres.kernels.cpu import buffers, jit
from tinyres.kernels.cpu.buffers import address
from tinyres.kernels.cpu.runtime import Job, atomic_add, call_job, jobs, look, pointer, run, yield_core
from tinyres.kernels.recording import Notes, Recorded, Watching

LINE = 64  # bytes of a cache line: each job's counters have one of their own
PATIENCE = 10_000  # looks at a counter, some 150 us, before a thread lets others have its core


@functools.cache
def _follower() -> Any:
    return jit.compiled_job(_follow, types.void(*[types.int64] * 3))


def _follow(parameters: int, thread: int, scratch: int) -> None:
    """Goes through the list of jobs once; each of a team of threads calls it with its number.

    A thread takes parts of its own share of a job first, neighbours in memory, and finds in its cache what it wrote there in
    the job before. Then it takes what the others have not begun. Each share has a counter of parts taken; the first counter
    of a job is of parts done.
    """
    own = pointer(parameters, types.int64)
    entry, count, progress, team = own[0], own[1], own[2], own[3]
    for _ in range(count):
        job = pointer(entry, types.int64)
        done, parts = 0, job[2]
        for turn in range(team):
            t = (thread + turn) % team
            taken, first, end = progress + (t + 1) * LINE, parts * t // team, parts * (t + 1) // team
            while pointer(taken, types.int64)[0] < end - first:
                part = first + atomic_add(taken, 1)
                if part >= end:
                    break
                call_job(job[0], job[1], part, scratch)
                done += 1
        if done:
            atomic_add(progress, done)
        looks = 0
        while look(progress) < parts:
            looks += 1
            if looks % PATIENCE == 0:
                yield_core()
        entry += 24
        progress += (team + 1) * LINE


class Graph:
    """Work that was recorded once and is replayed as a whole: the counterpart of `cuda.gpu.Graph`.

        graph = Graph()
        with graph.memory():         # as it is, once or more: compiles the kernels, fills the memory
            step()
        with graph.capture(notes):   # it runs, and is recorded
            step()
        graph.replay()

    The jobs know their arrays by address: what they allocate is memory of the graph's own, and the arrays from outside
    that they use are in ``notes.arrays``. ``notes.reason`` says after the capture why it cannot be replayed.
    """

    runs = True  # what is captured runs at the same time, so that Python sees true numbers

    def __init__(self) -> None:
        self._arena = buffers.Arena()
        self._jobs, self._kept, self._scratch_size = list[Job](), list[Any](), 0
        self._entries = np.zeros((0, 3), np.int64)

    def memory(self) -> contextlib.AbstractContextManager[None]:
        """The block runs as it is, with results in the graph's memory."""
        return self._arena.within()

    @contextlib.contextmanager
    def capture(self, notes: Notes) -> Iterator[None]:
        """The block's jobs run and are recorded; those of other threads run as ever."""
        own = Watching(dispatch.current(), notes, self._arena.__contains__)
        jobs.recorded, jobs.kept = recorded, kept = list[Job](), list[Any]()
        try:
            with dispatch.using(own), self._arena.within(Recorded):
                yield
        finally:
            jobs.recorded, jobs.kept = None, []
        self._jobs, self._kept = recorded, kept
        self._scratch_size = max((j.scratch_size for j in recorded), default=0)
        self._entries = np.array([(j.address, j.parameters.buffer_info()[0], j.count) for j in recorded], np.int64)

    def replay(self) -> None:
        """Runs all of it. Not in two threads at once: they would share its memory."""
        team = threads()
        progress = np.zeros((len(self._jobs), team + 1, LINE // 8), np.int64)
        table = array("q", (address(self._entries), len(self._jobs), address(progress), team))
        run(_follower().address, table, team, self._scratch_size, team - 1, (self, progress))

    def poison(self) -> None:
        """Fills its memory with NaN: a replay must write whatever it reads."""
        self._arena.poison()

    @property
    def bytes(self) -> int:
        """How much memory it has of its own."""
        return self._arena.bytes
