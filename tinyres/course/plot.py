"""The figures of the chapters: lines and bars, as SVG that a notebook shows."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tinyres.explain.svg import Svg
from tinyres.lab.figures import GREY, LOOK, PLAIN, SHORTCUTS

COLOURS = (SHORTCUTS, PLAIN, GREY, "#6baed6", "#fd8d3c")  # told apart by the colour-blind too
KNOWN = {"shortcut": 0, "resnet": 0, "branch": 1, "plain": 1, "lent": 2}  # the colours that these have everywhere here
STYLES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1)))
MARKS = ("o", "s", "^", "D", "v")


def figure(draw: Callable[[Any], None], title: str, wide: float = 7.0, high: float = 3.4) -> Svg:
    """A figure with one pair of axes, on which ``draw(axes)`` draws. ``title`` is what a screen reader says."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context({**LOOK, "axes.grid": False}):
        made = Figure(figsize=(wide, high), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        FigureCanvasSVG(made)
        axes = made.add_subplot()
        draw(axes)
        file = io.StringIO()
        made.savefig(file, format="svg", metadata={"Date": None, "Title": title})
    text = file.getvalue()
    return Svg(text[text.index("<svg") :])


def places_of(names: Iterable[str]) -> list[int]:
    """The place of each name's colour: its own, or the next one that is free."""
    found: list[int] = []
    for name in names:
        own = [place for word, place in KNOWN.items() if word in name and place not in found]
        found.append(own[0] if own else next((k for k in range(5) if k not in found), 0))
    return found


def lines(
    curves: Mapping[str, Sequence[float]], title: str, x: str = "", y: str = "", log: bool = False, at: Sequence[float] = ()
) -> Svg:
    """A line per name. ``at`` are the places of the points, by default 0, 1, 2, ..."""

    def draw(axes: Any) -> None:
        for i, (name, values) in zip(places_of(curves), curves.items(), strict=True):
            places = at if len(at) else range(len(values))
            style = {"color": COLOURS[i], "linestyle": STYLES[i]}
            axes.plot(places, values, label=name, **style, marker=MARKS[i] if len(values) <= 32 else None, markersize=4)
        if log:
            axes.set_yscale("log")
        axes.set(xlabel=x, ylabel=y)
        if len(curves) > 1:
            axes.legend()

    return figure(draw, title)


def bars(groups: Mapping[str, Mapping[str, float]], title: str, y: str = "", x: str = "") -> Svg:
    """A group of bars per name; each group has the same kinds of bars."""

    def draw(axes: Any) -> None:
        kinds = list(next(iter(groups.values())))
        width = 0.8 / len(kinds)
        for i, (colour, kind) in enumerate(zip(places_of(kinds), kinds, strict=True)):
            places = [k - 0.4 + width * (i + 0.5) for k in range(len(groups))]
            axes.bar(places, [group[kind] for group in groups.values()], width * 0.95, label=kind, color=COLOURS[colour])
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set(xlabel=x, ylabel=y)
        if len(kinds) > 1:
            axes.legend()

    return figure(draw, title)


def images(arrays: Mapping[str, Any], title: str) -> Svg:
    """Small arrays side by side, each number a square: blue below zero, orange above it."""
    import numpy as np

    def draw(axes: Any) -> None:
        left = 0
        most = max(float(np.abs(a).max()) for a in arrays.values()) or 1.0
        for name, array in arrays.items():
            wide = np.shape(array)[1]
            for (i, j), number in np.ndenumerate(array):
                share = abs(float(number)) / most
                ground = COLOURS[1] if number > 0 else COLOURS[0]
                square = {"facecolor": ground, "alpha": 0.08 + 0.5 * share if number else 0.0}
                axes.add_patch(rectangle(left + j, -i - 1, **square))
                axes.add_patch(rectangle(left + j, -i - 1, facecolor="none", edgecolor="#c9ced4", linewidth=0.6))
                axes.text(left + j + 0.5, -i - 0.5, f"{number:.3g}", ha="center", va="center", fontsize=8)
            axes.text(left + wide / 2, 0.35, name, ha="center", va="bottom")
            left += wide + 1
        axes.set_xlim(-0.2, left - 0.8)
        axes.set_ylim(-max(np.shape(a)[0] for a in arrays.values()) - 0.2, 1.4)
        axes.set_aspect("equal")
        axes.axis("off")

    columns = sum(np.shape(a)[1] + 1 for a in arrays.values())
    rows = max(np.shape(a)[0] for a in arrays.values())
    wide = min(7.0, 0.5 * columns + 0.6)
    return figure(draw, title, wide, max(1.6, wide * (rows + 1.6) / columns))


def rectangle(x: float, y: float, **how: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, **how)
