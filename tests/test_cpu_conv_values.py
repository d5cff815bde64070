"""The compiled convolutions against the reference in float64: every vector width, every algorithm, odd sizes, with
results and working memory that start as NaN between fences and inputs that lie between NaN.
"""

import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
from backends import sweep

pytest.importorskip("numba", reason="Numba is not installed")
from tinyres.kernels import reference
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cpu import buffers, choose, conv, simd

FENCE = 1024  # bytes
# The largest error allowed, in units of 2^-24 times the root mean square of the exact result. Rounding errors of normal
# inputs add up like a random walk; the largest seen over the cases below were 62 direct, 44 for F(2x2), 176 for F(4x4),
# whose transforms multiply by up to 2.6. A wrong tap or edge is off by 10^6.
LIMIT = {"direct": 150, "winograd2": 150, "winograd4": 400}

# images, channels, filters, height, width, kernel, stride, padding, groups
WINOGRAD_CASES = [
    (2, 16, 16, 32, 32, 3, 1, 1, 1),  # whole tiles and vectors
    (3, 5, 17, 7, 9, 3, 1, 1, 1),  # nothing divides: partial tiles, one filter more than a vector
    (5, 3, 48, 5, 1, 3, 1, 1, 1),  # a column narrower than a tile
    (1, 1, 1, 1, 1, 3, 1, 1, 1),
    (2, 24, 100, 2, 3, 3, 1, 1, 1),
    (5, 64, 64, 8, 8, 3, 1, 1, 1),  # several images in a block, the last block not full, filters split
    (1, 32, 32, 33, 31, 3, 1, 0, 1),  # no padding
    (1, 8, 8, 3, 3, 3, 1, 2, 1),  # full padding
    (1, 16, 16, 100, 8, 3, 1, 1, 1),  # the last strip of rows is shorter than the others
]
OTHER_CASES = [
    (2, 16, 32, 32, 32, 3, 2, 1, 1),
    (3, 17, 5, 9, 7, 3, 2, 1, 1),
    (2, 3, 16, 32, 32, 3, 1, 1, 1),
    (1, 100, 24, 5, 31, 1, 1, 0, 1),
    (2, 32, 64, 9, 9, 1, 2, 0, 1),  # pixels that no window reaches
    (1, 3, 3, 8, 8, 3, 1, 3, 1),  # more padding than the kernel
    (2, 3, 5, 11, 7, 5, 3, 2, 1),
    (2, 2, 3, 10, 7, 1, 3, 1, 1),  # whole classes of pixels without a tap
    (2, 24, 24, 9, 8, 3, 1, 1, 24),
    (3, 17, 17, 7, 9, 3, 2, 1, 17),
    (1, 5, 5, 6, 6, 2, 3, 1, 5),
]
# that of this machine always
WIDTHS = pytest.mark.parametrize("lanes", [n if n == simd.host_lanes() else sweep(n)[0] for n in (16, 8, 4)])


@pytest.fixture
def fenced(monkeypatch):
    """Results and working memory come as NaN, no larger than asked for, between fences that must stand at the end."""
    fences = []

    def empty(shape, dtype=np.float32):
        size = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
        memory = np.full(size + 2 * FENCE, 0xFF, np.uint8)  # as floats: NaN
        fences.extend([memory[:FENCE], memory[FENCE + size :]])
        return memory[FENCE : FENCE + size].view(dtype).reshape(shape)

    monkeypatch.setattr(buffers, "empty", empty)
    monkeypatch.setattr(buffers, "scratch", lambda size: empty((size,), np.uint8))
    monkeypatch.setattr(simd, "LARGE", 0)
    yield fences
    assert all((fence == 0xFF).all() for fence in fences), "a kernel wrote beside its array"


@pytest.fixture(autouse=True)
def as_chosen():
    yield
    choose.set_algorithm(None)


def use(monkeypatch, lanes, algorithm):
    monkeypatch.setattr(simd, "host_lanes", lambda: lanes)
    choose.set_algorithm(algorithm)


def draw(seed, shape):
    """Normal numbers, channels-last if they are images, read-only, with NaN before and behind them in memory."""
    values = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    memory = np.full(values.size + 512, np.nan, np.float32)
    order = (0, 2, 3, 1)
    inside = memory[256:-256].reshape([shape[i] for i in order]).transpose(0, 3, 1, 2)
    inside[...] = values
    memory.flags.writeable = inside.flags.writeable = False
    return inside


def passes(n, c, f, h, w, k, s, p, groups, kernels, x, weight, dy):
    """y, dx, dx added to another array, and dw by the kernels of a module."""
    rest = ((s, s), (p, p), (1, 1), groups)
    total = buffers.empty_activations(x.shape, x.dtype)
    total[...] = np.cos(np.arange(x.size)).reshape(x.shape)
    return (
        kernels.conv2d(x, weight, *rest),
        kernels.conv2d_backward_input(dy, weight, x.shape, *rest),
        kernels.conv2d_backward_input(dy, weight, x.shape, *rest, total),
        kernels.conv2d_backward_weight(dy, x, weight.shape, *rest),
    )


def inputs(case):
    n, c, f, h, w, k, s, p, groups = case
    size = [(extent + 2 * p - k) // s + 1 for extent in (h, w)]
    return draw(1, (n, c, h, w)), draw(2, (f, c // groups, k, k)), draw(3, (n, f, *size))


def assert_close(case, algorithm):
    x, weight, dy = inputs(case)
    exact = passes(*case, reference, *(a.astype(np.float64) for a in (x, weight, dy)))
    for name, got, want in zip(("y", "dx", "dx added", "dw"), passes(*case, conv, x, weight, dy), exact, strict=True):
        assert got.shape == want.shape and got.dtype == np.float32
        error = np.abs(got - want).max() / max(np.sqrt((want**2).mean()), 1e-30)
        assert error < LIMIT[algorithm] * 2.0**-24, f"{name} is off by {error * 2**24:.0f}"


@WIDTHS
@pytest.mark.parametrize("algorithm", ["direct", "winograd2", "winograd4"])
@pytest.mark.parametrize("case", WINOGRAD_CASES, ids=str)
def test_each_algorithm_agrees_with_the_reference_at_each_width(monkeypatch, fenced, case, algorithm, lanes):
    use(monkeypatch, lanes, algorithm)
    assert_close(case, algorithm)
    assert fenced, "no kernel asked for memory: this test sees nothing"


@WIDTHS
@pytest.mark.parametrize("case", OTHER_CASES, ids=str)
def test_other_kernels_strides_and_depthwise_agree_with_the_reference(monkeypatch, fenced, case, lanes):
    use(monkeypatch, lanes, "direct")
    assert_close(case, "direct")


@pytest.mark.parametrize("algorithm", ["direct", "winograd2", "winograd4"])
def test_any_memory_layout_gives_the_same_bits(algorithm):
    choose.set_algorithm(algorithm)
    case = (2, 5, 18, 6, 7, 3, 1, 1, 1)
    channels_last = passes(*case, conv, *inputs(case))
    strided = []
    for a in inputs(case):
        wide = np.full((*a.shape[:3], 2 * a.shape[3]), np.nan, np.float32)
        wide[..., ::2] = a
        strided.append(wide[..., ::2])
    for one, other in zip(channels_last, passes(*case, conv, *strided), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", [WINOGRAD_CASES[5], OTHER_CASES[0], OTHER_CASES[8]], ids=str)
def test_the_same_inputs_give_the_same_bits_every_time(case):
    first = passes(*case, conv, *inputs(case))
    for _ in range(5):
        for one, other in zip(first, passes(*case, conv, *inputs(case)), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("algorithm", ["direct", "winograd2", "winograd4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_number_stays_visible_where_it_has_influence(algorithm, bad):
    choose.set_algorithm(algorithm)
    x, weight, dy = (a.copy() for a in inputs((2, 4, 6, 8, 8, 3, 1, 1, 1)))
    x[1, 2, 5, 6] = bad
    y = conv.conv2d(x, weight, (1, 1), (1, 1), (1, 1), 1)
    assert not np.isfinite(y[1, :, 4:7, 5:8]).any()
    assert np.isfinite(y[0]).all(), "another image"
    dw = conv.conv2d_backward_weight(dy, x, weight.shape, (1, 1), (1, 1), (1, 1), 1)
    assert not np.isfinite(dw[:, 2]).any()
    assert np.isfinite(dw[:, 0]).all(), "another channel"


BESIDE_NOTHING = """
import ctypes, mmap, sys
import numpy as np
from tinyres.kernels.arrays import ceil_div
from tinyres.kernels.cpu import choose, conv
protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
kept = []

def place(shape, at_end):
    order = [shape[i] for i in (0, 2, 3, 1)]
    size = 4 * int(np.prod(shape))
    pages = ceil_div(size, mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + 2 * mmap.PAGESIZE)
    kept.append(memory)
    start = mmap.PAGESIZE + (pages - size if at_end else 0)
    array = np.frombuffer(memory, np.float32, size // 4, start).reshape(order).transpose(0, 3, 1, 2)
    array[...] = 1
    base = array.ctypes.data - start
    for page in (base, base + mmap.PAGESIZE + pages):
        assert protect(page, mmap.PAGESIZE, 0) == 0
    return array

for algorithm in ("direct", "winograd2", "winograd4"):
    choose.set_algorithm(algorithm)
    for n, c, f, h, w, k, s, groups in ((2, 5, 17, 7, 9, 3, 1, 1), (1, 20, 3, 5, 6, 3, 2, 1), (2, 18, 18, 6, 7, 3, 1, 18)):
        for at_end in (False, True):
            x, weight = place((n, c, h, w), at_end), place((f, c // groups, k, k), at_end)
            rest = ((s, s), (1, 1), (1, 1), groups)
            dy = place(conv.conv2d(x, weight, *rest).shape, at_end)
            conv.conv2d_backward_input(dy, weight, x.shape, *rest)
            conv.conv2d_backward_weight(dy, x, weight.shape, *rest)
print("read nothing else")
"""


@pytest.mark.skipif(not hasattr(mmap, "PROT_READ"), reason="no memory protection from Python on this system")
def test_nothing_beside_the_inputs_is_read():
    """Inputs end, or begin, at pages that may not be touched; a read there ends the process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", BESIDE_NOTHING], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "read nothing else", (done.returncode, done.stderr)


def test_what_is_not_done_here_is_refused_by_name():
    x, weight, _ = inputs((1, 4, 4, 6, 6, 3, 1, 1, 1))
    with pytest.raises(Unsupported, match="float64"):
        conv.conv2d(x.astype(np.float64), weight.astype(np.float64), (1, 1), (1, 1), (1, 1), 1)
    with pytest.raises(Unsupported, match="dilation"):
        conv.conv2d(x, weight, (1, 1), (1, 1), (2, 2), 1)
    with pytest.raises(Unsupported, match="groups"):
        conv.conv2d(x, weight[:, :2], (1, 1), (1, 1), (1, 1), 2)
