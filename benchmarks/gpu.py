"""``tinyres bench gpu``: all that only a GPU can show, in one command of at most eight minutes.

Parity of every kernel and of whole steps, bandwidth and arithmetic of the kernels beside those of the card, whole steps
beside PyTorch, a training run, a small step under compute-sanitizer, the GPU tests, and PyTorch's compiler: in this order,
since the last parts are left out when the time is up. With the backend ``cuda-emulated`` it does all of this at tiny sizes
on the CPU, so that the command itself is tested without a GPU; those figures mean nothing.
"""

import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import tinyres as tr
from tinyres.benchmarks import gpu_parity, gpu_peers, gpu_steps, layers, machine, report, spread
from tinyres.benchmarks.gpu_run import FULL, TINY, OutOfTime, Run, command
from tinyres.errors import UsageError
from tinyres.kernels import reference
from tinyres.kernels.arrays import channels_first
from tinyres.kernels.costs import cost
from tinyres.kernels.cuda import im2col
from tinyres.kernels.cuda.conv import tf32_allowed

REQUIRED = 0.85  # of the copy's bandwidth, for a kernel that only moves memory
PARTS: dict[str, Callable[[Run, Any, Path], Any]] = {
    "limits": lambda one, data, out: limits(one),
    "parity": lambda one, data, out: gpu_parity.kernels(one),
    "parity_of_steps": lambda one, data, out: gpu_parity.steps(one),
    "bandwidth": lambda one, data, out: bandwidth(one),
    "kernels": lambda one, data, out: kernels(one),
    "steps": lambda one, data, out: gpu_steps.steps(one),
    "training": lambda one, data, out: gpu_steps.training(one, data, out),
    "sanitizer": lambda one, data, out: sanitizer(one),
    "tests": lambda one, data, out: tests(one),
    "compiled": lambda one, data, out: gpu_steps.compiled(one),
}


def run(
    backend: str,
    out: Path,
    data: Any,
    tiny: bool = False,
    say: Callable[[str], None] = print,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The result of ``tinyres bench gpu`` as a dict for JSON, also written to ``result.json`` in ``out`` after each part, so
    that a crash loses nothing. ``data`` is the data set (`tinyres.data`) of the training run; ``about``: `machine.begin`.
    """
    one = Run(backend, TINY if tiny else FULL, say)
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "complete": False,
        **(about or {}),
        "backend": backend,
        "tiny": tiny,
        "machine": {**machine.describe(), **(about or {}).get("machine", {})},
        "gflops_are": machine.GFLOPS,
        "gpu": one.device.describe(),
        "tf32": tf32_allowed(),
        "cut_short": one.cut_short,
    }
    for name, part in PARTS.items():
        say(f"\n{name} ({one.elapsed():.0f} s)")
        result[name] = _outcome(one, name, lambda part=part: part(one, data, out))
        one.release()
        result["seconds"] = one.elapsed()
        result["complete"] = name == list(PARTS)[-1]
        report.save(result, out / "result.json")
    return result


def _outcome(one: Run, name: str, part: Callable[[], Any]) -> Any:
    """What the part returns, or a line that says why it has nothing."""
    if one.late():
        return "left out: no time"
    try:
        if name == "training":  # as users train: what a backend lacks is left to the reference
            return part()
        with tr.strict():
            return part()
    except OutOfTime as error:
        outcome = f"cut short: {error}"
    except Exception as error:  # whatever CuPy or the driver raises, the other parts still run
        one.say(traceback.format_exc())
        outcome = f"failed: {type(error).__name__}: {error}"
    one.say(outcome)
    return outcome


def limits(one: Run) -> dict[str, float]:
    """GB/s of a copy of 256 MB on the card, read and written, and TFLOP/s of PyTorch's matrix products."""
    a = one.xp.ones(one.plan.elements, "f4")
    b = one.xp.empty_like(a)

    def copy() -> None:
        b[...] = a

    copy()
    best = min(one.device.elapsed_ms(copy, one.plan.repeats) for _ in range(5))
    one.limits["copy_gb_per_s"] = 2 * a.nbytes / best / 1e6
    one.limits |= gpu_peers.limits()
    for name, value in one.limits.items():
        one.say(f"{name:28} {value:10.1f}")
    return one.limits


def kernels(one: Run) -> list[dict[str, Any]]:
    """Milliseconds of each kernel at the layers of ResNet-20, its share of the copy's bandwidth and of the matrix product,
    and the time of the NumPy path on this machine's CPU.
    """
    rows = []
    one.say(f"* {machine.GFLOPS}")
    for case in one.in_time("kernels", layers.cases(one.plan.batch)):
        args = one.upload(list(case.args))
        on_gpu, on_cpu = getattr(one.kernels, case.kernel), getattr(reference, case.kernel)
        flops, moved = cost(case.kernel, case.args, on_cpu(*case.args))
        began = time.perf_counter()
        on_cpu(*case.args)
        cpu_ms = 1e3 * (time.perf_counter() - began)
        times = one.milliseconds(lambda run=on_gpu, args=args: run(*args))
        ms = median(times)
        product = "tf32" if case.kernel.startswith("conv2d") and tf32_allowed() else "float32"
        tflops, gb_per_s = flops / ms / 1e9, moved / ms / 1e6
        rows.append(
            {
                "case": case.name,
                "kernel": case.kernel,
                "ms": ms,
                "all_ms": times,
                "numpy_ms": cpu_ms,
                "flops": flops,
                "bytes": moved,
                "tflops": tflops,
                "gb_per_s": gb_per_s,
                "of_copy": _share(gb_per_s, one.limits.get("copy_gb_per_s")),
                "of_matmul": _share(tflops, one.limits.get(f"matmul_{product}_tflops")),
            }
        )
        one.say(f"{case.name:28} {1e3 * ms:9.1f} us {tflops:8.2f} TFLOP/s* {gb_per_s:8.0f} GB/s {cpu_ms / ms:8.0f} x NumPy")
    return rows


def _share(value: float, limit: float | None) -> float | None:
    return value / limit if limit else None


def bandwidth(one: Run) -> list[dict[str, Any]]:
    """GB/s of the kernels that only move memory, on arrays of 256 MB, and its share of the copy's."""
    n, side = max(1, one.plan.elements >> 15), 32 if one.plan.elements >= 1 << 15 else 4
    rng = np.random.default_rng(0)
    x, y = (channels_first(one.xp.asarray(rng.standard_normal((n, side, side, 32), np.float32))) for _ in range(2))
    weight, bias = one.xp.ones(32, "f4"), one.xp.zeros(32, "f4")
    k = one.kernels
    z, mean, var = k.batch_norm(x, weight, bias, 1e-5, True)

    geometry = (side, side, 32, 3, 3, side, side, 1, 1, 1, 1, 1, 1)  # H W C KH KW OH OW, stride, padding, dilation
    image = x.transpose(0, 2, 3, 1)[: max(1, n // 9)]  # whose columns are as large as the other arrays
    columns = one.xp.empty((image.size // 32, 9 * 32), "f4")
    macros = dict.fromkeys(("REAL", "LEFT", "RIGHT", "RESULT"), "float")

    size = x.nbytes
    rows = []
    calls: list[tuple[str, int, Callable[[], Any]]] = [  # bytes that must cross the bus: batch norm needs two passes
        ("add_relu", 3 * size, lambda: k.add_relu(x, y)),
        ("relu_backward", 3 * size, lambda: k.relu_backward(x, y)),
        ("batch_norm + relu", 3 * size, lambda: k.batch_norm(x, weight, bias, 1e-5, True)),
        ("batch_norm + add + relu", 4 * size, lambda: k.batch_norm_add_relu(x, y, weight, bias, 1e-5)),
        ("batch_norm_backward", 5 * size, lambda: k.batch_norm_backward(y, x, None, weight, mean, var, 1e-5, True)),
        ("batch_norm_backward + relu", 7 * size, lambda: k.batch_norm_backward(y, x, z, weight, mean, var, 1e-5, True)),
        ("im2col 3x3", image.nbytes + columns.nbytes, lambda: im2col._im2col(image, columns, 0, 32, geometry, macros)),
        ("global_avg_pool2d", size, lambda: k.global_avg_pool2d(x)),
    ]
    for name, moved, call in one.in_time("bandwidth", calls):
        times = one.milliseconds(call)
        ms = median(times)
        gb_per_s = moved / ms / 1e6
        share = _share(gb_per_s, one.limits.get("copy_gb_per_s"))
        speed = {"ms": ms, "all_ms": times, "gb_per_s": gb_per_s, "bytes": moved, "of_copy": share}
        rows.append({"kernel": name, **speed})
        one.say(f"{name:28} {gb_per_s:8.0f} GB/s")
        one.release()
    return rows


def sanitizer(one: Run) -> dict[str, str]:
    """Two steps of a ResNet-8 under compute-sanitizer, for memory and for races; without a GPU, the steps alone."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    words = [sys.executable, "-m", "tinyres.benchmarks.gpu_small_step", one.backend]
    checks = ("memcheck", "racecheck") if one.xp is not np else ("none",)
    found = dict.fromkeys(checks, "left out: no time")
    for check in one.in_time("sanitizer", checks):
        if check != "none" and not tool:
            found[check] = "compute-sanitizer was not found"
            continue
        watched = [tool, "--tool", check, "--error-exitcode", "9", *words] if check != "none" and tool else words
        status, output = command(watched, min(120, one.left()))
        ended = "cut short: no time" if status is None else output[-8000:]
        found[check] = "clean" if status == 0 else ended
        one.say(f"{check:12} {found[check]}")
    return found


def tests(one: Run) -> str:
    """The last line of the tests marked ``gpu``, if this is a checkout with tests."""
    folder = Path(__file__).resolve().parent.parent / "tests"
    if one.xp is np or not (folder / "test_gpu.py").exists():
        return "not run: " + ("there is no GPU" if one.xp is np else "the tests are in the repository")
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(folder / "test_gpu.py")]
    status, output = command(words, min(150, one.left()))
    one.say(output[-1500:])
    last = _last_line(output)
    return f"cut short: no time after {last}" if status is None else last


def check_backend(backend: str) -> None:
    """Raises `UsageError` for a backend that this command does not measure."""
    if backend not in ("cupy", "cuda-emulated"):
        raise UsageError(f"bench gpu measures the backends cupy and cuda-emulated, not {backend}")
    reason = tr.available_backends()[backend]
    if reason:
        hint = "" if backend == "cuda-emulated" else "; --backend cuda-emulated --tiny runs through it without a GPU"
        raise UsageError(f"backend {backend} cannot run here: {reason}{hint}")


# --- the table -------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> list[str]:
    """The lines printed at the end: first each kernel, then the most important results."""
    lines = _kernel_lines(report.rows(result, "kernels"))
    lines.append(f"{result['gpu'].get('gpu', 'no GPU')}: {result['seconds']:.0f} s in all")
    if parity := report.rows(result, "parity"):
        worst = max(parity, key=lambda row: row["error"])
        lines.append(f"parity: {len(parity)} cases, largest error {worst['error']:.1e} ({worst['case']})")
    if isinstance(result["parity_of_steps"], dict):
        p = result["parity_of_steps"]
        lines += [f"parity of {p['steps']} steps of {p['model']}, batch {p['batch']}: relative errors", gpu_parity.HEADER]
        lines += [gpu_parity.line(row) for row in p["rows"]]
    for r in report.rows(result, "bandwidth"):
        lines.append(f"{r['kernel']:28} {r['gb_per_s']:6.0f} GB/s, {verdict(r['of_copy'])}")
    lines += _step_lines(result)
    if isinstance(result["training"], dict):
        t = result["training"]
        accuracy = f"{t['test_accuracy']:.2f} % after {t['epochs']} epochs"
        lines.append(f"{t['model']} on {t['data']}: {accuracy}, {t['seconds']:.1f} s")
    if isinstance(result["sanitizer"], dict):
        lines += [f"sanitizer, {check}: {_last_line(found)}" for check, found in result["sanitizer"].items()]
    lines += [f"{name}: {result[name].splitlines()[0]}" for name in PARTS if isinstance(result[name], str)]
    return lines + [f"{name}: cut short, {done} done" for name, done in result["cut_short"].items()]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def verdict(share: float | None) -> str:
    """How a kernel's bandwidth stands to what is required of it."""
    if share is None:
        return "and no copy to compare with"
    reached = "reaches" if share >= REQUIRED else "BELOW"
    return f"{share:5.1%} of the copy's: {reached} {REQUIRED:.0%}"


def _kernel_lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{share:.0%}"

    return [
        "the kernels against the NumPy path, the copy's bandwidth and the matrix product",
        f"{'':28} {'us':>9} {'quartiles':>17} {'x NumPy':>8} {'of copy':>8} {'of matmul*':>10}",
        *(
            f"{r['case']:28} {1e3 * r['ms']:9.1f} {_quartiles(r, 1e3):>17} {r['numpy_ms'] / r['ms']:8.1f} "
            f"{percent(r['of_copy']):>8} {percent(r['of_matmul']):>10}"
            for r in rows
        ),
        f"* {machine.GFLOPS}",
        "",
    ]


def _times(peer: dict[str, Any], ours: dict[str, Any]) -> str:
    """How many times as fast ours is, with its interval; the compiler's rows come from a process of their own."""
    alone = gpu_peers.COMPILED in (peer["row"], ours["row"])
    interval = (spread.of_ratio if alone else spread.of_paired_ratio)(peer["all_ms"], ours["all_ms"])
    ends = f" ({interval[0]:.2f} - {interval[1]:.2f})" if interval else ""
    return f"{peer['ms'] / ours['ms']:6.2f}{ends}"


def _quartiles(row: dict[str, Any], unit: float) -> str:
    """Of the five times of a row, in units of a millisecond divided by ``unit``."""
    if not row.get("all_ms"):
        return "-"
    low, high = (unit * ms for ms in spread.quartiles(row["all_ms"]))
    return f"{low:.1f} - {high:.1f}" if unit > 1 else f"{low:.3f} - {high:.3f}"


def _step_lines(result: dict[str, Any]) -> list[str]:
    """Each row of the steps, and how many times as fast it is as PyTorch's eager mode and as the best of its rows."""
    measured, lines = report.measured_steps(result), []
    for r in measured:
        same = [other for other in measured if (other["model"], other["batch"]) == (r["model"], r["batch"])]
        torch = {other["row"]: other for other in same if other["row"].startswith("torch")}
        times = f"{_times(min(torch.values(), key=lambda other: other['ms']), r)} x best torch" if torch else ""
        if "torch eager" in torch:
            times = f"{_times(torch['torch eager'], r)} x torch eager, {times}"
        lines.append(
            f"{r['model']:10} {r['batch']:5} {r['row']:30} {r['ms']:9.3f} ms {_quartiles(r, 1):>17} {times}".rstrip()
        )
    failed = (r for part in ("steps", "compiled") for r in report.rows(result, part) if "failed" in r)
    return lines + [f"{r['model']:10} {r['batch']:5} {r['row']:30} failed: {_last_line(r['failed'])}" for r in failed]
