"""What the figures of the labs share: two colours, told apart by the colour-blind too, and names beside lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SHORTCUTS, PLAIN, GREY = "#08519c", "#b35806", "#59626c"  # with shortcuts, without, neither
LOOK: Any = {  # as settings of Matplotlib; the same numbers give the same bytes
    "svg.hashsalt": "tinyres",
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
SHADES = {
    SHORTCUTS: ("#08306b", "#2171b5", "#6baed6", "#9ecae1", "#4a90c2"),
    PLAIN: ("#7f3b08", "#b35806", "#e08214", "#fdb863", "#c77a2e"),
    GREY: ("#3b424a", "#7a848e", "#a9b1b9"),
}


def line(
    axes: Any, x: Sequence[float], y: Sequence[float], name: str, shortcuts: bool | None, first: bool = True, **how: Any
) -> None:
    """A line of one seed. All with one name have one colour, and all after the ``first`` are thin. Without shortcuts it is
    dashed.
    """
    family = GREY if shortcuts is None else SHORTCUTS if shortcuts else PLAIN
    known = axes.__dict__.setdefault("_tinyres_names", {})  # name -> (family, shade)
    if name not in known:
        known[name] = (family, SHADES[family][sum(f == family for f, _ in known.values()) % len(SHADES[family])])
    style = {"linestyle": "-" if shortcuts or shortcuts is None else "--"}
    weight = {"linewidth": 1.8} if first else {"linewidth": 0.7, "alpha": 0.6}
    axes.plot(x, y, color=known[name][1], label=name if first else "_", **style, **weight, **how)


def name_lines(axes: Any) -> None:
    """A legend of the lines, in small print."""
    axes.legend(fontsize=8, handlelength=2.4)
