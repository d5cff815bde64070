"""Wrong engines and wrong operations, which the checks of the other files must notice: see mutants.py. Those that learners
come up with are in test_mutants_course.py.
"""

import functools

import numpy as np
import pytest
import test_engine_backward as engine
import test_engine_locks as lock_checks
import test_engine_tensor as tensors
import test_ops_kernels as kernel_checks
from mutants import case, check_caught, kernel, registry, replace, slope

import tinyres as tr
from tinyres import autograd, locks, ops
from tinyres.kernels import reference

mutant, MUTANTS = registry()


# --- the engine ------------------------------------------------------------------------------------------------------


def walk(tensor, gradient=None, retain_graph=False, *, in_place=False):
    """The backward walk in a few lines. With ``in_place`` it adds in place always."""
    table = {tensor.node: np.ones_like(tensor.data) if gradient is None else gradient}
    while table:
        node = max(table, key=lambda n: n.rank)
        dy = table.pop(node)
        for edge, dx in zip(node.edges, autograd.cotangents(node, dy), strict=True):
            if isinstance(edge, tr.Tensor):
                autograd.accumulate_grad(edge, dx)
            elif edge is not None and edge in table:
                table[edge] = np.add(table[edge], dx, out=table[edge]) if in_place else table[edge] + dx
            elif edge is not None:
                table[edge] = dx


def test_the_walk_used_for_mutants_is_right_without_a_fault(monkeypatch):
    monkeypatch.setattr(autograd, "backward", walk)
    for check in engine.CHECKS[:4] + engine.CHECKS[5:]:
        check()


@mutant(engine.check_lent_cotangent)
def engine_that_always_adds_in_place(patch):
    patch.setattr(autograd, "backward", functools.partial(walk, in_place=True))


@mutant(engine.check_lent_cotangent)
def addition_said_to_make_its_cotangents(patch):
    patch.setattr(ops.Add, "fresh", True)


@mutant(engine.check_cotangents_that_meet_in_a_convolution)
def convolution_whose_sum_is_added_once_more(patch):
    """The walk does not know the array that comes back."""
    right = autograd.cotangents
    patch.setattr(
        autograd, "cotangents", lambda node, dy: tuple(None if dx is None else dx.copy() for dx in right(node, dy))
    )


@mutant(engine.check_lent_by_a_join)
def join_said_to_make_its_cotangents(patch):
    patch.setattr(ops.AddReLU, "fresh", True)


@mutant(engine.check_rank_order)
def rank_of_the_nearest_leaf(patch):
    right = autograd.Function.apply.__func__

    def apply(cls, *inputs, **attributes):
        y = right(cls, *inputs, **attributes)
        if y.node:
            y.node.rank = 1 + min(t.node.rank if t.node else 0 for t in inputs)
        return y

    patch.setattr(autograd.Function, "apply", classmethod(apply))


@mutant(engine.check_many_uses, engine.check_rank_order)
def last_cotangent_wins(patch):
    patch.setattr(autograd, "add_cotangents", lambda first, second, kernels: second[0])


@mutant(engine.test_leaves_never_share_a_gradient)
def leaf_keeps_the_array_it_was_lent(patch):
    def accumulate(tensor, gradient, owned=False):
        tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient

    patch.setattr(autograd, "accumulate_grad", accumulate)


@mutant(engine.test_a_second_loss_adds_to_the_gradient)
def gradient_replaced_instead_of_added(patch):
    patch.setattr(
        autograd, "accumulate_grad", lambda tensor, gradient, owned=False: setattr(tensor, "grad", gradient.copy())
    )


@mutant(lock_checks.test_a_write_cannot_slip_in_anywhere_in_a_block)
def nothing_is_locked(patch):
    patch.setattr(locks, "lock", lambda arrays: [])


@mutant(case("add[2, 3][3]"), slope("mul[2, 1, 3][4, 1]"))
def broadcast_operand_gets_one_copy_only(patch):
    def first(da, a):
        for _ in range(da.ndim - len(a[0])):
            da = da[0]
        return da[tuple(slice(0, k) for k in a[0])]

    patch.setattr(ops.arithmetic, "unbroadcast", first)


# --- operations ------------------------------------------------------------------------------------------------------


@mutant(case("relu"), slope("relu"))
def relu_with_greater_or_equal(patch):
    replace(patch, "relu_backward", lambda dy, y: dy * (y >= 0))


@mutant(case("relu6"), slope("relu6"))
def relu6_without_its_ceiling_in_backward(patch):
    replace(patch, "relu6_backward", reference.relu_backward)


@mutant(case("add_relu"), slope("add_relu"))
def join_that_forgets_the_shortcut(patch):
    right = ops.AddReLU.backward
    patch.setattr(ops.AddReLU, "backward", staticmethod(lambda ctx, dz: (right(ctx, dz)[0], 0 * dz)))


@mutant(case("batch_norm[3,4,5,2]-eval"), slope("batch_norm_relu[6,4]-eval"))
def batch_norm_backward_of_training_in_evaluation(patch):
    replace(patch, "batch_norm_backward", lambda *a: reference.batch_norm_backward(*a[:7], True))


@mutant(case("batch_norm_add_relu[3,4,5,2]-train"), slope("batch_norm_add_relu[6,4]-eval"))
def batch_norm_residual_without_the_relu_mask(patch):
    right = reference.batch_norm_add_relu_backward
    replace(patch, "batch_norm_add_relu_backward", lambda dz, *a: (*right(dz, *a)[:3], dz))


@mutant(tensors.test_running_statistics_move_in_place_in_training_only)
def biased_running_variance(patch):
    right = ops.BatchNorm.forward

    def forward(ctx, x, *others, running_var, training, momentum, **attributes):
        before = running_var.copy()
        y = right(ctx, x, *others, running_var=running_var, training=training, momentum=momentum, **attributes)
        if training:
            running_var[...] = before + momentum * (x.var(axis=(0, 2, 3)) - before)
        return y

    patch.setattr(ops.BatchNorm, "forward", staticmethod(forward))


@mutant(tensors.test_running_statistics_move_in_place_in_training_only)
def momentum_of_the_running_statistics_the_other_way_round(patch):
    right = ops.BatchNorm.forward
    patch.setattr(ops.BatchNorm, "forward", staticmethod(lambda *a, momentum, **kw: right(*a, momentum=1 - momentum, **kw)))


@mutant(case("dropout"))
def dropout_without_scaling(patch):
    def forward(ctx, x, *, p, generator):
        return x * ctx.save(np.array(generator.random(x.shape, np.float32) >= p, x.dtype))

    patch.setattr(ops.Dropout, "forward", staticmethod(forward))


@mutant(case("dropout"), slope("dropout"))
def dropout_without_its_mask_in_backward(patch):
    patch.setattr(ops.Dropout, "backward", staticmethod(lambda ctx, dy: dy))


@mutant(case("cross_entropy-0.1-mean"), slope("cross_entropy-0.1-mean"), kernel(kernel_checks.check_loss, 3, 5, 0.1))
def cross_entropy_without_smoothing_in_backward(patch):
    for name in ("cross_entropy_backward", "cross_entropy_mean_backward"):
        right = getattr(reference, name)
        replace(patch, name, lambda d, p, labels, _, right=right: right(d, p, labels, 0.0))


@mutant(case("log_softmax"), slope("log_softmax"))
def log_softmax_without_the_normalisation_in_backward(patch):
    patch.setattr(ops.LogSoftmax, "backward", staticmethod(lambda ctx, dy: dy * 1))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name):
    check_caught(*MUTANTS[name])
