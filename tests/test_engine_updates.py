"""Who updates a tensor gives it an array of its own where a graph holds the old one: nobody has to wait for a graph."""

import numpy as np
import pytest
from backends import require
from test_engine_locks import leaf

import tinyres as tr
from tinyres.locks import unshare

pytestmark = pytest.mark.usefixtures("nothing_locked")


def test_an_array_that_a_graph_holds_is_copied_before_an_update_and_the_graph_keeps_the_old_one():
    x = leaf(2, 3)
    before, y = x.data.copy(), (x * x).sum()
    held = x.data
    unshare([x])
    assert x.data is not held
    x.data[...] = 9
    y.backward()
    np.testing.assert_array_equal(x.grad, 2 * before)
    np.testing.assert_array_equal(held, before)
    kept = x.data
    unshare([x])
    assert x.data is kept, "nothing is copied that no graph holds"


def test_the_copy_lies_in_memory_as_the_array_did():
    x = tr.Tensor(np.zeros((2, 4, 5, 3), np.float32).transpose(0, 3, 1, 2), requires_grad=True)
    strides, y = x.data.strides, x * x
    unshare([x])
    assert x.data.strides == strides and x.data.flags.writeable and y.requires_grad


def test_tensors_that_share_an_array_share_the_copy():
    x = leaf(3)
    tied, y = tr.Tensor(x.data, requires_grad=True), x * x
    unshare([x, tied])
    assert x.data is tied.data and x.data.flags.writeable and y.requires_grad


def updates():
    """Name -> what updates the parameters of a linear layer, and the weight that it must have afterwards."""

    def step(layer):
        layer.weight.grad = np.ones_like(layer.weight.data)
        want = layer.weight.data - np.float32(0.5)
        tr.optim.SGD(layer.parameters(), lr=0.5).step()
        return want

    def averaged(layer):
        ema, want = tr.optim.EMA(layer, 0.5), layer.weight.data.copy()
        with ema.applied():
            layer(tr.tensor(np.ones((1, 2), np.float32)))
        return want

    def load(layer):
        layer.load_state_dict({"weight": np.full((2, 2), 7.0), "bias": np.ones(2)})
        return np.full((2, 2), 7)

    def init(layer):
        tr.nn.init.constant_(layer.weight, 3)
        return np.full((2, 2), 3)

    def in_place(layer):
        want = layer.weight.data * 2
        with tr.no_grad():
            for p in layer.parameters():
                p *= 2
        return want

    return {f.__name__: f for f in (step, averaged, load, init, in_place)}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("name", updates())
def test_a_graph_that_somebody_still_holds_stops_no_update_and_stays_right(name, backend):
    require(backend)
    with tr.use_backend(backend):
        layer = tr.nn.Linear(2, 2)
        x = tr.tensor(np.ones((1, 2), np.float32), requires_grad=True)
        want_gradient = layer.weight.data.sum(axis=0, keepdims=True)
        held = layer(x)  # as a notebook's Out, a traceback or a hook would
        want = updates()[name](layer)
        np.testing.assert_array_equal(layer.weight.data, want)
        held.sum().backward()
        np.testing.assert_array_equal(x.grad, want_gradient)


def test_a_loss_that_waits_keeps_its_scale():
    p = tr.tensor(np.ones(2, np.float32), requires_grad=True)
    optimizer, scaler = tr.optim.SGD([p], 1.0), tr.optim.GradScaler(init_scale=4.0, growth_interval=1)
    waiting = scaler.scale(p.sum())
    scaler.scale(p.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 8
    p.grad = None
    waiting.backward()
    assert (p.grad == 4).all()
