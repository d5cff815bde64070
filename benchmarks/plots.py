"""Pictures of a result: whole steps as bars, layers as bars under the machine's peak, and a roofline."""

from pathlib import Path
from typing import Any

COLOURS = {"numpy": "#9aa5b1", "numba": "#d1495b", "torch nchw": "#8fb8de", "torch channels_last": "#30638e",
           "torch compile": "#5c9ead", "torch compile channels_last": "#003d5b"}  # fmt: skip


def draw(result: dict[str, Any], folder: str | Path) -> list[Path]:
    """Writes the pictures that belong to the result as PNG files and returns their paths."""
    import matplotlib.figure

    folder = Path(folder)
    charts: dict[str, Any] = {
        "ops": {"layers": _layers, "roofline": _roofline}, "train": {"train": _steps}, "inference": {"inference": _steps},
    }.get(result["benchmark"], {})  # fmt: skip
    paths = []
    for name, chart in charts.items():
        figure = matplotlib.figure.Figure(figsize=(11, 5), layout="constrained")
        chart(figure.subplots(), result)
        machine = result["machine"]
        figure.suptitle(f"{machine['processor']}, {machine['threads']} threads", fontsize=9, color="0.4")
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def _bars(axes: Any, labels: list[str], rows: list[str], value: Any) -> None:
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        heights = [value(label, row) for label in labels]
        at = [k + (i - (len(rows) - 1) / 2) * width for k in range(len(labels))]
        axes.bar(at, heights, width, label=row, color=COLOURS.get(row))
    slanted = {"rotation": 35, "ha": "right"} if len(labels) > 6 else {}
    axes.set_xticks(range(len(labels)), labels, **slanted)
    axes.spines[["top", "right"]].set_visible(False)


def _steps(axes: Any, result: dict[str, Any]) -> None:
    speeds = {
        (f"{c['model']}\nbatch {c['batch']}", r["row"]): r["images_per_second"] for c in result["cases"] for r in c["rows"]
    }
    labels, rows = list(dict.fromkeys(k for k, _ in speeds)), list(dict.fromkeys(r for _, r in speeds))
    _bars(axes, labels, rows, lambda label, row: speeds.get((label, row), 0))
    axes.set_ylabel("images a second")
    axes.set_title("One training step" if result["benchmark"] == "train" else "Inference", loc="left")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)


def _layers(axes: Any, result: dict[str, Any]) -> None:
    rates = {(r["case"], r["row"]): r["gflops"] for r in result["rows"] if r["case"].startswith("conv 3x3")}
    labels, rows = list(dict.fromkeys(k for k, _ in rates)), list(dict.fromkeys(r for _, r in rates))
    _bars(axes, labels, rows, lambda label, row: rates.get((label, row), 0))
    for key, text in (("fma_peak_gflops", "multiply-add peak"), ("matmul_gflops", "matrix product 2048")):
        if key in result["limits"]:
            axes.axhline(result["limits"][key], color="0.3", linestyle="--" if "peak" in key else ":", linewidth=1)
            axes.text(len(labels) - 0.5, result["limits"][key], text, ha="right", va="bottom", fontsize=8, color="0.3")
    axes.set_ylabel("GFLOP/s, counted as direct convolution")
    axes.set_title(f"3x3 convolutions, batch {result['batch']}", loc="left")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)


def _roofline(axes: Any, result: dict[str, Any]) -> None:
    limits = result["limits"]
    peak, bandwidth = limits.get("fma_peak_gflops", limits["matmul_gflops"]), limits["copy_gb_per_s"]
    intensities = [2 ** (k / 4) for k in range(-16, 41)]
    axes.loglog(intensities, [min(peak, bandwidth * i) for i in intensities], color="0.3", linewidth=1.5)
    for row in dict.fromkeys(r["row"] for r in result["rows"]):
        points = [(r["flops"] / r["bytes"], r["gflops"]) for r in result["rows"] if r["row"] == row and r["flops"]]
        axes.loglog(*zip(*points, strict=True), "o", markersize=4, label=row, color=COLOURS.get(row), alpha=0.8)
    axes.set_xlabel("floating-point operations for each byte that must move")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("Roofline: copy bandwidth and multiply-add peak of this machine", loc="left")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
