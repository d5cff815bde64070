"""Pictures of ledgers, as SVG text."""

from __future__ import annotations

from tinyres.explain.row import Row


def bars(rows: list[Row]) -> str:
    return "<svg xmlns='http://www.w3.org/2000/svg'/>"
