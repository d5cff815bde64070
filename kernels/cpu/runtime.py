"""How compiled jobs run: on addresses, spread over threads of our own.

A job is a C function ``job(parameters, index, scratch)``: ``parameters`` points at a table of 64-bit words, ``index`` says
which part of the work to do, ``scratch`` is memory that belongs to the running thread. `spread` hands out the indices
0 .. count - 1: each thread takes the next one when it is done with the last. What an index stands for does not depend on
the threads, so neither do the bits of a result.

Numba's own parallel loops are not used. They wait until every thread has woken up, which on a busy machine takes longer
than the work (here the caller does all that nobody else has taken); two Python threads may not run them at once, and a
forked process may not run them at all.

A `Kernel` is a job written in Python on typed pointers, compiled once for float32 and once for float64.
"""

import functools
import os
import platform
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import ffi
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import register_jitable

from tinyres.kernels.arrays import ceil_div, threads
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cpu import buffers, jit
from tinyres.kernels.cpu.buffers import address
from tinyres.kernels.cpu.jit import config
from tinyres.kernels.cpu.jobs import Job, Local, jobs, keep
from tinyres.kernels.forks import held_across_fork

CHUNK = 1 << 15  # elements in an index's share of a long array: a few microseconds of work
SPINS = 10_000  # looks at the counter, some 150 us, before the caller lets others have its core
PATIENCE = 15_000  # looks for the next job, some 200 us, before a helper goes to sleep: to wake it takes about 50
DTYPES = {np.dtype(np.float32), np.dtype(np.float64)}
I64 = ir.IntType(64)
intrinsic: Any = numba.extending.intrinsic  # (its own type makes callers pass the typing context)
register_jitable(ceil_div)  # compiled code may call it too


# --- what jobs are written with --------------------------------------------------------------------------------------


@intrinsic
def pointer(typing: Any, address: Any, dtype: Any) -> Any:
    """``pointer(address, types.int32)``: what lies at an address, a number or another pointer. In the place of a type, a
    pointer stands for its own type.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = context.get_value_type(signature.return_type)
        cast = builder.bitcast if isinstance(address, types.CPointer) else builder.inttoptr
        return cast(args[0], target)

    return types.CPointer(dtype.dtype)(address, dtype), emit


@intrinsic
def advance(typing: Any, base: Any, index: Any) -> Any:
    """The pointer to ``base[index]``."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]], inbounds=True)

    return base(base, types.int64), emit


@register_jitable
def numbers(a: Any) -> Any:
    """The table of a job's parameters, read as int64."""
    return pointer(a, types.int64)


@register_jitable
def reals(a: Any) -> Any:
    """The table of a job's parameters, read as float64."""
    return pointer(a, types.float64)


# --- the threads -----------------------------------------------------------------------------------------------------


@intrinsic
def atomic_add(typing: Any, address: Any, value: Any) -> Any:
    """Adds to the number at an address and returns what it was, atomically."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def look(typing: Any, address: Any) -> Any:
    """The number at an address, as another thread last wrote it. The core is told that it waits: a look takes some 15 ns,
    and what shares the core with it has it meanwhile.
    """
    x86, arm = ("llvm.x86.sse2.pause", []), ("llvm.aarch64.isb", [ir.Constant(ir.IntType(32), 15)])
    wait = {"x86_64": x86, "amd64": x86, "aarch64": arm, "arm64": arm}.get(platform.machine().lower())

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if wait:
            kind = ir.FunctionType(ir.VoidType(), [value.type for value in wait[1]])
            builder.call(builder.module.declare_intrinsic(wait[0], (), kind), wait[1])
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), emit


@intrinsic
def yield_core(typing: Any) -> Any:
    """Lets another thread have the core, where the system has POSIX's call for that."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if os.name == "posix":
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def call_job(typing: Any, job: Any, parameters: Any, index: Any, scratch: Any) -> Any:
    """Calls the job at an address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


@jit.compiled(types.void(*[types.int64] * 5))
def _work(job: int, parameters: int, count: int, progress: int, scratch: int) -> None:
    """Runs what has not been taken. ``progress`` points at two numbers: indices taken, and indices done."""
    while True:
        index = atomic_add(progress, 1)
        if index >= count:
            return
        call_job(job, parameters, index, scratch)
        atomic_add(progress + 8, 1)


@jit.compiled(types.void(*[types.int64] * 4))
def _work_alone(job: int, parameters: int, count: int, scratch: int) -> None:
    for index in range(count):
        call_job(job, parameters, index, scratch)


@jit.compiled(types.void(types.int64, types.int64))
def _settle(progress: int, count: int) -> None:
    """Takes all that has not been taken, and waits until what others have taken is done. It may be called twice."""
    own = pointer(progress, types.int64)
    if own[2] == 0:
        own[2] = 1 + min(atomic_add(progress, count), count)
    while look(progress + 8) < own[2] - 1:
        pass


@jit.compiled(types.boolean(types.int64, types.int64))
def _finished(progress: int, count: int) -> bool:
    for _ in range(SPINS):  # noqa: SIM110
        if look(progress + 8) >= count:
            return True
    return False


# A helper's slot is eight numbers: its state, and the five arguments of `_work`.
ASLEEP, READY, CLAIMED, POSTED, BUSY = range(5)


@intrinsic
def _change(typing: Any, state: Any, old: Any, new: Any) -> Any:
    """Writes ``new`` to an address if ``old`` stands there, atomically, and says whether it did."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], I64.as_pointer())
        return builder.extract_value(builder.cmpxchg(place, args[1], args[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(*[types.int64] * 3), emit


@jit.compiled(types.void(types.int64))
def _serve(slot: int) -> None:
    """A helper's life until it falls asleep: does what is posted to its slot."""
    job = pointer(slot, types.int64)
    looks = 0
    while looks < PATIENCE or not _change(slot, READY, ASLEEP):
        state = look(slot)
        if state == ASLEEP:  # whoever woke it has thought better of it
            return
        if state == POSTED and _change(slot, POSTED, BUSY):
            _work(job[1], job[2], job[3], job[4], job[5])
            _change(slot, BUSY, READY)
            looks = 0
        looks += 1


@jit.compiled(types.int64(types.int64, types.int64))
def _claim(slot: int, claimed: int) -> int:
    """The slot for the caller alone, unless its helper is at work: READY, or POSTED for a job that it has not begun, or
    ASLEEP if it must be woken; else BUSY. What it was, and one more, is noted at the address ``claimed``.
    """
    for state in (READY, POSTED, ASLEEP):
        if _change(slot, state, CLAIMED):
            pointer(claimed, types.int64)[0] = state + 1
            return state
    return BUSY


@jit.compiled(types.void(*[types.int64] * 7))
def _post(slot: int, claimed: int, job: int, parameters: int, count: int, progress: int, scratch: int) -> None:
    own = pointer(slot, types.int64)
    own[1], own[2], own[3], own[4], own[5] = job, parameters, count, progress, scratch
    pointer(claimed, types.int64)[0] = 0
    _change(slot, CLAIMED, POSTED)


@jit.compiled(types.void(types.int64, types.int64))
def _unclaim(slot: int, claimed: int) -> None:
    """Lets go of a slot, if it is claimed. A job that it had is done by whoever posted it."""
    state = pointer(claimed, types.int64)
    if state[0] != 0:
        _change(slot, CLAIMED, ASLEEP if state[0] == ASLEEP + 1 else READY)
        state[0] = 0


class _Helpers:
    """All threads but the caller's. A helper looks out for a next job for a while, since in training one follows on the
    other; then it sleeps. While it looks out it does without the interpreter: it would have to wait for its lock.
    """

    def __init__(self) -> None:
        self.alarms: list[SimpleQueue] = [SimpleQueue() for _ in range(threads() - 1)]
        self.slots = np.zeros((threads() - 1, 8), np.int64)
        self.addresses = [address(slot) for slot in self.slots]
        self.kept: list[Any] = [None] * len(self.slots)  # what each slot's last job may look at, until its next job
        for i in range(len(self.slots)):
            try:
                threading.Thread(target=self._live, args=(i,), name=f"tinyres-kernels-{i}", daemon=True).start()
            except RuntimeError:  # the system starts no more: these must do
                del self.kept[i:]
                break

    def _live(self, i: int) -> None:
        while True:
            self.alarms[i].get()
            _serve(self.addresses[i])

    def post(self, i: int, arguments: tuple[int, ...], claimed: int, keep: Any) -> None:
        """Gives a job to helper i, unless it is at work for another caller. If it sleeps, it is woken when the job is there,
        and will come late: where other programs want the cores, the caller alone is often done before.

        A signal may raise an exception after any line. What is claimed then stands at the address ``claimed``: it is let go.
        """
        if i >= len(self.kept):
            return
        slot, state = self.addresses[i], BUSY
        try:
            state = _claim(slot, claimed)
            if state == BUSY:
                return
            self.kept[i] = keep
            _post(slot, claimed, *arguments)
            if state == ASLEEP:
                self.alarms[i].put(None)
        except BaseException:
            self._let_go(i, claimed, state)
            raise

    def _let_go(self, i: int, claimed: int, state: int) -> None:
        """Unclaims, or wakes a helper that may have a job and no alarm (one alarm too many does no harm); also if a second
        signal raises in the midst of it.
        """
        try:
            _unclaim(self.addresses[i], claimed)
            if state == ASLEEP:
                self.alarms[i].put(None)
        except BaseException:
            self._let_go(i, claimed, state)
            raise


_helpers = functools.cache(_Helpers)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # a child process has none of its parent's threads
held_across_fork(global_compiler_lock)
held_across_fork(getattr(ffi.lib, "_lock", global_compiler_lock))  # of LLVM, taken within the other


def spread(
    job: int,
    parameters: array,
    count: int,
    scratch_size: int = 0,
    parallel: bool = True,
    local: Callable[[], Local | None] | None = None,
) -> None:
    """Calls ``job(parameters, i, scratch)`` for i in range(count) and returns when all are done.

    ``job`` is an address, ``parameters`` the table that it reads, ``scratch_size`` in bytes per thread; scratch comes
    aligned to 64 bytes and with any content. Any thread may call this at any time. A helper that comes late finds nothing
    left to take and touches only ``progress``, which is kept alive for it. An exception that a signal's handler raises
    (Ctrl-C) leaves only after every helper is done with what it has begun. ``local()`` tells a recording what the job uses.
    """
    if jobs.recorded is not None:
        jobs.recorded.append(Job(job, parameters, count, scratch_size, local() if local else None))
    run(job, parameters, count, scratch_size, min(threads(), count // 2) - 1 if parallel else 0)


def run(job: int, parameters: array, count: int, scratch_size: int, helpers: int, keep: Any = None) -> None:
    """`spread` over the caller and ``helpers`` other threads; ``keep`` is what the job may look at besides."""
    size = ceil_div(scratch_size, buffers.PAGE) * buffers.PAGE + 64  # no power of two: threads' scratch in different sets
    scratch = buffers.scratch((max(helpers, 0) + 1) * size) if scratch_size else None
    own, table = address(scratch), parameters.buffer_info()[0]
    if helpers <= 0:
        _work_alone(job, table, count, own)
        return
    progress = array("q", (0, 0, 0, 0))  # indices taken, and done; `_settle`'s note, and `_claim`'s
    fixed = (job, table, count, progress.buffer_info()[0])
    try:
        for i in range(helpers):
            arguments = (*fixed, own + (i + 1) * size if scratch_size else 0)
            _helpers().post(i, arguments, fixed[3] + 24, (parameters, progress, scratch, keep))
        _work(*fixed, own)
        while not _finished(fixed[3], count):
            time.sleep(0)
    except BaseException:  # of a signal: nobody may leave while helpers still write to the caller's arrays
        _settle_whatever_comes(fixed[3], count)
        raise


def _settle_whatever_comes(progress: int, count: int) -> None:
    """`_settle`, also if a second signal raises in the midst of it."""
    try:
        _settle(progress, count)
    except BaseException:
        _settle_whatever_comes(progress, count)
        raise


# --- kernels ---------------------------------------------------------------------------------------------------------


class Kernel:
    """``@Kernel`` over ``def f(a, index, scratch)``: a job for arrays of float32 or float64.

    Calling it, ``f(count, arrays, integers, reals)``, runs the indices 0 .. count - 1. The three lists follow each other
    in one table of words: for ``f``, ``a[i]`` is the pointer to array i, and counting on from there, ``numbers(a)[i]`` is
    an integer and ``reals(a)[i]`` a float64. Arrays are contiguous, of one dtype; None is a null pointer.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.compiled: dict[str, Any] = {}
        functools.update_wrapper(self, function)

    def __call__(
        self,
        count: int,
        arrays: Sequence[np.ndarray | None],
        integers: Sequence[int] = (),
        reals: Sequence[float] = (),
        scratch: int = 0,
        parallel: bool = True,
        local: Callable[[], Local | None] | None = None,
    ) -> None:
        """``scratch``: elements of the arrays' dtype that each thread needs. ``local``: see `spread`."""
        first = arrays[0]
        assert first is not None
        job = self.compiled.get(first.dtype.char) or self._compile(first.dtype.char)
        table = array("q", [*map(address, arrays), *integers])
        keep(*arrays)
        if reals:
            table.frombytes(array("d", reals).tobytes())
        spread(job.address, table, count, scratch * first.itemsize, parallel, local)

    def _compile(self, char: str) -> Any:
        dtype = {"f": types.float32, "d": types.float64}[char]
        signature = types.void(types.CPointer(types.CPointer(dtype)), types.int64, types.CPointer(dtype))
        job = jit.compiled_job(self.function, signature, fastmath={"contract"}, error_model="numpy")
        self.compiled[char] = job
        return job


def check(*arrays: np.ndarray | None) -> None:
    """Raises Unsupported for what no kernel here does."""
    if config.DISABLE_JIT:
        raise Unsupported("the JIT is off (NUMBA_DISABLE_JIT)")
    if not all(isinstance(a, np.ndarray | np.generic) for a in arrays if a is not None):
        raise Unsupported("arrays on a GPU")
    dtypes = {a.dtype for a in arrays if a is not None}
    if len(dtypes) > 1 or not dtypes <= DTYPES:
        raise Unsupported("of dtype " + " and ".join(sorted(map(str, dtypes))))


def chunks(size: int) -> int:
    """In how many parts a kernel goes over ``size`` elements."""
    return ceil_div(size, CHUNK)
