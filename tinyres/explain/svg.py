"""SVG text: an element, an axis of powers of ten, and a drawing that notebooks show."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from html import escape

SHORTCUT, BRANCH, DARK, GREY, LIGHT = "#08519c", "#b35806", "#22272e", "#767d86", "#e3e6ea"
FONT = "font-family:system-ui,-apple-system,'Segoe UI',sans-serif"


class Svg(str):
    """A drawing as SVG text. Notebooks show it; ``Path(name).write_text(drawing)`` keeps it."""

    def _repr_svg_(self) -> str:
        return str(self)


def data_uri(drawing: bytes) -> str:
    """SVG as the address of an image, for pages that need no other file."""
    return f"data:image/svg+xml;base64,{base64.b64encode(drawing).decode()}"


def tag(name: str, content: str = "", title: str = "", **attributes: object) -> str:
    """An element. ``content`` is text or elements, as it stands; ``title`` is what a tooltip and a screen reader say."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{_short(value)}"' for key, value in attributes.items())
    inside = (f"<title>{escape(title)}</title>" if title else "") + content
    return f"<{name}{given}>{inside}</{name}>" if inside else f"<{name}{given}/>"


def text(
    x: float, y: float, words: str, colour: str = DARK, size: float = 12, anchor: str = "start", weight: int = 400
) -> str:
    how = {"fill": colour, "font_size": size, "text_anchor": anchor, "font_weight": weight}
    return tag("text", escape(words), "", x=x, y=y, **how)


def image(width: float, height: float, title: str, elements: Iterable[str]) -> Svg:
    """The whole drawing, on a light card, so that it can be read on a dark page too."""
    card = tag("rect", width=width, height=height, rx=8, fill="#fff")
    size = {"width": width, "height": height, "viewBox": f"0 0 {_short(width)} {_short(height)}"}
    how = {"style": f"{FONT};max-width:100%;height:auto", "role": "img", "xmlns": "http://www.w3.org/2000/svg"}
    return Svg(tag("svg", card + "".join(elements), title, **how, **size))


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else escape(str(value))


class LogAxis:
    """Places on a horizontal axis of powers of ten, from ``left`` to ``right``, for the positive ones of ``values``."""

    def __init__(self, values: Iterable[float], left: float, right: float) -> None:
        positive = [v for v in values if 0 < v < math.inf] or [1.0]
        low, high = math.log10(min(positive)), math.log10(max(positive))
        spare = max(0.05 * (high - low), 0.1)
        self.low, self.high, self.left, self.right = low - spare, high + spare, left, right

    def __call__(self, value: float) -> float:
        """The place; the left end for what has no logarithm."""
        share = (math.log10(value) - self.low) / (self.high - self.low) if 0 < value < math.inf else 0.0
        return self.left + share * (self.right - self.left)

    def ticks(self) -> list[tuple[float, str]]:
        """(place, label): powers of ten, with 2 and 5 between them where there is room."""
        wide = self.high - self.low
        digits = (1, 2, 5) if wide < 3 else (1,)
        step = max(1, round(wide / 8))
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        found = [
            (d * 10.0**p, f"{d}e{p}" if abs(p) > 3 else f"{d * 10.0**p:g}") for p in powers if p % step == 0 for d in digits
        ]
        return [(self(v), label) for v, label in found if self.low <= math.log10(v) <= self.high]
