"""The tables of docs/gradient.md, from the JSON in docs/gradient: ``python tests/docs_gradient.py`` writes them anew."""

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "gradient.md"
PLACE = re.compile(r"<!-- (\w+) ([\w-]+)\.json -->\n(.*?)(?=\n\n|\Z)", re.S)


def read(name):
    return json.loads((DOCS / "gradient" / f"{name}.json").read_text("utf-8"))


def line(cells):
    return "| " + " | ".join(cells) + " |"


def table(heads, rows):
    return "\n".join([line(heads), line(["---", *["---:"] * (len(heads) - 1)]), *map(line, rows)])


def ledger(found):
    """A row per block."""
    heads = ("block", "lent", "through the shortcut", "through the branch", "sum", "ratio", "cosine")
    rows = []
    for row in found["ledger"]["rows"]:
        name = row["name"] if row["shortcut"] == "identity" else f"{row['name']} ({row['shortcut']})"
        norms = [f"{row[key]:.4f}" for key in ("lent", "through_shortcut", "through_branch", "total")]
        rows.append([name, *norms, f"{row['ratio']:.2f}", f"{round(row['cosine'], 2) + 0.0:.2f}"])
    return table(heads, rows)


def depth(found):
    """A row per network: first over last for each seed, and the growth per block of the first seed."""
    rows = {}
    for one in found["networks"]:
        rows.setdefault(one["model"], []).append(one)
    cells = []
    for name, ones in rows.items():
        factors = [one["first_over_last"] for one in ones]
        cells.append([name, *(f"{f:,.0f}" if f > 20 else f"{f:.1f}" for f in factors), f"{ones[0]['per_block']:.2f}"])
    return table(("network", *(f"seed {one['seed']}" for one in next(iter(rows.values()))), "per block, seed 0"), cells)


def gains(found):
    """A row per family."""
    rows = {}
    for one in found["networks"]:
        rows.setdefault(one["family"], {})[one["gain"]] = f"{one['first_over_last']:.1e}"
    return table(("gain", *(f"{gain:g}" for gain in rows["plain"])), [[name, *row.values()] for name, row in rows.items()])


def paths(found):
    """Shares by length, and those that the ratios alone predict."""
    one = found["ledger"]["paths"]
    lengths = range(len(one["share"]))
    shown = [k for k in lengths if max(one["share"][k], one["predicted"][k]) >= 0.0005]
    rows = [
        [name, *(f"{one[key][k]:.3f}" for k in shown)]
        for name, key in (
            ("share of the gradient", "share"),
            ("by the ratios alone", "predicted"),
            ("share of the paths", "binomial"),
        )
    ]
    return table(("branches passed", *map(str, shown)), rows)


KINDS = {"ledger": ledger, "depth": depth, "gains": gains, "paths": paths}


def written(text):
    """The page with its tables as they must be."""
    return PLACE.sub(lambda found: f"<!-- {found[1]} {found[2]}.json -->\n{KINDS[found[1]](read(found[2]))}", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
