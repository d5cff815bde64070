"""The multiply-add peak of this machine: independent sums held in registers, on all threads. No kernel can do more."""

import functools
import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinyres.kernels.arrays import threads
from tinyres.kernels.cpu import simd
from tinyres.kernels.cpu.buffers import address
from tinyres.kernels.cpu.simd import unpack

SUMS = 12  # enough to cover the latency of a multiply-add with two units, few enough for 16 registers


@intrinsic(prefer_literal=True)
def _multiply_adds(typing: Any, lanes: Any, rounds: Any, out: Any) -> Any:
    """``SUMS`` vectors, each multiplied and added to ``rounds`` times; their total is stored, so that none is left out."""
    width = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        half = simd.broadcast(builder, width, args[2])
        slots = [cgutils.alloca_once_value(builder, half) for _ in range(SUMS)]
        with cgutils.for_range(builder, args[1]):
            for slot in slots:
                builder.store(simd.fma(builder, builder.load(slot), half, half), slot)
        total = builder.load(slots[0])
        for slot in slots[1:]:
            total = builder.fadd(total, builder.load(slot))
        lane = builder.extract_element(total, ir.Constant(simd.I32, 0))
        builder.store(lane, builder.inttoptr(args[2], simd.F32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(lanes, types.intp, types.intp), emit


@functools.cache
def _job(lanes: int) -> Any:
    def job(parameters: int, index: int, scratch: int) -> None:
        rounds, out = unpack(parameters, 2)
        _multiply_adds(lanes, rounds, out + 64 * index)

    return simd.compiled_job(job)


def fma_peak(seconds: float = 1.0) -> float:
    """FLOP/s in single precision, the best of repetitions within ``seconds``."""
    lanes, rounds, parts = simd.host_lanes(), 500_000, 2 * threads()
    out = np.full((parts, 16), 0.5, np.float32)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        simd.run(_job(lanes), [rounds, address(out)], parts, 0)
        best = max(best, 2 * lanes * SUMS * rounds * parts / (time.perf_counter() - start))
    return best
