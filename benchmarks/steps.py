"""Whole training steps and inference of the CIFAR networks, ours beside the peers', interleaved."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

import tinyres as tr
import tinyres.functional as F
from tinyres.benchmarks import fresh, machine, memory, networks, peers, timing
from tinyres.errors import UsageError

SHORT = 0.05
Keep = Callable[[dict[str, Any]], object]


def make_step(model: str, batch: int, row: str | None, training: bool = True) -> Callable[[], object]:
    """One step of ``model`` on ``batch`` random images. ``row`` is one of our backends (None: the one in use when the step
    runs), also with "captured" behind it, or a peer's.
    """
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, 3, 32, 32), np.float32)
    labels = rng.integers(0, 10, batch)
    if row and peers.is_peer(row):
        return peers.step(model, row, images, labels, training)
    tr.manual_seed(0)
    net = networks.ours(model).train(training)
    optimizer = tr.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    x = tr.tensor(images)

    def train(x: tr.Tensor, labels: tr.Tensor) -> tr.Tensor:
        loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    backend, _, captured = (row or "").partition(" ")
    run: Any = train if training else net
    run = tr.capture(run) if captured else run
    arguments = (x, tr.tensor(labels)) if training else (x,)

    def step() -> object:
        with tr.use_backend(backend) if backend else nullcontext(), tr.strict(), nullcontext() if training else tr.no_grad():
            result = run(*arguments)
            while captured and run.graph is None:  # the first call records
                result = run(*arguments)
                if run.reason:
                    raise UsageError(f"{model} cannot be captured on {backend}: {run.reason}")
        return result

    return step


def flops_per_image(model: str, training: bool) -> int:
    """Forward: two per multiply-add of direct convolution. Training: three times as many, less the first layer's input
    gradient.
    """
    summary = tr.nn.summary(networks.ours(model))
    first = next(row.multiply_adds for row in summary.rows if row.multiply_adds)
    return 2 * (3 * summary.multiply_adds - first if training else summary.multiply_adds)


def measure(
    model: str, batch: int, rows: list[str], rounds: int, training: bool, into: timing.Timed | None = None
) -> timing.Timed:
    """The times of each row, in this process. A row that takes less than `SHORT` seconds runs several times in a row."""
    return timing.interleaved({row: make_step(model, batch, row, training) for row in rows}, rounds, SHORT, into)


def peak_memory(model: str, batch: int, row: str, training: bool) -> dict[str, float]:
    """MiB of this process, which must be a fresh one: at its peak while it runs three steps, after a first that compiles.
    And idle: when libraries are loaded and a step on two images has compiled its code (not for a row that compiles for one
    batch size only). The difference is what the step itself takes: weights, images, activations, working memory.
    """
    idle = {}
    if not peers.compiles(row):
        make_step(model, 2, row, training)()
        idle = {"idle_rss_mib": memory.now()}
    step = make_step(model, batch, row, training)
    step()
    memory.reset()
    for _ in range(3):
        step()
    return {"peak_rss_mib": memory.peak(), **idle}


def run(
    models: list[str],
    batches: list[int],
    rows: list[str],
    rounds: int,
    training: bool = True,
    processes: int | None = None,
    say: Callable[[str], None] = print,
    keep: Keep = lambda result: None,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The result of ``tinyres bench train`` as a dict for JSON, with what ``about`` says of the run. ``say`` is told each
    line as it is ready, and ``keep`` is given the result after each row; if the measurement is interrupted, its rounds so
    far make rows too. With ``processes``, that many fresh processes measure each network and batch size.
    """
    kind = "train" if training else "inference"
    result = machine.result(kind, about, rounds=rounds, processes=processes, cases=[])
    for model, batch in [(m, b) for m in models for b in batches]:
        timed = timing.Timed.nothing()
        try:
            if processes:
                one = {"model": model, "batch": batch, "rows": rows, "rounds": rounds, "training": training}
                timing.in_processes(processes, lambda one=one: timing.Timed(*fresh.call("steps", "measure", **one)), timed)
            else:
                measure(model, batch, rows, rounds, training, timed)
        finally:
            case = _case(model, batch, training, timed.complete())
            result["cases"] += [case] if case["rows"] else []
            keep(result)
        say(f"{model}, batch {batch}")
        for row in case["rows"]:
            row |= _memory(model, batch, row["row"], training, say)
            keep(result)
            say(line(row))
    result["complete"] = True
    keep(result)
    return result


def _case(model: str, batch: int, training: bool, timed: timing.Timed) -> dict[str, Any]:
    best = timing.best(timed.seconds, [row for row in timed.seconds if peers.is_peer(row)])
    work, rows = flops_per_image(model, training) * batch, []
    for row in map(partial(timing.summary, timed, best=best), timed.seconds):
        middle = row["median_seconds"]
        rows.append({**row, "images_per_second": batch / middle, "gflops": work / middle / 1e9})
    return {"model": model, "batch": batch, "training": training, "best_peer": best, "rows": rows}


def _memory(model: str, batch: int, row: str, training: bool, say: Callable[[str], None]) -> dict[str, float]:
    if not memory.known():
        return {}
    try:
        found: dict[str, float] = fresh.call("steps", "peak_memory", model=model, batch=batch, row=row, training=training)
    except UsageError as error:  # the times are worth keeping
        say(f"note: {error}")
        return {}
    return found


HEADER = (
    f"{'':27} {'ms':>8} {'quartiles':>15} {'images/s':>9} {'GFLOP/s*':>8} {'x best peer':>11} {'95 % interval':>13} "
    f"{'first s':>7} {'peak MiB':>8} {'idle MiB':>8}\n* {machine.GFLOPS}"
)


def line(row: dict[str, Any]) -> str:
    """One row of the table under `HEADER`."""
    low, high = (f"{1e3 * s:.1f}" for s in row["quartile_seconds"])
    peak, idle = (f"{row[key]:.0f}" if key in row else "-" for key in ("peak_rss_mib", "idle_rss_mib"))
    return (
        f"{row['row']:27} {1e3 * row['median_seconds']:8.1f} {f'{low} - {high}':>15} {row['images_per_second']:9.0f} "
        f"{row['gflops']:8.1f} {timing.ratio_text(row)} {row['first_seconds']:7.2f} {peak:>8} {idle:>8}"
    )
