"""A step as a list of jobs: recorded while it runs, and replayed by one call without the interpreter.

What Python does in a step, between its kernels, is to look which kernel comes next and where its arrays lie. That is the
same each time. So `Graph` keeps the jobs that `runtime.spread` was given, and the memory that they use.

A replay is itself one job, `_follow`: every thread goes through the list, takes parts of the job that is at hand, and waits
until all of them are done before it looks at the next. A thread that comes late finds the first jobs done and catches up.

Jobs that work image by image are chained: instead of all images of one layer after the other going through memory, some
images go through several jobs in turn. What is computed stays the same, bit by bit.
"""

import contextlib
import ctypes
import functools
import math
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import types

from tinyres.kernels import dispatch
from tinyres.kernels.arrays import ceil_div, threads
from tinyres.kernels.cpu import buffers, jit
from tinyres.kernels.cpu.buffers import address
from tinyres.kernels.cpu.jobs import Access, Job, Local, jobs
from tinyres.kernels.cpu.runtime import advance, atomic_add, call_job, look, pointer, run, yield_core
from tinyres.kernels.recording import Notes, Recorded, Watching

LINE = 64  # bytes of a cache line: each job's counters have one of their own
PATIENCE = 10_000  # looks at a counter, some 150 us, before a thread lets others have its core


# --- the order of the jobs -------------------------------------------------------------------------------------------


class Chain:
    """Jobs that run part by part without waiting in between: the images of a part go through all of them in turn, while they
    are in the cache. Each job works on the images of its part alone, so no part needs what another one makes.
    """

    def __init__(self, job: Job) -> None:
        self.jobs, self.before, self.after = [job], list[Job](), list[Job]()
        self.images, self.step = (job.local.images, job.local.step) if job.local else (0, 1)

    def take(self, job: Job) -> bool:
        """Whether the job, next in the order of the recording, is part of it now, or can run before or after all of it."""
        local = job.local
        if local is None or not self.images:
            return False
        waits = any(_conflict(late.local, local) for late in self.after)
        if local.images and not waits and self._joins(local):
            self.jobs.append(job)
            self.step = math.lcm(self.step, local.step)
        elif not waits and not any(_conflict(own.local, local) for own in self.jobs):
            self.before.append(job)
        elif not local.images:
            self.after.append(job)
        else:
            return False
        return True

    def _joins(self, local: Local) -> bool:
        step = math.lcm(self.step, local.step)
        enough = self.images // step >= 2 * threads()  # parts for all threads
        return local.images == self.images and enough and not any(_conflict(j.local, local, True) for j in self.jobs)

    def rows(self) -> Iterator[list[int]]:
        """How many jobs there are and parts; then of each job the address, the table, its own parts, and those in a part."""
        own = [max(1, self.step // j.local.step * j.local.parts) if j.local and self.images else 1 for j in self.jobs]
        if len(own) == 1:
            own = [1]
        yield [len(self.jobs), max(ceil_div(j.count, k) for j, k in zip(self.jobs, own, strict=True))]
        for job, parts in zip(self.jobs, own, strict=True):
            yield [job.address, job.parameters.buffer_info()[0], job.count, parts]


def _conflict(first: Local | None, second: Local, by_image: bool = False) -> bool:
    """Whether two jobs must run in their order: one writes what the other uses. With ``by_image``, whether they must so even
    if each image goes through the first and then through the second, other images before or after it.
    """
    assert first is not None
    return any(
        (a.writes or b.writes)
        and a.address < b.address + b.size
        and b.address < a.address + a.size
        and not (by_image and a.per_image and (a.address, a.per_image) == (b.address, b.per_image))
        for a in first.accesses
        for b in second.accesses
    )


def chains(recorded: list[Job]) -> list[Chain]:
    """The jobs in the order in which they are replayed: none before or beside another one whose result it needs, or whose
    memory it uses again.
    """
    done: list[Chain] = []
    current: Chain | None = None
    for job in [*recorded, None]:
        if current and job and current.take(job):
            continue
        if current:
            done += [*map(Chain, current.before), current, *map(Chain, current.after)]
        current = Chain(job) if job else None
    return done


# --- the replay ------------------------------------------------------------------------------------------------------


@functools.cache
def _follower() -> Any:
    return jit.compiled_job(_follow, types.void(*[types.int64] * 3))


def _follow(parameters: int, thread: int, scratch: int) -> None:
    """Goes through the list of chains once; each of a team of threads calls it with its number.

    A thread takes parts of its own share of a chain first, neighbours in memory, and finds in its cache what it wrote there
    in the one before. Then it takes what the others have not begun. Each share has a counter of parts taken; the first
    counter of a chain is of parts done.
    """
    own = pointer(parameters, types.int64)
    entry, count, progress, team = pointer(own[0], types.int64), own[1], own[2], own[3]
    for _ in range(count):
        jobs, parts, done = entry[0], entry[1], 0
        entry = advance(entry, 2)
        for turn in range(team):
            t = (thread + turn) % team
            taken, first, end = progress + (t + 1) * LINE, parts * t // team, parts * (t + 1) // team
            while pointer(taken, types.int64)[0] < end - first:
                part = first + atomic_add(taken, 1)
                if part >= end:
                    break
                for j in range(jobs):
                    job = advance(entry, 4 * j)
                    for own_part in range(part * job[3], min((part + 1) * job[3], job[2])):
                        call_job(job[0], job[1], own_part, scratch)
                done += 1
        if done:
            atomic_add(progress, done)
        looks = 0
        while look(progress) < parts:
            looks += 1
            if looks % PATIENCE == 0:
                yield_core()
        entry = advance(entry, 4 * jobs)
        progress += (team + 1) * LINE


class _List:
    """Jobs in the order of their replay."""

    def __init__(self, recorded: list[Job]) -> None:
        order = chains(recorded)
        self.count, rows = len(order), [number for chain in order for row in chain.rows() for number in row]
        self.entries = np.array(rows, np.int64)
        self.scratch_size = max((job.scratch_size for job in recorded), default=0)

    def run(self) -> None:
        if not self.count:
            return
        team = threads()
        progress = np.zeros((self.count, team + 1, LINE // 8), np.int64)
        table = array("q", (address(self.entries), self.count, address(progress), team))
        run(_follower().address, table, team, self.scratch_size, team - 1, (self, progress))


@functools.cache
def _comparer() -> Any:
    return jit.compiled_job(_compare, types.void(*[types.int64] * 3))


def _compare(parameters: int, index: int, scratch: int) -> None:
    """Whether two pieces of memory differ: then it writes 1 to the flag."""
    own = pointer(parameters, types.int64)
    piece = pointer(own[0] + 24 * index, types.int64)
    a, b, different = pointer(piece[0], types.int32), pointer(piece[1], types.int32), 0
    for i in range(piece[2]):
        different |= a[i] ^ b[i]
    if different != 0:
        pointer(own[1], types.int64)[0] = 1


class _Weights:
    """What constant jobs read, and a copy of it from when they last ran."""

    PIECE = 1 << 14  # floats

    def __init__(self, once: list[Job]) -> None:
        made = [a for job in once if job.local for a in job.local.accesses if a.writes]
        read = {a for job in once if job.local for a in job.local.accesses if not a.writes}
        read = {a for a in read if not any(m.address <= a.address < m.address + m.size for m in made)}
        self.sources = [_memory(a) for a in sorted(read)]
        self.copies = [source.copy() for source in self.sources]
        self.fresh = True  # the jobs have run while they were recorded
        self.flag, rows = np.zeros(1, np.int64), []
        for source, copy in zip(self.sources, self.copies, strict=True):
            for i in range(0, len(source), self.PIECE):
                rows.append([address(source) + 4 * i, address(copy) + 4 * i, min(self.PIECE, len(source) - i)])
        self.pieces = np.array(rows, np.int64).reshape(-1, 3)

    def changed(self) -> bool:
        """Whether the weights are other ones than when the jobs last ran, to the bit."""
        if not len(self.pieces) or not self.fresh:
            return not self.fresh
        self.flag[0] = 0
        table, count = array("q", (address(self.pieces), address(self.flag))), len(self.pieces)
        run(_comparer().address, table, count, 0, min(threads(), count) - 1, self)
        return bool(self.flag[0])

    def note(self) -> None:
        for source, copy in zip(self.sources, self.copies, strict=True):
            copy[:] = source
        self.fresh = True

    def forget(self) -> None:
        self.fresh = not self.copies


def _memory(access: Access) -> np.ndarray:
    """The memory of an access, as int32."""
    return np.frombuffer((ctypes.c_char * access.size).from_address(access.address), np.int32)


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
        self._jobs, self._kept = list[Job](), list[Any]()
        self._list, self._once, self._weights = _List([]), _List([]), _Weights([])

    def memory(self) -> contextlib.AbstractContextManager[None]:
        """The block runs as it is, with results in the graph's memory."""
        return self._arena.within()

    @contextlib.contextmanager
    def capture(self, notes: Notes, constants: bool = False) -> Iterator[None]:
        """The block's jobs run and are recorded; those of other threads run as ever. With ``constants``, what is computed
        from weights alone is computed when it runs, and again before a replay that finds other weights.
        """
        own = Watching(dispatch.current(), notes)
        jobs.recorded, jobs.kept = recorded, kept = list[Job](), list[Any]()
        jobs.constants = constants
        try:
            with dispatch.using(own), self._arena.within(Recorded):
                yield
        finally:
            jobs.recorded, jobs.kept, jobs.constants = None, [], False
        self._jobs, self._kept = recorded, kept
        once = [job for job in recorded if job.local and job.local.constant]
        self._once, self._weights = _List(once), _Weights(once)
        self._list = _List([job for job in recorded if not (job.local and job.local.constant)])

    def replay(self) -> None:
        """Runs all of it. Not in two threads at once: they would share its memory."""
        if self._weights.changed():
            self._once.run()
            self._weights.note()
        self._list.run()

    def owns(self, array: Any) -> bool:
        """Whether an array lies in its memory."""
        return array in self._arena

    def poison(self) -> None:
        """Fills its memory with NaN: a replay must write whatever it reads."""
        self._arena.poison()
        self._weights.forget()

    def __del__(self) -> None:  # gradients may still lie in its memory; the rest of it is free
        self._jobs, self._kept = [], []
        self._arena.release()

    @property
    def bytes(self) -> int:
        """How much memory it has of its own."""
        return self._arena.bytes
