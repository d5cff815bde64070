"""``tinyres bench gpu``: all that only a GPU can show, in one command of a few minutes.

The GPU tests, parity of every kernel, compute-sanitizer over a small step, bandwidth and arithmetic of the kernels beside
the card's own, whole steps beside PyTorch, and a training run.  With the backend ``cuda-emulated`` it runs through all of
this at tiny sizes on the CPU, so that the command itself is tested where no GPU is; those figures mean nothing.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import tinyres as tr
from tinyres import nn
from tinyres.benchmarks import gpu_peers, layers, machine, peers
from tinyres.errors import TinyresError, UsageError
from tinyres.kernels import dispatch, reference
from tinyres.kernels.arrays import channels_first
from tinyres.kernels.costs import cost
from tinyres.kernels.cuda import launch


class Plan(NamedTuple):
    """How large everything is."""

    batch: int  # of the kernels and of parity
    elements: int  # of the arrays whose bandwidth is measured
    steps: dict[str, list[int]]  # batch sizes by network
    repeats: int
    training: dict[str, Any]  # arguments of the Trainer
    seconds: float  # after which no new measurement begins


FULL = Plan(
    128, 1 << 26, {"resnet20": [128, 512, 2048], "resnet56": [128, 512], "resnet110": [128], "resnet9": [512, 2048]}, 30,
    {"model": "resnet20", "batch_size": 512, "epochs": 10}, 400.0,
)  # fmt: skip
TINY = Plan(2, 1 << 10, {"resnet8": [2]}, 1, {"model": "resnet8", "batch_size": 8, "epochs": 1}, 600.0)
NETWORKS = {"resnet9": (lambda: ResNet9(), gpu_peers.resnet9)}  # besides those of `tinyres.models` and `peers`


class ResNet9(nn.Module):
    """David Page's, as `gpu_peers.resnet9`, but with an average over the last map in the place of its maximum."""

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


class Run:
    """One run of the command: the backend's arrays, the clock, and what was found so far."""

    def __init__(self, backend: str, plan: Plan, say: Callable[[str], None]) -> None:
        self.backend, self.plan, self.say = backend, plan, say
        self.began = time.perf_counter()
        with tr.use_backend(backend):
            self.kernels = dispatch.current()
        if self.kernels.device == "cuda":
            import cupy

            self.xp: Any = cupy
        else:
            self.xp = np
        self.device = launch.device(self.xp)

    def late(self) -> bool:
        return time.perf_counter() - self.began > self.plan.seconds

    def upload(self, value: Any) -> Any:
        """Arguments of a kernel on the device, images in their own layout."""
        if isinstance(value, list):
            return [self.upload(v) for v in value]
        if not isinstance(value, np.ndarray):
            return value
        return channels_first(self.xp.asarray(value.transpose(0, 2, 3, 1))) if value.ndim == 4 else self.xp.asarray(value)

    def milliseconds(self, run: Callable[[], Any]) -> float:
        """Of one run, in a captured graph of ten: what a launch costs Python is not in it.  The median of five."""
        graph, many = self.device.Graph(), 10 if self.plan.repeats > 1 else 1
        with graph.memory():
            run()
        with graph.capture():
            for _ in range(many):
                run()
        graph.replay()
        return median(self.device.elapsed_ms(graph.replay, self.plan.repeats) for _ in range(5)) / many


def run(backend: str, out: Path, data: Any, tiny: bool = False, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The result of ``tinyres bench gpu`` as a dict for JSON.  ``data``: what the training run is on (`tinyres.data`)."""
    one = Run(backend, TINY if tiny else FULL, say)
    result: dict[str, Any] = {
        "benchmark": "gpu", "backend": backend, "tiny": tiny, "machine": machine.describe(), "gpu": one.device.describe(),
    }  # fmt: skip
    parts: dict[str, Callable[[], Any]] = {
        "limits": lambda: limits(one), "parity": lambda: parity(one), "kernels": lambda: kernels(one),
        "bandwidth": lambda: bandwidth(one), "steps": lambda: steps(one), "training": lambda: training(one, data, out),
        "sanitizer": lambda: sanitizer(one), "tests": lambda: tests(one),
    }  # fmt: skip
    for name, part in parts.items():
        say(f"\n{name} ({time.perf_counter() - one.began:.0f} s)")
        try:
            result[name] = part() if not one.late() else "left out: no time"
        except (TinyresError, RuntimeError, OSError) as error:  # one part that fails does not lose the others
            result[name] = f"failed: {error}"
            say(result[name])
    result["seconds"] = time.perf_counter() - one.began
    return result


def limits(one: Run) -> dict[str, float]:
    """GB/s of a copy of 256 MB on the card, read and written, and TFLOP/s of PyTorch's matrix products."""
    a = one.xp.ones(one.plan.elements, "f4")
    b = one.xp.empty_like(a)

    def copy() -> None:
        b[...] = a

    copy()
    best = min(one.device.elapsed_ms(copy, one.plan.repeats) for _ in range(5))
    found = {"copy_gb_per_s": 2 * a.nbytes / best / 1e6}
    if gpu_peers.available():
        found |= {f"matmul_{t}_tflops": gpu_peers.matmul_tflops(t) for t in ("float32", "tf32", "float16", "bfloat16")}
    for name, value in found.items():
        one.say(f"{name:28} {value:10.1f}")
    return found


def cases(one: Run) -> list[layers.Case]:
    return [*layers.convolutions(one.plan.batch), *layers.norms(one.plan.batch), *layers.others(one.plan.batch)]


def parity(one: Run) -> list[dict[str, Any]]:
    """The relative error, in norm, of each kernel against the reference in float64, and against PyTorch's on the CPU."""
    rows = []
    for case in cases(one):
        wide = [_widen(a) for a in case.args]
        expected = getattr(reference, case.kernel)(*wide)
        args = one.upload(list(case.args))
        got = getattr(one.kernels, case.kernel)(*args)
        if case.kernel == "sgd":
            expected, got = tuple(wide[0]), tuple(args[0])
        row = {"case": case.name, "kernel": case.kernel, "error": _error(got, expected)}
        if case.kernel.startswith("conv2d") and peers.installed():
            theirs = case.torch(None)()
            theirs = next(t for t in theirs if t is not None) if isinstance(theirs, tuple) else theirs
            row["error_of_torch"] = _error(theirs.numpy(), expected)
        rows.append(row)
        one.say(f"{case.name:28} {row['error']:.1e}")
    return rows


def _widen(value: Any) -> Any:
    if isinstance(value, list):
        return [_widen(v) for v in value]
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value


def _error(got: Any, expected: Any) -> float:
    """|got - expected| / |expected|, the largest over several results; a NaN is an infinite error."""
    if isinstance(expected, tuple | list):
        return max(_error(g, e) for g, e in zip(got, expected, strict=True) if e is not None)
    host = got.get() if hasattr(got, "get") else np.asarray(got)
    error = np.linalg.norm((host - expected).ravel()) / max(np.linalg.norm(np.ravel(expected)), 1e-30)
    return float(error) if np.isfinite(error) else float("inf")


def kernels(one: Run) -> list[dict[str, Any]]:
    """Milliseconds of each kernel at the layers of ResNet-20, beside the NumPy path on this machine's CPU."""
    rows = []
    for case in cases(one):
        if one.late():
            break
        args = one.upload(list(case.args))
        on_gpu, on_cpu = getattr(one.kernels, case.kernel), getattr(reference, case.kernel)
        flops, moved = cost(case.kernel, case.args, on_cpu(*case.args))
        began = time.perf_counter()
        on_cpu(*case.args)
        cpu_ms = 1e3 * (time.perf_counter() - began)
        ms = one.milliseconds(lambda run=on_gpu, args=args: run(*args))
        rows.append({"case": case.name, "kernel": case.kernel, "ms": ms, "numpy_ms": cpu_ms, "tflops": flops / ms / 1e9,
                     "gb_per_s": moved / ms / 1e6})  # fmt: skip
        one.say(f"{case.name:28} {1e3 * ms:9.1f} us {rows[-1]['tflops']:8.2f} TFLOP/s {rows[-1]['gb_per_s']:8.0f} GB/s "
                f"{cpu_ms / ms:8.0f} x NumPy")  # fmt: skip
    return rows


def bandwidth(one: Run) -> list[dict[str, Any]]:
    """GB/s of the kernels that only move memory, on large arrays."""
    n = max(1, one.plan.elements // (32 * 32 * 32))
    side = 32 if one.plan.elements >= 1 << 15 else 4
    rng = np.random.default_rng(0)
    x, y = (one.upload(rng.standard_normal((n, 32, side, side), np.float32)) for _ in range(2))
    weight, bias = one.xp.ones(32, "f4"), one.xp.zeros(32, "f4")
    k = one.kernels
    _, mean, var = k.batch_norm(x, weight, bias, 1e-5, None, True)
    size = x.nbytes
    rows = []
    for name, arrays, call in (  # arrays: how many of that size must cross the bus
        ("add_relu", 3, lambda: k.add_relu(x, y)), ("relu_backward", 3, lambda: k.relu_backward(x, y)),
        ("batch_norm + relu", 3, lambda: k.batch_norm(x, weight, bias, 1e-5, None, True)),
        ("batch_norm + add + relu", 4, lambda: k.batch_norm(x, weight, bias, 1e-5, y, True)),
        ("batch_norm_backward", 6, lambda: k.batch_norm_backward(x, y, None, weight, mean, var, 1e-5, True, False)),
        ("global_avg_pool2d", 1, lambda: k.global_avg_pool2d(x)),
    ):  # fmt: skip
        ms = one.milliseconds(call)
        rows.append({"kernel": name, "ms": ms, "gb_per_s": arrays * size / ms / 1e6, "bytes": arrays * size})
        one.say(f"{name:28} {rows[-1]['gb_per_s']:8.0f} GB/s")
    return rows


def steps(one: Run) -> list[dict[str, Any]]:
    """Milliseconds of whole training steps, ours and PyTorch's in turns, the median of five."""
    rows = []
    for model, batches in one.plan.steps.items():
        for batch in batches:
            runs: dict[str, Callable[[int], float]] = {}
            for dtype in ("float32", "bfloat16"):
                ours = _our_step(one, model, batch, dtype)
                runs[f"{one.backend} {dtype}"] = lambda repeats, ours=ours: one.device.elapsed_ms(lambda: ours(1), repeats)
            if gpu_peers.available() and not one.late():
                for name in gpu_peers.CONFIGURATIONS:
                    if "compile" in name and (model, batch) != ("resnet20", 128):
                        continue  # minutes each
                    network = NETWORKS[model][1] if model in NETWORKS else (lambda model=model: peers.network(model))
                    theirs = gpu_peers.step(network(), name, batch, half=False)
                    for _ in range(3):
                        theirs()
                    runs[name] = lambda repeats, theirs=theirs: gpu_peers.elapsed_ms(theirs, repeats)
            times: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(5 if one.plan.repeats > 1 else 1):
                for name, measure in runs.items():
                    times[name].append(measure(one.plan.repeats))
            for name, ms in times.items():
                rows.append({"model": model, "batch": batch, "row": name, "ms": median(ms), "all_ms": ms,
                             "images_per_second": 1e3 * batch / median(ms)})  # fmt: skip
                one.say(f"{model:10} {batch:5} {name:30} {median(ms):9.3f} ms {1e3 * batch / median(ms):10.0f} images/s")
    return rows


def _our_step(one: Run, model: str, batch: int, dtype: str) -> Callable[[int], None]:
    """A step of ours, captured; called with the number of steps to do."""
    from tinyres.train import build_network
    from tinyres.train.resident import WARM_UP, ResidentStep, Sums

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (4 * batch, 3, 32, 32), np.uint8), rng.integers(0, 10, 4 * batch)
    tr.manual_seed(0)
    net = (NETWORKS[model][0]() if model in NETWORKS else build_network(model)).to(one.kernels.device)
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


def training(one: Run, data: Any, out: Path) -> dict[str, Any]:
    """A run of the recipe ``onecycle`` with its accuracy and the seconds that it took, tests included."""
    from tinyres.train import Trainer
    from tinyres.train.progress import Silent

    with tr.use_backend(one.backend):
        began = time.perf_counter()
        folder = out / "training"
        shutil.rmtree(folder, ignore_errors=True)
        trainer = Trainer(dataset=data, out=folder, display=Silent(), **one.plan.training)
        lines = trainer.fit()
    seconds = time.perf_counter() - began
    best = min(line["test_error"] for line in lines)
    reason = trainer.resident.reason if trainer.resident else "the backend has none"
    one.say(f"{one.plan.training['model']}, {len(lines)} epochs: {100 - lines[-1]['test_error']:.2f} % in {seconds:.1f} s")
    return {"data": data.name, **one.plan.training, "seconds": seconds, "test_accuracy": 100 - lines[-1]["test_error"],
            "best_test_accuracy": 100 - best, "not_captured": reason, "lines": lines}  # fmt: skip


def sanitizer(one: Run) -> dict[str, str]:
    """compute-sanitizer over two steps of a ResNet-8, for memory and for races; without a GPU, the steps alone."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    command = [sys.executable, "-m", "tinyres.benchmarks.gpu_small_step", one.backend]
    found = {}
    for check in ("memcheck", "racecheck") if one.xp is not np else ("none",):
        if check != "none" and not tool:
            found[check] = "compute-sanitizer was not found"
            continue
        full = [tool, "--tool", check, "--error-exitcode", "9", *command] if check != "none" and tool else command
        done = subprocess.run(full, capture_output=True, text=True, timeout=180)
        found[check] = "clean" if done.returncode == 0 else (done.stdout + done.stderr)[-2000:]
        one.say(f"{check:12} {found[check]}")
    return found


def tests(one: Run) -> str:
    """The tests marked ``gpu``, where a checkout with tests is at hand."""
    folder = Path(__file__).resolve().parent.parent / "tests"
    if one.xp is np or not (folder / "test_gpu.py").exists():
        return "not run: " + ("there is no GPU" if one.xp is np else "the tests are in the repository")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(folder / "test_gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    one.say(done.stdout[-1500:])
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:]


def table(result: dict[str, Any]) -> list[str]:
    """What matters, in a few lines: printed last."""
    lines = [f"{result['gpu'].get('gpu', 'no GPU')}: {result['seconds']:.0f} s in all"]
    copy = result["limits"].get("copy_gb_per_s") if isinstance(result["limits"], dict) else None
    if isinstance(result["parity"], list):
        worst = max(result["parity"], key=lambda row: row["error"])
        lines.append(f"parity: {len(result['parity'])} cases, largest error {worst['error']:.1e} ({worst['case']})")
    if isinstance(result["bandwidth"], list) and copy:
        lines += [f"{r['kernel']:28} {r['gb_per_s'] / copy:6.0%} of the copy's {copy:.0f} GB/s" for r in result["bandwidth"]]
    if isinstance(result["steps"], list):
        eager = {(r["model"], r["batch"]): r["ms"] for r in result["steps"] if r["row"] == "torch eager"}
        for r in result["steps"]:
            times = eager.get((r["model"], r["batch"]), 0) / r["ms"]
            ratio = f"{times:6.2f} x torch eager" if times else ""
            lines.append(f"{r['model']:10} {r['batch']:5} {r['row']:30} {r['ms']:9.3f} ms {ratio}")
    if isinstance(result["training"], dict):
        t = result["training"]
        accuracy = f"{t['test_accuracy']:.2f} % after {t['epochs']} epochs"
        lines.append(f"{t['model']} on {t['data']}: {accuracy}, {t['seconds']:.1f} s")
    lines += [f"{name}: {result[name]}" for name in ("sanitizer", "tests")]
    return lines


def check_backend(backend: str) -> None:
    """Raises UsageError for one that this command is not for."""
    if backend not in ("cupy", "cuda-emulated"):
        raise UsageError(f"bench gpu measures the backends cupy and cuda-emulated, not {backend}")
    reason = tr.available_backends()[backend]
    if reason:
        hint = "" if backend == "cuda-emulated" else "; --backend cuda-emulated --tiny runs through it without a GPU"
        raise UsageError(f"backend {backend} cannot run here: {reason}{hint}")
