"""Wrong batch norms, pooling, linear layers, losses, updates and augmentation in CUDA: see cuda_mutants.py."""

import importlib

import numpy as np
import pytest
import test_cuda_augment as augmentation
import test_ops_kernels as kernels
from backends import BACKENDS
from cuda_mutants import check_caught, check_places, of, registry

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected
mutant, MUTANTS = registry()

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
mutant("pooling: the first window is rounded down", "pool.cu", "ceil_div(before, stride) : 0", "before / stride : 0", POOL)
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
    "join.cu",
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
ADAMW = of(kernels.check_adamw, (33, 1025))
mutant(
    "adamw: one element too many",
    "update.cu",
    "i < count; i += blockDim.x) {\n        const ACC g",
    "i <= count; i += blockDim.x) {\n        const ACC g",
    ADAMW,
)
mutant("adamw: the mean of squares as it is", "update.cu", "(sqrt(square) / ACC(root) +", "(sqrt(square) +", ADAMW)
mutant("adamw: the mean is not kept", "update.cu", "        m[i] = mean;\n", "", ADAMW)
mutant(
    "update: an infinity counts as finite",
    "update.cu",
    "bad |= !(a.v[j] - a.v[j] == 0);",
    "bad |= a.v[j] != a.v[j];",
    check_unscale,
)
mutant("update: what was found before stays", "update.cu", "if (threadIdx.x == 0) found[0] = 0;", "", check_unscale)


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


def test_what_is_replaced_stands_in_its_source_once():
    check_places(MUTANTS)


@pytest.mark.kernels
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_kernel_is_caught(name):
    check_caught(*MUTANTS[name])
