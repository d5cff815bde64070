"""What test_numba_cuda.py runs in a process of its own, where Numba simulates CUDA: its kernels, on NumPy arrays.

The simulator starts a Python thread for each CUDA thread, so that everything here is tiny.
"""

import copy
import inspect

import numpy as np
import pytest
import test_ops_kernels as k
from backends import running
from cases import CASES
from layouts import LAYOUTS
from test_ops_cases import check_case
from test_ops_kernels import fenced  # noqa: F401

import tinyres as tr
import tinyres.functional as F
from tinyres.kernels import contract, dispatch, numba_cuda, reference
from tinyres.models.cifar import BasicBlock, conv

rng = np.random.default_rng(3)

# every case in both dtypes and one layout each; convolutions, which take most of the time, in one dtype
RUNS = [
    (case, dtype, [*LAYOUTS][(i + j) % len(LAYOUTS)])
    for i, case in enumerate(CASES)
    for j, dtype in enumerate(["float32", "float64"])
    if not case.name.startswith("conv2d") or i % 2 == j
]


@pytest.mark.kernels
@pytest.mark.parametrize(("case", "dtype", "layout"), RUNS, ids=str)
def test_an_operation_gives_what_its_definition_gives(case, dtype, layout):
    with running("numba-cuda"):
        check_case(case, "numba-cuda", dtype, layout)


CHECKS = {
    "conv2d": (k.check_conv2d, [((3, 1, 4, 5), (5, 1, 3, 3), (2, 2), (1, 1)), ((1, 5, 1, 7), (3, 5, 1, 2), (1, 3))]),
    "conv2d groups": (k.check_conv2d, [((2, 6, 4, 3), (9, 2, 2, 3), (1, 2), (1, 0), (2, 1), 3)]),
    "conv2d added": (k.check_added_input_gradient, [((2, 3, 4, 5), (2, 3, 3, 3), (2, 2), (1, 1))]),
    "conv2d long": (k.check_conv2d, [((9, 2, 5, 5), (1, 2, 1, 1))]),  # the weights' gradient in several parts
    "batch_norm": (
        k.check_batch_norm,
        [
            ((n, c, 3, 1), training, kind)
            for n, c in ((1, 1), (5, 3), (9, 2))
            for training in (True, False)
            for kind in k.NORMS
        ],
    ),
    "pool": (k.check_pool, [((2, 3, 5, 4), (3, 2), (2, 1), (1, 1)), ((1, 1, 6, 6), (3, 3), (2, 2), (1, 1), True)]),
    "elementwise": (k.check_elementwise, [((n,),) for n in (1, 3, 4, 5, 7, 8, 9, 33)] + [((1, 3, 2, 5),)]),
    "accumulate": (k.check_accumulate, [((7,),), ((2, 3, 1, 4),)]),
    "linear": (k.check_linear, [(1, 1, 1), (3, 5, 2), (5, 9, 4)]),
    "loss": (k.check_loss, [(n, c, s) for n, c in ((1, 1), (9, 3), (3, 11)) for s in (0.0, 0.1)]),
    "shortcut": (k.check_shortcut, [((2, 3, 4, 5), 8, 2), ((1, 1, 1, 1), 2, 3)]),
    "crop_flip": (k.check_crop_flip, [(1, 4, 0), (5, 5, 2)]),
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_kernel_agrees_with_loops_and_writes_every_element(name, fenced):  # noqa: F811
    check, sizes = CHECKS[name]
    for arguments in sizes:
        check(numba_cuda, *arguments)
    fenced.check()


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_the_update_writes_parameters_and_buffers_and_leaves_gradients_alone(momentum, nesterov):
    k.check_update(numba_cuda, momentum, nesterov, (1, 11))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_update_takes_arrays_of_any_layout_and_the_rate_from_an_array_and_can_be_skipped(momentum):
    layouts = [LAYOUTS["contiguous"], LAYOUTS["channels_last"], LAYOUTS["strided"]]
    start = [[layout(rng.standard_normal((2, 3, 2, 2))) for layout in layouts[i:] + layouts[:i]] for i in range(3)]
    if not momentum:
        start[2] = []
    lr, results = np.array(0.25, np.float32), []
    for kernels in (reference, numba_cuda):
        arrays = [[LAYOUTS["strided"](a) if a.strides != np.array(a).strides else a.copy() for a in g] for g in start]
        kernels.sgd(*arrays, lr, momentum, 0.01, False, np.array(1, np.int32))
        np.testing.assert_array_equal(arrays[0][0], start[0][0])
        kernels.sgd(*arrays, lr, momentum, 0.01, False, np.array(0, np.int32))
        results.append(arrays[0] + arrays[2])
    for got, want in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_adamw_writes_parameters_and_means_and_leaves_gradients_alone():
    k.check_adamw(numba_cuda, (1, 11))


@pytest.mark.parametrize("poison", [None, np.inf, np.nan])
def test_loss_scaling_finds_what_is_not_finite_and_moves_the_scale(poison):
    grads = [k.draw(3), k.draw(2, 3, 2, 2).transpose(0, 2, 3, 1), k.draw(9)]
    if poison is not None:
        grads[1][1, 1, 0, 2] = poison
    states = []
    for kernels in (reference, numba_cuda):
        mine, scale, good = copy.deepcopy(grads), np.array(8, np.float32), np.array(0, np.int32)
        for _ in range(2):
            found = kernels.unscale(mine, scale)
            kernels.update_scale(scale, good, found, 2.0, 0.5, 2)
        edge = np.array(2.0**-126 if found else 2.0**127, np.float32)
        kernels.update_scale(edge, np.array(0, np.int32), found, 2.0, 0.5, 1)
        assert edge in (2.0**-126, 2.0**127)
        states.append([*mine, scale, good, found])
        assert found.shape == () and found.dtype == np.int32
    for got, want in zip(states[1], states[0], strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mean_of_the_losses_and_its_gradient_are_the_references(smoothing):
    logits, labels = 3 * k.draw(9, 5), rng.integers(0, 5, 9)
    loss, log_probs = numba_cuda.cross_entropy_mean(logits, labels, smoothing)
    k.close(loss, reference.cross_entropy_mean(logits, labels, smoothing)[0])
    d = np.array(1.5, np.float32)
    k.close(
        numba_cuda.cross_entropy_mean_backward(d, log_probs, labels, smoothing),
        reference.cross_entropy_mean_backward(d, log_probs, labels, smoothing),
    )


def test_running_statistics_move_towards_the_batchs():
    x, weight, bias, *theirs = k.draw(2, 5, 1, 2), *(k.draw(5) for _ in range(4))
    mine = [a.copy() for a in theirs]
    numba_cuda.batch_norm(x, weight, bias, 1e-5, True, (*mine, 0.1))
    reference.batch_norm(x, weight, bias, 1e-5, True, (*theirs, 0.1))
    for got, want in zip(mine, theirs, strict=True):
        k.close(got, want)


def test_nan_stays_nan_and_what_is_cut_off_is_0():
    bad = np.array([np.nan, np.inf, -np.inf, -1, 0, 7], np.float32)
    ones = np.ones_like(bad)
    for name, args in {
        "relu": [bad],
        "relu6": [bad],
        "add": [bad, bad],
        "add_relu": [bad, bad],
        "relu_backward": [bad, 0 * ones],
        "relu6_backward": [bad, 6 * ones],
    }.items():
        with np.errstate(invalid="ignore"):
            want = getattr(reference, name)(*args)
        np.testing.assert_array_equal(getattr(numba_cuda, name)(*args), want, name)
    images = k.draw(1, 1, 4, 4)
    images[0, 0, 1, 1] = np.nan
    for got, want in zip(
        numba_cuda.max_pool2d(images, (2, 2), (1, 1), (0, 0)),
        reference.max_pool2d(images, (2, 2), (1, 1), (0, 0)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


def test_arrays_without_elements_are_no_trouble():
    x, w, geometry = np.empty((0, 2, 4, 4), "f"), k.draw(3, 2, 3, 3), ((1, 1), (1, 1), (1, 1), 1)
    y = numba_cuda.conv2d(x, w, *geometry)
    assert y.shape == (0, 3, 4, 4) and numba_cuda.relu(y).shape == y.shape
    assert numba_cuda.conv2d_backward_input(y, w, x.shape, *geometry).shape == x.shape
    assert not numba_cuda.conv2d_backward_weight(y, x, w.shape, *geometry).any()
    assert numba_cuda.global_avg_pool2d(x).shape == (0, 2)
    assert numba_cuda.linear(np.empty((0, 2), "f"), k.draw(3, 2), k.draw(3)).shape == (0, 3)


def test_a_large_mean_costs_the_variance_no_digits():
    x, one = (1e4 + rng.standard_normal((8, 2, 4, 4))).astype(np.float32), np.ones(2, np.float32)
    _, _, var = numba_cuda.batch_norm(x, one, one, 1e-5, False)
    np.testing.assert_allclose(var, x.var(axis=(0, 2, 3), dtype=float), rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_other_dtypes_are_refused_before_anything_is_computed(dtype):
    x, w = np.ones((1, 1, 2, 2), dtype), np.ones((1, 1, 1, 1), np.float32)
    with pytest.raises(contract.Unsupported, match=dtype):
        numba_cuda.relu(x)
    with pytest.raises(contract.Unsupported, match=dtype):
        numba_cuda.conv2d(x, w, (1, 1), (0, 0), (1, 1), 1)


def test_every_kernel_of_the_contract_is_there_with_its_arguments():
    assert set(contract.kernels_of("tinyres.kernels.numba_cuda")) == set(contract.NAMES)
    for name in contract.NAMES:
        arguments = [list(inspect.signature(getattr(module, name)).parameters) for module in (numba_cuda, reference)]
        assert arguments[0] == arguments[1], name


class Net(tr.nn.Module):
    """A residual net so narrow that it can be simulated: an identity shortcut, and one that subsamples and pads."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 2, 3), tr.nn.BatchNorm2d(2)
        self.block1, self.block2 = BasicBlock(2, 2, 1, "A"), BasicBlock(2, 4, 2, "A")
        self.fc = tr.nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(F.global_avg_pool2d(self.block2(self.block1(self.bn1(self.conv1(x), relu=True)))))


@pytest.mark.kernels
def test_two_steps_of_training_are_the_references():
    start, states = Net().double().state_dict(), []
    images, labels = rng.standard_normal((2, 3, 3, 8, 8)), rng.integers(0, 5, (2, 3))
    for backend in ("numpy", "numba-cuda"):
        with tr.use_backend(backend), tr.strict():
            net = Net().double()
            net.load_state_dict(start)
            optimizer = tr.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
            losses = []
            for x, y in zip(images, labels, strict=True):
                optimizer.zero_grad()
                loss = F.cross_entropy(net(tr.Tensor(x)), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            states.append({**net.state_dict(), "losses": np.array(losses)})
    for name, want in states[0].items():
        np.testing.assert_allclose(states[1][name], want, rtol=1e-9, atol=1e-12, err_msg=name)


def test_numbas_kernels_for_the_cpu_run_in_the_same_process():
    x, w, geometry = k.draw(2, 8, 6, 6), k.draw(8, 8, 3, 3), ((1, 1), (1, 1), (1, 1), 1)
    with tr.use_backend("numba"), tr.strict():
        k.close(dispatch.current().conv2d(x, w, *geometry), reference.conv2d(x, w, *geometry))
