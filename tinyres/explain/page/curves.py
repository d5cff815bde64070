"""The picture of gradients by depth, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from tinyres.files import write_atomically

SHORTCUTS, NONE = ("#08519c", "#3182bd", "#6baed6"), ("#b35806", "#e08214", "#fdb863")  # told apart by the colour-blind too
FORMATS = (".svg", ".png")


def write_curves(path: Path, title: str, curves: Sequence[tuple[str, bool, Sequence[float]]]) -> None:
    """Draws (name, whether it has shortcuts, norms from the first block to the last) into ``path``, ``.svg`` or ``.png``.

    The axis of the norms is logarithmic. Raises ImportError if matplotlib is missing, OSError if the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    same = len({len(norms) for _, _, norms in curves}) == 1
    drawn = [0, 0]
    for name, shortcuts, norms in curves:
        blocks = range(1, len(norms) + 1)
        places = blocks if same else [(k - 1) / max(len(norms) - 1, 1) for k in blocks]
        colours = SHORTCUTS if shortcuts else NONE
        (line,) = axes.plot(places, norms, "o-" if shortcuts else "s--", markersize=4, label=name)
        line.set_color(colours[drawn[shortcuts] % 3])
        drawn[shortcuts] += 1
    axes.set_yscale("log")
    axes.set_ylabel("gradient norm at the block's input")
    axes.set_xlabel("block, from the input to the loss" if same else "depth: 0 is the first block, 1 the last")
    if same:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    data = io.BytesIO()
    kind = path.suffix[1:]
    # no date and no random names: the same numbers give the same file
    with matplotlib.rc_context({"svg.hashsalt": "tinyres"}):
        figure.savefig(data, format=kind, metadata={"Date": None} if kind == "svg" else {})
    write_atomically(path, data.getvalue())
