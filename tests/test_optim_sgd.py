"""SGD: the update rule by hand and as PyTorch's, groups, state, and the protection of graphs."""

import contextlib
import json

import numpy as np
import pytest
from backends import require

import tinyres as tr
from tinyres import models, nn, optim
from tinyres.errors import CheckpointError, UsageError


def parameter(*values):
    return nn.Parameter(np.array(values, np.float64))


def test_plain_steps_go_against_the_gradient():
    p = parameter(1.0, 2.0)
    p.grad = np.array([10.0, -10.0])
    optimizer = optim.SGD([p], lr=0.1)
    optimizer.step()
    assert np.allclose(p.data, [0.0, 3.0])
    assert p.grad.tolist() == [10, -10]
    optimizer.zero_grad()
    assert p.grad is None


def test_momentum_and_weight_decay_by_hand():
    p = parameter(1.0)
    optimizer = optim.SGD([p], lr=0.1, momentum=0.5, weight_decay=0.2)
    p.grad = np.array([1.0])
    optimizer.step()  # g = 1 + 0.2, v = 1.2
    assert p.data == pytest.approx([0.88], abs=1e-15)
    optimizer.step()  # g = 1 + 0.176, v = 0.6 + 1.176
    assert p.data == pytest.approx([0.88 - 0.1776], abs=1e-15)


def test_nesterov_by_hand():
    p = parameter(1.0)
    optimizer = optim.SGD([p], lr=0.1, momentum=0.5, nesterov=True)
    p.grad = np.array([1.0])
    optimizer.step()  # v = 1, step by 1 + 0.5
    assert p.data == pytest.approx([0.85], abs=1e-15)
    optimizer.step()  # v = 1.5, step by 1 + 0.75
    assert p.data == pytest.approx([0.675], abs=1e-15)


def test_parameters_without_a_gradient_stay_and_their_momentum_starts_later():
    p, q = parameter(1.0), parameter(1.0)
    optimizer = optim.SGD([p, q], lr=0.1, momentum=0.9, weight_decay=0.5)
    q.grad = np.array([1.0])
    optimizer.step()
    assert p.data == 1 and q.data == pytest.approx([0.85])
    assert list(optimizer.state_dict()["state"]) == [1]
    p.grad = np.array([1.0])
    optimizer.step()
    assert p.data == pytest.approx([0.85])


def test_groups_have_their_own_options():
    p, q, r = parameter(1.0), parameter(1.0), parameter(1.0)
    groups = [{"params": [p]}, {"params": q, "lr": 0.01, "momentum": 0.0}, {"params": [r], "weight_decay": 1.0}]
    optimizer = optim.SGD(groups, lr=0.1, momentum=0.9)
    for one in (p, q, r):
        one.grad = np.array([1.0])
    optimizer.step()
    assert [one.data.item() for one in (p, q, r)] == pytest.approx([0.9, 0.99, 0.8])
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01, 0.1]
    assert list(optimizer.state_dict()["state"]) == [0, 2]


@pytest.mark.torch
@pytest.mark.parametrize("momentum, nesterov, decay", [(0, False, 0), (0, False, 0.1), (0.9, False, 0.1), (0.9, True, 0.1)])
def test_updates_are_pytorch_s(momentum, nesterov, decay):
    import torch

    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape) for shape in ((3, 2), (4,))]
    mine, theirs = [nn.Parameter(a) for a in start], [torch.nn.Parameter(torch.tensor(a)) for a in start]
    options = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    optimizer = optim.SGD([{"params": mine[:1]}, {"params": mine[1:], "lr": 0.03}], **options)
    oracle = torch.optim.SGD([{"params": theirs[:1]}, {"params": theirs[1:], "lr": 0.03}], **options)
    for _ in range(4):
        for m, t in zip(mine, theirs, strict=True):
            m.grad = rng.standard_normal(m.shape)
            t.grad = torch.tensor(m.grad)
        optimizer.step()
        oracle.step()
    for m, t in zip(mine, theirs, strict=True):
        assert np.allclose(m.data, t.detach().numpy(), rtol=0, atol=1e-14)


def trained(steps, state=None):
    """A small model after some steps; with `state`, one that went on from there."""
    tr.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = optim.SGD(optim.weight_decay_groups(model, 0.1), lr=0.05, momentum=0.9)
    if state:
        model.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
    x = tr.tensor(np.random.default_rng(1).standard_normal((8, 3)).astype(np.float32))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()
    return model, optimizer


def test_an_optimizer_resumes_exactly():
    whole, _ = trained(6)
    model, optimizer = trained(3)
    state = model.state_dict(), optimizer.state_dict()
    resumed, _ = trained(3, state)
    assert all(np.array_equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_saved_state_does_not_follow_later_steps_and_brings_the_options():
    _, optimizer = trained(1)
    optimizer.param_groups[0]["lr"] = 0.7
    state = optimizer.state_dict()
    assert [group["params"] for group in state["param_groups"]] == [[0, 1], [2, 3]]
    before = {i: one["momentum_buffer"].copy() for i, one in state["state"].items()}
    optimizer.step()
    assert len(before) == 4 and all(np.array_equal(before[i], state["state"][i]["momentum_buffer"]) for i in before)
    _, other = trained(0)
    other.load_state_dict(state)
    assert other.param_groups[0]["lr"] == 0.7 and other.param_groups[1]["weight_decay"] == 0
    other.state_dict()["state"][0]["momentum_buffer"][...] = 99
    assert np.array_equal(other.state_dict()["state"][0]["momentum_buffer"], before[0])


def test_a_state_of_another_model_is_refused():
    _, optimizer = trained(1)
    state = optimizer.state_dict()
    _, other = trained(0)
    wrong = {**state, "state": {**state["state"], 3: {"momentum_buffer": np.zeros(7)}}}
    with pytest.raises(CheckpointError, match=r"momentum of parameter 3 has shape \(7,\), the parameter \(1,\)"):
        other.load_state_dict(wrong)
    with pytest.raises(CheckpointError, match="parameter 9 has shape"):
        other.load_state_dict({**state, "state": {9: {"momentum_buffer": np.zeros(1)}}})
    with pytest.raises(CheckpointError, match=r"groups of \[2, 2\] parameters, the optimizer \[1\]"):
        optim.SGD([parameter(1.0)], lr=1.0).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"does not fit: SGD has no dampening=0\.5"):
        groups = [{**group, "dampening": 0.5} for group in state["param_groups"]]
        other.load_state_dict({**state, "param_groups": groups})
    assert other.state_dict()["state"] == {} and other.param_groups[0]["dampening"] == 0


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("recording", [True, False])
def test_a_closure_is_called_with_recording_on_and_its_loss_returned(recording, backend):
    require(backend)
    p = nn.Parameter(np.ones(3, np.float32))
    optimizer = optim.SGD([p], 0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with tr.use_backend(backend), contextlib.nullcontext() if recording else tr.no_grad():
        assert float(optimizer.step(closure)) == 3
        assert optimizer.step() is None
    np.testing.assert_allclose(p.data, 0.6, rtol=1e-6)
    with pytest.raises(UsageError, match=r"step\(closure\) takes a function that returns the loss, got ndarray"):
        optimizer.step(np.zeros((), np.int32))


def test_frozen_parameters_are_left_alone():
    model = models.resnet(8)
    for p in model.layer1.parameters():
        p.requires_grad = False
    before = model.state_dict()
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    model(tr.tensor(np.ones((2, 3, 8, 8), np.float32))).sum().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert np.array_equal(p.data, before[name]) == name.startswith("layer1."), name


def test_what_comes_by_position_is_what_it_is_in_pytorch():
    group = optim.SGD([parameter(1.0)], 0.1, 0.9, 0.0, 0.5, True).param_groups[0]
    assert [group[o] for o in ("lr", "momentum", "weight_decay", "nesterov")] == [0.1, 0.9, 0.5, True]
    with pytest.raises(UsageError, match=r"SGD has no dampening=0\.5"):
        optim.SGD([parameter(1.0)], 0.1, 0.9, 0.5)


def test_a_group_can_be_added_later_also_under_a_schedule():
    p, q = parameter(1.0), parameter(1.0)
    optimizer = optim.SGD([p], lr=0.1, momentum=0.5)
    schedule = optim.StepLR(optimizer, 2, gamma=0.1)
    cycle = optim.OneCycleLR(optim.SGD([parameter(1.0)], 0.1), 1.0, 10, cycle_momentum=False)
    for one in (optimizer, cycle.optimizer):
        one.add_param_group({"params": q, "lr": 0.4})
    cycle.step()
    assert cycle.get_last_lr() == [pytest.approx(cycle.lr_at(1)), 0.4]
    for _ in range(2):
        p.grad = q.grad = np.array([1.0])
        optimizer.step()
        schedule.step()
    assert [one.data.item() for one in (p, q)] == pytest.approx([1 - 0.1 * 2.5, 1 - 0.4 * 2.5])
    assert schedule.get_last_lr() == pytest.approx([0.01, 0.04])
    with pytest.raises(UsageError, match="the same parameter twice"):
        optimizer.add_param_group({"params": [q]})
    with pytest.raises(UsageError, match=r"a group is a dict .*got Parameter"):
        optimizer.add_param_group(parameter(1.0))
    assert len(optimizer.param_groups) == 2


def test_gradients_can_be_kept_as_zeros():
    p, q = parameter(1.0), parameter(1.0)
    p.grad = kept = np.array([3.0])
    optim.SGD([p, q], 0.1).zero_grad(set_to_none=False)
    assert p.grad.tolist() == [0.0] and q.grad is None and kept.tolist() == [3.0]


@pytest.mark.parametrize("number", [np.float64, np.float32, np.float16])
def test_a_number_of_numpy_s_is_a_number(number):
    p = nn.Parameter(np.ones(1, np.float32))
    optimizer = optim.SGD([p], lr=number(0.5), momentum=number(0.5), weight_decay=number(0.25))
    assert {type(optimizer.param_groups[0][o]) for o in ("lr", "momentum", "weight_decay")} == {float}
    schedules = (
        optim.CosineAnnealingLR(optimizer, 10, eta_min=number(0.25)),
        optim.OneCycleLR(optimizer, number(0.5), 10, cycle_momentum=True),
        optim.MultiStepLR(optimizer, [2], gamma=number(0.5)),
        optim.Warmup(optim.LinearLR(optimizer, start_factor=number(0.5)), 2, factor=number(0.5)),
    )
    for schedule in schedules:
        for _ in range(3):
            p.grad = np.ones(1, np.float32)
            optimizer.step()
            schedule.step()
        assert type(optimizer.param_groups[0]["lr"]) is float and p.data.dtype == np.float32
        json.dumps(optimizer.state_dict()["param_groups"])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: optim.SGD([], lr=0.1), "got no parameters"),
        (lambda p: optim.SGD([{"params": []}], lr=0.1), "got no parameters"),
        (lambda p: optim.SGD([p, p], lr=0.1), "the same parameter twice"),
        (lambda p: optim.SGD([{"params": [p]}, {"params": [p]}], lr=0.1), "the same parameter twice"),
        (lambda p: optim.SGD([np.ones(2)], lr=0.1), "tensors that require a gradient"),
        (lambda p: optim.SGD([tr.tensor([1.0])], lr=0.1), "tensors that require a gradient"),
        (lambda p: optim.SGD([p], lr=-1), "lr must be 0 or more, got -1"),
        (lambda p: optim.SGD([p], lr=float("nan")), "lr must be 0 or more, got nan"),
        (lambda p: optim.SGD([p], lr=1, momentum=-1), "momentum must be 0 or more"),
        (lambda p: optim.SGD([{"params": [p], "weight_decay": -1}], lr=1), "weight_decay must be 0 or more"),
        (lambda p: optim.SGD([p], lr=1, nesterov=True), "nesterov=True needs a momentum"),
        (lambda p: optim.SGD([{"params": [p], "beta": 1}], lr=1), "any of lr, momentum, weight_decay, nesterov, dampening"),
        (lambda p: optim.SGD([{"lr": 1}], lr=1), 'a dict with "params"'),
        (lambda p: optim.SGD(p, lr=1), r"got one tensor; write \[tensor\]"),
        (lambda p: optim.SGD([p], lr="0.1"), "lr is a number, got str"),
        (lambda p: optim.SGD([p], lr=1, momentum=None), "momentum is a number, got NoneType"),
        (lambda p: optim.SGD([p], lr=1, maximize=True), "SGD has no maximize=True as PyTorch has; negate the loss"),
        (lambda p: optim.SGD([{"params": [p], "dampening": 0.1}], lr=1), r"SGD has no dampening=0\.1"),
    ],
)
def test_arguments_without_meaning_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make(parameter(1.0))


def test_weight_decay_groups_leave_biases_and_batch_norm_out():
    model = models.resnet(8)
    decayed, free = optim.weight_decay_groups(model, 5e-4)
    assert decayed["weight_decay"] == 5e-4 and free["weight_decay"] == 0
    named = {id(p): name for name, p in model.named_parameters()}
    assert all("conv" in named[id(p)] or named[id(p)] == "fc.weight" for p in decayed["params"])
    assert all("bn" in named[id(p)] or named[id(p)] == "fc.bias" for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(named)
