"""The picture of a run: loss and error per epoch, as a PNG (drawn by matplotlib, without a display)."""

import io
from pathlib import Path
from typing import Any

from tinyres.files import write_atomically

TRAIN, HELD_OUT = "#1f6fb4", "#d1495b"


def write_curves(path: Path, title: str, lines: list[dict[str, Any]], held_out: str = "test") -> None:
    """Draws ``lines``, one or more, of ``metrics.jsonl``; ``held_out`` names the images that are not trained on.

    Raises ImportError if matplotlib is missing, OSError if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [line["epoch"] for line in lines]
    figure = Figure(figsize=(9.6, 4.0), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2)
    left.set_title("loss", loc="left", fontsize=10)
    left.plot(epochs, [line["train_loss"] for line in lines], color=TRAIN, marker=".", label="training")
    left.plot(epochs, [line[f"{held_out}_loss"] for line in lines], color=HELD_OUT, marker=".", label=held_out)
    right.set_title("error, %", loc="left", fontsize=10)
    right.plot(epochs, [line["train_error"] for line in lines], color=TRAIN, marker=".", label="training")
    errors = [line[f"{held_out}_error"] for line in lines]
    best = min(range(len(errors)), key=errors.__getitem__)
    label = f"{held_out}, {errors[best]:.2f} % at best"
    right.plot(epochs, errors, color=HELD_OUT, marker=".", label=label)
    right.plot(epochs[best], errors[best], "o", color=HELD_OUT, fillstyle="none", markersize=10)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    write_atomically(path, png.getvalue())
