"""What PyTorch's own tests give its SGD, the states of both, and schedules of several groups: equal, or refused by name."""

import functools
import re
import sys
import types
import unittest.mock

import numpy as np
import pytest

from tinyres import nn, optim
from tinyres.errors import UsageError

pytestmark = pytest.mark.torch
OURS = {"lr", "momentum", "weight_decay", "nesterov", "dampening", "maximize", "foreach", "differentiable", "fused"}


@functools.cache
def optimizer_info(kind):
    """PyTorch's list of inputs. Its test tools import expecttest, which they do not need here, and freeze flags."""
    if "expecttest" not in sys.modules:
        sys.modules["expecttest"] = types.ModuleType("expecttest")
        sys.modules["expecttest"].TestCase = unittest.TestCase
    with unittest.mock.patch("torch.backends.disable_global_flags"):
        from torch.testing._internal.common_optimizers import optim_db
    return next(info for info in optim_db if info.optim_cls is kind)


def pairs(dtype=np.float64):
    import torch

    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype(dtype) for shape in ((3, 2), (4,), (2, 1, 3))]
    return [nn.Parameter(a.copy()) for a in start], [torch.nn.Parameter(torch.tensor(a)) for a in start]


def walk(mine, theirs, optimizer, oracle, steps=4, schedules=()):
    import torch

    rng = np.random.default_rng(1)
    for _ in range(steps):
        for m, t in zip(mine, theirs, strict=True):
            m.grad = rng.standard_normal(m.shape)
            t.grad = torch.tensor(m.grad)
        for one in (optimizer, oracle, *schedules):
            one.step()
    for m, t in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(m.data, t.detach().numpy(), rtol=1e-13, atol=1e-14)


def test_every_input_of_pytorch_s_own_tests_gives_its_updates_or_is_refused_by_name():
    import torch

    equal = refused = 0
    for given in optimizer_info(torch.optim.SGD).optim_inputs_func("cpu"):
        options = {name: value for name, value in given.kwargs.items() if name not in ("capturable",)}
        assert set(options) <= OURS, given.desc
        mine, theirs = pairs()
        own = {name: float(v) if isinstance(v, torch.Tensor) else v for name, v in options.items()}
        try:
            optimizer = optim.SGD(mine, **own)
        except UsageError as error:
            name, value = re.match(r"SGD has no (\w+)=(\S+) as PyTorch has", str(error)).groups()
            assert str(own[name]) == value and name in ("dampening", "maximize", "differentiable")
            refused += 1
            continue
        walk(mine, theirs, optimizer, torch.optim.SGD(theirs, **options))
        equal += 1
    assert equal >= 6 and refused >= 2, (equal, refused)


def test_what_pytorch_refuses_is_refused():
    import torch

    known = {}

    def ours(given):
        if isinstance(given, torch.Tensor):
            return known.setdefault(id(given), nn.Parameter(given.detach().numpy()))
        if isinstance(given, dict):
            return {key: ours(value) if key == "params" else value for key, value in given.items()}
        return given if isinstance(given, str) else type(given)(ours(one) for one in given)

    inputs = optimizer_info(torch.optim.SGD).optim_error_inputs_func("cpu", torch.float64)
    for given in inputs:
        wrong = given.optimizer_error_input
        if "groups should be with/without names" in given.error_regex:
            continue  # names are not kept here
        with pytest.raises(UsageError):
            optim.SGD(pairs()[0] if wrong.params is None else ours(wrong.params), **{"lr": 0.1, **wrong.kwargs})
    assert len(inputs) >= 4


def test_states_go_both_ways():
    import torch

    mine, theirs = pairs()
    groups = [slice(0, 1), slice(1, 3)]
    options = {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}

    def both():
        return (
            optim.SGD([{"params": mine[g], "lr": lr} for g, lr in zip(groups, (0.1, 0.02), strict=True)], **options),
            torch.optim.SGD([{"params": theirs[g], "lr": lr} for g, lr in zip(groups, (0.1, 0.02), strict=True)], **options),
        )

    optimizer, oracle = both()
    walk(mine, theirs, optimizer, oracle)
    assert {k: set(v) for k, v in optimizer.state_dict()["state"].items()} == {
        k: set(v) for k, v in oracle.state_dict()["state"].items()
    }
    keys = [set(state["param_groups"][1]) for state in (optimizer.state_dict(), oracle.state_dict())]
    assert keys[0] == keys[1]
    from_theirs, from_mine = both()
    from_theirs.load_state_dict(oracle.state_dict())
    state = optimizer.state_dict()
    tensors = {i: {"momentum_buffer": torch.tensor(one["momentum_buffer"])} for i, one in state["state"].items()}
    from_mine.load_state_dict({**state, "state": tensors})
    walk(mine, theirs, from_theirs, from_mine)


def two(module, parameter):
    return module.SGD(
        [{"params": [parameter([1.0])], "lr": 0.1}, {"params": [parameter([1.0])], "lr": 0.3}], lr=1.0, momentum=0.8
    )


SCHEDULES = {
    "StepLR": lambda o, s: s.StepLR(o, 3, 0.5),
    "ExponentialLR": lambda o, s: s.ExponentialLR(o, 0.7),
    "LambdaLR": lambda o, s: s.LambdaLR(o, lambda step: 1 / (1 + step)),
    "LambdaLR of groups": lambda o, s: s.LambdaLR(o, [lambda step: 0.9**step, lambda step: 1.0 + step]),
    "warm-up, then cosine": lambda o, s: s.SequentialLR(o, [s.LinearLR(o, 0.1, 1.0, 4), s.CosineAnnealingLR(o, 8)], [4]),
    "three": lambda o, s: s.SequentialLR(o, [s.StepLR(o, 1, 0.5), s.ExponentialLR(o, 0.9), s.StepLR(o, 2)], [3, 7]),
    "OneCycleLR by epochs": lambda o, s: s.OneCycleLR(o, [0.5, 0.9], epochs=3, steps_per_epoch=4),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_of_two_groups_are_pytorch_s(name):
    import torch

    mine, theirs = two(optim, nn.Parameter), two(torch.optim, lambda values: torch.nn.Parameter(torch.tensor(values)))
    schedule, oracle = SCHEDULES[name](mine, optim), SCHEDULES[name](theirs, torch.optim.lr_scheduler)
    for step in range(11):
        assert schedule.get_last_lr() == pytest.approx(oracle.get_last_lr(), rel=1e-12), step
        assert [g["momentum"] for g in mine.param_groups] == pytest.approx([g["momentum"] for g in theirs.param_groups])
        theirs.step()
        schedule.step()
        oracle.step()
    resumed = SCHEDULES[name](two(optim, nn.Parameter), optim)
    resumed.load_state_dict(schedule.state_dict())
    assert resumed.get_last_lr() == schedule.get_last_lr()


@pytest.mark.parametrize("norm_type", [1, 2, 2.0, 3.5, float("inf")])
def test_norms_of_any_kind_are_clipped_as_in_pytorch(norm_type):
    import torch

    mine, theirs = pairs()
    rng = np.random.default_rng(2)
    for m, t in zip(mine, theirs, strict=True):
        m.grad = rng.standard_normal(m.shape)
        t.grad = torch.tensor(m.grad)
    norm = optim.clip_grad_norm_(mine, 0.7, norm_type)
    assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs, 0.7, norm_type).item(), rel=1e-12)
    for m, t in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(m.grad, t.grad.numpy(), rtol=1e-12)
    optim.clip_grad_norm_(mine[0], 0.01)
    assert np.sqrt((mine[0].grad ** 2).sum()) == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(UsageError, match="norm_type must be above 0"):
        optim.clip_grad_norm_(mine, 1.0, 0)


def test_a_scaler_takes_its_device_first_as_torch_amp_does():
    assert optim.GradScaler("cpu", 64.0).get_scale() == optim.GradScaler(64.0).get_scale() == 64
    assert optim.GradScaler("cuda").get_scale() == optim.GradScaler().get_scale() == 2.0**16
    with pytest.raises(UsageError, match="its first argument is a device, such as 'cuda', or init_scale; got 64"):
        optim.GradScaler(64.0, 2.0)
