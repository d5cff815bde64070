"""Whole training steps on the device, ours and PyTorch's in turns, and a training run."""

import json
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import tinyres as tr
from tinyres import nn
from tinyres.benchmarks import gpu_peers, peers
from tinyres.benchmarks.gpu_run import TIMES, OutOfTime, Run, command

NETWORKS = {"resnet9": (lambda: ResNet9(), gpu_peers.resnet9)}  # besides those of `tinyres.models` and `peers`


class ResNet9(nn.Module):
    """David Page's ResNet-9, as in `gpu_peers.resnet9`: with the mean of each map at the end, not its maximum."""

    class Block(nn.Module):
        def __init__(self, i: int, o: int, pool: bool = False) -> None:
            super().__init__()
            self.conv, self.bn, self.pool = nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), pool

        def forward(self, x: Any) -> Any:
            y = self.bn(self.conv(x)).relu()
            return tr.functional.max_pool2d(y, 2) if self.pool else y

    def __init__(self) -> None:
        super().__init__()
        block = ResNet9.Block
        self.prep, self.layer1, self.layer2 = block(3, 64), block(64, 128, True), block(128, 256, True)
        self.layer3 = block(256, 512, True)
        self.res1 = nn.Sequential(block(128, 128), block(128, 128))
        self.res3 = nn.Sequential(block(512, 512), block(512, 512))
        self.head = nn.Linear(512, 10)

    def forward(self, x: Any) -> Any:
        y = self.layer1(self.prep(x))
        y = self.layer3(self.layer2(y + self.res1(y)))
        return self.head(tr.functional.global_avg_pool2d(y + self.res3(y)))


def steps(one: Run) -> list[dict[str, Any]]:
    """Milliseconds of whole training steps, the median of `gpu_run.TIMES`. A network that fails, for lack of memory say,
    gets a row that says so, and the others are still measured.
    """
    rows = []
    for model, batch in one.in_time("steps", [(m, b) for m, batches in one.plan.steps.items() for b in batches]):
        try:
            rows += _of_network(one, model, batch)
        except Exception as error:  # whatever CuPy, PyTorch or the driver raises
            one.say(traceback.format_exc())
            rows.append({"model": model, "batch": batch, "row": "all", "failed": f"{type(error).__name__}: {error}"})
        one.release()
    return rows


def _of_network(one: Run, model: str, batch: int) -> list[dict[str, Any]]:
    runs: dict[str, Callable[[int], float]] = {}
    for dtype in ("float32", "bfloat16"):
        ours = _our_step(one, model, batch, dtype)
        runs[f"{one.backend} {dtype}"] = lambda repeats, ours=ours: one.device.elapsed_ms(lambda: ours(1), repeats)
    if gpu_peers.available():
        one.release()
        for name in gpu_peers.CONFIGURATIONS:
            network = NETWORKS[model][1]() if model in NETWORKS else peers.network(model)
            theirs = gpu_peers.step(network, name, batch)
            for _ in range(3):
                theirs()
            runs[name] = lambda repeats, theirs=theirs: gpu_peers.elapsed_ms(theirs, repeats)
    repeats = {name: one.repeats(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(TIMES if one.plan.repeats > 1 else 1):
        for name, run in runs.items():
            times[name].append(run(repeats[name]))
    return [_row(one, model, batch, name, ms) for name, ms in times.items()]


def _row(one: Run, model: str, batch: int, name: str, times: list[float]) -> dict[str, Any]:
    ms = median(times)
    one.say(f"{model:10} {batch:5} {name:30} {ms:9.3f} ms {1e3 * batch / ms:10.0f} images/s")
    return {"model": model, "batch": batch, "row": name, "ms": ms, "all_ms": times, "images_per_second": 1e3 * batch / ms}


def _our_step(one: Run, model: str, batch: int, dtype: str) -> Callable[[int], None]:
    """Our step, captured, as a function of the number of steps to run."""
    from tinyres import models
    from tinyres.captured import WARM_UP
    from tinyres.train.resident import ResidentStep, Sums

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (4 * batch, 3, 32, 32), np.uint8), rng.integers(0, 10, 4 * batch)
    tr.manual_seed(0)
    net = (NETWORKS[model][0]() if model in NETWORKS else models.build(model)).to(one.kernels.device)
    optimizer = tr.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    step = ResidentStep(net, optimizer, images, labels, batch, mean=0.5, scale=2.0, dtype=dtype)
    order = np.arange(len(images))

    def ours(count: int) -> None:
        with tr.use_backend(one.backend), tr.strict():
            step.run(count)

    with tr.use_backend(one.backend), tr.strict():
        step.start(0, Sums(0, 0, 0.0, False), [0.01] * (1 << 16), order)  # longer than any measurement
        step.run(WARM_UP + 1)
        if step.reason:
            one.say(f"{model}: not captured: {step.reason}")
    return ours


def compiled(one: Run) -> list[dict[str, Any]] | str:
    """The rows of `steps` for PyTorch's compiler, in a process of its own, which is killed when the time is up."""
    if not gpu_peers.available():
        return "not run: PyTorch has no GPU"
    rows = []
    for model, batch in one.in_time("torch compile", [("resnet20", 128)]):
        words = [sys.executable, "-m", "tinyres.benchmarks.gpu_peers", model, str(batch), gpu_peers.COMPILED]
        status, output = command(words, one.left())
        times = next((line for line in reversed(output.splitlines()) if line.startswith("[")), "")
        if status == 0 and times:
            rows.append(_row(one, model, batch, gpu_peers.COMPILED, json.loads(times)))
        else:
            failed = "no time: it was still compiling" if status is None else output[-500:]
            rows.append({"model": model, "batch": batch, "row": gpu_peers.COMPILED, "failed": failed})
            one.say(failed)
    return rows


def training(one: Run, data: Any, out: Path) -> dict[str, Any]:
    """A training run with the recipe ``onecycle``: its accuracy, and the seconds that it took with its tests."""
    from tinyres.train import Trainer
    from tinyres.train.progress import Silent

    class UntilLate(Silent):
        """Shows nothing, and stops the run when the time is up."""

        def step(self, where: str, done: int, steps: int, numbers: str, left: float | None) -> None:
            if one.late():
                raise OutOfTime(f"no time after step {done} of {steps} of {where}; {numbers}")

    with tr.use_backend(one.backend):
        began = one.elapsed()
        folder = out / "training"
        shutil.rmtree(folder, ignore_errors=True)
        trainer = Trainer(dataset=data, out=folder, display=UntilLate(), **one.plan.training)
        lines = trainer.fit()
    seconds = one.elapsed() - began
    best = min(line["test_error"] for line in lines)
    reason = trainer.resident.reason if trainer.resident else "the backend has none"
    one.say(f"{one.plan.training['model']}, {len(lines)} epochs: {100 - lines[-1]['test_error']:.2f} % in {seconds:.1f} s")
    return {
        "data": data.name,
        **one.plan.training,
        "seconds": seconds,
        "test_accuracy": 100 - lines[-1]["test_error"],
        "best_test_accuracy": 100 - best,
        "not_captured": reason,
        "lines": lines,
    }
