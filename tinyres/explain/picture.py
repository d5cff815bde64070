"""The picture of a ledger: for each block what it lends, what comes back through either side, and the sum."""

from __future__ import annotations

from collections.abc import Iterator

from tinyres.explain import svg
from tinyres.explain.row import Row
from tinyres.explain.svg import BRANCH, DARK, GREY, LIGHT, SHORTCUT, Svg, tag, text

LEFT, RIGHT, WIDTH, TOP, HEIGHT = 150, 560, 680, 78, 26
MARKS = (  # the row's field, what it is, and its colour; None: hollow
    ("lent", "lent to both sides, |ds|", None),
    ("through_shortcut", "back through the shortcut", SHORTCUT),
    ("through_branch", "back through the branch", BRANCH),
    ("total", "the sum, |dx|", DARK),
)


def dots(rows: list[Row]) -> Svg:
    """A line per block, the last one on top, so that the gradient comes down; norms on a logarithmic axis."""
    shown = list(reversed(rows))
    axis = svg.LogAxis((getattr(row, name) or 0.0 for row in shown for name, _, _ in MARKS), LEFT, RIGHT)
    bottom = TOP + HEIGHT * len(shown)
    parts = [text(16, 26, "Gradient norms by block: one training step", size=15, weight=600)]
    x = 16.0
    for name, words, colour in MARKS:
        parts += [_mark(name, x + 6, 47, colour), text(x + 17, 51, words, size=12)]
        x += 34 + 6.4 * len(words)
    for place, label in axis.ticks():
        parts.append(tag("line", x1=place, x2=place, y1=TOP - 8, y2=bottom, stroke=LIGHT))
        parts.append(text(place, bottom + 16, label, GREY, 11, "middle"))
    for y, label in ((TOP - 4, "ratio"), (TOP - 4, "cosine")):
        parts.append(text(RIGHT + (50 if label == "ratio" else 104), y, label, GREY, 11, "end"))
    for i, row in enumerate(shown):
        parts += _line(row, axis, TOP + HEIGHT * (i + 0.5))
    said = "From the loss (top) to the input (bottom). Ratio: branch over shortcut; cosine: of the angle between the two."
    parts.append(text(16, bottom + 38, said, GREY, 11))
    return svg.image(WIDTH, bottom + 50, "Gradient norms by block", parts)


def _line(row: Row, axis: svg.LogAxis, y: float) -> Iterator[str]:
    name = row.name if row.shortcut in ("identity", "none") else f"{row.name} ({row.shortcut})"
    yield text(LEFT - 14, y + 4, name, anchor="end")
    found = [(what, value, words, colour) for what, words, colour in MARKS if (value := getattr(row, what))]
    places = [axis(value) for _, value, _, _ in found]
    if places:
        yield tag("line", x1=min(places), x2=max(places), y1=y, y2=y, stroke="#b6bcc4")
    for (what, value, words, colour), place in zip(found, places, strict=True):
        yield _mark(what, place, y, colour, f"{row.name}: {words} {value:.3g}")
    for value, place in ((row.ratio, RIGHT + 50), (row.cosine, RIGHT + 104)):
        if value is not None:
            yield text(place, y + 4, f"{round(value, 2) + 0.0:.2f}", size=12, anchor="end")


def _mark(what: str, x: float, y: float, colour: str | None, title: str = "") -> str:
    """Told apart by shape too: ring, dot, square, diamond."""
    if what == "lent":
        return tag("circle", title=title, cx=x, cy=y, r=6.5, fill="none", stroke=DARK, stroke_width=1.3)
    if what == "through_shortcut":
        return tag("circle", title=title, cx=x, cy=y, r=4, fill=colour)
    if what == "through_branch":
        return tag("rect", title=title, x=x - 4, y=y - 4, width=8, height=8, fill=colour)
    return tag("path", title=title, d=f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6-6z", fill=colour)
