"""The wrong answers of the exercises, planted in the engine: what learners get wrong is what the tests must notice."""

import numpy as np
import pytest
import test_engine_backward as engine
import test_join as joins
import test_ops_kernels as kernel_checks
from cases import BY_NAME
from mutants import case, check_caught, kernel, replace, slope

import tinyres as tr
from tinyres import autograd, ops
from tinyres.course.exercise import find
from tinyres.kernels import reference

CONV = [next(name for name in BY_NAME if name.startswith("conv2d") and f"[3,2,3,3]-s{s}-p1-d1" in name) for s in (1, 2)]
STRIDED = ((2, 2, 7, 7), (2, 2, 3, 3), (2, 2), (1, 1))  # images, filters, stride, padding
BN = "batch_norm[3,4,5,2]-train"


class Derivative:
    """A local derivative for arrays: ``dy * d`` is the backward pass of a node, for one of its inputs."""

    __array_ufunc__ = None  # an array on the left leaves the product to us

    def __init__(self, node, i, first):
        self.node, self.i, self.first = node, i, first

    def __rmul__(self, dy):
        return autograd.cotangents(self.node, dy if isinstance(dy, np.ndarray) else self.first)[self.i]


def plant_walk(patch, answer):
    """The backward walk is the answer to 2.2, on the tape as a list of nodes."""

    def backward(tensor, gradient=None, retain_graph=False):
        first = np.ones_like(tensor.data) if gradient is None else gradient
        found, todo = {tensor.node}, [tensor.node]
        while todo:
            new = {e for e in getattr(todo.pop(), "edges", ()) if e is not None} - found
            found |= new
            todo += new
        nodes = sorted(found, key=lambda n: getattr(n, "rank", 0))
        number = {id(node): i for i, node in enumerate(nodes)}
        graph = [
            [(number[id(e)], Derivative(n, i, first)) for i, e in enumerate(getattr(n, "edges", ())) if e is not None]
            for n in nodes
        ]
        for node, dy in zip(nodes, answer(graph), strict=True):
            if not isinstance(node, autograd.Node):
                autograd.accumulate_grad(node, np.asarray(dy))

    patch.setattr(autograd, "backward", backward)


def plant_accumulation(patch, answer):
    """Where two cotangents meet, the answer to 2.3 adds them."""

    def add(first, second, kernels):
        table = {0: first[0]}
        answer(table, 0, second[0])
        return table[0]

    patch.setattr(autograd, "add_cotangents", add)


def plant_linear(patch, answer):
    def part(i, shape, *arguments):
        try:
            return answer(*arguments)[i]
        except ValueError:  # the shapes do not fit
            return np.zeros(shape, arguments[0].dtype)

    ones = np.ones
    replace(patch, "linear_backward_input", lambda dy, w: part(0, (len(dy), w.shape[1]), ones((len(dy), w.shape[1])), w, dy))
    replace(
        patch,
        "linear_backward_weight",
        lambda dy, x: part(1, (dy.shape[1], x.shape[1]), x, ones((dy.shape[1], x.shape[1])), dy),
    )
    replace(patch, "linear_backward_bias", lambda dy: part(2, dy.shape[1:], dy, ones((dy.shape[1],) * 2), dy))


def plant_loss(patch, answer):
    replace(patch, "cross_entropy_mean_backward", lambda dloss, log_probs, labels, _: dloss * answer(log_probs, labels))


def plant_join(patch, answer):
    right = ops.AddReLU.forward

    def forward(ctx, x, y):
        ctx.both = x.copy(), y.copy()
        return right(ctx, x, y)

    patch.setattr(ops.AddReLU, "forward", staticmethod(forward))
    patch.setattr(ops.AddReLU, "backward", staticmethod(lambda ctx, dz: (answer(*ctx.both, dz),) * 2))


def rows(a):
    """(N, C, H, W) as (N H W, C)."""
    return a.swapaxes(1, -1).reshape(-1, a.shape[1])


def plant_batch_norm(patch, answer):
    def backward(dy, x, y, weight, mean, var, eps, training):
        _, dweight, dbias = reference.batch_norm_backward(dy, x, y, weight, mean, var, eps, training)
        like = x.swapaxes(1, -1)
        return answer(rows(x), weight, rows(dy), eps).reshape(like.shape).swapaxes(1, -1).copy(), dweight, dbias

    replace(patch, "batch_norm_backward", backward)


def plant_batch_norm_weight(patch, answer):
    def backward(dy, x, y, weight, mean, var, eps, training):
        dx, *_ = reference.batch_norm_backward(dy, x, y, weight, mean, var, eps, training)
        images = (a.reshape(*a.shape[:2], 1, -1) for a in (x, dy))
        return dx, *answer(*images, eps)

    replace(patch, "batch_norm_backward", backward)


def plant_input_gradient(patch, answer):
    def backward(dy, w, x_shape, stride, padding, dilation, groups, total=None):
        def plane(n, c):
            return sum(answer(dy[n, f], w[f, c], x_shape[2:], stride[0], padding[0]) for f in range(len(w)))

        return np.array([[plane(n, c) for c in range(x_shape[1])] for n in range(len(dy))], dy.dtype)

    replace(patch, "conv2d_backward_input", backward)


def plant_weight_gradient(patch, answer):
    def backward(dy, x, w_shape, stride, padding, dilation, groups):
        f, c, k, _ = w_shape
        dw = [
            [sum(answer(x[n, j], dy[n, i], k, stride[0], padding[0]) for n in range(len(x))) for j in range(c)]
            for i in range(f)
        ]
        return np.array(dw, dy.dtype)

    replace(patch, "conv2d_backward_weight", backward)


def plant_shortcut(patch, answer):
    replace(
        patch,
        "subsample_pad_backward",
        lambda dy, shape, stride: np.array([answer(image, shape[1:], stride) for image in dy], dy.dtype),
    )


SHORTCUTS = [name for name in BY_NAME if name.startswith("subsample_pad")]
PLANTS = {  # exercise: how its answers are planted, and the checks of which each must notice a wrong one
    "1.2": (plant_linear, [case("linear"), slope("linear")]),
    "1.3": (plant_loss, [case("cross_entropy-0.0-mean"), slope("cross_entropy-0.0-mean")]),
    "2.2": (plant_walk, [engine.check_many_uses, engine.check_rank_order]),
    "2.3": (plant_accumulation, [engine.check_lent_cotangent]),
    "3.2": (plant_join, [joins.check_join_is_closed_at_a_tie]),
    "4.1": (plant_batch_norm, [case(BN), slope(BN), kernel(kernel_checks.check_batch_norm, (2, 3, 4, 4))]),
    "4.2": (plant_batch_norm_weight, [case(BN), slope(BN)]),
    "5.1": (plant_input_gradient, [case(CONV[1]), slope(CONV[1]), kernel(kernel_checks.check_conv2d, *STRIDED)]),
    "5.2": (plant_weight_gradient, [case(CONV[1]), slope(CONV[1])]),
    "6.1": (plant_shortcut, [kernel(kernel_checks.check_shortcut, (2, 3, 5, 5), 7, 2)]),
}
MUTANTS = [(number, wrong.name) for number in PLANTS for wrong in find(number).wrong]


@pytest.mark.parametrize(("number", "name"), MUTANTS)
def test_a_wrong_answer_is_caught(number, name):
    plant, checks = PLANTS[number]
    if number == "3.2" and name != "open at a tie":
        checks = [*checks, case("add_relu"), slope("add_relu")]
    check_caught(lambda patch: plant(patch, find(number).mistake(name).answer), checks)


@pytest.mark.parametrize("number", PLANTS)
def test_the_right_answer_is_not(number, monkeypatch):
    plant, checks = PLANTS[number]
    with tr.use_backend("numpy"):
        plant(monkeypatch, find(number).right)
        for check in checks:
            check()
