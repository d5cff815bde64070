"""Known-wrong CUDA kernels, planted one at a time by replacing a text of a source: the suite proves that it can fail.

Each must be caught by the check that stands beside it, which is one that the other files run, in at least one of the orders
in which a block's threads run. Without the fault the check passes in all of them.
"""

import functools
import importlib

import numpy as np
import pytest
import test_cuda_augment as augmentation
import test_cuda_conv_tensor as tensor_cores
import test_cuda_elementwise as elementwise
import test_cuda_emulator as emulation
import test_ops_kernels as kernels
from backends import BACKENDS
from cuda_sources import SOURCE, sources

from tinyres.kernels import cuda
from tinyres.kernels.cuda import launch
from tinyres.kernels.cuda.sources import KernelFault

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected
pytestmark = pytest.mark.kernels

ORDERS = "012"
CAUGHT = (AssertionError, KernelFault)
MUTANTS = {}


def mutant(name, file, old, new, check):
    """A fault: in ``file``, ``old`` becomes ``new``, which ``check`` must notice."""
    assert name not in MUTANTS, name
    MUTANTS[name] = (file, old, new), check


def of(check, *arguments):
    """A check of test_ops_kernels, on the kernels in CUDA C++."""
    return lambda: check(cuda, *arguments)


def fails(check, monkeypatch):
    """Whether a check fails in one of the orders of threads."""
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    for order in ORDERS:
        monkeypatch.setenv("TINYRES_EMULATOR_ORDER", order)
        try:
            with np.errstate(all="ignore"):
                check()
        except CAUGHT:
            return True
    return False


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
    "elementwise.cu",
    "{ return x <= 0 ? ACC(0) : x; }",
    "{ return x > 0 ? x : ACC(0); }",
    elements("special", "relu"),
)
mutant(
    "NaN is swallowed by fmax",
    "elementwise.cu",
    "{ return relu_of(x + y); }",
    "{ return fmax(x + y, ACC(0)); }",
    elements("special", "add_relu"),
)
mutant(
    "an infinite cotangent is hidden",
    "elementwise.cu",
    "{ return dy * ACC(y > 0); }",
    "{ return y > 0 ? dy : ACC(0); }",
    elements("special", "relu_backward"),
)
mutant(
    "the slope at 0 is 1",
    "elementwise.cu",
    "{ return dy * ACC(y > 0); }",
    "{ return dy * ACC(y >= 0); }",
    elements("special", "relu_backward"),
)
mutant(
    "the slope at 6 is 1",
    "elementwise.cu",
    "ACC(y > 0 && y < 6)",
    "ACC(y > 0 && y <= 6)",
    elements("special", "relu6_backward"),
)
mutant(
    "one element too many",
    "elementwise.cu",
    "i < n; i += stride) narrow(z[i], f(widen(x[i])));",
    "i <= n; i += stride) narrow(z[i], f(widen(x[i])));",
    elements("sizes", "relu"),
)
mutant(
    "one pack too many",
    "elementwise.cu",
    "i < packs; i += stride) {\n        const Pack a = reinterpret_cast<const Pack*>(x)[i], b",
    "i <= packs; i += stride) {\n        const Pack a = reinterpret_cast<const Pack*>(x)[i], b",
    elements("sizes", "add_relu"),
)
mutant(
    "the rest behind the packs is left out",
    "elementwise.cu",
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


NEIGHBOURS = """
extern "C" __global__ void neighbours(float* y) {
    __shared__ float s[32];
    s[threadIdx.x] = threadIdx.x;
    __syncwarp();
    y[threadIdx.x] = s[threadIdx.x ^ 1];
}
"""
mutant(
    "no barrier of the warp",
    "own.cu",
    "    __syncwarp();\n    y[threadIdx.x] = s[threadIdx.x ^ 1];",
    "    y[threadIdx.x] = s[threadIdx.x ^ 1];",
    check_neighbours,
)

# --- batch norm ------------------------------------------------------------------------------------------------------


def check_nan_in_norm():
    norm = importlib.import_module("tinyres.kernels.cuda.norm")
    x, one = np.ones((2, 3, 2, 2), "f4"), np.ones(3, "f4")
    x[1, 2, 0, 1] = np.nan
    y = norm.batch_norm_inference(x, one, one, one, one, 1e-5, True)
    assert np.isnan(y[1, 2, 0, 1]) and np.isnan(y).sum() == 1


NORM = of(kernels.check_batch_norm, (3, 5, 7, 9), True, "join")
PLAIN_NORM = of(kernels.check_batch_norm, (5, 8, 6, 7))
mutant(
    "batch norm: nobody waits in the tree",
    "norm.cu",
    "        __syncthreads();  // what is read below",
    "        // what is read below",
    NORM,
)
mutant(
    "batch norm: the tree leaves out the middle row",
    "norm.cu",
    "const int rest = (rows + 1) / 2;",
    "const int rest = rows / 2;",
    of(kernels.check_batch_norm, (4, 3, 20, 20)),
)
mutant("batch norm: moments that nobody has set", "norm.cu", "    Moments all;\n    all.clear();", "    Moments all;", NORM)
mutant(
    "batch norm: the last rows' part counts as a whole one",
    "norm.cu",
    "one.n = min(share, rows - part * share);",
    "one.n = share;",
    of(kernels.check_batch_norm, (9, 2, 16, 9)),
)
mutant(
    "batch norm: xhat left out",
    "norm.cu",
    "factor[k] = all.product[k] * inverse / rows * inverse;",
    "factor[k] = 0;",
    PLAIN_NORM,
)
mutant("batch norm: the running variance is the biased one", "norm.cu", "all.m[k] / (all.n - 1)", "all.m[k] / all.n", NORM)
mutant(
    "batch norm: a NaN is swallowed",
    "norm.cu",
    "{ return z <= 0 ? ACC(0) : z; }",
    "{ return z > 0 ? z : ACC(0); }",
    check_nan_in_norm,
)
mutant(
    "batch norm: columns beyond the last",
    "norm.cu",
    "    all = over_rows(all, shared);\n    if (column >= columns) return;\n    for",
    "    all = over_rows(all, shared);\n    for",
    of(kernels.check_batch_norm, (2, 35, 2, 3)),
)


# --- pooling ---------------------------------------------------------------------------------------------------------

POOL = of(kernels.check_pool, (2, 3, 6, 7), (3, 3), (2, 2), (1, 1))
mutant(
    "pooling: one window too many",
    "pool.cu",
    "last = min((i + padding) / stride, out - 1);",
    "last = (i + padding) / stride;",
    POOL,
)
mutant(
    "pooling: the first window is rounded down", "pool.cu", "(before + stride - 1) / stride : 0", "before / stride : 0", POOL
)
SHORTCUT = of(kernels.check_shortcut, (2, 5, 9, 8), 7, 2)
mutant(
    "global pooling: nobody waits in the tree",
    "pool.cu",
    "        __syncthreads();  // what is read below",
    "        // what is read below",
    SHORTCUT,
)
mutant(
    "shortcut: channels at the wrong end",
    "pool.cu",
    "const int column = spot.column - before;",
    "const int column = spot.column;",
    SHORTCUT,
)

# --- linear ----------------------------------------------------------------------------------------------------------

LINEAR = of(kernels.check_linear, 33, 70, 10)
mutant(
    "linear: nobody waits for the tiles", "linear.cu", "        __syncthreads();  // the tiles are complete\n", "", LINEAR
)
mutant(
    "linear: tiles are overwritten while others read",
    "linear.cu",
    "        __syncthreads();  // nobody reads them any more\n",
    "",
    LINEAR,
)
mutant(
    "linear: the edge tile is not guarded",
    "linear.cu",
    "const bool inside = row + r < rows && k + c < depth;",
    "const bool inside = row + r < rows;",
    LINEAR,
)
mutant("linear: results beyond the edge", "linear.cu", "if (m < rows && n < columns) c[", "if (m < rows) c[", LINEAR)
mutant(
    "linear: a shuffle that reaches half a warp",
    "linear.cu",
    "for (int mask = 16; mask; mask >>= 1) sum",
    "for (int mask = 8; mask; mask >>= 1) sum",
    LINEAR,
)

# --- convolution -----------------------------------------------------------------------------------------------------


def convolution(module, *arguments):
    return of(module, kernels.check_conv2d, *arguments)


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
mutant("im2col in packs: pixels beyond the last", "im2col.cu", "if (m < end) to[", "to[", PACKED)
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
    "row >= 0 && row < of.IH &&",
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


# --- loss, update ----------------------------------------------------------------------------------------------------

LOSS = of(kernels.check_loss, 3, 33, 0.1)
mutant("loss: the maximum is not taken away", "loss.cu", "sum += exp(x[i] - most);", "sum += exp(x[i]);", LOSS)
mutant(
    "loss: a shuffle that reaches half a warp",
    "loss.cu",
    "    for (int mask = 16; mask; mask >>= 1) {\n",
    "    for (int mask = 8; mask; mask >>= 1) {\n",
    LOSS,
)
mutant("loss: rows beyond the last", "loss.cu", "    if (row >= n) return;", "    if (row > n) return;", LOSS)
mutant("loss: no smoothing in the gradient", "loss.cu", "if (smoothing) d -= ACC(smoothing / k);", "", LOSS)


def update(momentum, nesterov):
    return of(kernels.check_update, momentum, nesterov, (33, 1025))


def check_unscale():
    unscale = importlib.import_module("tinyres.kernels.cuda.update").unscale
    for size in (3, 1027):
        for bad in (None, np.inf, np.nan):
            for at in (0, size - 1):
                grads = [np.full(size, 3, "f4"), np.full(5, 3, "f4")]
                if bad:
                    grads[0][at] = bad
                assert unscale(grads, np.array(2, "f4")) == (bad is not None)
                assert (grads[0] == 1.5).sum() == size - (bad is not None)


mutant(
    "update: one element too many",
    "update.cu",
    "i < count; i += blockDim.x) update(",
    "i <= count; i += blockDim.x) update(",
    update(0.9, False),
)
mutant("update: the velocity is not kept", "update.cu", "        v = velocity;\n", "", update(0.9, False))
mutant(
    "update: Nesterov does not look ahead",
    "update.cu",
    "o.nesterov ? g + o.momentum * velocity : velocity",
    "velocity",
    update(0.9, True),
)
mutant("update: no weight decay", "update.cu", "if (o.decay != 0) g += o.decay * p;", "", update(0.0, False))
mutant(
    "update: an infinity counts as finite",
    "update.cu",
    "bad |= !(a.v[j] - a.v[j] == 0);",
    "bad |= a.v[j] != a.v[j];",
    check_unscale,
)
mutant("update: what was found before stays", "update.cu", "if (threadIdx.x == 0) found[0] = 0;", "", check_unscale)


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
mutant("tensor cores: results beyond the last filter", FORWARD, "if (f + e + i < F) to[e + i]", "to[e + i]", ODD)
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
    "bits(from[e]) << e % PER_WORD * 16",
    "bits(from[e]) << (PER_WORD - 1 - e % PER_WORD) * 16",
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

# --- augmentation ----------------------------------------------------------------------------------------------------


def check_crop_flip():
    for kernel in (of(kernels.check_crop_flip, 3, 9, 2), augmentation.check_batches):
        kernel()


mutant(
    "augment: no border",
    "augment.cu",
    "if (row < 0 || row >= height || column < 0 || column >= width) return 0;",
    "",
    check_crop_flip,
)
mutant(
    "augment: mirrored by one too many",
    "augment.cu",
    "column = width - 1 - column;",
    "column = width - column;",
    check_crop_flip,
)
mutant("augment: nine rounds", "augment.cu", "round < 10", "round < 9", augmentation.check_published)
mutant(
    "augment: offsets exchanged",
    "augment.cu",
    "int(offsets[2 * n]) - pad,",
    "int(offsets[2 * n + 1]) - pad,",
    check_crop_flip,
)


@pytest.fixture(scope="module")
def passed():
    """The checks that have been seen to pass without a fault."""
    return set()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_kernel_is_caught(name, passed, monkeypatch):
    replacement, check = MUTANTS[name]
    own = {"own.cu": SOURCE + NEIGHBOURS}
    if check not in passed:
        with sources(own):
            assert not fails(check, monkeypatch), "the check fails without the fault"
        passed.add(check)
    with sources(own, replacement):
        assert fails(check, monkeypatch), f"nobody notices: {name}"
