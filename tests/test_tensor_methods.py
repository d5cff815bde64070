"""What one can do with a tensor beside arithmetic: print it, look into it, reduce it, walk its graph; and the edges of the
functions whose plain values are in the case table.
"""

import math
import weakref

import numpy as np
import pytest
from cases import BY_NAME

import tinyres as tr
import tinyres.functional as F
from tinyres import nn
from tinyres.errors import GraphError, ShapeError, UsageError
from tinyres.ops.activations import erf


def leaf(*values, dtype=np.float64):
    return tr.tensor(np.array(values, dtype), requires_grad=True)


def slope(f, x):
    """The gradient of the sum of f(x) by x."""
    f(x).sum().backward()
    return x.grad


# --- as a number, as a sequence, as an array ---


def test_a_tensor_without_axes_is_formatted_as_its_number():
    x = tr.tensor([1.0, 2.0])
    assert f"{x.sum():.3f} {tr.tensor(7):>3d} {x.mean()}" == "3.000   7 1.5"
    assert f"{x}" == str(x)
    with pytest.raises(TypeError, match=r"'.2f' is for one number, and this tensor has shape \(2,\)"):
        f"{x:.2f}"


def test_a_tensor_is_a_sequence_of_its_rows_whose_gradients_come_back():
    x = leaf([1.0, 2.0], [3.0, 4.0])
    first, second = x
    (first * second * second).sum().backward()
    np.testing.assert_array_equal(x.grad, [[9, 16], [6, 16]])
    for use in (len, iter, list):
        with pytest.raises(TypeError, match="without axes has no length"):
            use(x.sum())


def test_whether_an_element_is_equal():
    x = tr.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert 2 in x and tr.tensor(4.0) in x and np.float32(1) in x and 5 not in x and 2 not in tr.tensor([])
    with pytest.raises(UsageError, match="asks for a number, not for str"):
        "2" in x  # noqa: B015


def test_many_elements_are_neither_true_nor_false():
    x = tr.tensor([0.0, 1.0])
    assert tr.tensor([[2.0]]) and not tr.tensor(0)
    for many in (x, tr.tensor([]), x == x):
        with pytest.raises(ShapeError, match=r"neither true nor false; x.any\(\) and x.all\(\) are"):
            bool(many)
    assert x.any() and not x.all() and (x == x).all() and not (x == 2).any()
    assert tr.tensor([[1, 0], [1, 1]]).all(dim=0).data.tolist() == [True, False]
    assert np.all(tr.tensor([[1, 0], [1, 1]]), axis=1).data.tolist() == [False, True]
    assert np.any(tr.tensor([[0, 0], [1, 0]]), axis=0).data.tolist() == [True, False]


def test_a_comparison_records_nothing_and_a_tensor_stays_a_key():
    x = leaf(1.0, 2.0)
    for y in (x > 1, x == x.data, x <= 1, x != x):
        assert y.dtype == bool and not y.requires_grad and y.node is None
    assert {x: "kept"}[x] == "kept" and x in [x]


def test_numpy_reads_a_tensor_unless_a_gradient_would_be_lost():
    x = tr.tensor([1.0, 2.0])
    assert np.shares_memory(np.asarray(x), x.data) and not np.shares_memory(np.array(x), x.data)
    assert np.asarray(x, dtype=np.float64).dtype == np.float64 and np.mean(np.array([x, x])) == 1.5
    with pytest.raises(ValueError, match="copy"):
        np.asarray(x, dtype=np.float64, copy=False)
    w = leaf(1.0, 2.0)
    for read in (np.asarray, lambda t: np.vstack([t, t]), lambda t: np.array([3.0, 4.0]) @ np.asarray(t * 1)):
        with pytest.raises(GraphError, match=r"would be recorded. Give it x.data, or x.detach\(\)"):
            read(w)
    with tr.no_grad():
        assert np.asarray(w) is w.data and np.asarray(w * 2)[1] == 4
    assert np.asarray(w.detach()) is w.data and w.numpy() is w.data


# --- the graph ---


def test_the_graph_can_be_walked_from_the_loss_to_the_leaves():
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    loss = (w * x.exp() + np.ones(2)).sum()
    names, leaves, found = [], [], [loss.grad_fn]
    while found:
        node = found.pop(0)
        names.append(node.name())
        leaves += [node.variable] if hasattr(node, "variable") else []
        found += [function for function, _ in node.next_functions if function is not None]
    assert names == ["Sum", "Add", "Mul", "AccumulateGrad", "Exp", "AccumulateGrad"]
    assert leaves[0] is w and leaves[1] is x
    assert loss.grad_fn.next_functions[0][0].next_functions[1] == (None, 0), "the array needs no gradient"
    assert x.grad_fn is None and (x.data * 2 + tr.tensor(1.0)).grad_fn is None
    assert repr(loss.grad_fn) == "<Sum>" and repr(loss) == f"tensor({loss.item():.8f}, dtype=float64, grad_fn=Sum)"
    loss.backward()
    with pytest.raises(GraphError, match=r"inputs of Sum are forgotten: backward\(\) freed the graph"):
        loss.grad_fn.next_functions  # noqa: B018


def test_what_a_function_kept_cannot_be_written_to_until_its_graph_is_gone():
    x = leaf(1.0, 2.0)
    for f in (tr.Tensor.exp, tr.Tensor.sqrt, tr.Tensor.tanh, tr.Tensor.sigmoid, lambda t: t.softmax(0)):
        y = f(x)
        with pytest.raises(ValueError, match="read-only"):
            y.data[0] = 7
    for f in (tr.Tensor.log, tr.Tensor.abs, F.gelu, F.silu, F.leaky_relu):
        y = f(x)
        with pytest.raises(ValueError, match="read-only"):
            x.data[0] = 7
    y = x.clone()
    y.data[0] = 7
    assert x.data[0] == 1 and y.requires_grad


# --- reductions ---


def test_equal_extremes_share_the_gradient_or_the_first_one_has_it():
    x = leaf([3.0, 1.0, 3.0], [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(slope(lambda x: x.amax(1), x), [[0.5, 0, 0.5], [1 / 3] * 3])
    x.grad = None
    values, indices = x.max(1)
    assert indices.data.tolist() == [0, 0] and indices.dtype == np.int64 and not indices.requires_grad
    values.sum().backward()
    np.testing.assert_array_equal(x.grad, [[1, 0, 0], [1, 0, 0]])
    x.grad = None
    np.testing.assert_array_equal(slope(lambda x: x.max() + x.min(), x), [[0.5, 1, 0.5], [0, 0, 0]])


def test_a_nan_is_the_largest_and_the_smallest():
    x = leaf(1.0, math.nan, 5.0)
    assert math.isnan(x.max().item()) and math.isnan(x.min().item())
    assert x.max(0).indices.item() == x.min(0).indices.item() == x.argmax().item() == 1
    np.testing.assert_array_equal(slope(tr.Tensor.max, x), [0, 1, 0])


def test_extremes_of_nothing_and_of_one_number():
    for f in (tr.Tensor.max, lambda x: x.max(1), lambda x: x.amin(1), lambda x: x.argmax(1), tr.Tensor.argmax):
        with pytest.raises(ShapeError, match="an empty axis has no largest or smallest element"):
            f(tr.tensor(np.zeros((2, 0))))
    assert tr.tensor(np.zeros((0, 2))).max(1).values.shape == (0,)
    values, indices = tr.tensor(4.0).max(0)
    assert values.shape == indices.shape == () and values.item() == 4 and indices.item() == 0
    with pytest.raises(ShapeError, match="must be one axis; amax and amin take several"):
        tr.tensor(np.zeros((2, 3))).max((0, 1))


def test_the_place_of_the_largest_element():
    x = tr.tensor([[1.0, 5.0, 5.0], [7.0, 0.0, 2.0]])
    assert x.argmax().item() == 3 and x.argmax(1).data.tolist() == [1, 0] and x.argmax(0, keepdim=True).shape == (1, 3)
    assert (x.argmax(dim=1) == np.array([1, 2])).data.tolist() == [True, False]


def test_reductions_take_numpy_s_words():
    a = np.array([[1.0, 5.0], [7.0, 0.0], [2.0, 2.5]])
    x = tr.tensor(a)
    for f in (np.max, np.min, np.std, np.argmax):
        for axis in (None, 0, 1):
            np.testing.assert_allclose(f(x, axis=axis).data, f(a, axis=axis), err_msg=f.__name__)
    np.testing.assert_allclose(np.std(x, axis=0, ddof=1).data, np.std(a, axis=0, ddof=1))
    np.testing.assert_allclose(np.max(x, axis=(0, 1)).data, 7)
    with pytest.raises(ShapeError, match="out="):
        np.max(x, out=np.zeros(()))


def test_the_standard_deviation_where_there_is_no_spread():
    assert math.isnan(tr.tensor([1.0]).std().item()) and math.isnan(tr.tensor([]).std().item())
    assert tr.tensor([1.0]).std(correction=0).item() == 0
    np.testing.assert_array_equal(slope(tr.Tensor.std, leaf(2.0, 2.0, 2.0)), [0, 0, 0])
    x = tr.tensor([1.0, 2.0, 4.0])
    assert x.std(False).item() == x.std(unbiased=False).item() == x.std(correction=0).item() < x.std().item()
    with pytest.raises(ShapeError, match="std: x must be of floats"):
        tr.tensor([1, 2]).std()


# --- edges of functions ---


def test_the_edges_of_the_domain():
    with np.errstate(divide="ignore"):
        assert slope(tr.Tensor.sqrt, leaf(0.0)) == math.inf and tr.tensor(0.0).log().item() == -math.inf
    np.testing.assert_array_equal(slope(tr.Tensor.abs, leaf(-2.0, 0.0, 3.0)), [-1, 0, 1])
    np.testing.assert_array_equal(slope(lambda x: F.leaky_relu(x, 0.2), leaf(-2.0, 0.0, 3.0)), [0.2, 0.2, 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("f", "values", "slopes"),
    [
        (F.sigmoid, (0, 1), (0, 0)),
        (F.tanh, (-1, 1), (0, 0)),
        (F.silu, (0, "x"), (0, 1)),
        (F.gelu, (0, "x"), (0, 1)),
        (lambda x: F.gelu(x, approximate="tanh"), (0, "x"), (0, 1)),
    ],
    ids=["sigmoid", "tanh", "silu", "gelu", "gelu-tanh"],
)
def test_nothing_overflows_far_from_zero(f, values, slopes, dtype):
    """(A warning of NumPy's would be an error here.)"""
    for size in (1e3, 1e18, 1e30):
        x = leaf(-size, size, dtype=dtype)
        y = f(x)
        np.testing.assert_allclose(y.data, [size if v == "x" else v for v in values], rtol=1e-6)
        np.testing.assert_allclose(slope(f, x), slopes)


def test_a_softmax_of_large_numbers_and_of_none():
    x = leaf([1e4, 0.0, 1e4], [-1e30, 1e30, 0.0])
    np.testing.assert_allclose(x.softmax(1).data, [[0.5, 0, 0.5], [0, 1, 0]])
    assert F.softmax(np.zeros((0, 3), np.float32)).shape == (0, 3) and tr.tensor(np.zeros((2, 0))).softmax(1).shape == (2, 0)
    assert tr.tensor(3.0).softmax(0).item() == 1
    with pytest.raises(ShapeError, match="softmax: dim=2 must be an axis of x"):
        x.softmax(2)


def test_the_error_function_is_python_s():
    x = np.concatenate([np.linspace(-7, 7, 20001), 10.0 ** np.arange(-300, 300, 20)])
    want = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(erf(x), want, rtol=4e-16)
    single = x[:20001].astype(np.float32)
    np.testing.assert_allclose(erf(single), want[:20001], atol=1e-6)
    assert np.isnan(erf(np.array([np.nan])))[0] and erf(np.array([-np.inf, np.inf])).tolist() == [-1, 1]


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "name",
    [
        *("exp-3d", "log-3d", "sqrt-3d", "abs-3d", "tanh-3d", "sigmoid-0d", "silu-wide", "gelu-normal", "gelu-tanh-wide"),
        *("leaky_relu-0.3-normal", "softmax[2, 4, 3]-1", "amax-(0, -1)", "max-along-1", "std-1-1", "mse_loss-mean"),
        *("mse_loss-none", "layer_norm[2, 3, 4, 5]-2", "group_norm[2, 6, 3, 5]-3", "clone-3d"),
    ],
)
def test_16_bits_are_computed_in_float32_and_rounded(name, half):
    """Only x has 16 bits where there are parameters. Where y is kept for the slope, it is the one that was rounded."""
    case = BY_NAME[name]
    norm = "norm" in name
    rounded = [tr.tensor(a).to(half) if not (norm and i) else tr.tensor(a).float() for i, a in enumerate(case.arrays())]
    got, want = ([tr.Tensor(t.data, requires_grad=True) for t in ts] for ts in (rounded, [t.float() for t in rounded]))
    y, wide = case.run(*got), case.run(*want)
    assert y.dtype == half
    dy = tr.tensor(np.random.default_rng(1).standard_normal(y.shape)).to(half)
    y.backward(dy)
    wide.backward(dy)
    eps = 2.0**-8 if half == "bfloat16" else 2.0**-11
    absolute = eps if name.startswith(("tanh", "sigmoid", "softmax")) else 1e-2 * eps + 2e-7
    for mine, true in zip([y.data, *(t.grad for t in got)], [wide.data, *(t.grad for t in want)], strict=True):
        np.testing.assert_allclose(mine.astype(np.float64), true, rtol=3 * eps, atol=np.abs(true).max() * absolute)


def test_integers_become_float32():
    x = tr.tensor([1, 4])
    for f in (tr.Tensor.exp, tr.Tensor.log, tr.Tensor.sqrt, F.tanh, F.sigmoid, F.gelu, lambda x: F.softmax(x, 0)):
        assert f(x).dtype == np.float32
    assert x.sqrt().data.tolist() == [1, 2] and (-x).abs().data.tolist() == [1, 4] and abs(-x).dtype == np.int64
    assert x.max().item() == 4 and x.max().dtype == np.int64 and F.mse_loss(x, x + 2).item() == 4
    with pytest.raises(ShapeError, match="abs: bools have no sign"):
        (x > 2).abs()


@pytest.mark.parametrize(
    "name", ["gelu-normal", "exp-3d", "std-1-1", "amax-None", "layer_norm[3, 5]-1", "group_norm[3, 6]-2"]
)
def test_the_batch_may_be_empty(name):
    case = BY_NAME[name]
    arrays = case.arrays()
    x, *others = [tr.tensor(a, requires_grad=True) for a in (arrays[0][:0], *arrays[1:])]
    if name.startswith("amax"):
        assert x.amax(1).shape == (0, 5)
        return
    y = case.run(x, *others)
    y.backward(np.zeros(y.shape))
    assert x.grad.shape == x.shape and all((t.grad == 0).all() for t in others)


# --- losses, norms and layers ---


def test_a_squared_error_refuses_what_would_broadcast():
    with pytest.raises(
        ShapeError, match=r"mse_loss: x and target must have one shape.*Got x float32\[3, 1\], target float32\[3\]"
    ):
        F.mse_loss(tr.tensor([[1.0], [2.0], [3.0]]), tr.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(UsageError, match="reduction must be mean, sum or none, got 'average'"):
        F.mse_loss(tr.tensor([1.0]), tr.tensor([1.0]), reduction="average")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: F.layer_norm(x, 3), r"must end in normalized_shape=\[3\]"),
        (lambda x: F.layer_norm(x, (4, 2, 4)), "must end in normalized_shape"),
        (lambda x: F.group_norm(x, 3), "num_groups=3 must divide the channels"),
        (lambda x: F.group_norm(x.sum(1), 1), r"x must be \(N, C, ...\)"),
        (lambda x: F.group_norm(x, 2, np.ones(3, np.float32)), r"weight and bias \(C,\)"),
        (lambda x: F.gelu(x, approximate="erf"), 'approximate must be "none" or "tanh"'),
        (lambda x: nn.GroupNorm(3, 4), "num_groups must divide num_channels"),
        (lambda x: nn.LayerNorm(0), "normalized_shape must be an integer of at least 1"),
        (lambda x: nn.GELU("erf"), 'approximate must be "none" or "tanh"'),
    ],
)
def test_arguments_that_make_no_sense_are_one_error(call, message):
    with pytest.raises((ShapeError, UsageError), match=message):
        call(tr.tensor(np.zeros((2, 4), np.float32)))


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("LeakyReLU", {"negative_slope": 0.3}),
        ("GELU", {}),
        ("GELU", {"approximate": "tanh"}),
        ("SiLU", {}),
        ("Sigmoid", {}),
        ("Tanh", {}),
        ("Softmax", {"dim": 1}),
        ("LayerNorm", {"normalized_shape": 5}),
        ("LayerNorm", {"normalized_shape": (4, 5), "eps": 0.1}),
        ("LayerNorm", {"normalized_shape": 5, "bias": False}),
        ("LayerNorm", {"normalized_shape": 5, "elementwise_affine": False}),
        ("GroupNorm", {"num_groups": 2, "num_channels": 4}),
        ("GroupNorm", {"num_groups": 4, "num_channels": 4, "affine": False}),
    ],
)
def test_a_layer_is_pytorch_s(name, arguments):
    import torch

    mine, theirs = getattr(nn, name)(**arguments), getattr(torch.nn, name)(**arguments)
    rng = np.random.default_rng(0)
    assert [(n, p.shape) for n, p in mine.named_parameters()] == [(n, tuple(p.shape)) for n, p in theirs.named_parameters()]
    weights = {n: rng.standard_normal(p.shape).astype(np.float32) for n, p in mine.named_parameters()}
    mine.load_state_dict(weights)
    theirs.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()})
    a = rng.standard_normal((3, 4, 5)).astype(np.float32)
    x, x_there = tr.tensor(a, requires_grad=True), torch.tensor(a, requires_grad=True)
    y, y_there = mine(x), theirs(x_there)
    np.testing.assert_allclose(y.data, y_there.detach().numpy(), atol=2e-6)
    dy = rng.standard_normal(a.shape).astype(np.float32)
    y.backward(dy)
    y_there.backward(torch.from_numpy(dy))
    np.testing.assert_allclose(x.grad, x_there.grad.numpy(), atol=5e-6)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), atol=1e-5)


def test_layers_say_what_they_are():
    layers = [nn.LeakyReLU(0.2, True), nn.GELU(), nn.SiLU(), nn.GroupNorm(2, 4), nn.LayerNorm(5, bias=False), nn.MSELoss()]
    assert [repr(layer) for layer in layers] == [
        "LeakyReLU(negative_slope=0.2, inplace=True)",
        "GELU(approximate='none')",
        "SiLU()",
        "GroupNorm(2, 4, eps=1e-05, affine=True)",
        "LayerNorm((5,), eps=1e-05, elementwise_affine=True, bias=False)",
        "MSELoss(reduction='mean')",
    ]


def test_in_place_the_tensor_that_is_given_becomes_the_result():
    for f in (F.silu, F.leaky_relu):
        x = leaf(-1.0, 2.0)
        y = x * 1
        assert f(y, inplace=True) is y
        np.testing.assert_array_equal(y.data, f(x).data)
        y.sum().backward()
        np.testing.assert_array_equal(x.grad, slope(f, leaf(-1.0, 2.0)))


def test_a_graph_dies_with_its_result_without_the_garbage_collector():
    x = leaf(1.0, 2.0)
    y = F.gelu(x).softmax(0)
    node = weakref.ref(y.grad_fn)
    del y
    assert node() is None


def test_a_number_of_numpy_s_is_an_array_without_axes():
    x = tr.tensor([1.0, 2.0])
    for one in (x[0] > 0, x.sum() == 3, tr.Tensor(np.float32(1)), tr.Tensor(np.bool_(True))):
        assert type(one.data) is np.ndarray and one.shape == () and one.item() == 1
        assert repr(one).startswith("tensor(") and type(one.numpy()) is np.ndarray
