"""AdamW: the update rule by hand, on every backend, as PyTorch's, and its state."""

import re

import numpy as np
import pytest
from test_optim_pytorch import optimizer_info, pairs, walk

from tinyres import nn, optim
from tinyres.errors import CheckpointError, UsageError

OURS = {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused"}


def parameter(*values):
    return nn.Parameter(np.array(values, np.float64))


def test_two_steps_by_hand():
    p = parameter(1.0)
    optimizer = optim.AdamW([p], lr=0.1, betas=(0.5, 0.75), eps=0.0, weight_decay=0.2)
    p.grad = np.array([2.0])
    optimizer.step()  # p = 0.98; m = 1, v = 1, corrected 2 and 4: a step of 0.1 * 2 / 2
    assert p.data == pytest.approx([0.88], abs=1e-15)
    p.grad = np.array([-2.0])
    optimizer.step()  # p = 0.8624; m = -0.5 of 0.75, v = 1.75 of 0.4375: 0.1 * (-2 / 3) / 2
    assert p.data == pytest.approx([0.8624 + 0.1 / 3], abs=1e-15)


@pytest.mark.torch
def test_every_input_of_pytorch_s_own_tests_gives_its_updates_or_is_refused_by_name():
    import torch

    equal = refused = 0
    for given in optimizer_info(torch.optim.AdamW).optim_inputs_func("cpu"):
        assert set(given.kwargs) <= OURS, given.desc
        mine, theirs = pairs()
        own = {name: float(v) if isinstance(v, torch.Tensor) else v for name, v in given.kwargs.items()}
        try:
            optimizer = optim.AdamW(mine, **own)
        except UsageError as error:
            if name := re.match(r"AdamW has no (\w+)=\S+ as PyTorch has", str(error)):
                assert name[1] in ("amsgrad", "maximize", "capturable", "differentiable")
            else:
                assert "betas must be two numbers" in str(error)
                assert any(isinstance(beta, torch.Tensor) for beta in own["betas"])
            refused += 1
            continue
        walk(mine, theirs, optimizer, torch.optim.AdamW(theirs, **given.kwargs))
        equal += 1
    assert equal >= 3 and refused >= 2, (equal, refused)


@pytest.mark.torch
def test_states_go_both_ways_and_the_cycle_moves_the_first_beta():
    import torch

    def both(mine, theirs):
        groups = slice(0, 1), slice(1, 3)
        made = [
            module.AdamW([{"params": params[g], "lr": lr} for g, lr in zip(groups, (0.1, 0.02), strict=True)])
            for module, params in ((optim, mine), (torch.optim, theirs))
        ]
        cycles = optim.OneCycleLR, torch.optim.lr_scheduler.OneCycleLR
        return made, [new(one, [0.3, 0.1], total_steps=12) for new, one in zip(cycles, made, strict=True)]

    mine, theirs = pairs()
    (optimizer, oracle), schedules = both(mine, theirs)
    walk(mine, theirs, optimizer, oracle, schedules=schedules)
    assert [g["betas"] for g in optimizer.param_groups] == [pytest.approx(g["betas"]) for g in oracle.param_groups]
    states = optimizer.state_dict(), oracle.state_dict()
    assert {k: set(v) for k, v in states[0]["state"].items()} == {k: set(v) for k, v in states[1]["state"].items()}
    keys = [set(state["param_groups"][1]) - {"decoupled_weight_decay"} for state in states]
    own = {"initial_lr"} | (OURS - {"lr"}) | {"lr", "params"}
    assert keys[0] == own and own <= keys[1]
    (from_theirs, from_mine), _ = both(mine, theirs)
    from_theirs.load_state_dict(states[1])
    tensors = {i: {k: torch.tensor(a) for k, a in one.items()} for i, one in states[0]["state"].items()}
    from_mine.load_state_dict({**states[1], "state": tensors})
    walk(mine, theirs, from_theirs, from_mine)


def test_a_skipped_step_changes_nothing_and_does_not_count():
    p = parameter(1.0, 2.0)
    optimizer = optim.AdamW([p], lr=0.1)
    p.grad = np.array([1.0, -1.0])
    optimizer.step(skip=np.array(1, np.int32))
    assert p.data.tolist() == [1, 2] and optimizer.state_dict()["state"] == {}
    optimizer.step(skip=np.array(0, np.int32))
    assert optimizer.state_dict()["state"][0]["step"] == 1 and (p.data != [1, 2]).all()


def test_wrong_options_and_states_are_refused():
    p = parameter(1.0)
    for wrong in ((0.9, 1.0), (0.9,), 0.9, (-0.1, 0.5)):
        with pytest.raises(UsageError, match="betas must be two numbers within"):
            optim.AdamW([p], betas=wrong)
    with pytest.raises(UsageError, match="AdamW has no amsgrad=True as PyTorch has"):
        optim.AdamW([p], amsgrad=True)
    optimizer = optim.AdamW([p])
    p.grad = np.array([1.0])
    optimizer.step()
    state = optimizer.state_dict()
    for slot, array in (("step", np.zeros(2)), ("exp_avg", np.zeros(())), ("exp_avg_sq", np.zeros(3))):
        wrong = {**state, "state": {0: {**state["state"][0], slot: array}}}
        with pytest.raises(CheckpointError, match="of parameter 0 has shape"):
            optimizer.load_state_dict(wrong)
    with pytest.raises(CheckpointError, match="betas must be two numbers"):
        optimizer.load_state_dict({**state, "param_groups": [{**state["param_groups"][0], "betas": [2, 3]}]})


def test_decay_stands_beside_the_gradient_and_not_in_it():
    p, q = parameter(1.0), parameter(1.0)
    optimizer = optim.AdamW([{"params": [p], "weight_decay": 0.5}, {"params": [q], "weight_decay": 0.0}], lr=0.1)
    p.grad = q.grad = np.array([1000.0])
    optimizer.step()
    assert p.data - q.data == pytest.approx([-0.05], abs=1e-12)  # as much as with any gradient
