"""Wrong numbers of 16 bits, sums over a block, fragments, barriers and elementwise kernels: see cuda_mutants.py."""

import functools

import numpy as np
import pytest
import test_cuda_elementwise as elementwise
import test_cuda_emulator as emulation
from backends import BACKENDS
from cuda_mutants import check_caught, check_places, registry

from tinyres.kernels.cuda import launch

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected
mutant, MUTANTS = registry()

# --- common.cuh: 16-bit numbers, the sum over a block ----------------------------------------------------------------


def rounding(real):
    return lambda: emulation.test_floats_round_to_the_nearest_number_of_16_bits_ties_to_even(real)


mutant("bfloat16 cut off", "common.cuh", "(u + 0x7fff + (u >> 16 & 1)) >> 16", "u >> 16", rounding("bfloat16"))
mutant("bfloat16 ties away from zero", "common.cuh", "u + 0x7fff + (u >> 16 & 1)", "u + 0x8000", rounding("bfloat16"))
mutant(
    "bfloat16 NaN becomes infinity",
    "common.cuh",
    "x != x ? u >> 16 | 0x40 :",
    "x != x ? (u >> 16) & 0xff80 :",
    rounding("bfloat16"),
)
mutant("half ties away from zero", "common.cuh", "rest + 0xfff + (rest >> 13 & 1)", "rest + 0x1000", rounding("half"))
mutant(
    "half subnormals are zero",
    "common.cuh",
    "__float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000",
    "0",
    rounding("half"),
)

mutant(
    "block_sum: shuffles reach half a warp",
    "common.cuh",
    "for (int mask = 16; mask; mask >>= 1) sum +=",
    "for (int mask = 8; mask; mask >>= 1) sum +=",
    emulation.check_block_sum,
)
mutant(
    "block_sum: nobody waits for the last sum's readers",
    "common.cuh",
    "    __syncthreads();\n    if (thread % 32 == 0) of_warp",
    "    if (thread % 32 == 0) of_warp",
    emulation.check_block_sum,
)
mutant(
    "block_sum: nobody waits for the warps",
    "common.cuh",
    "of_warp[thread / 32] = sum;\n    __syncthreads();",
    "of_warp[thread / 32] = sum;",
    emulation.check_block_sum,
)
mutant(
    "block_sum: the sum goes on from the warp's own",
    "common.cuh",
    "    sum = 0;\n    for (int w = 0",
    "    for (int w = 0",
    emulation.check_block_sum,
)
mutant("block_sum: one warp too many", "common.cuh", "w < warps", "w <= warps", emulation.check_block_sum)
mutant(
    "block_sum: one-dimensional",
    "common.cuh",
    "threadIdx.x + blockDim.x * threadIdx.y, warps",
    "threadIdx.x, warps",
    emulation.check_block_sum,
)

# --- elementwise.cu --------------------------------------------------------------------------------------------------


def elements(check, name, dtype="float32"):
    return functools.partial(getattr(elementwise, f"check_{check}"), name, dtype)


mutant(
    "NaN is swallowed by a comparison",
    "map.cuh",
    "{ return x <= 0 ? ACC(0) : x; }",
    "{ return x > 0 ? x : ACC(0); }",
    elements("special", "relu"),
)
mutant(
    "NaN is swallowed by fmax",
    "join.cu",
    "{ return relu_of(x + y); }",
    "{ return fmax(x + y, ACC(0)); }",
    elements("special", "add_relu"),
)
mutant(
    "an infinite cotangent becomes NaN",
    "elementwise.cu",
    "{ return y <= 0 ? ACC(0) : dy; }",
    "{ return dy * ACC(!(y <= 0)); }",
    elements("special", "relu_backward"),
)
mutant(
    "the slope at 0 is 1",
    "elementwise.cu",
    "{ return y <= 0 ? ACC(0) : dy; }",
    "{ return y < 0 ? ACC(0) : dy; }",
    elements("special", "relu_backward"),
)
mutant(
    "the slope at 6 is 1",
    "elementwise.cu",
    "y <= 0 || y >= 6 ? ACC(0) : dy",
    "y <= 0 || y > 6 ? ACC(0) : dy",
    elements("special", "relu6_backward"),
)
mutant(
    "the cotangent beside a NaN is cut off",
    "elementwise.cu",
    "{ return y <= 0 ? ACC(0) : dy; }",
    "{ return y > 0 ? dy : ACC(0); }",
    elements("special", "relu_backward"),
)
mutant(
    "one element too many",
    "map.cuh",
    "i < n; i += stride) narrow(z[i], f(widen(x[i])));",
    "i <= n; i += stride) narrow(z[i], f(widen(x[i])));",
    elements("sizes", "relu"),
)
mutant(
    "one pack too many",
    "map.cuh",
    "i < packs; i += stride) {\n        const Pack a = reinterpret_cast<const Pack*>(x)[i], b",
    "i <= packs; i += stride) {\n        const Pack a = reinterpret_cast<const Pack*>(x)[i], b",
    elements("sizes", "add_relu"),
)
mutant(
    "the rest behind the packs is left out",
    "map.cuh",
    "i < n; i += stride) narrow(z[i], f(widen(x[i])));",
    "i < packs; i += stride) narrow(z[i], f(widen(x[i])));",
    elements("sizes", "relu"),
)

# --- tensor cores: a kernel that fills fragments ---------------------------------------------------------------------


def products():
    for kind in emulation.KINDS:
        emulation.check_product(kind)


mutant("a fragment from the next lane", "own.cu", "of_a[i] = a[4 * lane + i]", "of_a[i] = a[4 * (lane ^ 1) + i]", products)
mutant("two registers exchanged", "own.cu", "of_a[i] = a[4 * lane + i]", "of_a[i] = a[4 * lane + (i ^ 1)]", products)
mutant("B's registers exchanged", "own.cu", "of_b[i] = b[2 * lane + i]", "of_b[i] = b[2 * lane + 1 - i]", products)
mutant("an accumulator that nobody has set", "own.cu", ", sum[i] = d[4 * lane + i];", ";", products)
mutant(
    "a result written to another lane's place",
    "own.cu",
    "d[4 * lane + i] = sum[i]",
    "d[4 * (lane ^ 4) + i] = sum[i]",
    products,
)
mutant(
    "TF32 ties to even",
    "mma.cuh",
    "(u + 0x1000) & ~0x1fffu",
    "(u + 0xfff + (u >> 13 & 1)) & ~0x1fffu",
    emulation.test_tf32_keeps_ten_bits_ties_away_from_zero,
)

# --- barriers of a warp ----------------------------------------------------------------------------------------------


def check_neighbours():
    y = np.zeros(32, "f4")
    launch.kernel("own", "neighbours")(1, 32, y)
    np.testing.assert_array_equal(y, np.arange(32) ^ 1)


mutant(
    "no barrier of the warp",
    "own.cu",
    "    __syncwarp();\n    y[threadIdx.x] = s[threadIdx.x ^ 1];",
    "    y[threadIdx.x] = s[threadIdx.x ^ 1];",
    check_neighbours,
)


def test_what_is_replaced_stands_in_its_source_once():
    check_places(MUTANTS)


@pytest.mark.kernels
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_kernel_is_caught(name):
    check_caught(*MUTANTS[name])
