"""The memory that the CPU kernels' results live in, and the threads that fill it."""

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tinyres as tr

pytest.importorskip("numba", reason="Numba is not installed")
import numba

from tinyres.kernels import arrays
from tinyres.kernels.cpu import buffers, join, runtime

SHAPE = (3, 1000)  # of a size class that nothing else here uses


@pytest.fixture(autouse=True)
def no_free_memory():
    buffers.trim()


def place(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (1023,), (1024,), (1025,), (3, 0, 2), (5, 3, 7), (1 << 21,)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int32"])
def test_an_array_is_what_was_asked_for_and_aligned(shape, dtype):
    a = buffers.empty(shape, dtype)
    assert a.shape == shape and a.dtype == dtype and a.flags.c_contiguous and a.flags.writeable
    assert place(a) % 64 == 0
    a[...] = 3
    assert (a == 3).all()


def test_images_lie_channels_last():
    a = buffers.empty_activations((2, 3, 4, 5))
    assert a.shape == (2, 3, 4, 5) and a.transpose(0, 2, 3, 1).flags.c_contiguous


def test_memory_is_used_again_when_nobody_looks_at_it_any_more():
    a = buffers.empty(SHAPE)
    first = place(a)
    del a
    assert place(buffers.empty(SHAPE)) == first


def test_the_memory_let_go_of_last_is_used_first():
    a, b = buffers.empty(SHAPE), buffers.empty(SHAPE)
    last = place(a)
    del b
    del a
    assert place(buffers.empty(SHAPE)) == last


@pytest.mark.parametrize(
    "look",
    [
        lambda a: a[1:],
        lambda a: a.T[::2],
        lambda a: a.reshape(-1)[5:].reshape(5, -1)[::-1],
        lambda a: a.view(np.uint8),
        lambda a: memoryview(a),
        lambda a: np.broadcast_to(a, (2, *a.shape)),
        lambda a: np.lib.stride_tricks.sliding_window_view(a, 3, axis=1),
        lambda a: np.asarray(a[0]).base,
    ],
    ids=["slice", "transpose", "chain", "bytes", "memoryview", "broadcast", "windows", "base"],
)
def test_memory_is_not_used_again_while_a_view_lives(look):
    a = buffers.empty(SHAPE)
    a[...] = 1
    first = place(a)
    view = look(a)
    del a
    others = [buffers.empty(SHAPE) for _ in range(3)]
    for other in others:
        other[...] = 2
    assert first not in map(place, others)
    assert (np.asarray(view).view(np.float32) == 1).all()
    del view, other, others
    assert first in map(place, [buffers.empty(SHAPE) for _ in range(4)])


def test_live_arrays_do_not_overlap_whatever_their_sizes():
    live = [buffers.empty((n,), np.uint8) for n in (1, 4095, 4096, 4097, 65535, 65536, 65537, 70000, 1 << 20)]
    for i, a in enumerate(live):
        a[:] = i
    assert all((a == i).all() for i, a in enumerate(live))


def test_sizes_that_are_close_share_memory_and_little_lies_idle():
    a = buffers.empty((100_000,), np.uint8)
    first = place(a)
    del a
    assert place(buffers.empty((99_000,), np.uint8)) == first
    for size in (1, 4097, 70_000, 1_000_000, 8_388_608, 8_388_609):
        assert size <= buffers._rounded(size) <= max(4096, size * 9 // 8 + 4096)
    assert buffers._rounded(8_388_608) == 8_388_608


def test_many_sizes_do_not_gather_more_than_twice_of_what_was_in_use():
    """As with batches of every size: each leaves its memory behind."""
    largest = 1 << 27
    before = buffers.statistics()["held"]
    for size in (largest, *range(1 << 23, largest, 1 << 23), *range(1 << 23, largest, 3 << 22)):
        array = buffers.empty((size,), np.uint8)
        array[::4096] = 1
        del array
    held = buffers.statistics()
    assert held["in_use"] <= before and held["held"] <= before + 2 * max(largest, buffers.SPARE) + (largest >> 3)
    assert buffers.trim() > 0


def test_what_fits_in_a_step_of_two_sizes_is_kept():
    """A training step and a test of other sizes in turn: nothing is given back and asked for anew."""

    def step(n):
        arrays = [buffers.empty((n << 20,), np.uint8) for _ in range(3)]
        return sorted(buffers.address(a) for a in arrays)

    first = step(32), step(24)
    assert (step(32), step(24)) == first


def test_statistics_and_trim_count_what_is_held():
    before = buffers.statistics()
    a = buffers.empty((1 << 18,))
    b = buffers.empty((1 << 18,))
    size = a.nbytes
    assert buffers.statistics() == {key: value + 2 * size for key, value in before.items()}
    del a
    assert buffers.statistics() == {"held": before["held"] + 2 * size, "in_use": before["in_use"] + size}
    assert buffers.trim() == size
    assert buffers.statistics() == {key: value + size for key, value in before.items()}
    b[...] = 1  # still there
    assert buffers.trim() == 0


def test_a_graph_can_lock_and_unlock_the_memory():
    """Saved arrays are read-only until backward, which NumPy allows to undo only if it can ask the owner."""
    x = tr.Tensor(buffers.empty((4, 5)), requires_grad=True)
    x.data[...] = 1
    y = (x * x).sum()
    with pytest.raises(ValueError, match="read-only"):
        x.data[...] = 2
    y.backward()
    x.data[...] = 2


def test_threads_that_take_and_give_back_at_once_never_get_the_same_memory():
    clash = []

    def work(number):
        for i in range(300):
            a = buffers.empty((2000 + i % 3,))
            a[...] = number
            b = a[::7]
            del a
            if not (b == number).all():
                clash.append(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert not clash


def test_a_steady_step_causes_no_page_faults():
    resource = pytest.importorskip("resource", reason="this system does not count page faults")
    x = buffers.empty_activations((16, 16, 32, 32))
    x[...] = np.random.default_rng(0).standard_normal(x.shape)
    one = np.ones(16, np.float32)

    def faults(steps):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(steps):
            y, mean, var = join.batch_norm_add_relu(x, x, one, one, 1e-5)
            join.batch_norm_add_relu_backward(y, x, y, one, mean, var, 1e-5, True)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults(3)
    assert faults(20) < 300  # fresh arrays would take 20 steps * 3 arrays * 256 pages


# --- threads ---------------------------------------------------------------------------------------------------------


def bits(x):
    one = np.ones(x.shape[1], np.float32)
    y, mean, var = join.batch_norm_add_relu(x, x, one, one, 1e-5)
    gradients = join.batch_norm_add_relu_backward(x, x, y, one, mean, var, 1e-5, True)
    return b"".join(a.tobytes() for a in (y, mean, var, *gradients))


@pytest.fixture
def image():
    return np.random.default_rng(1).standard_normal((33, 17, 20, 21)).astype(np.float32)


def test_the_bits_do_not_depend_on_the_number_of_threads(image, monkeypatch):
    results = set()
    for count in (1, 2, 5):
        monkeypatch.setattr(runtime, "threads", lambda count=count: count)
        runtime._helpers.cache_clear()  # the threads of before go on waiting for their own queue
        results |= {bits(image), bits(image)}
    runtime._helpers.cache_clear()
    assert len(results) == 1


def test_any_number_of_threads_may_compute_at_once(image):
    want = bits(image)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: bits(image), range(20))) == {want}


@pytest.fixture
def mark():
    """A kernel that writes 1000 to the place of each index, if no other thread wrote into its scratch."""

    @runtime.Kernel
    def mark(a, index, scratch):
        for i in range(1000):
            scratch[i] = index
        for i in range(1000):
            a[0][index] += 1 if scratch[i] == index else 0

    mark.compiled["f"] = numba.cfunc("void(CPointer(CPointer(float32)), int64, CPointer(float32))", error_model="numpy")(
        mark.function
    )  # not cached on disk
    return mark


def check_marks(mark, count):
    seen = np.zeros(count, np.float32)
    mark(count, [seen], scratch=1000)
    return bool((seen == 1000).all())


def test_every_index_runs_once_and_has_scratch_of_its_own(monkeypatch, mark):
    monkeypatch.setattr(runtime, "threads", lambda: 3)
    runtime._helpers.cache_clear()
    try:
        assert all(check_marks(mark, count) for count in (0, 1, 2, 3, 4, 5, 100, 4000))
        # jobs that follow at once find the helpers awake, jobs after a pause asleep, and jobs of many threads busy
        for pause in (0, 0, 0, 0.002):
            assert all(check_marks(mark, 7) for _ in range(100))
            time.sleep(pause)
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda i: check_marks(mark, i % 11), range(2000)))
    finally:
        runtime._helpers.cache_clear()


SCRIPT = """
import os, sys, threading, numpy as np, tinyres as tr
from tinyres.kernels.cpu import join
x = np.random.default_rng(0).standard_normal((32, 16, 16, 16)).astype("f4")
one = np.ones(16, "f4")
want = join.batch_norm_add_relu(x, x, one, one, 1e-5)[0].tobytes()
child = os.fork()
if child == 0:
    same = join.batch_norm_add_relu(x, x, one, one, 1e-5)[0].tobytes() == want
    helpers = [t for t in threading.enumerate() if t.name.startswith("tinyres-kernels")]
    os._exit(0 if same and len(helpers) == 1 else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def python(code, **environment):
    root, environment = Path(__file__).resolve().parent.parent, {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, timeout=120, capture_output=True, text=True
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_computes_with_threads_of_its_own():
    result = python(SCRIPT, TINYRES_THREADS="2")
    assert result.returncode == 0, result.stderr


def test_without_the_jit_the_reference_runs_and_says_so():
    result = python(
        "import tinyres as tr, tinyres.functional as F; tr.use_backend('numba'); "
        "print(F.relu(tr.tensor([-1.0, 2.0])).numpy().tolist(), tr.explain_dispatch()[0][1:3])",
        NUMBA_DISABLE_JIT="1",
    )
    assert result.stdout == "[0.0, 2.0] ('relu', 'the JIT is off (NUMBA_DISABLE_JIT)')\n", result.stderr


def test_helpers_are_as_many_as_the_threads_less_the_caller(image):
    bits(image)
    names = [t.name for t in threading.enumerate() if t.name.startswith("tinyres-kernels-")]
    assert len(names) >= arrays.threads() - 1


def test_empty_cache_frees_what_no_array_uses():
    kept = buffers.empty((1000, 1000))
    buffers.empty((1000, 1001))
    before = buffers.statistics()["held"]
    assert tr.empty_cache() >= 4 * 1000 * 1001
    assert buffers.statistics()["held"] <= before - 4 * 1000 * 1001
    kept[...] = 1
    # (a helper that wakes up late lets go of the scratch memory of an earlier kernel, some pages, whenever it does)
    assert tr.empty_cache() < kept.nbytes and buffers.statistics()["in_use"] >= kept.nbytes


def test_without_memory_idle_memory_goes_first_and_then_the_error_says_what_to_do(monkeypatch):
    right, fails = buffers.mmap.mmap, []

    def mmap(*arguments, **options):
        if fails:
            fails.pop()
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return right(*arguments, **options)

    monkeypatch.setattr(buffers.mmap, "mmap", mmap)
    idle = buffers.empty((3, 1 << 20))
    del idle
    fails[:] = [1]
    assert buffers.empty((5, 1 << 20)).shape == (5, 1 << 20)
    assert buffers.statistics()["held"] < 6 << 22, "idle memory was not given back"
    fails[:] = [1, 1]
    advice = r"no memory for an array of shape \(7, 1048576\), 28.0 MiB, beside .* MiB .*smaller batch.*no_grad"
    with pytest.raises(MemoryError, match=advice):
        buffers.empty((7, 1 << 20))


def test_where_the_system_starts_no_more_threads_those_that_there_are_must_do(monkeypatch):
    def none(self):
        raise RuntimeError("can't start new thread")

    runtime._helpers.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none)
            runtime._helpers()
        x = np.ones((16, 1 << 16), np.float32)
        with tr.use_backend("numba"):
            np.testing.assert_array_equal(tr.functional.relu(x).data, x)
    finally:
        runtime._helpers.cache_clear()
