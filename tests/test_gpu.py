"""On a real GPU: the contract's kernels against loops and the reference, in each precision, twice the same, and captured."""

import numpy as np
import pytest
import test_ops_kernels as kernels_tests
from backends import BACKENDS, running

import tinyres as tr
from tinyres.kernels import dispatch, reference
from tinyres.kernels.cuda import gpu

if "cupy" in BACKENDS:
    import cupy

__test__ = "cupy" in BACKENDS  # else none of these tests is collected
pytestmark = pytest.mark.gpu
GEOMETRY = ((1, 1), (1, 1), (1, 1), 1)  # of a 3x3 convolution: stride, padding, dilation, groups


class OnGpu:
    """The kernels of the backend in use for host arrays: moves what they are given there and what they return back."""

    def __getattr__(self, name):
        def run(*args):
            moved = [self._move(a) for a in args]
            result = getattr(dispatch.current(), name)(*moved)
            for old, new in zip(args, moved, strict=True):  # what a kernel wrote to
                for a, b in zip(old, new, strict=True) if isinstance(old, list | tuple) else [(old, new)]:
                    if isinstance(a, np.ndarray) and a.flags.writeable:
                        a[...] = cupy.asnumpy(b)
            same = [old for old, new in zip(args, moved, strict=True) if new is result and isinstance(old, np.ndarray)]
            return same[0] if same else self._back(result)

        return run

    def _move(self, a):
        if isinstance(a, list | tuple):
            return type(a)(map(self._move, a))
        return cupy.asarray(a) if isinstance(a, np.ndarray) else a

    def _back(self, a):
        return tuple(map(self._back, a)) if isinstance(a, tuple) else cupy.asnumpy(a) if isinstance(a, cupy.ndarray) else a


def draw(*shape, dtype="float32"):
    return kernels_tests.rng.standard_normal(shape).astype(dtype)


def device(*arrays):
    return [cupy.asarray(a) for a in arrays]


def block(k, x, w, one, zero, labels):
    """A residual block, a classifier and their gradients: every result, in order."""
    y = k.conv2d(x, w, *GEOMETRY)
    z, mean, var = k.batch_norm_add_relu(y, x, one, zero, 1e-5)
    logits = k.global_avg_pool2d(z)
    loss, log_probs = k.cross_entropy_mean(logits, labels, 0.1)
    dlogits = k.cross_entropy_mean_backward(cupy.ones((), "f4"), log_probs, labels, 0.1)
    dz = k.global_avg_pool2d_backward(dlogits, z.shape)
    dy, done, dzero, dresidual = k.batch_norm_add_relu_backward(dz, y, z, one, mean, var, 1e-5, True)
    dw = k.conv2d_backward_weight(dy, x, w.shape, *GEOMETRY)
    dx = k.conv2d_backward_input(dy, w, x.shape, *GEOMETRY, dresidual)
    return y, z, mean, var, logits, loss, dz, dy, done, dzero, dw, dx


def arguments():
    labels = kernels_tests.rng.integers(0, 16, 8)
    return device(draw(8, 16, 16, 16), draw(16, 16, 3, 3) / 12, 1 + 0.1 * draw(16), draw(16), labels)


def bits(arrays):
    return [cupy.asnumpy(a).tobytes() for a in arrays]


@pytest.mark.parametrize("name", kernels_tests.CHECKS)
def test_a_kernel_agrees_with_loops_at_the_edges_of_blocks(name, monkeypatch):
    monkeypatch.setenv("TINYRES_TF32", "0")
    check, sizes = kernels_tests.CHECKS[name]
    with running("cupy"):
        for one in sizes:
            check(OnGpu(), *one)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_the_update_agrees_with_its_formula(momentum, nesterov):
    with running("cupy"):
        for sizes in ((1,), (33, 1025), (128, 3, 1)):
            kernels_tests.check_update(OnGpu(), momentum, nesterov, sizes)


@pytest.mark.parametrize("dtype", ["tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("channels", [8, 16, 17, 64])
def test_convolutions_on_tensor_cores_are_as_exact_as_their_operands(dtype, channels):
    import ml_dtypes

    images = {"tf32": np.dtype("f4"), "float16": np.dtype("f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}[dtype]
    step = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    x, w, dy = draw(2, channels, 9, 8).astype(images), draw(32, channels, 3, 3), draw(2, 32, 9, 8).astype(images)
    wide, rounded, dy64 = x.astype("f8"), w.astype(images).astype("f8"), dy.astype("f8")
    with running("cupy"):
        k = OnGpu()
        pairs = (
            (k.conv2d(x, w, *GEOMETRY), reference.conv2d(wide, rounded, *GEOMETRY)),
            (
                k.conv2d_backward_input(dy, w, x.shape, *GEOMETRY),
                reference.conv2d_backward_input(dy64, rounded, x.shape, *GEOMETRY),
            ),
            (
                k.conv2d_backward_weight(dy, x, w.shape, *GEOMETRY),
                reference.conv2d_backward_weight(dy64, wide, w.shape, *GEOMETRY),
            ),
        )
    for got, want in pairs:
        np.testing.assert_allclose(got.astype("f8"), want, rtol=0, atol=2 * step * np.abs(want).max())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_elementwise_kernels_round_as_the_host_does(dtype):
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x, y = draw(1025, dtype=kind), draw(1025, dtype=kind)
    with running("cupy"):
        got = OnGpu().add_relu(x, y)
    want = np.maximum(x.astype("f4") + y.astype("f4"), 0).astype(kind)
    assert got.dtype == kind and got.tobytes() == want.tobytes()


def test_every_kernel_gives_the_same_bits_twice():
    with tr.use_backend("cupy"), tr.strict():
        given = arguments()
        first = bits(block(dispatch.current(), *given))
        assert all(bits(block(dispatch.current(), *given)) == first for _ in range(5))


def test_a_replay_computes_what_eager_launches_do_from_what_its_inputs_hold_then():
    with tr.use_backend("cupy"), tr.strict():
        k, given, graph = dispatch.current(), arguments(), gpu.Graph()
        with graph.memory():
            block(k, *given)
        with graph.capture():
            captured = block(k, *given)
        for _ in range(3):
            given[0][...] = cupy.asarray(draw(*given[0].shape))
            graph.replay()
            replayed = bits(captured)
            assert replayed == bits(block(k, *given))


def test_arrays_made_after_a_capture_never_lie_in_the_memory_of_the_graph():
    with tr.use_backend("cupy"), tr.strict():
        k, given, graph = dispatch.current(), arguments(), gpu.Graph()
        with graph.memory():
            block(k, *given)
        with graph.capture():
            loss = block(k, *given)[5]  # all others go back to the graph's pool
        others = [cupy.full(given[0].shape, 7.0, "f4") for _ in range(20)]
        graph.replay()
        assert float(loss) > 0
        assert all(float(o.min()) == float(o.max()) == 7 for o in others)


def test_a_capture_that_reads_an_array_fails_and_the_next_one_works():
    given, graph = device(draw(100), draw(100)), gpu.Graph()
    with tr.use_backend("cupy"), tr.strict():
        k = dispatch.current()
        with graph.memory():
            k.add_relu(*given)
        with pytest.raises(Exception, match=r"(?i)captur"), graph.capture():
            k.add_relu(*given).get()
        with graph.capture():
            z = k.add_relu(*given)
        graph.replay()
        np.testing.assert_array_equal(cupy.asnumpy(z), cupy.asnumpy(cupy.maximum(given[0] + given[1], 0)))


def test_the_card_is_described():
    told = gpu.describe()
    assert all(told.values()) and float(told["compute_capability"]) >= 7.5
    assert gpu.elapsed_ms(gpu.synchronize) >= 0
