"""Gradient clipping and the moving average of weights."""

import numpy as np
import pytest

import tinyres as tr
from tinyres import nn, optim
from tinyres.errors import CheckpointError, NonFiniteError, UsageError


def with_gradients(*grads):
    parameters = [nn.Parameter(np.zeros(len(grad))) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = np.array(grad, np.float64)
    return [*parameters, nn.Parameter([0.0])]  # the last has no gradient


def test_the_norm_of_all_gradients_is_cut_and_returned():
    parameters = with_gradients([3.0, 0.0], [4.0])
    array = parameters[0].grad
    assert optim.clip_grad_norm_(parameters, 1.0) == 5
    assert np.allclose(array, [0.6, 0]) and np.allclose(parameters[1].grad, [0.8])
    assert np.linalg.norm([*array, *parameters[1].grad]) < 1
    assert optim.clip_grad_norm_(iter(parameters), 2.0) == pytest.approx(1.0)
    assert np.allclose(array, [0.6, 0])
    assert optim.clip_grad_norm_([], 1.0) == 0


def test_large_float32_gradients_do_not_overflow_the_norm():
    parameter = nn.Parameter(np.zeros(2, np.float32))
    parameter.grad = np.full(2, 1e30, np.float32)
    assert optim.clip_grad_norm_([parameter], 1.0) == pytest.approx(2**0.5 * 1e30)
    assert np.allclose(parameter.grad, 0.5**0.5) and parameter.grad.dtype == np.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_where_the_norm_is_no_number_the_gradients_stay_or_it_is_an_error(bad):
    parameters = with_gradients([1.0, bad])
    assert not np.isfinite(optim.clip_grad_norm_(parameters, 1.0))
    with pytest.raises(NonFiniteError, match="clip_grad_norm_"):
        optim.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
    np.testing.assert_array_equal(parameters[0].grad, [1, bad])


def test_a_scaled_step_that_overflows_is_skipped_though_it_is_clipped():
    p = nn.Parameter(np.ones(3, np.float32))
    optimizer, scaler = optim.SGD([p], 0.1), optim.GradScaler(init_scale=2.0**16)
    x = tr.tensor(np.full(3, 100, np.float16), dtype=np.float16)
    scaler.scale(((p.half() * x) * 100).sum().float()).backward()
    scaler.unscale_(optimizer)
    optim.clip_grad_norm_([p], 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**15 and (p.data == 1).all()


def test_values_are_clipped_one_by_one():
    parameters = with_gradients([3.0, -0.5], [-4.0])
    optim.clip_grad_value_(parameters, 1.0)
    assert parameters[0].grad.tolist() == [1, -0.5] and parameters[1].grad.tolist() == [-1]


@pytest.mark.torch
def test_clipping_is_pytorch_s():
    import torch

    rng = np.random.default_rng(0)
    for scale in (0.01, 10.0):
        parameters = with_gradients(*(scale * rng.standard_normal(n) for n in (3, 8)))[:2]
        theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in parameters]
        for t, p in zip(theirs, parameters, strict=True):
            t.grad = torch.tensor(p.grad)
        assert optim.clip_grad_norm_(parameters, 1.5) == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs, 1.5).item())
        for t, p in zip(theirs, parameters, strict=True):
            assert np.allclose(p.grad, t.grad.numpy(), rtol=0, atol=1e-14)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(np.array([8.0]))
        self.twin = self.weight
        self.register_buffer("count", tr.tensor(np.array([0.0])))


def test_the_average_follows_the_weights_and_copies_the_buffers():
    model = Net()
    ema = optim.EMA(model, 0.75)
    for weight in (4.0, 0.0):
        model.weight.data[...] = weight
        model.count.data += 1
        ema.update()
    assert ema.state_dict() == {"weight": [0.75 * (0.75 * 8 + 0.25 * 4)], "count": [2]}


def test_the_average_is_applied_for_a_while_and_the_weights_come_back_bit_for_bit():
    model = Net()
    ema = optim.EMA(model, 0.5)
    model.weight.data[...] = 0.1
    model.count.data[...] = 5
    array = model.weight.data
    with pytest.raises(KeyError), ema.applied() as applied:
        assert applied is model and array == 8 and model.count.item() == 0
        model.count.data += 1  # such as a forward pass in training mode
        raise KeyError
    assert model.weight.data is array and array == 0.1 and model.count.item() == 5
    assert ema.state_dict() == {"weight": [8], "count": [0]}


def test_an_average_is_saved_and_loaded_whole_or_not_at_all():
    model = Net()
    ema, other = optim.EMA(model, 0.5), optim.EMA(Net(), 0.5)
    state = ema.state_dict()
    model.weight.data[...] = 0
    ema.update()
    assert state["weight"] == 8
    other.load_state_dict(ema.state_dict())
    assert other.state_dict()["weight"] == 4
    for wrong in ({"weight": np.ones(1)}, {**state, "count": np.ones(2)}, {**state, "more": np.ones(1)}):
        with pytest.raises(CheckpointError, match=r"count|more"):
            other.load_state_dict(wrong)
    assert other.state_dict()["weight"] == 4


@pytest.mark.parametrize(("first", "second"), [(0, 1), (np.float32(1e8), np.float32(1e-3)), (True, False)])
def test_a_buffer_is_copied_whatever_its_numbers_are(first, second):
    model = nn.Linear(2, 2)
    model.register_buffer("count", tr.tensor(np.array(first)))
    model.weight.requires_grad = False  # frozen, and averaged all the same
    ema = optim.EMA(model, 0.9)
    model.count.data[...] = second
    model.weight.data[...] = 0
    before = ema.state_dict()["weight"]
    ema.update()
    assert ema.state_dict()["count"] == second
    np.testing.assert_allclose(ema.state_dict()["weight"], 0.9 * before, rtol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_without_meaning_is_refused(decay):
    with pytest.raises(UsageError, match="decay must be within"):
        optim.EMA(Net(), decay)
