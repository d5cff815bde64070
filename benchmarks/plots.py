"""Pictures of a result: whole steps as bars, layers as bars under the machine's peak, and a roofline; for a GPU, also the
bandwidth of kernels that only move memory.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyres.benchmarks import report, spread
from tinyres.benchmarks.machine import GFLOPS

COUNTED = f"GFLOP/s, {GFLOPS.partition(':')[0]}"

COLOURS = {
    "numpy": "#9aa5b1",
    "numba": "#e8a1aa",
    "numba captured": "#d1495b",
    "torch nchw": "#8fb8de",
    "torch channels_last": "#30638e",
    "torch compile": "#5c9ead",
    "torch compile channels_last": "#003d5b",
    "jax jit": "#7a9e7e",
    "onnxruntime": "#b08bbb",
    "openvino": "#6b4e71",
    "cupy float32": "#d1495b",
    "cupy bfloat16": "#edae49",
    "cuda-emulated float32": "#d1495b",
    "cuda-emulated bfloat16": "#edae49",
    "torch eager": "#8fb8de",
    "torch channels_last autocast": "#30638e",
    "torch cuda graph": "#5c9ead",
    "torch compile max-autotune": "#003d5b",
}


def draw(result: dict[str, Any], folder: str | Path) -> list[Path]:
    """Writes the pictures that belong to the result as PNG files and returns their paths."""
    import matplotlib.figure

    folder = Path(folder)
    charts: dict[str, Any] = {
        "ops": {"layers": _layers, "roofline": _roofline},
        "train": {"train": _steps},
        "inference": {"inference": _steps},
        "gpu": _of_gpu(result),
    }.get(result["benchmark"], {})
    paths = []
    for name, chart in charts.items():
        figure = matplotlib.figure.Figure(figsize=(11, 5), layout="constrained")
        chart(figure.subplots(), result)
        machine = f"{result['machine']['processor']}, {result['machine']['threads']} threads"
        figure.suptitle(result["gpu"]["gpu"] if "gpu" in result else machine, fontsize=9, color="0.4")
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def _of_gpu(result: dict[str, Any]) -> dict[str, Any]:
    """The charts for which a GPU's result has figures: a part may have failed or run out of time."""
    copy = isinstance(result.get("limits"), dict) and "copy_gb_per_s" in result["limits"]
    drawn = {"steps": _steps} if report.measured_steps(result) else {}
    drawn |= {"bandwidth": _bandwidth} if copy and report.rows(result, "bandwidth") else {}
    return drawn | ({"roofline": _gpu_roofline} if copy and report.rows(result, "kernels") else {})


Rates = tuple[float, float, float]  # at the median, and from the slow quartile to the fast one
Points = dict[str, list[tuple[float, Rates]]]
NOTHING = (0.0, 0.0, 0.0)


def _rates(amount: float, row: dict[str, Any]) -> Rates:
    """Per second, for an amount that takes the row's time. Without its rounds, the spread is nothing."""
    if "ms" in row:  # of a GPU's result
        middle, times = row["ms"] / 1e3, [ms / 1e3 for ms in row.get("all_ms") or ()]
    else:
        middle, times = row["median_seconds"], row.get("seconds")
    fast, slow = spread.quartiles(times) if times else (middle, middle)
    return amount / middle, amount / slow, amount / fast


def _errors(found: list[Rates]) -> list[list[float]] | None:
    """The lengths of error bars as matplotlib takes them, below and above; None if no row has its rounds."""
    if all(low == high for _, low, high in found):
        return None
    return [[max(middle - low, 0) for middle, low, _ in found], [max(high - middle, 0) for middle, _, high in found]]


def _bars(axes: Any, labels: list[str], rows: list[str], value: Callable[[str, str], Rates]) -> None:
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        found = [value(label, row) for label in labels]
        places = [k + (i - (len(rows) - 1) / 2) * width for k in range(len(labels))]
        bars = {"ecolor": "0.2", "elinewidth": 1, "capsize": 2}
        heights = [middle for middle, _, _ in found]
        axes.bar(places, heights, width, label=row, color=COLOURS.get(row), yerr=_errors(found), error_kw=bars)
    slanted = {"rotation": 35, "ha": "right"} if len(labels) > 6 else {}
    axes.set_xticks(range(len(labels)), labels, **slanted)
    axes.spines[["top", "right"]].set_visible(False)


def _steps(axes: Any, result: dict[str, Any]) -> None:
    if result["benchmark"] == "gpu":
        measured = report.measured_steps(result)
    else:
        measured = [{**case, **row} for case in result["cases"] for row in case["rows"]]
    speeds = {(f"{r['model']}\nbatch {r['batch']}", r["row"]): _rates(r["batch"], r) for r in measured}
    labels, rows = list(dict.fromkeys(k for k, _ in speeds)), list(dict.fromkeys(r for _, r in speeds))
    _bars(axes, labels, rows, lambda label, row: speeds.get((label, row), NOTHING))
    axes.set_ylabel("images per second; bars: quartiles")
    axes.set_title("Inference" if result["benchmark"] == "inference" else "One training step", loc="left")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)


def _layers(axes: Any, result: dict[str, Any]) -> None:
    convs = [r for r in result["rows"] if r["case"].startswith("conv 3x3")]
    rates = {(r["case"], r["row"]): _rates(r["flops"] / 1e9, r) for r in convs}
    labels, rows = list(dict.fromkeys(k for k, _ in rates)), list(dict.fromkeys(r for _, r in rates))
    _bars(axes, labels, rows, lambda label, row: rates.get((label, row), NOTHING))
    for key, text in (("fma_peak_gflops", "multiply-add peak"), ("matmul_gflops", "matrix product 2048")):
        if key in result["limits"]:
            axes.axhline(result["limits"][key], color="0.3", linestyle="--" if "peak" in key else ":", linewidth=1)
            axes.text(len(labels) - 0.5, result["limits"][key], text, ha="right", va="bottom", fontsize=8, color="0.3")
    axes.set_ylabel(COUNTED)
    axes.set_title(f"3x3 convolutions, batch {result['batch']}", loc="left")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)


def _bandwidth(axes: Any, result: dict[str, Any]) -> None:
    copy = result["limits"]["copy_gb_per_s"]
    shares = {r["kernel"]: _rates(100 * r["gb_per_s"] * r["ms"] / 1e3 / copy, r) for r in result["bandwidth"]}
    _bars(axes, list(shares), ["GB/s that must move"], lambda label, _: shares[label])
    for share, text in ((85, "85 %"), (100, f"copy: {result['limits']['copy_gb_per_s']:.0f} GB/s")):
        axes.axhline(share, color="0.3", linestyle="--" if share == 100 else ":", linewidth=1)
        axes.text(len(shares) - 0.5, share, text, ha="right", va="bottom", fontsize=8, color="0.3")
    axes.set_ylabel("% of the copy's bandwidth")
    axes.set_title("Kernels that only move memory", loc="left")


def _roofline(axes: Any, result: dict[str, Any]) -> None:
    limits, points = result["limits"], Points()
    for r in result["rows"]:
        if r["flops"]:
            points.setdefault(r["row"], []).append((r["flops"] / r["bytes"], _rates(r["flops"] / 1e9, r)))
    _roof(axes, points, limits["copy_gb_per_s"], limits.get("fma_peak_gflops", limits["matmul_gflops"]))
    axes.set_title("Roofline: copy bandwidth and multiply-add peak of this machine", loc="left")


def _gpu_roofline(axes: Any, result: dict[str, Any]) -> None:
    product, points = "tf32" if result["tf32"] else "float32", Points()
    for r in result["kernels"]:
        if r["flops"]:
            points.setdefault(r["kernel"], []).append((r["flops"] / r["bytes"], _rates(r["flops"] / 1e9, r)))
    tflops = result["limits"].get(f"matmul_{product}_tflops")
    _roof(axes, points, result["limits"]["copy_gb_per_s"], 1e3 * tflops if tflops else None)
    roof = f"the copy's bandwidth and\nthe matrix product ({product})" if tflops else "the copy's bandwidth"
    axes.text(0.02, 0.95, f"line: {roof}", transform=axes.transAxes, va="top", fontsize=8, color="0.3")
    axes.set_title("Roofline of this card", loc="left")


def _roof(axes: Any, points: Points, bandwidth: float, peak: float | None) -> None:
    """Points (FLOPs per byte, GFLOP/s) with quartiles by row, under a bandwidth in GB/s and a peak in GFLOP/s, if known."""
    intensities = [2 ** (k / 4) for k in range(-16, 41)]
    axes.loglog(intensities, [min(peak or float("inf"), bandwidth * i) for i in intensities], color="0.3", linewidth=1.5)
    for row, found in points.items():
        intensity, rates = [x for x, _ in found], [r for _, r in found]
        style: dict[str, Any] = {"markersize": 4, "color": COLOURS.get(row), "alpha": 0.8, "elinewidth": 1}
        axes.errorbar(intensity, [middle for middle, _, _ in rates], yerr=_errors(rates), fmt="o", label=row, **style)
    axes.set_xlabel("floating-point operations per byte that must move")
    axes.set_ylabel(COUNTED)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
