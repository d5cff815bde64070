"""Where the time of a training step goes, by kernel, beside the time that the machine needs at least.

This floor of a kernel is the longer of two times: its FLOPs at the multiply-add peak (or at the rate of the matrix product,
if the peak is not known), and its bytes, each moved once, at the copy bandwidth. A Winograd convolution can be faster than
the first, since FLOPs are counted as direct convolution; data that stays in the cache can be faster than the second.
"""

from collections.abc import Callable
from typing import Any

import tinyres as tr
from tinyres.benchmarks import machine, steps

HEADER = f"{'kernel':28} {'calls':>6} {'ms':>8} {'share':>6} {'GFLOP/s*':>8} {'GB/s':>6} {'floor ms':>9} {'x floor':>8}"
HEADER += f"\n* {machine.GFLOPS}"


def run(
    model: str,
    batch: int,
    backend: str,
    rounds: int,
    say: Callable[[str], None] = print,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The result of ``tinyres bench profile`` as a dict for JSON, with what ``about`` says of it. Times are of one step, the
    mean over ``rounds``.
    """
    result = machine.result("profile", about)
    step, profile, limits = steps.make_step(model, batch, None), tr.profile(), result["limits"]
    with tr.use_backend(backend):
        step()
        for _ in range(rounds):
            with profile:
                step()
    rows = [_row(kernel, r, rounds, limits) for (kernel,), r in profile.by("kernel").items()]
    total = profile.seconds / rounds
    for row in rows:
        say(
            f"{row['kernel']:28} {row['calls']:6.0f} {1e3 * row['seconds']:8.2f} {row['seconds'] / total:6.1%} "
            f"{row['gflops']:8.1f} {row['gb_per_s']:6.1f} {1e3 * row['floor_seconds']:9.2f} "
            f"{row['seconds'] / max(row['floor_seconds'], 1e-12):8.1f}"
        )
    rest = total - sum(row["seconds"] for row in rows)
    say(f"{'in no kernel':28} {'':6} {1e3 * rest:8.2f} {rest / total:6.1%}")
    say(f"{'a step':28} {'':6} {1e3 * total:8.2f}")
    found = {"seconds": total, "in_no_kernel": rest, "rows": rows, "complete": True}
    return {**result, "rounds": rounds, "model": model, "batch": batch, "backend": backend, **found}


def _row(kernel: str, record: Any, rounds: int, limits: dict[str, float]) -> dict[str, Any]:
    peak = limits.get("fma_peak_gflops", limits["matmul_gflops"]) * 1e9
    flops, moved, seconds = record.flops / rounds, record.bytes / rounds, record.seconds / rounds
    return {
        "kernel": kernel,
        "calls": record.calls / rounds,
        "seconds": seconds,
        "flops": flops,
        "bytes": moved,
        "gflops": flops / seconds / 1e9,
        "gb_per_s": moved / seconds / 1e9,
        "floor_seconds": max(flops / peak, moved / (limits["copy_gb_per_s"] * 1e9)),
    }
