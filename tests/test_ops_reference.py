"""What the reference promises beyond the contract: where results lie in memory, precision, and the same bits from any number
of threads.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_ops_kernels import draw, rng

import tinyres as tr
from tinyres.kernels import reference


def test_results_lie_channels_last():
    """So that the next kernel finds channels side by side."""
    x, w = draw(2, 3, 6, 6), draw(4, 3, 3, 3)
    for y in (
        reference.conv2d(x, w, (1, 1), (1, 1), (1, 1), 1),
        reference.conv2d_backward_input(draw(2, 4, 6, 6), w, x.shape, (1, 1), (1, 1), (1, 1), 1),
        reference.batch_norm(x, draw(3), draw(3), 1e-5, True)[0],
        reference.max_pool2d(x, (2, 2), (2, 2), (0, 0))[0],
        reference.avg_pool2d(x, (2, 2), (2, 2), (0, 0)),
        reference.subsample_pad(x, 8, 2),
    ):
        assert y.transpose(0, 2, 3, 1).flags.c_contiguous
        assert reference.relu(y).transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sum_over_a_long_column_keeps_its_precision(channels):
    """A batch norm of (N, C) sums N numbers one below the other."""
    x = (100 + rng.standard_normal((100_000, channels, 1, 1))).astype(np.float32)
    one = np.ones(channels, np.float32)
    _, mean, var = reference.batch_norm(x, one, one, 1e-5, False)
    np.testing.assert_allclose(mean, x.mean(axis=(0, 2, 3), dtype=float), rtol=1e-5)
    np.testing.assert_allclose(var, x.var(axis=(0, 2, 3), dtype=float), rtol=1e-5)


def test_batch_norm_has_no_cancellation_where_the_mean_is_large():
    x = (1e4 + rng.standard_normal((8, 2, 8, 8))).astype(np.float32)
    one = np.ones(2, np.float32)
    y, _, var = reference.batch_norm(x, one, 0 * one, 1e-5, False)
    np.testing.assert_allclose(var, x.var(axis=(0, 2, 3), dtype=float), rtol=1e-3)
    np.testing.assert_allclose(y.var(axis=(0, 2, 3)), 1, rtol=1e-3)


def test_a_kernel_result_does_not_depend_on_the_number_of_threads():
    """Blocks are fixed, so the sums are added in one order."""
    script = (
        "import hashlib, numpy as np\n"
        "from tinyres.kernels import reference as r\n"
        "g = np.random.default_rng(0)\n"
        "x, w, dy = (g.standard_normal(s).astype('f') for s in ((9, 16, 20, 20), (16, 16, 3, 3), (9, 16, 20, 20)))\n"
        "a = (1, 1), (1, 1), (1, 1), 1\n"
        "out = [r.conv2d(x, w, *a), r.conv2d_backward_input(dy, w, x.shape, *a),\n"
        "       r.conv2d_backward_weight(dy, x, w.shape, *a),\n"
        "       *r.batch_norm_add_relu(x, dy, w[0, :, 0, 0], w[0, :, 0, 0], 1e-5), r.relu(x)]\n"
        "print(hashlib.sha256(b''.join(np.ascontiguousarray(o).tobytes() for o in out)).hexdigest())\n"
    )
    root = str(Path(tr.__file__).parent.parent)
    digests = set()
    for threads in ("1", "3"):
        env = {**os.environ, "TINYRES_THREADS": threads, "PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1
