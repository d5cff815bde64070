"""The graph: what is recorded, in which thread, and what is freed on the way."""

import gc
import sys
import threading
import weakref

import numpy as np
import pytest

import tinyres as tr
import tinyres.functional as F
from tinyres import autograd, locks, ops
from tinyres.errors import GraphError

pytestmark = pytest.mark.usefixtures("nothing_locked")


def leaf(*values):
    return tr.tensor(np.array(values, np.float64), requires_grad=True)


# --- what is recorded ---


def test_nothing_is_recorded_under_no_grad():
    x = leaf(1.0)
    with tr.no_grad():
        assert not tr.is_grad_enabled()
        y = x * 2
        with tr.no_grad():
            pass
        assert not tr.is_grad_enabled()
    assert tr.is_grad_enabled() and not y.requires_grad and y.is_leaf
    with pytest.raises(ZeroDivisionError), tr.no_grad():
        raise ZeroDivisionError
    assert tr.is_grad_enabled()


def test_no_grad_decorates_functions():
    x = leaf(1.0)

    @tr.no_grad()
    def double(x):
        """Twice x."""
        return x * 2

    assert not double(x).requires_grad and double.__doc__ == "Twice x." and (x * 2).requires_grad


def test_no_grad_is_of_its_thread():
    seen = []
    with tr.no_grad():
        thread = threading.Thread(target=lambda: seen.append((tr.is_grad_enabled(), (leaf(1.0) * 2).requires_grad)))
        thread.start()
        thread.join()
    assert seen == [(True, True)]


def test_threads_walk_their_own_graphs_over_shared_weights():
    w, errors = leaf(*np.arange(50.0)), []

    def work():
        try:
            for _ in range(30):
                x = leaf(*np.ones(50))
                (w * x * w).sum().backward()
                np.testing.assert_array_equal(x.grad, w.data**2)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and w.data.flags.writeable and not locks._locked


def test_detach_cuts_the_graph_and_shares_the_array():
    x = leaf(1.0, 2.0)
    y = x * 2
    assert y.detach().data is y.data
    (y.detach() * x).sum().backward()
    np.testing.assert_array_equal(x.grad, y.data)


def test_retain_grad_keeps_the_gradient_in_between():
    x = leaf(1.0, 2.0)
    y, loss = x * 3, None
    y.retain_grad()
    loss = (y * y).sum()
    loss.retain_grad()
    loss.backward()
    np.testing.assert_array_equal(y.grad, 2 * y.data)
    assert loss.grad == 1
    with pytest.raises(GraphError, match="does not require"):
        tr.tensor([1.0]).retain_grad()


def test_without_retain_grad_there_is_none_in_between():
    x = leaf(1.0)
    y = x * 3
    (y * y).backward()
    assert y.grad is None


# --- what is freed ---


def test_what_was_kept_dies_on_the_way_back():
    alive = []

    class Probe(autograd.Function):
        """Looks, in its backward pass, at what a later operation had kept."""

        @staticmethod
        def forward(ctx, a):
            return a * 1

        @staticmethod
        def backward(ctx, dy):
            gc.collect()
            alive.append(kept() is not None)
            return dy

    x = leaf(1.0, 2.0)
    hidden = Probe.apply(x)
    big = tr.tensor(np.ones(2)) * 5
    kept = weakref.ref(big.data)
    y = (hidden * big).sum()
    del big
    assert kept() is not None
    y.backward()
    assert alive == [False]


def test_a_dropped_graph_lets_go_of_its_arrays():
    x = leaf(1.0, 2.0)
    y = (x * x).relu() * x
    kept = weakref.ref(y.node.saved[0])
    del y
    gc.collect()
    assert kept() is None and x.data.flags.writeable


def test_memory_does_not_grow_over_steps():
    x, w = tr.tensor(np.ones((4, 3, 8, 8))), tr.tensor(np.ones((3, 3, 3, 3)), requires_grad=True)
    mean, var = np.zeros(3), np.ones(3)

    def step():
        y = F.batch_norm(F.conv2d(x, w, padding=1), mean, var, training=True, relu=True)
        (F.add_relu(y, y) * y).sum().backward()
        w.grad = None

    for _ in range(5):
        step()
    gc.collect()
    before = sys.getallocatedblocks()
    gc.disable()
    try:
        for _ in range(200):  # one forgotten node a step would be ten blocks a step
            step()
        assert gc.collect() == 0, "the engine makes cycles, which only the collector frees"
    finally:
        gc.enable()
    assert sys.getallocatedblocks() - before < 1000 and not locks._locked


def test_a_retained_graph_keeps_no_cotangents():
    x = tr.tensor(np.ones((1, 2, 3, 3)), requires_grad=True)
    h = x * 1
    branch = F.conv2d(h, np.ones((2, 2, 3, 3)), padding=1)
    joined = F.batch_norm_add_relu(branch, h, np.zeros(2), np.ones(2), training=True)
    seen, right = [], branch.node.kernels.conv2d_backward_input
    branch.node.kernels = type(
        "Kernels", (), {"conv2d_backward_input": lambda self, *a: seen.append(weakref.ref(a[7])) or right(*a)}
    )()
    joined.sum().backward(retain_graph=True)
    x.grad = None
    gc.collect()
    assert len(seen) == 1 and seen[0]() is None


# --- modes of generators ---


def test_a_generator_runs_in_its_mode_and_its_consumer_in_their_own():
    x = tr.tensor(np.ones(2), requires_grad=True)

    @tr.no_grad()
    def results():
        received = None
        for _ in range(2):
            try:
                received = yield (x * 1).requires_grad, tr.is_grad_enabled(), received
            except KeyError:
                received = "an error"
        return tr.is_grad_enabled()

    g = results()
    assert next(g) == (False, False, None) and tr.is_grad_enabled()
    assert g.send("sent") == (False, False, "sent") and tr.is_grad_enabled()
    with pytest.raises(StopIteration) as stop:
        g.throw(KeyError())
    assert stop.value.value is False and tr.is_grad_enabled()
    closed = []

    @tr.no_grad()
    def closes():
        try:
            yield
        finally:
            closed.append(tr.is_grad_enabled())

    g = closes()
    next(g)
    g.close()
    assert closed == [False] and tr.is_grad_enabled()


def test_enable_grad_records_within_no_grad():
    x = tr.tensor(np.ones(2), requires_grad=True)
    with tr.no_grad():
        assert not (x * 1).requires_grad
        with tr.enable_grad():
            (x * 3).sum().backward()
        assert not (x * 1).requires_grad
    assert (x.grad == 3).all()


def test_an_interrupted_backward_pass_leaves_recording_as_it_was(monkeypatch):
    x = tr.tensor(np.ones(2), requires_grad=True)

    def interrupted(ctx, dy):
        assert not tr.is_grad_enabled()
        raise KeyboardInterrupt

    for outside in (True, False):
        y = (x * 2).sum()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(ops.Mul, "backward", staticmethod(interrupted))
            with tr.enable_grad() if outside else tr.no_grad():
                y.backward()
        assert tr.is_grad_enabled() and (x * 2).requires_grad
    (x * 2).sum().backward()
    assert (x.grad == 2).all()


def test_a_mode_that_is_interrupted_while_it_begins_does_not_stay(monkeypatch):
    mode = tr.no_grad()

    class Interrupted(list):
        def append(self, value):
            super().append(value)
            raise KeyboardInterrupt

    mode.before = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        mode.__enter__()
    assert tr.is_grad_enabled()
