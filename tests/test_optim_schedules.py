"""Learning-rate schedules: their values by hand and as PyTorch's, groups, and resuming."""

import numpy as np
import pytest

from tinyres import nn, optim
from tinyres.errors import UsageError


def sgd(*lrs):
    return optim.SGD([{"params": [nn.Parameter([0.0])], "lr": lr} for lr in lrs], lr=1.0, momentum=0.9)


def walk(schedule, steps):
    """The first group's learning rate at each iteration, as a training loop meets it."""
    lrs = []
    for _ in range(steps):
        lrs.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.step()
    return lrs


def test_multi_step_divides_at_its_milestones():
    schedule = optim.MultiStepLR(sgd(0.1), [48, 32])
    lrs = walk(schedule, 64)
    assert lrs == pytest.approx([0.1] * 32 + [0.01] * 16 + [0.001] * 16)
    assert lrs == [schedule.lr_at(step) for step in range(64)]
    assert walk(optim.MultiStepLR(sgd(0.1), [1], gamma=0.5), 2) == [0.1, 0.05]


def test_linear_goes_evenly_and_then_stays():
    assert walk(optim.LinearLR(sgd(2.0), 0.0, 1.0, total_iters=4), 6) == [0, 0.5, 1, 1.5, 2, 2]


def test_cosine_starts_flat_passes_the_middle_and_ends_at_eta_min():
    schedule = optim.CosineAnnealingLR(sgd(1.0), T_max=10, eta_min=0.2)
    assert [schedule.lr_at(step) for step in (0, 5, 10)] == pytest.approx([1.0, 0.6, 0.2])
    assert walk(schedule, 11) == [schedule.lr_at(step) for step in range(11)]


def test_one_cycle_rises_to_its_peak_and_falls_to_almost_nothing():
    schedule = optim.OneCycleLR(
        sgd(0.1), max_lr=1.0, total_steps=11, pct_start=6 / 11, anneal_strategy="linear", cycle_momentum=False
    )
    lrs = walk(schedule, 11)
    assert lrs[:6] == pytest.approx(np.linspace(0.04, 1.0, 6))
    assert lrs[5:] == pytest.approx(np.linspace(1.0, 4e-6, 6))
    assert schedule.lr_at(11) == schedule.lr_at(50) == pytest.approx(4e-6)
    assert schedule.optimizer.param_groups[0]["momentum"] == 0.9


def test_one_cycle_can_move_the_momentum_the_other_way():
    optimizer = sgd(0.1, 0.2)
    schedule = optim.OneCycleLR(optimizer, 1.0, 11, pct_start=6 / 11, anneal_strategy="linear", cycle_momentum=True)
    momenta = []
    for _ in range(11):
        momenta.append([group["momentum"] for group in optimizer.param_groups])
        schedule.step()
    expected = [0.95, 0.93, 0.91, 0.89, 0.87, 0.85, 0.87, 0.89, 0.91, 0.93, 0.95]
    assert np.allclose(momenta, np.array([expected, expected]).T)


@pytest.mark.parametrize("pct_start, total_steps, peak", [(0.0, 4, None), (1.0, 4, 3), (0.25, 4, 0), (0.3, 1, None)])
def test_one_cycle_at_its_edges(pct_start, total_steps, peak):
    schedule = optim.OneCycleLR(sgd(0.1), 1.0, total_steps, pct_start=pct_start)
    lrs = walk(schedule, total_steps + 1)
    assert np.isfinite(lrs).all() and max(lrs) <= 1
    assert peak is None or lrs[peak] == 1


def test_a_constant_warm_up_is_the_paper_s_for_110_layers():
    schedule = optim.Warmup(optim.MultiStepLR(sgd(0.1), [6, 8]), 4, factor=0.1, kind="constant")
    assert walk(schedule, 9) == pytest.approx([0.01] * 4 + [0.1] * 2 + [0.01] * 2 + [0.001])


def test_a_linear_warm_up_grows_to_the_schedule_without_delaying_it():
    schedule = optim.Warmup(optim.LinearLR(sgd(1.0), 1.0, 0.0, total_iters=8), 4, factor=0.0)
    assert walk(schedule, 7) == pytest.approx([0, 0.25 * 7 / 8, 0.5 * 6 / 8, 0.75 * 5 / 8, 4 / 8, 3 / 8, 2 / 8])


def test_each_group_has_the_schedule_that_its_own_learning_rate_gives():
    optimizer = sgd(0.1, 0.02, 0.0)
    schedule = optim.Warmup(optim.CosineAnnealingLR(optimizer, 10, eta_min=0.001), 4)
    for step in range(10):
        alone = [optim.Warmup(optim.CosineAnnealingLR(sgd(lr), 10, eta_min=0.001), 4).lr_at(step) for lr in (0.1, 0.02)]
        assert [group["lr"] for group in optimizer.param_groups][:2] == alone
        assert [schedule.lr_at(step, i) for i in range(2)] == alone
        schedule.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: optim.MultiStepLR(optimizer, [3, 5]),
        lambda optimizer: optim.OneCycleLR(optimizer, 0.4, 10, cycle_momentum=True),
        lambda optimizer: optim.Warmup(optim.CosineAnnealingLR(optimizer, 10), 4),
    ],
)
def test_a_schedule_resumes_exactly_whether_it_is_made_before_or_after_its_optimizer_loads(make):
    whole = walk(make(sgd(0.1, 0.3)), 10)
    first = make(sgd(0.1, 0.3))
    walk(first, 4)
    saved = first.optimizer.state_dict(), first.state_dict()
    assert saved[1] == {"last_step": 4}

    early, late = sgd(0.1, 0.3), sgd(0.1, 0.3)
    made_early = make(early)
    early.load_state_dict(saved[0])
    late.load_state_dict(saved[0])
    for schedule in (made_early, make(late)):
        schedule.load_state_dict(saved[1])
        assert schedule.optimizer.param_groups == [
            {**group, "params": schedule.optimizer.param_groups[i]["params"]}
            for i, group in enumerate(saved[0]["param_groups"])
        ]
        assert walk(schedule, 6) == whole[4:]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda o: optim.LinearLR(o, total_iters=0), "total_iters must be above 0"),
        (lambda o: optim.CosineAnnealingLR(o, T_max=0), "T_max must be above 0"),
        (lambda o: optim.OneCycleLR(o, 0.0, 10), "max_lr must be above 0"),
        (lambda o: optim.OneCycleLR(o, [0.1, 0.2], 10), r"max_lr must be .* each of the 1 groups; got \[0.1, 0.2\]"),
        (lambda o: optim.OneCycleLR(o, 1.0, 0), "total_steps must be above 0"),
        (lambda o: optim.OneCycleLR(o, 1.0, 10, pct_start=1.5), "pct_start .* got 1.5"),
        (lambda o: optim.OneCycleLR(o, 1.0, 10, anneal_strategy="poly"), '"cos" or "linear", got \'poly\''),
        (lambda o: optim.Warmup(optim.MultiStepLR(o, []), 5, kind="exp"), '"linear" or "constant", got \'exp\''),
        (lambda o: optim.Warmup(optim.MultiStepLR(o, []), 0), "total_iters must be above 0"),
        (lambda o: optim.MultiStepLR(sgd(0.0, 0.1), []), "lr must be above 0"),
    ],
)
def test_arguments_without_meaning_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make(sgd(0.1))


CASES = {
    "MultiStepLR": {"milestones": [7, 13, 13], "gamma": 0.3},
    "LinearLR": {"start_factor": 0.2, "end_factor": 0.7, "total_iters": 12},
    "CosineAnnealingLR": {"T_max": 9, "eta_min": 0.01},
    "OneCycleLR": {"max_lr": 0.4, "total_steps": 20, "cycle_momentum": True},
}


@pytest.mark.torch
@pytest.mark.parametrize(
    "name, options",
    [
        *CASES.items(),
        ("OneCycleLR", {"max_lr": 0.4, "total_steps": 20, "anneal_strategy": "linear", "pct_start": 0.23}),
        ("OneCycleLR", {"max_lr": 0.4, "total_steps": 20, "pct_start": 0.0, "div_factor": 3.0, "final_div_factor": 7.0}),
        ("OneCycleLR", {"max_lr": [0.4, 0.1], "total_steps": 20, "base_momentum": [0.8, 0.7], "max_momentum": [0.9, 0.8]}),
        ("OneCycleLR", {"max_lr": 0.4, "total_steps": 20, "cycle_momentum": False}),
        ("OneCycleLR", {"max_lr": 0.4, "total_steps": 20, "pct_start": 1.0, "base_momentum": 0.5, "max_momentum": 0.7}),
    ],
)
def test_values_are_pytorch_s(name, options):
    import torch

    lrs = (0.1, 0.03)
    optimizer = sgd(*lrs)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    oracle = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    mine, theirs = getattr(optim, name)(optimizer, **options), getattr(torch.optim.lr_scheduler, name)(oracle, **options)
    for step in range(20):
        for option in ("lr", "momentum"):
            want = [group[option] for group in oracle.param_groups]
            assert [group[option] for group in optimizer.param_groups] == pytest.approx(want, rel=0, abs=1e-12), step
        oracle.step()
        mine.step()
        if step < 19:
            theirs.step()


@pytest.mark.parametrize("wraps", [1, 2])
def test_a_warm_up_leaves_the_momentum_to_its_schedule(wraps):
    def momenta(wraps):
        optimizer = optim.SGD([nn.Parameter(np.ones(1, np.float32))], lr=0.1, momentum=0.9)
        schedule = optim.OneCycleLR(optimizer, 0.4, 10, cycle_momentum=True)
        for _ in range(wraps):
            schedule = optim.Warmup(schedule, 2)
        seen = []
        for _ in range(10):
            seen.append(optimizer.param_groups[0]["momentum"])
            schedule.step()
        return seen

    assert momenta(wraps) == momenta(0) and len(set(momenta(0))) > 3
