"""The CUDA update of all parameters, emulated, against the reference in float64.

Launches are checked, parameter by parameter: each array ends where a page begins that may not be touched. The list with
every parameter's address, which such launches do not use, runs on arrays between fences.
"""

import contextlib
import types

import numpy as np
import pytest
from backends import BACKENDS

from tinyres.kernels import reference
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import update

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected

SHAPES = ((), (0,), (1,), (31,), (8, 3, 3, 3), (33, 1, 1, 2), (1023,), (1024,), (1029,), (2, 1025))
KINDS = [(0.0, False), (0.9, False), (0.9, True)]


@pytest.fixture(autouse=True, params=["parameter by parameter", "one list"])
def checked(request, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked" if request.param == "parameter by parameter" else "")


class Memory:
    """Arrays that lie side by side with a fence between them, so that most begin at no multiple of 16 bytes."""

    def __init__(self, seed, dtype):
        drawn = np.random.default_rng(seed)
        self.whole = np.full(8192, 77, dtype)
        self.arrays, self.free, place = [], np.ones(8192, bool), 16
        for i, shape in enumerate(SHAPES):
            size = int(np.prod(shape, dtype=int))
            place += -place % 4 if i % 2 else 1
            self.arrays.append(self.whole[place : place + size].reshape(shape))
            self.arrays[-1][...] = drawn.standard_normal(shape)
            self.free[place : place + size] = False
            place += size + 5
        assert place < 8192

    def check(self):
        assert (self.whole[self.free] == 77).all(), "a kernel wrote beside its array"


def close(got, want, dtype="float32"):
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14 if dtype == "float64" else 2e-6)


def check_sgd(momentum, nesterov, decay=0.1, lr=0.1, dtype="float32", skip=None):
    """Two steps. Gradients stay as they are."""
    p, g, v = (Memory(seed, dtype) for seed in (1, 2, 3))
    exact = [[a.astype(float) for a in group.arrays] for group in (p, g, v)]
    buffers = v.arrays if momentum else []
    for _ in range(2):
        update.sgd(p.arrays, g.arrays, buffers, lr, momentum, decay, nesterov, skip)
        reference.sgd(*exact[:2], exact[2] if momentum else [], float(lr), momentum, decay, nesterov, skip)
    for group, want in zip((p, g, v), exact, strict=True):
        group.check()
        for a, b in zip(group.arrays, want, strict=True):
            close(a, b, dtype)
    np.testing.assert_array_equal(g.whole, Memory(2, dtype).whole)


@pytest.mark.parametrize(("momentum", "nesterov"), KINDS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_update_is_the_reference_s(momentum, nesterov, decay):
    check_sgd(momentum, nesterov, decay)


def test_float64_is_computed_in_float64():
    check_sgd(0.9, True, dtype="float64")


def test_the_learning_rate_may_lie_on_the_device():
    check_sgd(0.9, True, lr=np.array(0.25, "f4"))
    check_sgd(0.0, False, lr=np.array(0.25, "f4"), dtype="float64")
    check_sgd(0.9, False, lr=np.float32(0.25))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_nothing_changes_where_the_step_is_skipped(momentum):
    check_sgd(momentum, False, skip=np.array(0, "i4"))
    p, g, v = (Memory(seed, "f4") for seed in (1, 2, 3))
    update.sgd(p.arrays, g.arrays, v.arrays if momentum else [], 0.1, momentum, 0.1, False, np.array(1, "i4"))
    for seed, memory in enumerate((p, g, v), 1):
        np.testing.assert_array_equal(memory.whole, Memory(seed, "f4").whole)


def test_a_nan_reaches_its_own_parameter_alone():
    p, g, v = (Memory(seed, "f4") for seed in (1, 2, 3))
    g.arrays[3][30] = np.nan
    update.sgd(p.arrays, g.arrays, v.arrays, 0.1, 0.9, 0.0, False)
    assert [int(np.isnan(a).sum()) for a in p.arrays] == [0, 0, 0, 1, *[0] * 6] and np.isnan(p.arrays[3][30])


def test_adamw_is_the_reference_s_also_where_parameters_are_at_different_steps():
    memory = [Memory(seed, "f4") for seed in (1, 2, 3, 4)]
    memory[3].whole[...] = np.abs(memory[3].whole)
    exact = [[a.astype(float) for a in group.arrays] for group in memory]
    for steps in ([1] * len(SHAPES), [2 + i % 3 for i in range(len(SHAPES))]):
        options = steps, 0.1, (0.9, 0.99), 1e-3, 0.2
        update.adamw(*(group.arrays for group in memory), *options)
        reference.adamw(*exact, *options)
    for group, want in zip(memory, exact, strict=True):
        group.check()
        for a, b in zip(group.arrays, want, strict=True):
            close(a, b)
    with pytest.raises(ValueError, match=r"adamw: .* same shapes"):
        update.adamw(*([np.ones(n, "f4")] for n in (2, 2, 2, 3)), *options)


def laid(a, *axes):
    return a.transpose(axes).copy().transpose(np.argsort(axes))


def test_arrays_may_lie_in_another_order_in_memory():
    draw = np.random.default_rng(4).standard_normal
    p, g, v = (laid(draw((4, 3, 2, 5)).astype("f4"), 0, 2, 3, 1) for _ in range(3))
    exact = [[a.astype(float)] for a in (p, g, v)]
    for grad in (g, np.ascontiguousarray(g), g[:, :, ::-1][:, :, ::-1]):
        update.sgd([p], [grad], [v], 0.1, 0.9, 0.1, False)
        reference.sgd(*exact, 0.1, 0.9, 0.1, False)
    close(p, exact[0][0])
    close(v, exact[2][0])


def test_arrays_that_cannot_be_updated_in_place_are_refused():
    p, g = np.ones((4, 6), "f4"), np.ones((4, 6), "f4")
    frozen = p.copy()
    frozen.flags.writeable = False
    for params, buffers in (([p[:, ::2]], []), ([frozen], []), ([p.astype("f2")], []), ([p], [laid(p, 1, 0)])):
        with pytest.raises(Unsupported):
            update.sgd(params, [np.ones(params[0].shape, "f4")], buffers, 0.1, 0.9 if buffers else 0.0, 0.0, False)
    for arguments in (([p], [g[0]], []), ([p, p], [g], []), ([p], [g], [g[0]])):
        with pytest.raises(ValueError, match="same shapes"):
            update.sgd(*arguments, 0.1, 0.9 if arguments[2] else 0.0, 0.0, False)
    assert (p == 1).all()
    update.sgd([], [], [], 0.1, 0.9, 0.0, False)
    update.sgd([p[:0]], [p[:0]], [], 0.1, 0.0, 0.0, False)


# --- mixed precision -------------------------------------------------------------------------------------------------


def check_unscale(dtype="float32"):
    """Every element is divided, and one that is not finite is found wherever it stands."""
    clean, scale = Memory(2, dtype), np.array(3, "f4")
    want = [a / scale for a in clean.arrays]
    found = update.unscale(clean.arrays, scale)
    assert found.dtype == np.int32 and found.shape == () and found == 0
    clean.check()
    for a, b in zip(clean.arrays, want, strict=True):
        np.testing.assert_array_equal(a, b)
    for i, shape in enumerate(SHAPES):
        for place, value in ((0, np.nan), (-1, np.inf), (-1, -np.inf)):
            grads = Memory(2, dtype).arrays
            if grads[i].size:
                grads[i].reshape(-1)[place] = value
                assert update.unscale(grads, scale) == 1, (shape, place, value)


def test_unscaling_divides_in_place_and_finds_what_is_not_finite():
    check_unscale()


def test_unscaling_finds_what_the_division_makes_infinite():
    grads = [np.full(5, 1e30, "f4")]
    assert update.unscale(grads, np.array(1e-10, "f4")) == 1
    assert update.unscale([], np.array(1, "f4")) == 0
    assert update.unscale([np.zeros(0, "f4")], np.array(1, "f4")) == 0


def check_scale():
    """Growth at the interval, backoff at an overflow, and the count of good steps between them."""
    ours, theirs = ([np.array(1024, "f4"), np.array(0, "i4")] for _ in range(2))
    seen = set()
    for found in map(int, "0001110010000000"):
        arguments = (np.array(found, "i4"), 2.0, 0.5, 3)
        update.update_scale(*ours, *arguments)
        reference.update_scale(*theirs, *arguments)
        assert ours == theirs
        seen.add(float(ours[0]))
    assert min(seen) < 1024 < max(seen)


def test_the_scale_shrinks_after_an_overflow_and_grows_after_good_steps():
    check_scale()


# --- the list on a GPU, which is stood in for here -------------------------------------------------------------------


class Device:
    """What `update` asks of CuPy, and how often something was sent."""

    def __init__(self):
        self.capturing, self.sent, self.stream = False, 0, "own"
        self.cuda = types.SimpleNamespace(
            Device=lambda: types.SimpleNamespace(id=0), Stream=self._stream, get_current_stream=self._current
        )

    @contextlib.contextmanager
    def _stream(self, non_blocking):
        assert non_blocking
        self.stream = "other"
        yield types.SimpleNamespace(synchronize=lambda: None)
        self.stream = "own"

    def _current(self):
        return types.SimpleNamespace(is_capturing=lambda: self.capturing)

    def asarray(self, lines):
        assert self.stream == "other", "sent on the stream that may be capturing"
        self.sent += 1
        return lines


def test_a_list_is_sent_once_and_one_that_a_graph_reads_is_never_dropped(monkeypatch):
    monkeypatch.setattr(update, "_recent", {})
    monkeypatch.setattr(update, "_captured", {})
    device, used = Device(), (True, True, False)

    def lines(start):
        return update._on_device(device, ((start, 2 * start, 0, 1500),), 4, used)

    first = lines(64)
    np.testing.assert_array_equal(first, [[64, 128, 0, 1024], [64 + 4096, 128 + 4096, 0, 476]])
    assert lines(64) is first and device.sent == 1
    device.capturing = True
    assert lines(64) is first and device.sent == 1
    assert lines(128) is not first and device.sent == 2
    device.capturing = False
    for start in range(256, 256 + 16 * update.KEPT * 2, 16):
        lines(start)
    sent = device.sent
    assert lines(64) is first and device.sent == sent and len(update._recent) == update.KEPT
    lines(256)
    assert device.sent == sent + 1
