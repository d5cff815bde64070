"""Results as JSON files, those of earlier versions too: written after each row, and read without trust."""

import json
from pathlib import Path
from typing import Any

from tinyres.errors import UsageError
from tinyres.files import read_json, shown, write_atomically

MAX_RESULT = 1 << 24  # bytes: hundreds of rounds of each kernel


def save(result: dict[str, Any], path: str | Path) -> Path:
    """Writes a result, and makes its folder if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    return path


def load(path: str | Path) -> dict[str, Any]:
    """Reads a result. Raises `UsageError` if the file is not one."""
    try:
        result = read_json(path, MAX_RESULT)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no benchmark result: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(result, dict) or result.get("benchmark") not in ("train", "inference", "ops", "profile", "gpu"):
        raise UsageError(f"{path} is no benchmark result; `tinyres bench train --out FILE` writes one.")
    try:
        found = [*times(result).items(), *((name, t) for name, each in samples(result).items() for t in each)]
        settings(result)
    except (KeyError, TypeError, AttributeError, OverflowError, ValueError) as error:
        raise UsageError(f"{path} is a {result['benchmark']} result with something missing: {shown(error)}") from None
    wrong = [name for name, t in found if not isinstance(t, int | float) or not 0 < t < 1e9]
    if wrong:
        raise UsageError(f"{path} is a {result['benchmark']} result with a time that is none: of {shown(wrong[0])}")
    return result


def measured_steps(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of whole steps of a GPU's result, without those that failed."""
    return [row for part in ("steps", "compiled") for row in rows(result, part) if "ms" in row]


def rows(result: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """The rows of one part of a GPU's result; none if it failed or was left out, where a line of text says why."""
    return result[part] if isinstance(result.get(part), list) else []


def settings(result: dict[str, Any]) -> dict[str, Any]:
    """What makes two results hard to compare when it differs, as far as the result tells."""
    machine = dict(result["machine"])
    what = {"processor": "processor", "threads": "threads", "cores": "cores", "usable_cores": "usable cores"}
    what |= {"simd_bits": "SIMD width", "memory_gib": "memory", "blas": "BLAS"}
    found = {text: machine[key] for key, text in what.items() if key in machine}
    found |= {f"version of {name}": version for name, version in machine.get("versions", {}).items()}
    found |= {"environment": dict(machine["environment"])} if "environment" in machine else {}
    found |= {"number of processes": result["processes"]} if "processes" in result else {}
    if result["benchmark"] == "gpu":
        found |= {"GPU": result["gpu"].get("gpu"), "plan": "tiny" if result["tiny"] else "full"}
    return found | {"commit": result["commit"]} if result.get("commit") else found


def times(result: dict[str, Any]) -> dict[str, float]:
    """Median seconds by what was measured."""
    if result["benchmark"] == "profile":
        return {f"{r['kernel']}": r["seconds"] for r in result["rows"]} | {"a step": result["seconds"]}
    if result["benchmark"] == "gpu":
        return {name: row["ms"] / 1e3 for name, row in measured(result).items()}
    return {name: row["median_seconds"] for name, row in measured(result).items()}


def samples(result: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of each round by what was measured, as far as the rounds were recorded."""
    if result["benchmark"] == "gpu":
        return {name: [ms / 1e3 for ms in row["all_ms"]] for name, row in measured(result).items() if row.get("all_ms")}
    return {name: row["seconds"] for name, row in measured(result).items() if row.get("seconds")}


def measured(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that were repeated in rounds, by what was measured."""
    if result["benchmark"] == "profile":
        return {}
    if result["benchmark"] == "ops":
        return {f"{r['case']}, {r['row']}": r for r in result["rows"]}
    if result["benchmark"] == "gpu":
        found = {f"kernel {r['case']}": r for r in rows(result, "kernels")}
        found |= {f"bandwidth {r['kernel']}": r for r in rows(result, "bandwidth")}
        return found | {f"{r['model']} batch {r['batch']}, {r['row']}": r for r in measured_steps(result)}
    return {f"{c['model']} batch {c['batch']}, {r['row']}": r for c in result["cases"] for r in c["rows"]}
