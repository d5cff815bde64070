"""The emulation computes what a GPU computes: 16-bit numbers, tensor cores, warps and blocks, captured graphs."""

import threading

import ml_dtypes
import numpy as np
import pytest
from backends import BACKENDS
from cuda_sources import SOURCE, sources

import tinyres as tr
from tinyres.kernels.arrays import ceil_div
from tinyres.kernels.cuda import emulator
from tinyres.kernels.cuda.launch import kernel
from tinyres.kernels.cuda.sources import KernelFault

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected


@pytest.fixture(autouse=True)
def own_source():
    with sources({"own.cu": SOURCE}):
        yield


@pytest.fixture(params=["0", "1", "2", "3"])
def checked(request, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    monkeypatch.setenv("TINYRES_EMULATOR_ORDER", request.param)
    return request.param


rng = np.random.default_rng(3)
HALVES = {"half": np.float16, "bfloat16": ml_dtypes.bfloat16}


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("real", HALVES)
def test_every_number_of_16_bits_widens_to_itself(real):
    x = np.arange(1 << 16, dtype="u2").view(HALVES[real])
    y = np.empty(1 << 16, "f4")
    kernel("own", "widen_all", REAL=real)(256, 256, x, y)
    np.testing.assert_array_equal(y, x.astype("f4"))  # NaN as NaN
    np.testing.assert_array_equal(np.signbit(y), np.signbit(x))


def bits_of_floats(dtype):
    """Floats between and on all numbers of 16 bits: themselves, halfway to the next, and to both sides of that."""
    finite = np.arange(1 << 16, dtype="u2").view(dtype).astype("f4")
    finite = np.sort(finite[np.isfinite(finite)])
    halfway = ((finite[1:].astype("f8") + finite[:-1]) / 2).astype("f4")
    with np.errstate(over="ignore"):
        beside = [np.nextafter(halfway, np.float32(to)) for to in (-np.inf, np.inf)]
    limits = [np.inf, -np.inf, np.nan, 0.0, -0.0, 65504, 65519.996, 65520, 65536, 3.4e38, -3.4e38, 1e-45, -1e-45, 2.0**-25]
    drawn = rng.integers(0, 1 << 32, 100_000, dtype="u4").view("f4")
    return np.concatenate([finite, halfway, *beside, np.array(limits, "f4"), drawn])


@pytest.mark.parametrize("real", HALVES)
def test_floats_round_to_the_nearest_number_of_16_bits_ties_to_even(real):
    x = bits_of_floats(HALVES[real])
    got = np.empty(len(x), HALVES[real])
    kernel("own", "narrow_all", REAL=real)(ceil_div(len(x), 256), 256, x, got, len(x))
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(HALVES[real])
    nan = np.isnan(x)
    assert np.isnan(got[nan]).all()
    np.testing.assert_array_equal(got[~nan].view("u2"), want[~nan].view("u2"))


def test_tf32_keeps_ten_bits_ties_away_from_zero():
    x = np.concatenate([rng.integers(0, 1 << 32, 50_000, dtype="u4").view("f4"), np.array([1 + 2**-11, -1 - 2**-11], "f4")])
    x = x[np.abs(x) < 1e38]
    got = np.empty_like(x)
    kernel("own", "tf32_all")(ceil_div(len(x), 256), 256, x, got, len(x))
    _, exponent = np.frexp(x.astype("f8"))
    exponent = np.maximum(exponent, -125)  # of subnormal numbers
    steps = x.astype("f8") / 2.0 ** (exponent - 11)
    want = np.trunc(steps + np.copysign(0.5, steps)) * 2.0 ** (exponent - 11)
    np.testing.assert_array_equal(got, want.astype("f4"))
    assert got[-2:].tolist() == [1 + 2**-10, -1 - 2**-10]


# --- tensor cores ----------------------------------------------------------------------------------------------------

# PTX ISA, "Matrix Fragments for mma.m16n8k8" (.tf32) and "mma.m16n8k16" (.f16, .bf16), with groupID = lane >> 2 and
# threadID_in_group = lane % 4; i counts the elements that a lane holds.


def place_in_a(kind, lane, i):
    group, thread = lane >> 2, lane % 4
    if kind == "tf32":
        return (group if i in (0, 2) else group + 8), (thread if i in (0, 1) else thread + 4)
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)


def place_in_b(kind, lane, i):
    group, thread = lane >> 2, lane % 4
    if kind == "tf32":
        return (thread if i == 0 else thread + 4), group
    return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group


def place_in_d(lane, i):
    return (lane >> 2 if i < 2 else (lane >> 2) + 8), (lane % 4) * 2 + (i & 1)


KINDS = {"tf32": (0, np.float32, 8), "half": (1, np.float16, 16), "bfloat16": (2, ml_dtypes.bfloat16, 16)}


def check_product(kind, warps=2):
    number, dtype, depth = KINDS[kind]
    a, b = rng.integers(-8, 9, (warps, 16, depth)) / 4, rng.integers(-8, 9, (warps, depth, 8)) / 4  # exact in every type
    c = rng.integers(-8, 9, (warps, 16, 8)) / 4
    per_a, per_b = (4, 2) if kind == "tf32" else (8, 4)
    lanes = range(32)
    of_a = [[[a[w][place_in_a(kind, lane, i)] for i in range(per_a)] for lane in lanes] for w in range(warps)]
    of_b = [[[b[w][place_in_b(kind, lane, i)] for i in range(per_b)] for lane in lanes] for w in range(warps)]
    of_d = np.array([[[c[w][place_in_d(lane, i)] for i in range(4)] for lane in lanes] for w in range(warps)], "f4")
    kernel("own", "product")(1, 32 * warps, np.array(of_a, dtype).view("u4"), np.array(of_b, dtype).view("u4"), of_d, number)
    for w in range(warps):
        want = c[w] + (w + 1) * (a[w] @ b[w])
        got = np.full((16, 8), np.nan)
        for lane in lanes:
            for i in range(4):
                got[place_in_d(lane, i)] = of_d[w, lane, i]
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_core_multiplies_the_matrices_that_its_fragments_hold(kind, checked):
    check_product(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_unchecked_launches_give_the_same_bits(kind, monkeypatch):
    number, dtype, _ = KINDS[kind]
    per_a, per_b = (4, 2) if kind == "tf32" else (8, 4)
    a, b = (rng.standard_normal((64, per)).astype(dtype).view("u4") for per in (per_a, per_b))
    c, results = rng.standard_normal((64, 4)).astype("f4"), []
    for mode in ("", "checked"):
        monkeypatch.setenv("TINYRES_EMULATOR", mode)
        results.append(c.copy())
        kernel("own", "product")(1, 64, a, b, results[-1], number)
    np.testing.assert_array_equal(*results)
    assert not np.array_equal(results[0], c)


def test_a_kernel_that_has_run_unchecked_is_checked_when_it_is_asked_for(monkeypatch):
    y = np.zeros(2, "i4")
    monkeypatch.setenv("TINYRES_EMULATOR", "")
    kernel("own", "overflows")(1, 1, y, 2)
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    with pytest.raises(KernelFault, match="a product of integers overflows"):
        kernel("own", "overflows")(1, 1, y, 2)


# --- warps and blocks ------------------------------------------------------------------------------------------------


def test_shuffles_show_another_lanes_value(checked):
    x, y, lane = np.arange(100, 196, dtype="i4"), np.empty((96, 4), "i4"), np.arange(96)
    kernel("own", "shuffles")(1, 96, x, y)
    first = lane // 32 * 32
    down = np.where(lane % 32 < 25, lane % 32 + 7, lane % 32)
    for i, other in enumerate(((lane + 5) % 32, lane % 32 ^ 3, down, lane % 32 ^ 16)):
        np.testing.assert_array_equal(y[:, i], x[first + other])


@pytest.mark.parametrize("block", [(64, 1), (33, 1), (1, 1), (31, 7), (1024, 1)])
def test_a_block_waits_for_all_its_threads(block, checked):
    threads = block[0] * block[1]
    x, y = rng.permutation(threads).astype("i4"), np.empty(threads, "i4")
    kernel("own", "turn")(1, block, x, y, 7)
    np.testing.assert_array_equal(y, np.roll(x, -7))


def check_block_sum(real="float", block=(64, 2)):
    dtype = {"float": "f4", "double": "f8", "half": "f2"}[real]
    threads = block[0] * block[1]
    x, y = rng.integers(-9, 9, (3, threads)).astype(dtype), np.empty((3, threads, 2), "f8" if real == "double" else "f4")
    kernel("own", "sums", REAL=real)(3, block, x, y)
    for i in (0, 1):
        np.testing.assert_array_equal(y[..., i], np.broadcast_to((i + 1.0) * x.sum(axis=1, keepdims=True), (3, threads)))


def test_threads_run_forward_backward_or_in_a_random_order(monkeypatch):
    orders = []
    for order in "0123":
        monkeypatch.setenv("TINYRES_EMULATOR_ORDER", order)
        orders.append(np.zeros(70, "i4"))
        kernel("own", "turns")(1, 70, orders[-1])
        assert sorted(orders[-1]) == list(range(70))
    assert (orders[0] == np.arange(70)).all() and (orders[1] == np.arange(70)[::-1]).all()
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("real", ["float", "double", "half"])
@pytest.mark.parametrize("block", [(32, 1), (256, 1), (16, 6), (1024, 1)])
def test_block_sum_is_the_sum_in_every_thread_of_any_block(real, block, checked):
    check_block_sum(real, block)


# --- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["", "checked"])
def test_a_graph_records_without_running_and_replays_with_the_arrays_as_they_are_then(mode, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", mode)
    from tinyres.kernels.cuda import accumulate, add_relu, relu

    x, total = np.array([1.0, -2.0, 3.0], "f4"), np.zeros(3, "f4")
    graph = emulator.Graph()
    with graph.memory():
        relu(x)
    with graph.capture():
        y = add_relu(relu(x), x)
        accumulate(total, y)
        kept = y.ctypes.data
        del y
    assert total.tolist() == [0, 0, 0] and len(graph.launches) == 3
    garbage = [np.full(3, 99, "f4") for _ in range(50)]  # nobody gets the memory of what the graph still uses
    assert kept not in {g.ctypes.data for g in garbage}
    graph.replay()
    assert total.tolist() == [2, 0, 6]
    x[:] = [0, 5, -7]
    graph.replay()
    assert total.tolist() == [2, 10, 6]


def test_a_graph_makes_the_copies_of_other_layouts_again():
    from tinyres.kernels.cuda import accumulate

    x, total = np.ones((1, 2, 3, 3), "f4"), np.zeros((1, 2, 3, 3), "f4")
    graph = emulator.Graph()
    with graph.capture():
        accumulate(total, x)
    for i in (1, 3):
        x[...] = i
        graph.replay()
    assert (total == 4).all()


@pytest.mark.parametrize("mode", ["", "checked"])
@pytest.mark.parametrize("dtype", ["f4", "f2", ml_dtypes.bfloat16])
def test_what_numpy_makes_from_a_launchs_result_is_refused_since_a_replay_would_not_make_it_again(mode, dtype, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", mode)
    from tinyres.kernels.cuda import accumulate, relu

    x, total, graph = np.ones((2, 3, 4), dtype), np.zeros(24, dtype), emulator.Graph()
    with pytest.raises(RuntimeError, match=r"accumulate reads an array of \(2, 4, 3\) that NumPy made"), graph.capture():
        accumulate(total, relu(x).transpose(0, 2, 1).reshape(-1))
    assert graph.launches == []
    with graph.capture():
        accumulate(total, relu(x).reshape(-1))  # a view
    graph.replay()
    assert (total == 1).all()


def test_other_threads_launches_are_not_recorded_and_a_capture_that_fails_leaves_the_graph():
    from tinyres.kernels.cuda import relu

    graph, results, ones = emulator.Graph(), [], np.ones(3, "f4")
    with graph.capture():
        relu(ones)
        worker = threading.Thread(target=lambda: results.append(relu(np.array([-1, 2], "f4")).tolist()))
        worker.start()
        worker.join()
    assert results == [[0, 2]] and len(graph.launches) == 1
    with pytest.raises(ZeroDivisionError), graph.capture():
        relu(ones)
        raise ZeroDivisionError
    assert len(graph.launches) == 1
    assert relu(np.array([-1.0, 2.0], "f4")).tolist() == [0, 2]


def test_the_backend_says_that_it_can_run():
    assert tr.available_backends()["cuda-emulated"] == ""
