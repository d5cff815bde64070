"""What a ledger says: whether a block's gradient adds up, in words, and the rows as a table."""

from __future__ import annotations

from html import escape

import numpy as np

from tinyres import markup
from tinyres.explain.paths import Paths
from tinyres.explain.row import Row
from tinyres.kernels.arrays import Array

ROUNDING = 1e-3  # of the largest element: what different orders of summation may change, in float32


def largest(array: Array) -> float:
    """The largest magnitude of any element, in float64; 0 of an empty array."""
    return float(abs(array.astype(np.float64)).max()) if array.size else 0.0


def verdict(dx: Array, a: Array, b: Array, error: float, branch: tuple[Array, Array], shortcut: tuple[Array, Array]) -> str:
    """Whether dx = a + b, what came through the shortcut and through the branch; and if not, why.

    ``error`` is how far a + b is from dx, in parts of its largest element. ``branch`` and ``shortcut`` are what the join
    must send to that side, and what it sends.
    """
    to_branch, to_shortcut = _compare(*branch), _compare(*shortcut)
    if to_branch or to_shortcut:
        if to_branch == to_shortcut:
            said = f"sends to both sides {to_branch}"
        else:
            said = ", and ".join(f"sends to the {side} {what}" for side, what in _sides(to_branch, to_shortcut) if what)
        return f"does not add up: the join {said}"
    if error == 0:
        return "adds up to the last bit"
    if error < ROUNDING:
        return f"adds up but for rounding ({error:.0e} of the largest element)"
    reasons = [(a, "the branch's part is missing"), (b, "the shortcut's part is missing")]
    for got, reason in reasons:
        if largest(dx - got) <= ROUNDING * largest(got):
            return f"does not add up at the fork: {reason}"
    return f"does not add up at the fork: the sum is {_compare(a + b, dx) or 'not dx'}"


def _sides(to_branch: str, to_shortcut: str) -> list[tuple[str, str]]:
    return [("branch", to_branch), ("shortcut", to_shortcut)]


def _compare(right: Array, got: Array | None) -> str:
    """In words, how a cotangent differs from the right one: by a factor, or altogether. Empty if it does not."""
    if got is None:
        return "nothing"
    wanted, found = right.astype(np.float64), got.astype(np.float64)
    if largest(found - wanted) <= ROUNDING * largest(wanted):
        return ""
    if not found.any():
        return "nothing"
    square = float((wanted * wanted).sum())
    factor = float((wanted * found).sum()) / square if square else 0.0
    if largest(found - factor * wanted) <= ROUNDING * largest(found):
        names = {0.5: "half of what it must", 2.0: "twice what it must", -1.0: "the right cotangent with the wrong sign"}
        return names.get(round(factor, 3), f"{factor:.3g} times what it must")
    return "something else than its formula says"


HEADS = ("block", "shortcut", "|dz|", "open", "|ds|", "shortcut", "branch", "|dx|", "ratio", "cosine")


def cells(row: Row) -> list[str]:
    """A row as text, a cell per column of `HEADS`."""
    norms = (row.lent, row.through_shortcut, row.through_branch, row.total)
    texts = ["" if value is None else f"{value:.2e}" for value in norms]
    last = ["" if value is None else f"{round(value, 2) + 0.0:.2f}" for value in (row.ratio, row.cosine)]
    return [row.name, row.shortcut, f"{row.arrives:.2e}", f"{row.open:.2f}", *texts, *last]


def table(rows: list[Row], paths: Paths | None) -> str:
    """The ledger as text."""
    lines = [list(HEADS), *map(cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
    text = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([*text, "", *summary(rows, paths)])


def summary(rows: list[Row], paths: Paths | None) -> list[str]:
    """What follows the table: the verdict, the first block beside the last, and the mean path length."""
    said = [f"{row.name}: {row.words}" for row in rows if not row.words.startswith("adds up") and row.shortcut != "none"]
    residual = [row for row in rows if row.shortcut != "none"]
    if residual and not said:
        exact = all(row.error == 0 for row in residual)
        said = ["dx = shortcut + branch adds up in every block" + (", to the last bit" if exact else ", but for rounding")]
    if len(rows) > 1 and rows[-1].total:
        said.append(f"|dx| at the first block is {rows[0].total / rows[-1].total:.3g} times that at the last")
    if paths:
        predicted = f"{paths.predicted_mean:.2f} by the ratios"
        said.append(f"mean path length {paths.mean_length:.2f} of {len(paths) - 1} branches ({predicted})")
    return said


def html(rows: list[Row], paths: Paths | None) -> str:
    """The ledger as a table of HTML."""
    notes = "".join(f"<p>{escape(text)}</p>" for text in summary(rows, paths))
    return markup.table(HEADS, map(cells, rows), left=2) + notes
