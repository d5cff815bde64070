"""The backward walk: where cotangents meet, whose arrays they are, and what is refused."""

import numpy as np
import pytest

import tinyres as tr
import tinyres.functional as F
from tinyres import autograd
from tinyres.errors import GraphError, ShapeError


def leaf(*values, dtype=np.float64):
    return tr.tensor(np.array(values, dtype), requires_grad=True)


def grad_of(f, *leaves):
    """Gradients of f(*leaves).sum(), from a clean start."""
    for x in leaves:
        x.grad = None
    f(*leaves).sum().backward()
    return [x.grad for x in leaves]


# --- where cotangents meet: these checks are run on broken engines too, in test_mutants.py ---


def check_smallest_diamond():
    x = leaf(1.0, 2.0)
    np.testing.assert_array_equal(grad_of(lambda x: x + x, x)[0], [2, 2])
    h = leaf(3.0, 4.0)
    np.testing.assert_array_equal(grad_of(lambda h: (lambda y: y + y)(h * 1), h)[0], [2, 2])


def check_many_uses():
    """Three and more arrivals at one node: the second allocates, the later ones add in place."""
    x = leaf(1.0, 2.0)

    def f(x):
        y = x * 3
        return y + y + y * y + y

    np.testing.assert_array_equal(grad_of(f, x)[0], 9 + 18 * x.data)


def check_lent_cotangent():
    """An addition lends one array to both parents; what one of them collects further must not reach the other."""
    x, z = leaf(1.0, 2.0), leaf(5.0, 6.0)

    def f(x, z):
        a, b = x * 1, z * 1
        return (a + b) + (a * 10 + a * 100)

    f(x, z).backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [111, 111])
    np.testing.assert_array_equal(z.grad, [1, 1])

    x, z = leaf(1.0, 2.0), leaf(5.0, 6.0)
    a, b = x * 1, z * 1
    (a * 10 + (a + b)).backward(np.ones(2))  # here it is the later arrival that is lent
    np.testing.assert_array_equal(x.grad, [11, 11])
    np.testing.assert_array_equal(z.grad, [1, 1])


def check_rank_order():
    """y is used by a short path and by a long one: the walk that visits it after the short one alone is wrong."""
    x = leaf(2.0)

    def f(x):
        y = x * x
        long = y
        for _ in range(5):
            long = long * 1
        return y * 3 + long

    np.testing.assert_allclose(grad_of(f, x)[0], [4 * 2 * 2.0])
    np.testing.assert_allclose(grad_of(lambda x: (lambda y: y * y.relu() + y)(x * x), x)[0], 2 * 2**3 * 2 + 2 * 2)


def check_residual_chain():
    """Each block doubles the gradient; recursion that visits a node once a path would need 2^20 steps."""
    x = leaf(1.0)

    def f(x):
        for _ in range(20):
            x = x + x.relu()
        return x

    np.testing.assert_array_equal(grad_of(f, x)[0], [2.0**20])


def check_lent_by_a_join():
    """The same, where the join of a residual block lends its cotangent."""
    x, z = leaf(1.0, 2.0), leaf(5.0, 6.0)
    a, b = x * 1, z * 1
    (F.add_relu(a, b) + (a * 10 + a * 100)).backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [111, 111])
    np.testing.assert_array_equal(z.grad, [1, 1])


def check_lent_meets_fresh():
    """At a block's input the cotangent that the join lent meets the one that the branch has just made, in either order."""
    rng = np.random.default_rng(0)
    values, w = rng.standard_normal((2, 3)), rng.standard_normal((3, 3))
    for block in (lambda x: F.linear(x, w) + x, lambda x: x + F.linear(x, w)):
        x, other = leaf(*values), leaf(*values)
        h, g = x * 1, other * 1
        cotangent = rng.standard_normal((2, 3))
        kept = cotangent.copy()
        (block(h) + (g + h)).backward(cotangent)
        np.testing.assert_allclose(x.grad, cotangent @ w + 2 * cotangent)
        np.testing.assert_array_equal(other.grad, kept)
        np.testing.assert_array_equal(cotangent, kept)


def check_cotangents_that_meet_in_a_convolution():
    """The same, where the branch begins with a convolution, which adds its cotangent to the other one by itself; with
    further uses of the block's input, whose cotangents arrive before and after.
    """
    rng = np.random.default_rng(0)
    values, w = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((3, 3, 3, 3))
    zero, one = np.zeros(3), np.ones(3)

    def block(branch, shortcut, more):
        y = F.conv2d(branch, w, padding=1)
        return F.batch_norm_add_relu(y, shortcut, zero.copy(), one.copy(), training=True) + more * 2

    cotangent = rng.standard_normal(values.shape)
    together, apart = leaf(*values), [leaf(*values) for _ in range(3)]
    h = together * 1
    block(h, h, h).backward(cotangent)
    block(*(x * 1 for x in apart)).backward(cotangent)
    np.testing.assert_allclose(together.grad, sum(x.grad for x in apart), atol=1e-12)


CHECKS = [
    check_smallest_diamond,
    check_many_uses,
    check_lent_cotangent,
    check_rank_order,
    check_residual_chain,
    check_lent_by_a_join,
    check_lent_meets_fresh,
    check_cotangents_that_meet_in_a_convolution,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_cotangents_that_meet_are_added(check):
    check()


def test_a_scalar_is_an_array_too_and_may_be_used_often():
    """NumPy turns arithmetic on arrays without axes into scalars, which cannot be added to in place."""
    x = leaf(1.0, 2.0, 3.0)
    for reduced in (lambda x: x.sum(), lambda x: x.mean() * 3, lambda x: F.cross_entropy(x.reshape(1, 3), np.array([0]))):

        def often(x, f=reduced):
            y = f(x)
            return y * y + y + y * 2

        loss = often(x)
        assert isinstance(loss.data, np.ndarray) and isinstance(loss.numpy(), np.ndarray)
        assert repr(loss).startswith("tensor(")
        x.grad = None
        loss.backward()
        assert isinstance(x.grad, np.ndarray)
        tr.gradcheck(often, [x])


def test_the_gradient_of_a_number_is_an_array_that_adds_up():
    x = tr.tensor(3.0, requires_grad=True)
    for times in (1, 2):
        (x * x).backward()
        assert isinstance(x.grad, np.ndarray) and x.grad.shape == () and x.grad == 6 * times


def test_an_infinite_loss_still_starts_with_one():
    x = leaf(1.0, 2.0)
    (x + np.array([np.inf, 0.0])).sum().backward()
    np.testing.assert_array_equal(x.grad, [1, 1])


@pytest.mark.parametrize("op", [lambda y, x: y * x, lambda y, x: y + x, lambda y, x: y.relu()], ids=["mul", "add", "relu"])
def test_a_chain_of_20000_operations_is_walked_and_dropped_without_recursion(op):
    x = leaf(1.0)
    for walk in (True, False):
        y = x
        for _ in range(20_000):
            y = op(y, x)
        if walk:
            y.backward()
        del y
    assert x.grad.shape == (1,) and x.data.flags.writeable


def test_leaves_are_reached_wherever_they_stand():
    x, w, unused = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(9.0)
    ((x * w) + x).sum().backward()
    np.testing.assert_array_equal(x.grad, [4, 5])
    np.testing.assert_array_equal(w.grad, [1, 2])
    assert unused.grad is None


def test_backward_on_a_leaf_gives_its_own_cotangent():
    x = leaf(2.0)
    x.backward()
    x.backward(np.array([5.0]))
    np.testing.assert_array_equal(x.grad, [6])


# --- several backward passes ---


def test_a_second_loss_adds_to_the_gradient():
    x = leaf(1.0, 2.0)
    (x * 3).sum().backward()
    (x * 4).sum().backward()
    np.testing.assert_array_equal(x.grad, [7, 7])


def test_retain_graph_allows_a_second_walk():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_array_equal(x.grad, 4 * x.data)


def test_a_second_walk_over_a_freed_graph_is_refused():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(GraphError, match=r"Sum a second time.*retain_graph=True"):
        y.backward()


def test_a_part_that_an_earlier_walk_freed_is_named():
    x = leaf(1.0)
    shared = x * x
    first, second = shared * 2, shared * 3
    first.backward()
    with pytest.raises(GraphError, match="Mul a second time"):
        second.backward()


def test_create_graph_is_refused():
    with pytest.raises(GraphError, match="create_graph=True is not supported"):
        leaf(1.0).backward(create_graph=True)


def test_backward_of_many_elements_needs_a_cotangent():
    y = leaf(1.0, 2.0) * 2
    with pytest.raises(GraphError, match=r"one element.*shape \(2,\).*\.sum\(\)"):
        y.backward()


def test_a_cotangent_of_another_shape_is_refused():
    y = leaf(1.0, 2.0) * 2
    with pytest.raises(ShapeError, match=r"gradient has shape \(3,\), the tensor \(2,\)"):
        y.backward(np.ones(3))


def test_a_cotangent_may_be_an_array_a_tensor_or_a_number():
    x = leaf(1.0, 2.0)
    for cotangent in (np.array([1.0, 3.0]), tr.tensor(np.array([1.0, 3.0])), np.array([1, 3]), [1.0, 3.0]):
        x.grad = None
        (x * 2).backward(cotangent)
        np.testing.assert_array_equal(x.grad, [2, 6])
        assert x.grad.dtype == np.float64
    for number in (3, 3.0, np.float32(3)):
        x.grad = None
        x.sum().backward(number)
        np.testing.assert_array_equal(x.grad, [3, 3])


def test_a_parameter_takes_a_tensor_as_its_cotangent():
    weight = tr.nn.Parameter(np.ones(2, np.float32))
    weight.backward(tr.tensor([1.0, 3.0]))
    np.testing.assert_array_equal(weight.grad, [1, 3])


def test_backward_of_what_needs_no_gradient_is_refused():
    for y in (tr.tensor([1.0]) * 2, leaf(1.0).detach(), tr.no_grad()(lambda: leaf(1.0) * 2)()):
        with pytest.raises(GraphError, match="does not require a gradient"):
            y.backward()


def test_a_backward_that_returns_the_wrong_thing_is_told():
    class Wrong(autograd.Function):
        result: object = None

        @staticmethod
        def forward(ctx, a):
            return a * 1

        @staticmethod
        def backward(ctx, dy):
            return Wrong.result

    for result, message in (
        (np.ones(3), r"Wrong.backward returned float64 \(3,\) as the cotangent of an input of float64 \(2,\)"),
        (np.ones(2, np.float32), r"returned float32 \(2,\)"),
        (None, "returned None"),
        ((np.ones(2), np.ones(2)), "2 cotangents for 1 inputs"),
    ):
        Wrong.result = result
        with pytest.raises(GraphError, match=message):
            Wrong.apply(leaf(1.0, 2.0)).sum().backward()


# --- whose arrays they are ---


def test_leaves_never_share_a_gradient():
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    cotangent = np.array([1.0, 1.0])
    (a + b).backward(cotangent)
    assert not np.shares_memory(a.grad, b.grad) and not np.shares_memory(a.grad, cotangent)
    a.grad += 7
    np.testing.assert_array_equal(b.grad, [1, 1])
    np.testing.assert_array_equal(cotangent, [1, 1])


def test_a_lent_cotangent_is_never_written_to():
    """The cotangent that a join hands down is read-only here: any write on the way would raise."""
    x = leaf(*np.linspace(-1, 1, 24))
    images = x.reshape(2, 3, 2, 2)
    y = F.add_relu(images, images * 2)
    y = y + images + F.relu(y) + y
    cotangent = np.ones(y.shape)
    cotangent.flags.writeable = False
    y.backward(cotangent)
    assert (cotangent == 1).all()


def test_gradients_have_the_dtype_and_the_shape_of_their_tensor():
    single, double = tr.tensor([[1.0], [2.0]], requires_grad=True), leaf(1.0, 2.0, 3.0)
    y = single * double
    assert y.dtype == np.float64 and y.shape == (2, 3)
    y.sum().backward()
    assert single.grad.dtype == np.float32 and single.grad.shape == (2, 1) and double.grad.dtype == np.float64
