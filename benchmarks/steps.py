"""Whole training steps and inference of the CIFAR networks, ours beside PyTorch's configurations, interleaved."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

import numpy as np

import tinyres as tr
import tinyres.functional as F
from tinyres.benchmarks import machine, memory, peers, timing


def network(name: str) -> Any:
    """As in `peers`: option A, but projections in the bottleneck net."""
    return tr.models.build(name, **({"shortcut": "B"} if name == "resnet164" else {}))


def make_step(model: str, batch: int, row: str | None, training: bool = True) -> Callable[[], object]:
    """One step of ``model`` on ``batch`` random images. ``row`` is one of our backends (None: the one in use when the step
    runs) or one of PyTorch's configurations.
    """
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, 3, 32, 32), np.float32)
    labels = rng.integers(0, 10, batch)
    if row in peers.CONFIGURATIONS:
        return peers.step(model, row, images, labels, training)
    tr.manual_seed(0)
    net = network(model).train(training)
    optimizer = tr.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    x = tr.tensor(images)

    def backend() -> Any:
        return tr.use_backend(row) if row else nullcontext()

    def train() -> object:
        with backend(), tr.strict():
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), labels)
            loss.backward()
            optimizer.step()
        return loss

    def infer() -> object:
        with backend(), tr.strict(), tr.no_grad():
            return net(x)

    return train if training else infer


def flops_per_image(model: str, training: bool) -> int:
    """Forward: two per multiply-add. Training: three times as many, less the first layer's input gradient."""
    summary = tr.nn.summary(network(model))
    first = next(row.multiply_adds for row in summary.rows if row.multiply_adds)
    return 2 * (3 * summary.multiply_adds - first if training else summary.multiply_adds)


def peak_memory(model: str, batch: int, row: str) -> float | None:
    """The peak memory of a training step in MiB, beyond what the process holds when it has made the network and run one step
    on two images (libraries loaded, code compiled). None if the system does not tell.
    """
    return memory.peak_of_process("tinyres.benchmarks.steps", model, str(batch), row)


def run(
    models: list[str],
    batches: list[int],
    rows: list[str],
    rounds: int,
    training: bool = True,
    with_memory: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The result of ``tinyres bench train`` as a dict for JSON; ``say`` is told each line as it is ready."""
    cases = []
    for model in models:
        for batch in batches:
            steps = {row: make_step(model, batch, row, training) for row in rows}
            seconds = timing.interleaved(steps, rounds)
            del steps
            theirs = [row for row in rows if row in peers.CONFIGURATIONS]
            best = timing.best(seconds, theirs) if theirs else None
            case: dict[str, Any] = {"model": model, "batch": batch, "training": training, "best_peer": best, "rows": []}
            work = flops_per_image(model, training) * batch
            for row in rows:
                middle, weigh = median(seconds[row]), with_memory and training and "compile" not in row
                case["rows"].append(
                    {
                        "row": row,
                        "median_seconds": middle,
                        "seconds": seconds[row],
                        "images_per_second": batch / middle,
                        "gflops": work / middle / 1e9,
                        "times_best_peer": timing.ratio(seconds[best], seconds[row]) if best else None,
                        "peak_mib": peak_memory(model, batch, row) if weigh else None,
                    }
                )
                say(line(case, case["rows"][-1]))
            cases.append(case)
    return {
        "benchmark": "train" if training else "inference",
        "machine": machine.describe(),
        "limits": machine.limits(),
        "rounds": rounds,
        "cases": cases,
    }


HEADER = f"{'model':10} {'batch':>5}  {'':27} {'ms':>8} {'images/s':>9} {'GFLOP/s':>8} {'x best peer':>11} {'peak MiB':>9}"


def line(case: dict[str, Any], row: dict[str, Any]) -> str:
    """One row of the table under `HEADER`."""
    times = f"{row['times_best_peer']:.2f}" if row["times_best_peer"] else "-"
    peak = f"{row['peak_mib']:.0f}" if row["peak_mib"] is not None else "-"
    return (
        f"{case['model']:10} {case['batch']:5}  {row['row']:27} {1e3 * row['median_seconds']:8.1f} "
        f"{row['images_per_second']:9.0f} {row['gflops']:8.1f} {times:>11} {peak:>9}"
    )


if __name__ == "__main__":  # the process of `peak_memory`
    name, size, chosen = sys.argv[1:]
    make_step(name, 2, chosen)()
    print(memory.growth(make_step(name, int(size), chosen)))
