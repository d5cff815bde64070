"""The runs of a lab, spread over processes or a cluster. What is finished is on disk, and is not run again.

A run depends on its setting, its seed and the configuration alone. Each has one thread of its own (unless
``TINYRES_THREADS`` says otherwise), so that it gives the same bits wherever it runs, and beside however many others.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from tinyres.errors import TinyresError, UsageError
from tinyres.kernels import dispatch
from tinyres.lab import find
from tinyres.lab.experiment import Config, Lab, Run, Setting
from tinyres.lab.images import checkpoints_in, trained_by
from tinyres.train.progress import Silent

RESULT_DIGITS = 6
HOST = "numba"  # computes what is not training, where a GPU trains
RETRIES = 3  # of a run whose process was killed
_alone = threading.Lock()  # the random generator and the backend belong to the process, not to a thread


class Task(NamedTuple):
    """A run to be made, as it travels to another process or machine."""

    lab: str
    setting: Setting
    seed: int
    config: Config
    backend: str
    keep: str = ""  # the folder for the checkpoints of a long run, which goes on from there


def key_of(run: Task | Run) -> str:
    """What tells the runs of a lab apart."""
    return json.dumps([run.setting, run.seed], sort_keys=True)


class Done(NamedTuple):
    """What comes back: the run, and the seconds that it took."""

    run: Run
    seconds: float


def perform(task: Task) -> Done:
    """Makes the run, in this process. (A worker of a cluster asks for the number of threads in its first run.)"""
    began = time.perf_counter()
    with (
        _alone,
        _one_thread_each(),
        dispatch.use_backend(task.backend if _device(task.backend) == "cpu" else HOST),
        np.errstate(all="ignore"),
        trained_by(task.backend),
        checkpoints_in(task.keep),
    ):
        result = find(task.lab).run(task.setting, task.seed, task.config)
    run = Run.read({"setting": task.setting, "seed": task.seed, "result": finite(result, RESULT_DIGITS)})  # as after a file
    return Done(run, round(time.perf_counter() - began, 2))


def _device(backend: str) -> str:
    with dispatch.use_backend(backend):
        return dispatch.current().device


def finite(value: Any, digits: int = 17) -> Any:
    """Python's own numbers in place of NumPy's, to so many digits, and None for what is not finite: as JSON takes them."""
    if isinstance(value, dict):
        return {str(key): finite(v, digits) for key, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [finite(v, digits) for v in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.{digits}g}") if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def run_all(
    lab: Lab, tasks: Sequence[Task], jobs: int, scheduler: str | None, display: Silent, on_done: Callable[[Done], None]
) -> None:
    """Makes the runs and calls ``on_done`` after each, in whatever order they end.

    Raises `TinyresError` if a run fails or its process was killed again and again, `UsageError` if no scheduler answers.
    """
    costs = {key_of(task): lab.cost(task.setting, task.config) for task in tasks}
    total, began, gone = sum(costs.values()), time.monotonic(), 0.0
    finished = 0

    def show() -> None:
        left = (time.monotonic() - began) * (total / gone - 1) if gone else None
        display.step(lab.name, finished, len(tasks), "", left)

    # the longest first: short ones fill the gaps at the end
    ordered = sorted(tasks, key=lambda task: -costs[key_of(task)])
    show()
    how = _on_cluster(scheduler, ordered) if scheduler else _in_processes(jobs, ordered) if jobs else map(perform, ordered)
    for done in how:
        finished, gone = finished + 1, gone + costs[key_of(done.run)]
        on_done(done)
        show()


def _in_processes(jobs: int, tasks: Sequence[Task]) -> Iterator[Done]:
    left, lost = {key_of(task): task for task in tasks}, 0
    while left:
        try:
            for done in _pool_of(jobs, list(left.values())):
                del left[key_of(done.run)]
                yield done
        except BrokenProcessPool:
            lost += 1
            if lost > RETRIES:
                raise TinyresError(
                    f"the process of a run was killed {lost} times, perhaps for want of memory; what is finished is kept: "
                    "run the same command again with fewer --jobs"
                ) from None


def _pool_of(jobs: int, tasks: Sequence[Task]) -> Iterator[Done]:
    with _one_thread_each():
        pool = ProcessPoolExecutor(min(jobs, len(tasks)), multiprocessing.get_context("spawn"), _begin_worker)
        futures: set[Future[Done]] = {pool.submit(perform, task) for task in tasks}
    try:
        while futures:
            ended, futures = wait(futures, return_when=FIRST_COMPLETED)
            for future in ended:
                yield future.result()
        pool.shutdown()
    except BaseException:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:  # what they are at would be thrown away
            process.terminate()
        raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that start inside inherit it."""
    given = "TINYRES_THREADS" in os.environ
    os.environ.setdefault("TINYRES_THREADS", "1")
    try:
        yield
    finally:
        if not given:
            del os.environ["TINYRES_THREADS"]


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    parent = multiprocessing.parent_process()
    if parent:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()  # it may be killed
    os._exit(1)


def _on_cluster(address: str, tasks: Sequence[Task]) -> Iterator[Done]:
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise UsageError("--scheduler needs dask.distributed: pip install distributed") from None
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(f"--scheduler: no scheduler answers at {address} ({error or type(error).__name__})") from error
    with client:
        # a run whose worker dies is given to another one
        futures = client.map(
            perform, tasks, key=[f"tinyres-{time.time_ns()}-{i}" for i in range(len(tasks))], retries=RETRIES
        )
        for future in as_completed(futures):
            yield future.result()
