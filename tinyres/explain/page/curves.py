"""The picture of gradients by depth, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from tinyres.files import write_atomically

SHORTCUTS, NONE = ("#08519c", "#6baed6"), ("#7f3b08", "#dd8a2e")  # from, to; told apart by the colour-blind too
FORMATS = (".svg", ".png")


def write_curves(path: Path, title: str, curves: Sequence[tuple[str, bool, Sequence[float]]]) -> None:
    """Draws (name, whether it has shortcuts, norms from the first block to the last) into ``path``, ``.svg`` or ``.png``.

    The axis of the norms is logarithmic. Raises ImportError if matplotlib is missing, OSError if the file cannot be written.
    """
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    same = len({len(norms) for _, _, norms in curves}) == 1
    families = [shortcuts for _, shortcuts, _ in curves]
    for i, (name, shortcuts, norms) in enumerate(curves):
        blocks = range(1, len(norms) + 1)
        places = blocks if same else [(k - 1) / max(len(norms) - 1, 1) for k in blocks]
        shade = LinearSegmentedColormap.from_list("", SHORTCUTS if shortcuts else NONE)
        colour = shade(families[:i].count(shortcuts) / max(families.count(shortcuts) - 1, 1))
        axes.plot(places, norms, "o-" if shortcuts else "s--", color=colour, markersize=4, label=name)
        if len(curves) <= 12:
            end = (places[0], norms[0])
            axes.annotate(name, end, (-6, 0), textcoords="offset points", ha="right", va="center", fontsize=8, color=colour)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 300 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.minorticks_off()
    axes.set_ylabel("gradient norm at the block's input")
    axes.set_xlabel("block, from the input to the loss" if same else "depth: 0 is the first block, 1 the last")
    if same:
        last = len(curves[0][2])
        axes.set_xticks([1, *range(5, last + 1, 5)] if last > 10 else range(1, last + 1))
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 12:
        axes.legend(frameon=False, fontsize=8)
    else:
        axes.margins(x=0.02)
        axes.set_xlim(left=axes.get_xlim()[0] - 0.15 * (axes.get_xlim()[1] - axes.get_xlim()[0]))
    data = io.BytesIO()
    kind = path.suffix[1:]
    # no date and no random names: the same numbers give the same file
    with matplotlib.rc_context({"svg.hashsalt": "tinyres"}):
        figure.savefig(data, format=kind, metadata={"Date": None} if kind == "svg" else {})
    write_atomically(path, data.getvalue())
