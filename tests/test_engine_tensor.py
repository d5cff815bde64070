"""Tensors: what they copy, what they share, their dtypes and operators."""

import operator

import numpy as np
import pytest

import tinyres as tr
import tinyres.functional as F
from tinyres.errors import GraphError, ShapeError


@pytest.mark.parametrize(
    "data, dtype",
    [
        (1.5, np.float32),
        ([1.0, 2.0], np.float32),
        ([], np.float32),
        (3, np.int64),
        ([1, 2], np.int64),
        (True, np.bool_),
        (np.zeros(2), np.float64),
        (np.zeros(2, np.float16), np.float32),
        (np.zeros(2, np.uint8), np.uint8),
        (np.float64(1), np.float64),
        (np.zeros(2, np.longdouble), np.float32),
    ],
)
def test_dtypes_of_new_tensors(data, dtype):
    t = tr.tensor(data)
    assert t.dtype == dtype and isinstance(t.data, np.ndarray) and t.is_leaf and t.grad is None and not t.requires_grad
    assert tr.tensor(data, dtype=np.float64).dtype == np.float64


def test_tensor_copies_and_the_class_shares():
    a = np.zeros(3)
    copied, shared = tr.tensor(a), tr.Tensor(a)
    a[0] = 7
    assert copied.data[0] == 0 and shared.data is a and shared.numpy() is a
    again = tr.tensor(shared)
    assert not np.shares_memory(again.data, a)


def test_what_a_tensor_tells():
    t = tr.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    assert (t.shape, t.ndim, t.numel(), len(t)) == ((3, 2), 2, 6, 3)
    assert repr(t) == "tensor([[1., 2.],\n        [3., 4.],\n        [5., 6.]], requires_grad=True)"
    assert repr(t.sum()) == "tensor(21., grad_fn=Sum)" and repr(t.mean()) == "tensor(3.5, grad_fn=Mean)"
    assert repr(tr.tensor(np.zeros(1))) == "tensor([0.], dtype=float64)"
    assert isinstance(t.sum().item(), float) and float(t.sum()) == 21.0 and int(t.sum()) == 21 and t.sum()
    assert t.T.shape == (2, 3) and t.flatten().shape == (6,) and t.transpose(-1, 0).shape == (2, 3)


def test_an_array_on_the_left_leaves_the_work_to_the_tensor():
    x = tr.tensor(np.array([1.0, 2.0]), requires_grad=True)
    a = np.array([3.0, 4.0])
    results = [(a + x, [4, 6]), (a - x, [2, 2]), (a * x, [3, 8]), (a / x, [3, 2]), (a @ x, 11), (np.float64(2) * x, [2, 4])]
    for y, want in results:
        assert isinstance(y, tr.Tensor) and y.requires_grad
        np.testing.assert_array_equal(y.data, want)


def test_numbers_do_not_change_the_dtype():
    x = tr.tensor([1.0, 2.0])
    for y in (x + 1, 1.5 * x, x / 3, 2 - x, x**2, x**0.5, np.float64(2) * x, x * np.float32(2), x.mean(), x.sum() / 2, -x):
        assert y.dtype == np.float32


def test_an_exponent_may_be_a_numpy_number():
    x = tr.tensor([1.0, 2.0], requires_grad=True)
    (x ** np.float64(2)).sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 4])


def test_float32_and_float64_make_float64():
    single, double = tr.tensor([1.0]), tr.tensor(np.ones(1))
    for y in (single + double, single * double, double / single, single @ double, single - double):
        assert y.dtype == np.float64


def test_a_list_of_floats_is_float32_as_an_operand_too():
    assert (tr.tensor([1.0, 2.0]) * [1.0, 2.0]).dtype == np.float32
    assert F.add_relu(tr.tensor([1.0]), [2.0]).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.int64])
def test_the_mean_of_whole_numbers(dtype):
    a = np.arange(600).reshape(300, 2) % 2 == 0
    np.testing.assert_allclose(tr.tensor(a.astype(dtype)).mean().data, 0.5)
    np.testing.assert_allclose(tr.tensor(a.astype(dtype)).mean(dim=0).data, [1, 0])


def test_the_cotangent_of_an_integer_operand_is_not_computed():
    """Casting a NaN to an integer would warn."""
    x = tr.tensor(np.array([1.0, 2.0]), requires_grad=True)
    (x * np.array([1, 2])).backward(np.array([np.nan, np.inf]))
    np.testing.assert_array_equal(x.grad, [np.nan, np.inf])


def test_manual_seed_starts_the_default_generator_anew():
    x = tr.tensor(np.ones(50))
    first, second = (F.dropout(x, 0.5).data for _ in range(2) if tr.manual_seed(3) is tr.default_generator())
    third = F.dropout(x, 0.5).data
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()
    state = tr.default_generator().bit_generator.state
    fourth = F.dropout(x, 0.5).data
    tr.default_generator().bit_generator.state = state
    np.testing.assert_array_equal(F.dropout(x, 0.5).data, fourth)


def test_dropout_outside_training_is_the_tensor_itself():
    x = tr.tensor([1.0, 2.0])
    assert F.dropout(x, 0.5, training=False) is x and F.dropout(x, 0.0) is x


def test_running_statistics_move_in_place_in_training_only():
    x = np.random.default_rng(0).standard_normal((4, 3, 2, 2))
    mean, var = np.zeros(3), np.ones(3)
    F.batch_norm(x, mean, var, momentum=0.25)
    assert (mean == 0).all() and (var == 1).all()
    with tr.no_grad():
        F.batch_norm(x, tr.Tensor(mean), tr.Tensor(var), training=True, momentum=0.25)
    np.testing.assert_allclose(mean, 0.25 * x.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(var, 0.75 + 0.25 * x.var(axis=(0, 2, 3), ddof=1))


def test_in_evaluation_batch_norm_keeps_the_statistics_it_used():
    """Between an evaluation-mode forward and its backward, a training-mode forward moves them."""
    x = tr.tensor(np.random.default_rng(0).standard_normal((4, 3)), requires_grad=True)
    mean, var = np.zeros(3), np.ones(3)
    y = F.batch_norm(x, mean, var)
    F.batch_norm(x.detach(), mean, var, training=True)
    y.backward(np.ones((4, 3)))
    np.testing.assert_allclose(x.grad, np.full((4, 3), 1 / np.sqrt(1 + 1e-5)))


def test_lazy_modules_and_unknown_attributes():
    assert tr.nn.__name__ == "tinyres.nn" and "models" in dir(tr) and "Tensor" in dir(tr)
    with pytest.raises(AttributeError, match="'tinyres' has no attribute 'nets'"):
        _ = tr.nets


# --- comparisons, and changes in place ---


def test_comparisons_are_elementwise_and_a_hand_made_accuracy_counts():
    predicted, labels = tr.tensor([3, 1, 2]), np.array([3, 0, 2])
    for other in (labels, tr.tensor(labels)):
        equal = predicted == other
        assert isinstance(equal, tr.Tensor) and equal.dtype == bool and equal.numpy().tolist() == [True, False, True]
        assert (predicted != other).numpy().tolist() == [False, True, False]
    assert float(np.mean(predicted == labels)) == pytest.approx(2 / 3)
    assert int((predicted == labels).sum()) == 2 and float(np.sum(predicted)) == 6
    assert (labels == predicted).numpy().tolist() == [True, False, True]
    assert (predicted > 1).numpy().tolist() == [True, False, True] and (predicted > 1).numpy().tolist() == [
        True,
        False,
        True,
    ]
    assert (predicted >= 2).numpy().tolist() == [True, False, True] and (predicted <= 1).numpy().tolist() == [
        False,
        True,
        False,
    ]
    assert (predicted < 2).numpy().tolist() == [False, True, False]
    assert (predicted == None) is False and predicted != "labels"  # noqa: E711
    assert len({predicted, tr.tensor([3, 1, 2])}) == 2, "a tensor is a key by what it is"
    with pytest.raises(ShapeError, match=r"equal: int64\[3\] and int64\[2\]"):
        predicted == tr.tensor([1, 2])  # noqa: B015


IN_PLACE = {
    "+=": (operator.iadd, operator.add),
    "-=": (operator.isub, operator.sub),
    "*=": (operator.imul, operator.mul),
    "/=": (operator.itruediv, operator.truediv),
    "**=": (operator.ipow, operator.pow),
}


@pytest.mark.parametrize(("change", "plain"), IN_PLACE.values(), ids=list(IN_PLACE))
def test_a_parameter_is_changed_in_place_under_no_grad_and_not_while_recording(change, plain):
    w = tr.nn.Parameter(np.array([1.0, 2.0], np.float32))
    array, other = w.data, np.array([3.0, 2.0], np.float32)
    with pytest.raises(GraphError, match="cannot be changed in place while operations are recorded"):
        change(w, other)
    want = plain(array.copy(), np.array([3.0, 2.0], np.float32) if change is not operator.ipow else 2)
    with tr.no_grad():
        assert change(w, other if change is not operator.ipow else 2) is w
    assert w.data is array and w.data.dtype == np.float32
    np.testing.assert_array_equal(w.data, want)
    y = w * 1.0
    z = change(y, 2.0)  # what is recorded becomes another tensor
    assert z is not y and z.requires_grad
    z.sum().backward()
    assert w.grad is not None


def test_what_does_not_fit_cannot_be_added_in_place():
    x = tr.tensor([1.0, 2.0])
    with pytest.raises(ShapeError, match=r"add: float32\[2\] and float32\[3\]"):
        x += tr.tensor([1.0, 2.0, 3.0])
    counts = tr.tensor([1, 2])
    with pytest.raises(ShapeError, match="true_divide: int64"):
        counts /= 2
    assert x.data.tolist() == [1, 2] and counts.data.tolist() == [1, 2]


def test_a_reduction_takes_numpy_s_words():
    x = tr.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    np.testing.assert_array_equal(np.sum(x, axis=1).data, [3, 12])
    np.mean(x, axis=0).sum().backward()
    assert (x.grad == 0.5).all() and np.mean(x, dtype=np.float32).dtype == np.float32
    with pytest.raises(ShapeError, match="out="):
        np.sum(x, out=np.zeros(()))


# --- dtypes of operands ---

F32, F64, U8, I64 = (tr.tensor(np.array([1, 2, 4], dtype)) for dtype in ("f4", "f8", "u1", "i8"))
RESULTS = {
    "float32 * np.int64": (lambda: F32 * np.int64(2), "float32"),
    "np.int64 * float32": (lambda: np.int64(2) * F32, "float32"),
    "float32 / np.prod": (lambda: F32 / np.prod((2, 3)), "float32"),
    "float32 - np.uint8": (lambda: F32 - np.uint8(2), "float32"),
    "float32 * np.float64": (lambda: F32 * np.float64(0.5), "float32"),
    "float32 + np.bool": (lambda: F32 + np.bool_(1), "float32"),
    "float64 * np.float32": (lambda: F64 * np.float32(0.5), "float64"),
    "float16 * np.int64": (lambda: F32.half() * np.int64(2), "float16"),
    "float32 * integers": (lambda: F32 * I64, "float32"),
    "integers - float32": (lambda: U8 - F32, "float32"),
    "float32 / bytes": (lambda: F32 / U8, "float32"),
    "float32 + bool": (lambda: F32 + (U8 == 2), "float32"),
    "float32 @ integers": (lambda: F32 @ I64, "float32"),
    "array + float32": (lambda: np.array([1, 2, 3]) + F32, "float32"),
    "bytes / 255": (lambda: U8 / 255, "float32"),
    "bytes / np.float64": (lambda: U8 / np.float64(255), "float32"),
    "bytes / bytes": (lambda: U8 / U8, "float32"),
    "bytes * 0.5": (lambda: U8 * 0.5, "float32"),
    "bytes * 2": (lambda: U8 * 2, "uint8"),
    "bytes * np.int64": (lambda: U8 * np.int64(2), "uint8"),
    "bytes - 300": (lambda: U8 - 300, "int64"),
    "integers ** 0.5": (lambda: I64**0.5, "float32"),
    "integers ** 2": (lambda: I64**2, "int64"),
    "float64 * integers": (lambda: F64 * I64, "float64"),
    "float32 + float64": (lambda: F32 + F64, "float64"),
    "label smoothing": (
        lambda: F.cross_entropy(F32.reshape(1, 3), np.array([0]), label_smoothing=np.float64(0.1)),
        "float32",
    ),
    "batch norm": (
        lambda: F.batch_norm(F32.reshape(3, 1), None, None, training=True, momentum=np.float64(0.1), eps=np.float64(1e-5)),
        "float32",
    ),
}


@pytest.mark.parametrize(("run", "dtype"), RESULTS.values(), ids=list(RESULTS))
def test_integers_and_numbers_do_not_widen_floats(run, dtype):
    assert run().dtype == dtype


@pytest.mark.parametrize(
    "name", ["float32 * integers", "integers - float32", "float32 / bytes", "bytes / 255", "bytes * 0.5"]
)
def test_and_their_values_are_those_of_float64(name):
    arrays = {"float32": F64, "integers": F64, "bytes": F64}
    left, sign, right = name.split()
    left, right = (arrays[side].data if side in arrays else float(side) for side in (left, right))
    want = {"*": operator.mul, "-": operator.sub, "/": operator.truediv}[sign](left, right)
    np.testing.assert_allclose(RESULTS[name][0]().data, want, rtol=1e-6)


def test_a_gradient_reaches_the_float_beside_an_integer():
    x = tr.tensor([1.0, 2.0, 4.0], requires_grad=True)
    ((x * I64) / U8 - I64).sum().backward()
    assert x.grad.dtype == np.float32 and (x.grad == 1).all()


@pytest.mark.parametrize(
    ("shape", "axes", "want"),
    [
        ((0, 3, 4), (1,), (0, 12)),
        ((2, 3, 4), (), (24,)),
        ((2, 3, 4), (0, 1), (6, 4)),
        ((2, 3, 4), (-2,), (2, 12)),
        ((2, 3, 4), (1, 1), (2, 3, 4)),
        ((), (), (1,)),
        ((2, 0, 4), (1, 2), (2, 0)),
    ],
)  # the shapes are PyTorch's
def test_axes_are_flattened_from_one_to_another(shape, axes, want):
    assert tr.tensor(np.zeros(shape)).flatten(*axes).shape == want


@pytest.mark.parametrize("axes", [(5,), (2, 1), (0, 3), (-4,)])
def test_axes_that_are_not_there_cannot_be_flattened(axes):
    with pytest.raises(ShapeError, match=r"flatten: .* must be axes of the tensor, of shape \(2, 3, 4\), in order"):
        tr.tensor(np.zeros((2, 3, 4))).flatten(*axes)
