"""Hooks: of tensors, and of modules, forward and backward."""

import gc
import weakref

import numpy as np
import pytest

import tinyres as tr
from tinyres import nn
from tinyres.errors import GraphError, ShapeError, UsageError


def leaf(*values):
    return tr.tensor(np.array(values, np.float64), requires_grad=True)


# --- of a tensor ---


def check_hook_of_a_leaf_used_twice():
    """It is shown the whole gradient, once."""
    x, seen = leaf(1.0, 2.0), []
    x.register_hook(lambda gradient: seen.append(gradient.tolist()))
    (x * 3 + x * 4 + x).sum().backward()
    assert seen == [[8, 8]]
    np.testing.assert_array_equal(x.grad, [8, 8])


def test_a_hook_of_a_leaf_is_shown_the_whole_gradient_once():
    check_hook_of_a_leaf_used_twice()


def test_hooks_replace_the_gradient_one_after_the_other_until_they_are_removed():
    x, seen = leaf(1.0, 2.0), []
    y = x * 3
    y.retain_grad()
    y.register_hook(lambda gradient: seen.append(gradient.tolist()))
    double = y.register_hook(lambda gradient: 2 * gradient)
    y.register_hook(lambda gradient: tr.tensor(gradient + 1))
    loss = (y * y).sum()
    loss.backward(retain_graph=True)
    assert seen == [[6, 12]]
    np.testing.assert_array_equal(y.grad, [13, 25])  # what went on
    np.testing.assert_array_equal(x.grad, [39, 75])
    double.remove()
    double.remove()
    x.grad = None
    loss.backward()
    np.testing.assert_array_equal(x.grad, [21, 39])


def test_a_hook_may_come_after_the_forward_pass_and_stays_with_a_leaf():
    x, seen = leaf(1.0), []
    loss = x * 2 + x
    with x.register_hook(lambda gradient: gradient * 10) as handle:
        assert isinstance(handle, nn.HookHandle)
        loss.backward(retain_graph=True)
        x.backward()
    assert x.grad == 40
    loss.backward()
    assert x.grad == 43, "the end of the block removed it"
    x.register_hook(lambda gradient: seen.append(1))
    for _ in range(2):
        (x * 2).backward()
    assert len(seen) == 2


def check_hooks_cannot_write():
    """An addition lends one array to both of its inputs."""
    x, y = leaf(1.0), leaf(2.0)
    a = x * 1

    def spoil(gradient):
        gradient *= 7

    a.register_hook(spoil)
    try:
        (a + y).backward()
    except ValueError as error:
        assert "read-only" in str(error)
    assert y.grad is None or y.grad == 1
    assert x.grad is None, "nothing was refused"


def test_a_hook_cannot_write_into_what_it_is_shown():
    check_hooks_cannot_write()


def test_what_a_hook_returns_may_be_kept_and_is_nobody_s_else():
    x, y, kept = leaf(1.0), leaf(2.0), np.array([5.0])
    x.register_hook(lambda gradient: kept)
    (x + y).sum().backward()
    x.grad += 1
    assert kept == 5 and x.grad == 6 and y.grad == 1


def test_hooks_that_make_no_sense():
    with pytest.raises(GraphError, match="does not require a gradient: it would never be called"):
        tr.tensor([1.0]).register_hook(print)
    x = leaf(1.0, 2.0)
    x.register_hook(lambda gradient: gradient[:1])
    with pytest.raises(ShapeError, match=r"a hook of a tensor returned an array of shape \(1,\) in the place of a gradient"):
        x.sum().backward()
    y = leaf(1.0) * 2
    y.backward()
    with pytest.raises(GraphError, match="freed the graph"):
        y.register_hook(print)


# --- of a module, forward ---


class Scale(nn.Module):
    def forward(self, x, by=1):
        return x * by


def test_forward_hooks_see_keywords_if_they_ask():
    layer, seen = Scale(), []
    layer.register_forward_pre_hook(lambda m, args, kwargs: seen.append(("before", kwargs["by"])), with_kwargs=True)
    more = layer.register_forward_pre_hook(lambda m, args, kwargs: (args, {"by": kwargs["by"] + 1}), with_kwargs=True)
    layer.register_forward_hook(lambda m, args, kwargs, y: y + kwargs["by"], with_kwargs=True)
    layer.register_forward_hook(lambda m, args, y: seen.append(("after", y.item())))
    assert layer(tr.tensor(5.0), by=2).item() == 18 and seen == [("before", 2), ("after", 18)]
    more.remove()
    assert layer(tr.tensor(5.0), by=2).item() == 12
    layer.register_forward_pre_hook(lambda m, args, kwargs: args, with_kwargs=True)
    with pytest.raises(UsageError, match=r"with kwargs must return None or a tuple \(args, kwargs\), got tuple"):
        layer(tr.tensor(5.0), by=2)


def test_a_hook_may_be_put_before_the_others():
    layer = Scale()
    layer.register_forward_hook(lambda m, args, y: y + 1)
    first = layer.register_forward_hook(lambda m, args, y: y * 10, prepend=True)
    layer.register_forward_pre_hook(lambda m, args: args[0] + 1)
    layer.register_forward_pre_hook(lambda m, args: args[0] * 2, prepend=True)
    assert layer(tr.tensor(3.0)).item() == 71
    first.remove()
    assert layer(tr.tensor(3.0)).item() == 8


# --- of a module, backward ---


class Two(nn.Module):
    """Two inputs that come from different depths, and two outputs that go to different depths."""

    def forward(self, a, b, frozen, by=1):
        return a * b * by + frozen, (a + b)


def story(tensors, modules):
    """What hooks see of a graph, and the gradients that they leave."""
    module, seen = modules.Two(), []

    def shown(gradients):
        return [None if g is None else np.asarray(g).tolist() for g in gradients]

    module.register_full_backward_hook(lambda m, gi, go: seen.append(("second", shown(gi[:2]), shown(go))))
    module.register_full_backward_hook(lambda m, gi, go: (None if gi[0] is None else gi[0] * 10, gi[1], None))
    module.register_full_backward_hook(lambda m, gi, go: seen.append(("first", shown(gi[:2]))), prepend=True)
    module.register_full_backward_hook(lambda m, gi, go: seen.append(("last", shown(gi[:2]))))
    x, y = tensors([1.0, 2.0], True), tensors([3.0, 5.0], True)
    x.register_hook(lambda gradient: seen.append(("x", shown([gradient]))))
    a, b = x * 1, y * 2 * 1 * 1
    b.register_hook(lambda gradient: gradient + 1)
    p, q = module(a, b, tensors([0.0, 0.0], False), by=2)
    loss = (p * 3).sum() + (q * 1 * 1 * 1).sum() + (a * 0).sum()
    for retain in (True, False):
        loss.backward(retain_graph=retain)
        seen.append((np.asarray(x.grad).tolist(), np.asarray(y.grad).tolist()))
    return seen


class Ours:
    Two = Two


def check_full_backward_hooks():
    seen = story(lambda values, needs: tr.tensor(values, requires_grad=needs), Ours)
    grad_input, changed = [[37, 61], [7, 13]], [[370, 610], [7, 13]]
    once = [("first", grad_input), ("second", grad_input, [[3, 3], [1, 1]]), ("last", changed), ("x", [[370, 610]])]
    assert seen == [*once, ([370, 610], [16, 28]), *once, ([740, 1220], [32, 56])]


def test_full_backward_hooks_see_all_gradients_of_a_module_and_may_replace_those_of_its_inputs():
    check_full_backward_hooks()


@pytest.mark.torch
def test_pytorch_tells_the_same_story():
    import torch

    class Theirs:
        class Two(torch.nn.Module):
            forward = Two.forward

    theirs = story(lambda values, needs: torch.tensor(values, requires_grad=needs), Theirs)
    assert theirs == story(lambda values, needs: tr.tensor(values, requires_grad=needs), Ours)


def test_where_no_input_needs_a_gradient_the_hook_comes_with_that_of_the_output():
    layer, seen = nn.Linear(2, 2), []
    layer.register_full_backward_hook(lambda m, gi, go: seen.append((m, gi, go[0].tolist())))
    layer(tr.tensor([[1.0, 2.0]])).sum().backward()
    assert seen == [(layer, (None,), [[1, 1]])]
    with tr.no_grad():
        assert layer(tr.tensor([[1.0, 2.0]])).node is None


def test_a_net_trains_the_same_with_hooks_that_only_look():
    def gradients(watched):
        tr.manual_seed(0)
        net, norms = tr.models.resnet(8), {}
        for name, module in net.named_modules() if watched else ():
            module.register_full_backward_hook(lambda m, gi, go, name=name: norms.update({name: go[0]}))
        net(tr.tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 8)), dtype=np.float32)).sum().backward()
        assert not watched or set(norms) == {n for n, _ in net.named_modules()} - unused(net)
        return [p.grad for p in net.parameters()]

    def unused(net):
        """Modules whose work a fused call does."""
        ran, handles = set(), []
        for name, module in net.named_modules():
            handles.append(module.register_forward_hook(lambda *call, name=name: ran.add(name)))
        net(tr.tensor(np.zeros((1, 3, 8, 8), np.float32)))
        for handle in handles:
            handle.remove()
        return {name for name, _ in net.named_modules()} - ran

    for plain, watched in zip(gradients(False), gradients(True), strict=True):
        np.testing.assert_array_equal(plain, watched)


def test_what_needs_no_gradient_is_none_for_a_hook_and_keywords_are_not_shown():
    layer, seen = Two(), []
    layer.register_full_backward_hook(lambda m, gi, go: seen.append((gi, [g is None for g in go])))
    p, _ = layer(leaf(2.0), b=tr.tensor([3.0]), frozen=0)
    p.backward()
    layer(tr.tensor([2.0]), leaf(3.0), 0)[1].backward()
    assert seen == [((3,), [False, True]), ((None, 1, None), [True, False])]


def test_a_backward_hook_that_returns_too_few_gradients():
    layer = Two()
    layer.register_full_backward_hook(lambda m, gi, go: gi[0])
    a, b = leaf(1.0), leaf(2.0)
    with pytest.raises(UsageError, match="a backward hook of Two returned 1 gradients for 3 positional arguments"):
        layer(a, b, leaf(0.0))[0].backward()


def test_hooks_keep_no_graph_alive():
    layer = nn.Linear(2, 2)
    layer.register_full_backward_hook(lambda m, gi, go: None)
    gc.disable()
    try:
        for backward in (False, True):
            y = layer(leaf([1.0, 2.0]).float())
            y.register_hook(lambda gradient: None)
            node = weakref.ref(y.node)
            if backward:
                y.sum().backward()
            del y
            assert node() is None
    finally:
        gc.enable()
