"""The pictures of runs: loss and error per epoch, drawn by matplotlib without a display."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinyres.files import write_atomically

TRAIN, HELD_OUT = "#1f6fb4", "#d1495b"
COLOURS = ("#1f6fb4", "#d1495b", "#3a8f5c", "#c98a1b", "#7b5ea7", "#2a9d9d", "#8a5a44", "#6b7280")


class Curve(NamedTuple):
    """A run to draw: its lines of ``metrics.jsonl``, one or more; runs of one label have one colour."""

    label: str
    lines: list[dict[str, Any]]
    held_out: str = "test"


def draw_run(title: str, curve: Curve) -> Any:
    """The matplotlib figure of one run, training and held-out images in two colours.

    Raises ImportError if matplotlib is missing.
    """
    figure, left, right = _panels(title)
    epochs, held_out = [line["epoch"] for line in curve.lines], curve.held_out
    for axes, what in ((left, "loss"), (right, "error")):
        axes.plot(epochs, _values(curve, "train", what), color=TRAIN, marker=".", label="training")
    left.plot(epochs, _values(curve, held_out, "loss"), color=HELD_OUT, marker=".", label=held_out)
    errors = _values(curve, held_out, "error")
    best = min(range(len(errors)), key=errors.__getitem__)
    right.plot(epochs, errors, color=HELD_OUT, marker=".", label=f"{held_out}, {errors[best]:.2f} % at best")
    right.plot(epochs[best], errors[best], "o", color=HELD_OUT, fillstyle="none", markersize=10)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    return figure


def draw_runs(title: str, curves: Sequence[Curve], log: bool = False) -> Any:
    """The matplotlib figure of several runs, one colour each: held-out images as solid lines, training images as faint ones.

    ``log``: loss and error on a logarithmic scale, where the late epochs stay apart.
    """
    figure, left, right = _panels(title)
    labels = list(dict.fromkeys(curve.label for curve in curves))
    drawn = set[str]()
    for curve in curves:
        colour, epochs = COLOURS[labels.index(curve.label) % len(COLOURS)], [line["epoch"] for line in curve.lines]
        errors = [min(_values(one, one.held_out, "error")) for one in curves if one.label == curve.label]
        best = f"{min(errors):.2f} %" if len(errors) == 1 else f"{min(errors):.2f} to {max(errors):.2f} %"
        for axes, what in ((left, "loss"), (right, "error")):
            text = {"loss": curve.label, "error": f"{curve.label}: {best} at best"}[what]
            label = None if curve.label in drawn else text
            axes.plot(epochs, _values(curve, "train", what), color=colour, alpha=0.35, linewidth=1)
            axes.plot(epochs, _values(curve, curve.held_out, what), color=colour, marker=".", label=label)
        drawn.add(curve.label)
    kinds = " or ".join(dict.fromkeys(curve.held_out for curve in curves))
    for axes in (left, right):
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:.3g}")
            axes.grid(alpha=0.15, which="minor")
        else:
            axes.set_ylim(bottom=0)
        axes.plot([], [], color="0.4", label=f"solid: {kinds}; faint: training", alpha=0)
        axes.legend(frameon=False, fontsize=8)
    return figure


def write_curves(path: Path, title: str, lines: list[dict[str, Any]], held_out: str = "test") -> None:
    """Draws one run into a file, as `write_figure` does."""
    write_figure(path, draw_run(title, Curve("", lines, held_out)))


def write_figure(path: Path, figure: Any) -> None:
    """Writes a PNG, or an SVG if the name ends in .svg. Raises OSError if that fails."""
    data = io.BytesIO()
    if path.suffix.lower() == ".svg":
        import matplotlib

        with matplotlib.rc_context({"svg.hashsalt": "tinyres"}):  # the same bytes each time
            figure.savefig(data, format="svg", metadata={"Date": None})
    else:
        figure.savefig(data, format="png")
    write_atomically(path, data.getvalue())


def _panels(title: str) -> tuple[Any, Any, Any]:
    """A figure with a panel for the loss and one for the error."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    class Shown(Figure):
        """A figure that a notebook shows, also without pyplot."""

        def _repr_png_(self) -> bytes:
            data = io.BytesIO()
            self.savefig(data, format="png")
            return data.getvalue()

    figure = Shown(figsize=(9.6, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2)
    for axes, what in ((left, "loss"), (right, "error, %")):
        axes.set_title(what, loc="left", fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, left, right


def _values(curve: Curve, images: str, what: str) -> list[float]:
    return [line[f"{images}_{what}"] for line in curve.lines]
