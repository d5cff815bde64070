"""What the engine says when something is wrong: NaN hunting, arguments that do not fit, and gradcheck."""

import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import tinyres as tr
import tinyres.functional as F
from tinyres import ops
from tinyres.errors import GraphError, NonFiniteError, ShapeError, TinyresError


def leaf(*values, dtype=np.float64):
    return tr.tensor(np.array(values, dtype), requires_grad=True)


def line_of(comment):
    lines = Path(__file__).read_text("utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.endswith(comment))


# --- the first NaN ---


def test_detect_anomaly_names_the_first_operation_forward_and_the_line():
    x = leaf(1.0, 0.0)
    with tr.detect_anomaly(), np.errstate(divide="ignore"), pytest.raises(NonFiniteError) as caught:
        y = x * 2
        z = 1 / y  # the culprit
        (z - z).sum()
    assert caught.value.op == "Div"
    assert f"{__file__}:{line_of('# the culprit')}, in test_detect_anomaly" in str(caught.value)
    assert "infinity in its forward pass (shape (2,))" in str(caught.value)


def test_detect_anomaly_names_the_first_operation_backward_and_the_line_of_its_forward():
    x = leaf(4.0, 0.0)
    with tr.detect_anomaly(), np.errstate(divide="ignore"), pytest.raises(NonFiniteError) as caught:
        y = x**0.5  # its slope at 0 is infinite
        loss = (y * 3).sum()
        loss.backward()
    assert caught.value.op == "Pow" and "backward pass" in str(caught.value)
    assert f"{__file__}:{line_of('at 0 is infinite')}," in str(caught.value)


@pytest.mark.parametrize("bad, word", [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_detect_anomaly_tells_nan_from_infinity(bad, word):
    with tr.detect_anomaly(), pytest.raises(NonFiniteError, match=rf"Add made an? {word} in its forward"):
        leaf(1.0, bad) + 1


def test_detect_anomaly_sees_layers_of_the_library_and_names_the_operation():
    x = tr.tensor(np.full((1, 1, 2, 2), 1e38, np.float32))
    with tr.detect_anomaly(), warnings.catch_warnings(), pytest.raises(NonFiniteError, match=r"Conv2d.*test_engine_errors"):
        warnings.simplefilter("ignore")
        F.conv2d(x, tr.tensor(np.full((1, 1, 1, 1), 1e38, np.float32)))


def test_outside_detect_anomaly_a_nan_passes():
    x = leaf(1.0, np.nan)
    with tr.detect_anomaly():
        pass
    y = x * 2
    assert math.isnan(y.sum().item())
    y = tr.detect_anomaly()(lambda: leaf(1.0) * 2)()
    assert y.item() == 2


def test_integers_are_not_looked_at_for_nan():
    with tr.detect_anomaly():
        assert (tr.tensor([1, 2]) + 1).data.tolist() == [2, 3]


# --- arguments that do not fit ---

f32, f64 = np.zeros((2, 3, 4, 4), np.float32), np.zeros((2, 3, 4, 4))
w = np.zeros((5, 3, 3, 3), np.float32)
three = np.zeros(3, np.float32)

BAD = {
    "add": (
        lambda: tr.tensor([1.0, 2.0]) + tr.tensor([1.0, 2.0, 3.0]),
        r"add: the shapes must broadcast.*a float32\[2\], b float32\[3\]",
    ),
    "matmul": (lambda: tr.tensor(np.ones((2, 3))) @ tr.tensor(np.ones((2, 3))), r"matmul: .*a float64\[2, 3\], b float64"),
    "matmul of a number": (lambda: tr.tensor(1.0) @ tr.tensor(np.ones((2, 3))), "matmul"),
    "matmul batches": (lambda: tr.tensor(np.ones((2, 2, 3))) @ tr.tensor(np.ones((3, 3, 2))), "matmul"),
    "conv2d channels": (
        lambda: F.conv2d(f32, np.zeros((5, 4, 3, 3), np.float32)),
        r"conv2d: weight must be \(F, C / 1, KH, KW\).*x float32\[2, 3, 4, 4\], weight float32\[5, 4",
    ),
    "conv2d groups": (lambda: F.conv2d(f32, np.zeros((5, 1, 3, 3), np.float32), groups=3), "multiple of groups=3"),
    "conv2d dtypes": (lambda: F.conv2d(f64, w), r"all be float32, or all float64.*x float64.*weight float32"),
    "conv2d axes": (lambda: F.conv2d(f32[0, 0], w), r"conv2d: x must be \(N, C, H, W\), with a batch axis.*\[4, 4\]"),
    "conv2d bias": (lambda: F.conv2d(f32, w, three), r"bias must be \(F,\).*bias float32\[3\]"),
    "conv2d window": (lambda: F.conv2d(f32, np.zeros((5, 3, 5, 5), np.float32)), "window.*larger than the image"),
    "conv2d stride": (lambda: F.conv2d(f32, w, stride=0), "stride must be at least 1, got 0"),
    "conv2d padding": (lambda: F.conv2d(f32, w, padding=1.5), "padding must be an int or a pair of ints, got 1.5"),
    "conv2d triple": (lambda: F.conv2d(f32, w, stride=(1, 2, 3)), "stride must be an int or a pair"),
    "linear": (lambda: F.linear(np.zeros((2, 3)), np.zeros((4, 5))), r"linear: x must be \(N, I\).*weight float64\[4, 5\]"),
    "linear bias": (lambda: F.linear(np.zeros((2, 3)), np.zeros((4, 3)), np.zeros(3)), r"linear: bias must be \(O,\)"),
    "batch_norm axes": (lambda: F.batch_norm(three, three, three), r"batch_norm: x must be \(N, C, H, W\)"),
    "batch_norm channels": (lambda: F.batch_norm(f32, three[:2], three[:2]), r"must be \(C,\).*running_mean float32\[2\]"),
    "batch_norm dtypes": (lambda: F.batch_norm(f64, three, three), "float32, or all float64"),
    "batch_norm one value": (
        lambda: F.batch_norm(np.zeros((1, 3), np.float32), three, three, training=True),
        "more than one value per channel",
    ),
    "batch_norm residual": (lambda: F.batch_norm_add_relu(f32, f32[:1], three, three), "residual must have the same shape"),
    "add_relu": (lambda: F.add_relu(f32, f32[:, :, :2]), "add_relu: the branch and the shortcut must have the same shape"),
    "add_relu dtypes": (lambda: F.add_relu(f32, f64), "float32, or all float64"),
    "max_pool2d": (lambda: F.max_pool2d(f32, 5), r"max_pool2d: the window \(5, 5\) is larger"),
    "max_pool2d padding": (lambda: F.max_pool2d(f32, 2, 2, 2), r"padding=\(2, 2\) must be at most half"),
    "avg_pool2d": (lambda: F.avg_pool2d(f32, 0), "kernel_size must be at least 1"),
    "avg_pool2d integers": (lambda: F.avg_pool2d(f32.astype(int), 2), "float32, or all float64"),
    "global_avg_pool2d": (lambda: F.global_avg_pool2d(three), "global_avg_pool2d: x must be"),
    "subsample_pad": (lambda: F.subsample_pad(f32, 2), r"subsample_pad: out_channels \(2\) must be at least C"),
    "subsample_pad stride": (lambda: F.subsample_pad(f32, 6, 0), r"stride \(0\) at least 1"),
    "dropout": (lambda: F.dropout(f32, 1.5), "dropout: p must be a probability from 0 to 1, got 1.5"),
    "log_softmax": (lambda: F.log_softmax(f32, 4), "log_softmax: dim=4 must be an axis"),
    "cross_entropy": (lambda: F.cross_entropy(np.zeros((2, 3)), np.zeros(3, int)), r"cross_entropy: .*labels int64\[3\]"),
    "cross_entropy labels": (lambda: F.cross_entropy(np.zeros((2, 3)), np.array([0, 3])), r"lie in 0 .. 2.*got 0 .. 3"),
    "cross_entropy negative": (lambda: F.cross_entropy(np.zeros((2, 3)), np.array([0, -1])), r"got -1 .. 0"),
    "cross_entropy floats": (lambda: F.cross_entropy(np.zeros((2, 3)), np.zeros(2)), "labels must be integers"),
    "cross_entropy reduction": (lambda: F.cross_entropy(np.zeros((2, 3)), np.zeros(2, int), reduction="avg"), "'avg'"),
    "cross_entropy smoothing": (
        lambda: F.cross_entropy(np.zeros((2, 3)), np.zeros(2, int), label_smoothing=1.5),
        "label_smoothing in 0",
    ),
    "sum": (lambda: tr.tensor([1.0]).sum(dim=1), r"sum: dim=1 must name axes of x, each once"),
    "sum twice": (lambda: tr.tensor([[1.0]]).sum(dim=(0, -2)), "each once"),
    "reshape": (lambda: tr.tensor([1.0, 2.0]).reshape(3), r"reshape: the shape \(3,\) must have as many elements"),
    "permute": (lambda: tr.tensor([[1.0]]).permute(0), "permute: .*every axis of x once"),
    "transpose": (lambda: tr.tensor([[1.0]]).transpose(0, 2), "axis|axes"),
    "item": (lambda: tr.tensor([1.0, 2.0]).item(), r"one element is a number.*\(2,\)"),
    "float": (lambda: float(tr.tensor([1.0, 2.0])), "one element"),
    "integers that learn": (lambda: tr.tensor([1, 2], requires_grad=True), "floating-point.*int64"),
    "words": (lambda: tr.tensor(["a"]), "numbers were expected"),
    "complex": (lambda: tr.tensor([1j]), "numbers were expected, got complex128"),
    "ragged": (lambda: tr.tensor([[1.0, 2.0], [3.0]]), "tensor"),
    "pow of words": (lambda: tr.tensor([1.0]) ** "2", "numbers were expected"),
    "pow of integers": (lambda: tr.tensor([2, 2]) ** np.array([1, -1]), r"pow: .*negative exponent.*float\(\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_arguments_that_do_not_fit_are_named(name):
    call, message = BAD[name]
    with pytest.raises(ShapeError) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, TinyresError)


def test_an_error_in_forward_leaves_nothing_locked():
    x = leaf(1.0, 2.0)
    with pytest.raises(ShapeError):
        (x * x) + leaf(1.0, 2.0, 3.0)
    assert x.data.flags.writeable


# --- gradcheck ---


def test_gradcheck_refuses_float32():
    with pytest.raises(GraphError, match="input 1 is float32; differences need float64"):
        tr.gradcheck(lambda a, b: a * b, [np.ones(2), np.ones(2, np.float32)])


def test_gradcheck_passes_integers_on():
    labels = np.array([0, 2])
    assert tr.gradcheck(lambda x, labels: F.cross_entropy(x, labels), [np.random.default_rng(0).random((2, 3)), labels])


def test_gradcheck_names_the_worst_element(monkeypatch):
    right = ops.Mul.backward

    def wrong(ctx, dy):
        da, db = right(ctx, dy)
        db[1, 2] += 0.5
        return da, db

    monkeypatch.setattr(ops.Mul, "backward", staticmethod(wrong))
    inputs = [np.random.default_rng(k).standard_normal((2, 3)) for k in (0, 1)]
    with pytest.raises(GraphError, match=r"gradient of input 1 \(shape \(2, 3\)\) is wrong, worst at \[1, 2\]: backward"):
        tr.gradcheck(lambda a, b: a * b, inputs)
    assert tr.gradcheck(lambda a, b: a * b, inputs, raise_exception=False) is False


def test_gradcheck_sees_a_nan(monkeypatch):
    monkeypatch.setattr(ops.Neg, "backward", staticmethod(lambda ctx, dy: dy * np.nan))
    with pytest.raises(GraphError, match="backward gives nan"):
        tr.gradcheck(lambda a: -a, [np.ones(2)])


def test_gradcheck_of_what_does_not_depend_on_its_inputs():
    with pytest.raises(GraphError, match="does not depend on any input"):
        tr.gradcheck(lambda a: a.detach(), [np.ones(2)])


def test_gradcheck_leaves_its_inputs_alone():
    x = tr.tensor(np.ones(2), requires_grad=True)
    tr.gradcheck(lambda a: a * a, [x])
    assert x.grad is None and (x.data == 1).all()


def test_gradcheck_refuses_a_function_that_gives_another_value_at_its_second_call():
    x = np.ones((4, 4))
    with pytest.raises(GraphError, match=r"another result at its second call.*eval\(\)"):
        tr.gradcheck(lambda a: F.dropout(a, 0.5), [x])
    assert tr.gradcheck(lambda a: F.dropout(a, 0.5, generator=np.random.default_rng(0)), [x])
    assert tr.gradcheck(lambda a: F.dropout(a, 0.5), [x], raise_exception=False) is False


ARRANGEMENTS = {
    "alone": lambda f, a: f(a),
    "before a product": lambda f, a: f(a) * 2.0,
    "after a product": lambda f, a: f(a * 2.0),
    "beside a shortcut": lambda f, a: f(a) + a,
    "twice": lambda f, a: f(f(a)),
    "behind a convolution's gradient": lambda f, a: F.linear(f(a), np.ones((2, 3))),
}


@pytest.mark.parametrize("arrange", ARRANGEMENTS.values(), ids=list(ARRANGEMENTS))
def test_gradcheck_sees_a_backward_pass_that_writes_into_what_it_was_lent(arrange, monkeypatch):
    def wrong(ctx, dy):
        dy *= ctx.saved[0] > 0
        return dy

    x = np.random.default_rng(0).standard_normal((2, 3))
    assert tr.gradcheck(lambda a: arrange(F.relu, a), [x])
    monkeypatch.setattr(ops.ReLU, "backward", staticmethod(wrong))
    with pytest.raises(GraphError, match=r"ReLU.backward writes into the cotangent"):
        tr.gradcheck(lambda a: arrange(F.relu, a), [x])


@pytest.mark.parametrize(
    "f", [F.relu, lambda x: F.add_relu(x, x), lambda x: F.relu6(x + 6.0)], ids=["relu", "join", "relu6"]
)
def test_gradcheck_names_a_kink(f):
    with pytest.raises(GraphError, match=r"cannot be compared at \[1\]: the function has a kink there.*Move the input"):
        tr.gradcheck(f, [np.array([-1.0, 0.0, -2.0])])


@pytest.mark.parametrize("factor", [2.0, -1.0, 0.25])
def test_gradcheck_names_a_constant_factor(factor, monkeypatch):
    right = ops.LogSoftmax.backward
    monkeypatch.setattr(ops.LogSoftmax, "backward", staticmethod(lambda ctx, dy: right(ctx, dy) / factor))
    with pytest.raises(GraphError, match=rf"is wrong.*off by one factor: the difference is {factor:g} times"):
        tr.gradcheck(F.log_softmax, [np.random.default_rng(0).standard_normal((2, 3))])


def test_gradcheck_names_no_factor_where_there_is_none(monkeypatch):
    monkeypatch.setattr(ops.LogSoftmax, "backward", staticmethod(lambda ctx, dy: dy))
    with pytest.raises(GraphError) as error:
        tr.gradcheck(F.log_softmax, [np.random.default_rng(0).standard_normal((2, 3))])
    assert "factor" not in str(error.value) and "kink" not in str(error.value)
