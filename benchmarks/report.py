"""Results as JSON files, and what changed between two of them."""

import json
from pathlib import Path
from typing import Any

from tinyres.errors import UsageError
from tinyres.files import read_json, shown, write_atomically


def save(result: dict[str, Any], path: str | Path) -> Path:
    """Writes a result, and makes its folder if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    return path


def load(path: str | Path) -> dict[str, Any]:
    """Reads a result. Raises `UsageError` if the file is not one."""
    try:
        result = read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no benchmark result: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(result, dict) or result.get("benchmark") not in ("train", "inference", "ops", "profile", "gpu"):
        raise UsageError(f"{path} is no benchmark result; `tinyres bench train --out FILE` writes one.")
    try:
        times, _ = _times(result), _machine(result)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(f"{path} is a {result['benchmark']} result with something missing: {shown(error)}") from None
    wrong = [what for what, t in times.items() if not isinstance(t, int | float) or not 0 < t < 1e9]
    if wrong:
        raise UsageError(f"{path} is a {result['benchmark']} result with a time that is none: of {shown(wrong[0])}")
    return result


def measured_steps(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of whole steps of a GPU's result, without those that failed."""
    return [row for part in ("steps", "compiled") for row in rows(result, part) if "ms" in row]


def rows(result: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """The rows of one part of a GPU's result; none if it failed or was left out, where a line of text says why."""
    return result[part] if isinstance(result.get(part), list) else []


def _times(result: dict[str, Any]) -> dict[str, float]:
    """Median seconds by what was measured."""
    if result["benchmark"] == "ops":
        return {f"{r['case']}, {r['row']}": r["median_seconds"] for r in result["rows"]}
    if result["benchmark"] == "profile":
        return {f"{r['kernel']}": r["seconds"] for r in result["rows"]} | {"a step": result["seconds"]}
    if result["benchmark"] == "gpu":
        ms = {f"kernel {r['case']}": r["ms"] for r in rows(result, "kernels")}
        ms |= {f"bandwidth {r['kernel']}": r["ms"] for r in rows(result, "bandwidth")}
        ms |= {f"{r['model']} batch {r['batch']}, {r['row']}": r["ms"] for r in measured_steps(result)}
        return {name: value / 1e3 for name, value in ms.items()}
    return {f"{c['model']} batch {c['batch']}, {r['row']}": r["median_seconds"] for c in result["cases"] for r in c["rows"]}


def _machine(result: dict[str, Any]) -> dict[str, Any]:
    """What makes two results hard to compare when it differs."""
    machine = {what: result["machine"].get(what) for what in ("processor", "threads")}
    if result["benchmark"] == "gpu":
        machine |= {"GPU": result["gpu"].get("gpu"), "plan": "tiny" if result["tiny"] else "full"}
    return machine


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line per row that both results have: milliseconds before and after, and how many times faster it became."""
    if before["benchmark"] != after["benchmark"]:
        raise UsageError(f"a {before['benchmark']} result cannot be compared with a {after['benchmark']} result.")
    a, b = _times(before), _times(after)
    common = [key for key in a if key in b]
    if not common:
        raise UsageError("the two results have no row in common.")
    names = {key: shown(key) for key in common}
    width = max(map(len, names.values()))
    lines = [f"{'':{width}} {'before ms':>10} {'after ms':>10} {'faster':>7}"]
    lines += [f"{names[k]:{width}} {1e3 * a[k]:10.3f} {1e3 * b[k]:10.3f} {a[k] / b[k]:6.2f}x" for k in common]
    here, there = _machine(before), _machine(after)
    different = [what for what in here if here[what] != there[what]]
    return lines + [f"not the same {what}: {shown(here[what])} and {shown(there[what])}" for what in different]
