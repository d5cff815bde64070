"""Results as Markdown tables, with their spread: ``tinyres bench table``.

A page holds such a table between ``<!-- tinyres bench table FILE... -->`` and ``<!-- end -->``; `rewritten` makes all of
them anew. Figures come from the rounds, so that results of earlier versions have their spread, too.
"""

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tinyres.benchmarks import machine, peers, report, spread
from tinyres.errors import UsageError
from tinyres.files import shown

PLACE = re.compile(r"(<!-- tinyres bench table (.*?) -->\n).*?(<!-- end -->)", re.S)
Row = dict[str, Any]


def tables(results: Sequence[dict[str, Any]]) -> str:
    """The tables of results of one kind. Raises `UsageError` for a kind that has none."""
    kinds = {"inference" if r["benchmark"] == "train" else r["benchmark"] for r in results}
    make = {"inference": _steps, "ops": _ops, "profile": _profile}
    if len(kinds) > 1 or kinds - set(make):
        raise UsageError(
            f"there is no table of {' and '.join(sorted(kinds))} results; give it those of train or of ops or of profile."
        )
    try:
        return make[kinds.pop()](results)
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"a result has something missing: {shown(error)}") from None


def rewritten(page: str, folder: Path) -> str:
    """The text of a page with its tables made anew; the names of files are relative to ``folder``."""

    def table(found: re.Match[str]) -> str:
        return found[1] + tables([report.load(folder / name) for name in shlex.split(found[2])]) + "\n" + found[3]

    return PLACE.sub(table, page)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(shown(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


# --- whole steps -----------------------------------------------------------------------------------------------------------


def _steps(results: Sequence[dict[str, Any]]) -> str:
    """A line for each network and batch size: images per second with quartiles, and the ratio to the best peer."""
    cases = [case for result in results for case in result["cases"]]
    names = list(dict.fromkeys(row["row"] for case in cases for row in case["rows"]))
    names.sort(key=peers.is_peer)  # ours first
    ours = [name for name in names if not peers.is_peer(name)]
    best = ours[-1] if ours else None
    weighed = any("peak_rss_mib" in row for case in cases for row in case["rows"])
    heads = ["images per second", *names, *([f"{best} / best peer"] if best else [])]
    heads += [f"peak MiB (idle), {best} / best peer"] if weighed else []
    lines = []
    for case in cases:
        rows, batch = {row["row"]: row for row in case["rows"]}, case["batch"]
        cells = [f"{case['model']}, {'training' if case['training'] else 'inference'}, batch {batch}"]
        cells += [_speed(batch, rows[name]["seconds"]) if name in rows else "" for name in names]
        peer = rows.get(case["best_peer"])
        if best:
            cells += [_ratio(peer["seconds"], rows[best]["seconds"]) if peer and best in rows else ""]
        if weighed:
            cells += [" / ".join(map(_memory, (rows.get(best or ""), peer)))]
        lines.append(cells)
    return _markdown(heads, lines)


def _memory(row: Row | None) -> str:
    if not row or "peak_rss_mib" not in row:
        return "-"
    return f"{row['peak_rss_mib']:.0f}" + (f" ({row['idle_rss_mib']:.0f})" if "idle_rss_mib" in row else "")


def _speed(batch: int, seconds: list[float]) -> str:
    low, high = spread.quartiles(seconds)
    return f"{_short(batch / median(seconds))} ({_short(batch / high)} - {_short(batch / low)})"


def _ratio(peer: list[float], ours: list[float]) -> str:
    interval = spread.of_paired_ratio(peer, ours)
    ends = f" ({_down(interval[0])} - {_down(interval[1])})" if interval else ""
    return f"**{_down(median(p / o for p, o in zip(peer, ours, strict=True)))}**{ends}"


def _down(ratio: float) -> str:
    """Two digits behind the point, rounded down: never in our favour."""
    return f"{math.floor(100 * ratio) / 100:.2f}"


# --- kernels ---------------------------------------------------------------------------------------------------------------


def _ops(results: Sequence[dict[str, Any]]) -> str:
    """Of one result: convolutions in GFLOP/s, a line for each layer, and the other kernels in milliseconds."""
    cases: dict[str, dict[str, Row]] = {}
    for row in results[0]["rows"]:
        cases.setdefault(row["case"], {})[row["row"]] = row
    layers = [case for case in cases if case.startswith("conv ") and f"{case} dw" in cases]
    lines = []
    for case in layers:
        passes = [cases.get(name) for name in (case, f"{case} dx", f"{case} dw")]
        both = [(ours, theirs) for p in passes if p and (ours := _ours(p)) and (theirs := _best_peer(p))]
        times = sum(t["median_seconds"] for _, t in both) / sum(o["median_seconds"] for o, _ in both) if both else None
        cells = [" / ".join(_rate(row) for row in (_ours(p), _best_peer(p)) if row) if p else "" for p in passes]
        lines.append([case.removeprefix("conv "), *cells, _down(times) if times else ""])
    batch = results[0]["batch"]
    rates = f"GFLOP/s at batch {batch}, ours / best peer ({machine.GFLOPS.partition(':')[0]})"
    parts = [_markdown([rates, "forward", "input gradient", "weight gradient", "all three, times"], lines)] if lines else []
    rest = [
        [case, *(_milliseconds(row) if row else "" for row in (_ours(rows), _best_peer(rows)))]
        for case, rows in cases.items()
        if not case.startswith("conv ")
    ]
    return "\n\n".join(parts + [_markdown([f"ms at batch {batch}", "ours", "best peer"], rest)] * bool(rest))


def _ours(rows: dict[str, Row]) -> Row | None:
    """The fastest of our backends, numba if that is among them."""
    return rows.get("numba") or min((r for n, r in rows.items() if not peers.is_peer(n)), key=_middle, default=None)


def _best_peer(rows: dict[str, Row]) -> Row | None:
    return min((row for name, row in rows.items() if peers.is_peer(name)), key=_middle, default=None)


def _middle(row: Row) -> float:
    return float(row["median_seconds"])


def _rate(row: Row) -> str:
    ends = ""
    if row.get("seconds"):
        low, high = (row["flops"] / s / 1e9 for s in spread.quartiles(row["seconds"]))
        ends = f" ({_short(high)} - {_short(low)})"
    return f"{_short(row['flops'] / row['median_seconds'] / 1e9)}{ends}"


def _milliseconds(row: Row) -> str:
    ends = [1e3 * s for s in spread.quartiles(row["seconds"])] if row.get("seconds") else []
    return f"{1e3 * row['median_seconds']:.3f}" + (f" ({ends[0]:.3f} - {ends[1]:.3f})" if ends else "")


def _profile(results: Sequence[dict[str, Any]]) -> str:
    """Of one result: a line for each kernel that takes a share worth naming, and the rest."""
    result, lines, rest = results[0], [], 0.0
    for row in result["rows"]:
        share = row["seconds"] / result["seconds"]
        if share < 0.003:
            rest += row["seconds"]
            continue
        numbers = [f"{row['calls']:.0f}", f"{1e3 * row['seconds']:.2f}", f"{share:.1%}", f"{row['gflops']:.0f}"]
        lines.append([row["kernel"], *numbers, f"{row['gb_per_s']:.0f}", f"{1e3 * row['floor_seconds']:.2f}"])
    for name, seconds in (("the other kernels", rest), ("in no kernel", result["in_no_kernel"])):
        lines.append([name, "", f"{1e3 * seconds:.2f}", f"{seconds / result['seconds']:.1%}", "", "", ""])
    rate = f"GFLOP/s ({machine.GFLOPS.partition(':')[0]})"
    return _markdown(["kernel", "calls", "ms", "share", rate, "GB/s", "floor, ms"], lines)


def _short(value: float) -> str:
    """Three digits or more."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"
