"""A backward walk as a picture: operations from the loss down, and the cotangents between them as arrows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from tinyres.errors import UsageError
from tinyres.explain import svg
from tinyres.explain.svg import BRANCH, DARK, GREY, SHORTCUT, Svg, tag, text
from tinyres.explain.trace import Step, Trace, norm, trace
from tinyres.explain.watch import Seen
from tinyres.kernels.arrays import Array
from tinyres.tensor import Tensor

MOST_STEPS = 60  # of larger graphs each block is one box
BOX, LEFT, STAGE, LINE, TOP = 232, 176, 20, 15, 56
COLOURS = {"branch": BRANCH, "shortcut": SHORTCUT, "": "#4b535c"}
VALUES: dict[str, tuple[str, Callable[[Array], float]]] = {
    "norm": ("the Euclidean norm", norm),
    "rms": ("the root mean square", lambda a: norm(a) / math.sqrt(a.size) if a.size else 0.0),
    "max": ("the largest magnitude", lambda a: float(abs(a.astype(np.float64)).max()) if a.size else 0.0),
}


def draw(
    source: Tensor | Trace,
    seen: Seen | None = None,
    block: str | None = None,
    values: str = "norm",
    names: Mapping[str, Tensor] | None = None,
) -> Svg:
    """The backward walk of a loss, or a `Trace`, as SVG text, which notebooks show.

    Down the left lane goes what passes through operations, beside it what goes around them; parameters are at the left. An
    arrow is as wide as the logarithm of its cotangent, and ``values`` says which number stands beside it: "norm", "rms" or
    "max". A plus sign stands where cotangents meet and are added. An operation that a kernel does in one pass with others is
    shown as the several that it is. Of a graph of more than 60 steps each block is one box; ``block`` opens one, and leaves
    out the others. ``seen``, from `watch`, gives the names of layers, ``names`` those of single tensors. Raises `UsageError`
    for a ``block`` that is not there.
    """
    if values not in VALUES:
        raise UsageError(f"draw: values is one of {', '.join(VALUES)}, not {values!r}")
    steps = source if isinstance(source, Trace) else trace(source, seen, names=names)
    if not steps:
        raise UsageError("draw: there is nothing to draw; the loss is a leaf, which no operation made")
    chosen = steps.of(block) if block else list(steps)
    boxes, arrows = _graph(steps, chosen, folded=block is None and len(steps) > MOST_STEPS)
    return _Picture(boxes, arrows, VALUES[values][1]).svg(f"What the backward pass sends; numbers: {VALUES[values][0]}")


@dataclass
class Box:
    """An operation, a block of them, or a leaf. ``row`` and ``lane`` are its place; ``rows`` (words, number, tooltip)."""

    title: str
    words: str = ""
    rows: list[tuple[str, Array | None, str]] = field(default_factory=list)
    parameters: list[tuple[str, Array]] = field(default_factory=list)
    lane: int = 0
    y: float = 0
    arrivals: int = 0
    fans_out: int = 0  # of ``rows``, the last one that sends to the shortcut too

    @property
    def height(self) -> float:
        return max(40 + STAGE * len(self.rows) + (4 if self.rows else 0), 8 + LINE * len(self.parameters))


@dataclass
class Arrow:
    """A cotangent on its way. ``lane`` is the one that it goes down in."""

    start: Box | None  # None: from outside of the picture
    end: Box
    array: Array
    side: str
    lane: int = 0


def _graph(steps: Trace, chosen: list[Step], folded: bool) -> tuple[list[Box], list[Arrow]]:
    """The boxes from top to bottom, and the arrows between them."""
    key = {step.number: f"block {step.block}" if folded and step.block else f"step {step.number}" for step in chosen}
    boxes, arrows = dict[str, Box](), list[Arrow]()
    for step in chosen:
        inside = folded and bool(step.block)
        box = boxes.setdefault(key[step.number], _block(step) if inside else _operation(step))
        if inside:
            _fold(box, step)
    for step in chosen:
        box = boxes[key[step.number]]
        if all(arrival.source not in key for arrival in step.arrivals):
            arrows.append(Arrow(None, box, step.dy, ""))
        for send in step.sends:
            if send.step in key:
                end = boxes[key[send.step]]
            elif send.step >= 0 or send.side:  # a fork that is a leaf, or lies outside of the picture
                end = boxes.setdefault(f"leaf {send.target}", Box(send.target, _shape(send.array.shape)))
            else:
                if not (folded and step.block):
                    box.parameters.append((send.target.removeprefix(f"{step.name}."), send.array))
                continue
            if end is not box:
                arrows.append(Arrow(box, end, send.array, send.side))
    return list(boxes.values()), arrows


def _operation(step: Step) -> Box:
    box = Box(step.name, f"{step.op}, {_shape(step.shape)}" if step.op != step.name else _shape(step.shape))
    box.rows = [(stage.op, stage.array, stage.formula) for stage in step.stages]
    box.fans_out = next((i for i, stage in enumerate(step.stages) if stage.op == "Add"), 0)
    return box


def _block(step: Step) -> Box:
    return Box(step.block, _shape(step.shape))


def _fold(box: Box, step: Step) -> None:
    """What a folded block tells of its join: the cotangent that it lends to both sides."""
    if step.kind == "join" and not box.rows:
        lent = next((stage.array for stage in step.stages if stage.op == "Add"), step.dy)
        box.rows = [("lent to both sides", lent, "ds")]


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


class _Picture:
    def __init__(self, boxes: list[Box], arrows: list[Arrow], value: Callable[[Array], float]) -> None:
        self.boxes, self.arrows, self.value = boxes, arrows, value
        self._lanes()
        wide = max(box.lane for box in boxes) > 0
        self.pitch = BOX + 56 if wide else BOX / 2 + 84
        self._rows()
        sizes = [math.log10(v) for a in arrows if (v := value(a.array)) > 0]
        self.low, self.high = (min(sizes), max(sizes)) if sizes else (0.0, 0.0)

    def _lanes(self) -> None:
        """A box stands in the lane of its leftmost arrow. The first arrow that a box sends stays in its lane, others go
        beside it, so far that they meet no box and no other arrow.
        """
        place = {id(box): i for i, box in enumerate(self.boxes)}
        for box in self.boxes:
            arriving = [a for a in self.arrows if a.end is box]
            box.arrivals = len(arriving)
            box.lane = min((a.lane for a in arriving), default=0)
            sent = [a for a in self.arrows if a.start is box]
            for beside, arrow in enumerate(sorted(sent, key=lambda a: (a.side == "shortcut", place[id(a.end)]))):
                arrow.lane = box.lane + beside
        taken = [(box.lane, i, i) for i, box in enumerate(self.boxes)]
        spans = [(a, place[id(a.start)] if a.start else -1, place[id(a.end)]) for a in self.arrows]
        for arrow, first, last in sorted(spans, key=lambda span: span[2] - span[1]):
            while any(lane == arrow.lane and i < last and j > first for lane, i, j in taken):
                arrow.lane += 1
            taken.append((arrow.lane, first, last))

    def _rows(self) -> None:
        y = float(TOP)
        for box in self.boxes:
            y += 40 if box.arrivals > 1 else 26
            box.y = y
            y += box.height
        self.height = y + 24
        self.lanes = 1 + max([box.lane for box in self.boxes] + [a.lane for a in self.arrows])

    def svg(self, title: str) -> Svg:
        lane = (self.lanes - 1) * self.pitch
        width = LEFT + BOX + lane + (24 if any(b.lane == self.lanes - 1 and b.lane for b in self.boxes) else 0)
        width = max(width, LEFT + BOX + 40.0)
        sides = any(arrow.side for arrow in self.arrows)
        parts = [text(16, 28, title, size=13, weight=600)]
        parts += [text(16, 46, "branch", BRANCH), text(62, 46, "shortcut", SHORTCUT)] if sides else []
        parts += [text(126 if sides else 16, 46, "forward pass: thin grey lines, upwards", GREY)]
        for arrow in self.arrows:
            parts += self._arrow(arrow)
        for box in self.boxes:
            parts += self._box(box)
        return svg.image(max(width, 32 + 8.0 * len(title)), self.height, title, parts)

    def x(self, lane: int) -> float:
        return LEFT + BOX / 2 + lane * self.pitch

    def _box(self, box: Box) -> Iterator[str]:
        left, middle = self.x(box.lane) - BOX / 2, self.x(box.lane)
        yield tag("rect", x=left, y=box.y, width=BOX, height=box.height, rx=6, fill="#f6f7f9", stroke="#aab1ba")
        yield text(middle, box.y + 17, box.title, anchor="middle", weight=600)
        yield text(middle, box.y + 32, box.words, GREY, 11, "middle")
        for i, (words, array, formula) in enumerate(box.rows):
            y = box.y + 40 + STAGE * i
            number = self._number(array)
            yield tag(
                "rect",
                title=f"{box.title}: {formula}, {number}",
                x=left + 6,
                y=y,
                width=BOX - 12,
                height=STAGE - 3,
                rx=3,
                fill="#fff",
                stroke="#d3d7dc",
            )
            yield text(left + 12, y + 13, words, size=11)
            yield text(left + BOX - 12, y + 13, number, size=11, anchor="end")
        for i, (name, array) in enumerate(box.parameters):
            y = box.y + LINE * (i + 1)
            yield tag(
                "path",
                title=f"gradient of {name}: {self._number(array)}",
                d=f"M{left:.1f} {y:.1f}h-14",
                stroke="#4b535c",
                stroke_width=1.2,
            )
            yield _head(left - 14, y, "left", "#4b535c", 3)
            yield text(left - 24, y + 4, f"{name} {self._number(array)}", GREY, 11, "end")
        if box.arrivals > 1:
            yield tag("path", d=f"M{middle:.1f} {box.y - 10:.1f}V{box.y:.1f}", stroke=DARK, stroke_width=2)
            yield tag(
                "circle",
                title=f"the {box.arrivals} cotangents that meet here are added",
                cx=middle,
                cy=box.y - 16,
                r=8,
                fill="#fff",
                stroke=DARK,
                stroke_width=1.5,
            )
            yield tag("path", d=f"M{middle - 4.5:.1f} {box.y - 16:.1f}h9m-4.5-4.5v9", stroke=DARK, stroke_width=1.5)

    def _arrow(self, arrow: Arrow) -> Iterator[str]:
        start, end = arrow.start, arrow.end
        number = self._number(arrow.array)
        colour, wide = COLOURS[arrow.side], self._wide(arrow.array)
        x1, x2, x = self.x(start.lane if start else arrow.lane), self.x(end.lane), self.x(arrow.lane)
        merges, beside = end.arrivals > 1, start is not None and arrow.lane > start.lane
        y2 = end.y - (24 if merges else 0)
        if start is None:
            y1, points = end.y - 22, [(x2, end.y - 22), (x2, y2)]
        elif arrow.lane == start.lane == end.lane:
            y1, points = start.y + start.height, [(x1, start.y + start.height), (x2, y2)]
        else:
            y1 = start.y + start.height
            points = [(x1, y1)]
            if beside:
                y1 = start.y + (50 + STAGE * start.fans_out if start.rows else 20)
                points = [(x1 + BOX / 2, y1), (x, y1)]
            if arrow.lane > end.lane:
                y2 = end.y - 16 if merges else end.y + 20
                points += [(x, y2), (x2 + (8 if merges else BOX / 2), y2)]
            else:
                points += [(x, y2)]
        towards = "left" if len(points) > 2 and points[-1][1] == points[-2][1] else "down"
        tip = points[-1]
        points[-1] = (tip[0] + 6, tip[1]) if towards == "left" else (tip[0], tip[1] - 6)
        source = start.title if start else "above"
        said = f"cotangent of {end.title} from {source}, {number}, {_shape(arrow.array.shape)}"
        yield tag(
            "path",
            d=_path([(px - 7, py - 5) if towards == "left" else (px - 9, py) for px, py in points]),
            fill="none",
            stroke="#b6bcc4",
        )
        yield tag("path", title=said, d=_path(points), fill="none", stroke=colour, stroke_width=wide)
        yield _head(*tip, towards, colour, 4 + wide / 2)
        if beside:
            yield text(x + 8, (points[1][1] + points[-1][1]) / 2 + 4, number, colour, 11)
        else:
            yield text(points[0][0] + 10, (points[0][1] + points[-1][1]) / 2 + 6, number, colour, 11)

    def _wide(self, array: Array) -> float:
        """From 1.5 to 6, by the logarithm."""
        value = self.value(array)
        if value <= 0 or self.high - self.low < 1e-9:
            return 1.5
        return 1.5 + 4.5 * (math.log10(value) - self.low) / (self.high - self.low)

    def _number(self, array: Array | None) -> str:
        return "" if array is None else f"{self.value(array):.3g}"


def _path(points: list[tuple[float, float]], radius: float = 8) -> str:
    """Straight lines with round corners."""
    said = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for before, (x, y), after in zip(points, points[1:-1], points[2:], strict=False):
        near, far = _towards((x, y), before, radius), _towards((x, y), after, radius)
        said += f"L{near[0]:.1f} {near[1]:.1f}Q{x:.1f} {y:.1f} {far[0]:.1f} {far[1]:.1f}"
    return said + f"L{points[-1][0]:.1f} {points[-1][1]:.1f}"


def _towards(corner: tuple[float, float], other: tuple[float, float], radius: float) -> tuple[float, float]:
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = math.hypot(dx, dy) or 1.0
    step = min(radius, length / 2) / length
    return corner[0] + step * dx, corner[1] + step * dy


def _head(x: float, y: float, towards: str, colour: str, size: float) -> str:
    turn = {"down": f"l{-size:.1f} {-2 * size:.1f}h{2 * size:.1f}z", "left": f"l{2 * size:.1f} {-size:.1f}v{2 * size:.1f}z"}
    return tag("path", d=f"M{x:.1f} {y:.1f}{turn[towards]}", fill=colour)
