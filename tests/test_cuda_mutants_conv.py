"""Wrong convolutions in CUDA: see cuda_mutants.py."""

import functools
import importlib

import pytest
import test_cuda_conv_tensor as tensor_cores
import test_ops_kernels as kernels
from backends import BACKENDS
from cuda_mutants import check_caught, check_places, registry

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected
mutant, MUTANTS = registry()

# --- convolution -----------------------------------------------------------------------------------------------------


def convolution(module, *arguments):
    """The check of test_ops_kernels, on one of the modules that do convolutions."""
    return lambda: kernels.check_conv2d(importlib.import_module(f"tinyres.kernels.cuda.{module}"), *arguments)


COLUMNS = convolution("im2col", (2, 3, 6, 7), (5, 3, 3, 3), (2, 1), (1, 1))
mutant(
    "im2col: taps exchanged",
    "im2col.cu",
    "a = k / CG / KW, b = k / CG % KW;",
    "b = k / CG / KW, a = k / CG % KW;",
    convolution("im2col", (2, 3, 6, 7), (5, 3, 3, 3), (1, 1), (0, 1)),
)
mutant(
    "im2col: the image has no edge at the right",
    "im2col.cu",
    "if (h >= 0 && h < H && w >= 0 && w < W) value",
    "if (h >= 0 && h < H && w >= 0) value",
    COLUMNS,
)
PACKED = convolution("im2col", (3, 8, 6, 7), (5, 8, 3, 3), (2, 1), (0, 1))
mutant(
    "im2col in packs: taps exchanged",
    "im2col.cu",
    "down = tap / KW * dilation_h - padding_h, right = tap % KW",
    "down = tap % KW * dilation_h - padding_h, right = tap / KW",
    PACKED,
)
mutant(
    "im2col in packs: the image has no edge at the right",
    "im2col.cu",
    "&& unsigned(w) < unsigned(W))\n",
    "&& w >= 0)\n",
    PACKED,
)
mutant("im2col in packs: pixels beyond the last", "im2col.cu", "if (m < end) target[", "target[", PACKED)
mutant("im2col in packs: one image only", "im2col.cu", "if (++i == OH) i = 0, n++;", "if (++i == OH) i = 0;", PACKED)
mutant(
    "col2im: stride is not looked at",
    "im2col.cu",
    "if (i < 0 || i % stride_h || i / stride_h >= OH) continue;",
    "if (i < 0 || i / stride_h >= OH) continue;",
    COLUMNS,
)
mutant(
    "matrix product: nobody waits for the tiles",
    "im2col.cu",
    ": ACC(0);\n        __syncthreads();\n        for (int k = 0; k < T; k++) sum",
    ": ACC(0);\n        for (int k = 0; k < T; k++) sum",
    COLUMNS,
)
mutant(
    "matrix product: the edge is not guarded",
    "im2col.cu",
    "const bool in_a = i0 + ai < m && k0 + ak < end,",
    "const bool in_a = i0 + ai < m,",
    COLUMNS,
)
mutant(
    "parts of a sum: nobody waits",
    "im2col.cu",
    "    sums[threadIdx.y][threadIdx.x] = sum;\n    __syncthreads();",
    "    sums[threadIdx.y][threadIdx.x] = sum;",
    convolution("im2col", (3, 2, 9, 9), (2, 2, 3, 3), (1, 1), (1, 1)),
)

EXACT = convolution("conv_exact", (2, 5, 7, 6), (6, 5, 3, 3), (2, 2), (1, 1))
mutant(
    "implicit product: taps not flipped",
    "conv_exact.cu",
    "            -(every * dilation / stride), tap,",
    "            every * dilation / stride, tap,",
    EXACT,
)
mutant(
    "implicit product: tiles are overwritten while others read",
    "conv_exact.cu",
    "    for (int k0 = 0; k0 < K; k0 += DEPTH) {\n        __syncthreads();",
    "    for (int k0 = 0; k0 < K; k0 += DEPTH) {",
    EXACT,
)
mutant(
    "implicit product: the gradient's sums start anywhere",
    "conv_exact.cu",
    "    REAL sums[EACH][4] = {};\n    load(begin);",
    "    REAL sums[EACH][4];\n    load(begin);",
    EXACT,
)
mutant(
    "implicit product: the image has no edge at the bottom",
    "conv_exact.cu",
    "row >= 0 && row < sizes.IH &&",
    "row >= 0 &&",
    EXACT,
)

DEPTHWISE = convolution("conv_depthwise", (2, 5, 7, 6), (5, 1, 3, 3), (2, 2), (1, 1), (1, 1), 5)
mutant(
    "depthwise: nobody waits for the rows",
    "conv_depthwise.cu",
    "        of_rows[row][lane] = sums[i];\n        __syncthreads();",
    "        of_rows[row][lane] = sums[i];",
    DEPTHWISE,
)
mutant(
    "depthwise: rows are overwritten while others read",
    "conv_depthwise.cu",
    "        __syncthreads();  // all have read the rows before\n",
    "",
    DEPTHWISE,
)
mutant(
    "depthwise: the last run goes beyond the row",
    "conv_depthwise.cu",
    "            if (j + i < OW) write",
    "            write",
    DEPTHWISE,
)
mutant(
    "depthwise: taps not flipped",
    "conv_depthwise.cu",
    "const int i = h + padding_h - a * dilation_h;",
    "const int i = h + padding_h - (KH - 1 - a) * dilation_h;",
    DEPTHWISE,
)


# --- convolution on tensor cores -------------------------------------------------------------------------------------

TENSOR, FORWARD, WEIGHT = "conv_tensor.cuh", "conv_tensor_forward.cu", "conv_tensor_weight.cu"


def tensor(*shape, real="float32"):
    """The check of test_cuda_conv_tensor for N, C, F, H, W, kernel, stride, padding."""
    return functools.partial(tensor_cores.check, shape, real)


EVEN, ODD = tensor(2, 16, 16, 8, 8, 3, 1, 1, real="float16"), tensor(1, 17, 33, 7, 6, 3, 2, 1)
mutant(
    "tensor cores: pixels of a wrong register",
    FORWARD,
    "a[r / 2][i / 2][r % 2 + i % 2 * 2]",
    "a[r / 2][i / 2][r % 2 * 2 + i % 2]",
    EVEN,
)
mutant(
    "tensor cores: filters of the next lane",
    FORWARD,
    "(filters + q * CHUNK) + lane;",
    "(filters + q * CHUNK) + (lane ^ 4);",
    EVEN,
)
mutant(
    "tensor cores: what dx is added to is overwritten",
    FORWARD,
    "narrow(out.v[i], widen(out.v[i]) + sums",
    "narrow(out.v[i], sums",
    EVEN,
)
mutant(
    "tensor cores: nobody waits for the filters",
    FORWARD,
    "        __syncthreads();  // all have written the filters\n",
    "",
    EVEN,
)
mutant(
    "tensor cores: filters are overwritten while others read",
    FORWARD,
    "        __syncthreads();                              // all have read the last filters; all chunks "
    "have been described\n",
    "",
    tensor(1, 64, 16, 4, 4, 3, 1, 1),
)
mutant("tensor cores: results beyond the last filter", FORWARD, "if (f + e + i < F) target[e + i]", "target[e + i]", ODD)
mutant(
    "tensor cores: taps not flipped",
    FORWARD,
    "(phase + padding - tap) / stride, -1, tap, stride,",
    "(phase + padding - tap) / stride, 1, tap, stride,",
    ODD,
)
mutant(
    "tensor cores: the image has no edge at the right", FORWARD, " && unsigned(left[r] + chunk.x) < unsigned(IW);", ";", EVEN
)
mutant("tensor cores: TF32 is cut off", TENSOR, "? to_tf32(__uint_as_float(word)) : word", "? word : word", ODD)
mutant(
    "tensor cores: halves exchanged in a word",
    TENSOR,
    "bits(source[e]) << e % PER_WORD * 16",
    "bits(source[e]) << (PER_WORD - 1 - e % PER_WORD) * 16",
    tensor(1, 5, 3, 5, 4, 3, 1, 1, real="bfloat16"),
)
mutant(
    "tensor cores: warps add before others have shown",
    TENSOR,
    "        __syncthreads();\n        if (member < half)",
    "        if (member < half)",
    EVEN,
)
mutant(
    "tensor cores: pixels exchanged in a word",
    WEIGHT,
    "return e % 2 ? low >> 16 | (high & 0xffff0000u)",
    "return e % 2 ? high >> 16 | (low & 0xffff0000u)",
    tensor(2, 16, 16, 8, 8, 3, 1, 1, real="bfloat16"),
)
mutant("tensor cores: the last four of a row are all pixels", WEIGHT, "i < pixels ? F - f : 0", "F - f", ODD)


def test_what_is_replaced_stands_in_its_source_once():
    check_places(MUTANTS)


@pytest.mark.kernels
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_kernel_is_caught(name):
    check_caught(*MUTANTS[name])
