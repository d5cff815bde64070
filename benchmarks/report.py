"""Results as JSON files, and what changed between two of them."""

import json
from pathlib import Path
from typing import Any

from tinyres.errors import UsageError
from tinyres.files import write_atomically


def save(result: dict[str, Any], path: str | Path) -> Path:
    """Writes a result; the folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    return path


def load(path: str | Path) -> dict[str, Any]:
    """Reads a result; `UsageError` if the file is none."""
    try:
        result = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no benchmark result: {error}") from None
    if not isinstance(result, dict) or result.get("benchmark") not in ("train", "inference", "ops", "profile"):
        raise UsageError(f"{path} is no benchmark result; `tinyres bench train --out FILE` writes one.")
    return result


def _times(result: dict[str, Any]) -> dict[str, float]:
    """Median seconds by what was measured."""
    if result["benchmark"] == "ops":
        return {f"{r['case']}, {r['row']}": r["median_seconds"] for r in result["rows"]}
    if result["benchmark"] == "profile":
        return {r["kernel"]: r["seconds"] for r in result["rows"]} | {"a step": result["seconds"]}
    return {
        f"{c['model']} batch {c['batch']}, {r['row']}": r["median_seconds"] for c in result["cases"] for r in c["rows"]
    }


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for each thing that both measured: milliseconds before and after, and how many times faster it became."""
    if before["benchmark"] != after["benchmark"]:
        raise UsageError(f"a {before['benchmark']} result cannot be compared with a {after['benchmark']} result.")
    a, b = _times(before), _times(after)
    common = [key for key in a if key in b]
    if not common:
        raise UsageError("the two results have no row in common.")
    width = max(map(len, common))
    lines = [f"{'':{width}} {'before ms':>10} {'after ms':>10} {'faster':>7}"]
    lines += [f"{k:{width}} {1e3 * a[k]:10.3f} {1e3 * b[k]:10.3f} {a[k] / b[k]:6.2f}x" for k in common]
    for what in ("processor", "threads"):
        if before["machine"].get(what) != after["machine"].get(what):
            lines.append(f"not the same {what}: {before['machine'].get(what)} and {after['machine'].get(what)}")
    return lines
