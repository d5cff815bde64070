"""Wrong functions, reductions, norms and hooks, which the checks of the other files must notice: see mutants.py."""

import numpy as np
import pytest
import test_hooks as hook_checks
import test_tensor_methods as edges
from mutants import case, check_caught, registry, slope

from tinyres import autograd, hooks, ops
from tinyres.nn import hooks as module_hooks
from tinyres.ops import activations, group_norm

mutant, MUTANTS = registry()


def backward(patch, op, wrong):
    """Another backward pass, made of the right one's result."""
    right = op.backward
    patch.setattr(op, "backward", staticmethod(lambda ctx, dy: wrong(ctx, dy, right)))


@mutant(case("softmax[2, 4, 3]-1"), slope("softmax[2, 4, 3]-1"))
def softmax_whose_slope_is_that_of_a_sigmoid(patch):
    backward(patch, ops.Softmax, lambda ctx, dy, right: dy * ctx.saved[0] * (1 - ctx.saved[0]))


@mutant(case("tanh-3d"), slope("tanh-3d"))
def tanh_whose_slope_takes_y_for_x(patch):
    backward(patch, ops.Tanh, lambda ctx, dy, right: dy * (1 - np.tanh(ctx.saved[0]) ** 2))


@mutant(case("silu-normal"), slope("silu-normal"))
def silu_without_its_second_term(patch):
    backward(patch, ops.SiLU, lambda ctx, dy, right: dy * activations.logistic(ctx.saved[0]))


@mutant(case("gelu-normal"))
def gelu_by_tanh_where_it_should_be_exact(patch):
    patch.setattr(activations, "_by_erf", activations._by_tanh)


@mutant(edges.test_the_error_function_is_python_s)
def error_function_with_a_term_too_few(patch):
    right = activations._taylor
    patch.setattr(activations, "_taylor", lambda dtype: right(dtype)[:-2])


@mutant(case("leaky_relu-0.3-normal"), slope("leaky_relu-0.3-normal"))
def leaky_relu_with_the_default_slope_in_backward(patch):
    backward(patch, ops.LeakyReLU, lambda ctx, dy, right: np.where(ctx.saved[0] > 0, dy, 0.01 * dy))


@mutant(edges.test_equal_extremes_share_the_gradient_or_the_first_one_has_it)
def maximum_that_gives_equal_elements_the_whole_gradient(patch):
    backward(patch, ops.Max, lambda ctx, dy, right: (right(ctx, dy) != 0) * dy.reshape(ctx.saved[1].shape))


@mutant(case("max-along-1"), slope("min-along-0"))
def maximum_along_an_axis_that_spreads_its_gradient(patch):
    backward(patch, ops.AlongAxis, lambda ctx, dy, right: np.broadcast_to(dy, ctx.shape) / ctx.shape[ctx.dim])


@mutant(case("std-1-1"), slope("std-2-2.5"))
def standard_deviation_whose_slope_forgets_the_correction(patch):
    def wrong(ctx, dy, right):
        ctx.terms = ctx.saved[0].size // ctx.saved[1].size
        return right(ctx, dy)

    backward(patch, ops.Std, wrong)


@mutant(edges.test_the_standard_deviation_where_there_is_no_spread)
def standard_deviation_that_divides_by_zero(patch):
    def wrong(ctx, dy, right):
        away, y = ctx.saved
        with np.errstate(invalid="ignore"):
            return dy.reshape(y.shape) * away / (y * ctx.terms)

    backward(patch, ops.Std, wrong)


@mutant(case("layer_norm[3, 5]-1"), slope("group_norm[2, 6, 3, 5]-3"))
def norm_whose_variance_does_not_depend_on_x(patch):
    patch.setattr(group_norm, "normalised_backward", lambda d, xhat, scale, axes: (d - group_norm.mean(d, axes)) * scale)


@mutant(case("group_norm[2, 6, 3, 5]-3"), slope("group_norm[2, 6, 3, 5]-3"))
def group_norm_whose_weight_gradient_is_that_of_the_bias(patch):
    backward(patch, ops.GroupNorm, lambda ctx, dy, right: tuple(right(ctx, dy)[i] for i in (0, 2, 2)))


@mutant(case("mse_loss-mean"), slope("mse_loss-none"))
def squared_error_without_its_factor_of_two(patch):
    backward(patch, ops.SquaredError, lambda ctx, dy, right: tuple(d / 2 for d in right(ctx, dy)))


@mutant(case("index-4"), slope("index-5"))
def index_that_writes_instead_of_adding(patch):
    def wrong(ctx, dy, right):
        dx = np.zeros(ctx.shape, dy.dtype)
        dx[ctx.index] = dy
        return dx

    backward(patch, ops.Index, wrong)


@mutant(hook_checks.check_hook_of_a_leaf_used_twice)
def hook_of_a_leaf_called_at_each_arrival(patch):
    right = autograd.accumulate_grad

    def accumulate(tensor, gradient, owned=False):
        right(tensor, hooks.passed_on(getattr(tensor, "_own", None), gradient), owned)

    def register(tensor, hook):
        tensor._own = {hook: hook}

    patch.setattr(autograd, "accumulate_grad", accumulate)
    patch.setattr(hook_checks.tr.Tensor, "register_hook", register)


@mutant(hook_checks.check_hooks_cannot_write)
def hooks_that_are_shown_the_array_itself(patch):
    patch.setattr(hooks, "read_only", lambda gradient: gradient)


@mutant(hook_checks.check_full_backward_hooks)
def module_hooks_called_before_all_gradients_are_there(patch):
    """The nodes keep the ranks that they happen to have."""

    class Unranked(module_hooks.Side):
        def __init__(self, values, done):
            super().__init__(values, done)
            for value in self.values:
                if isinstance(value, hook_checks.tr.Tensor) and value.node:
                    fire = value.node.edges[0]
                    below = fire.edges[0]
                    fire.rank = 1 + getattr(below, "rank", 0)
                    value.node.rank = 1 + fire.rank

    patch.setattr(module_hooks, "Side", Unranked)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name):
    check_caught(*MUTANTS[name])
