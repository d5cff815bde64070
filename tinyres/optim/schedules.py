"""Learning-rate schedules, counted in iterations: call ``step()`` after each ``optimizer.step()``.

``lr_at(step, group)`` is a pure function: the learning rate of one of the optimizer's groups (by default the first) at an
iteration, counted from 0. So a schedule can be plotted, and resumes exactly. Where a name is PyTorch's, so are the meaning
and the values.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from tinyres.errors import UsageError
from tinyres.optim.optimizer import Optimizer, set_lr


class Schedule:
    """Base: a schedule of ``optimizer`` defines `lr_at`. Each group's learning rate at the start, ``base_lr``, is its
    ``initial_lr``. Raises `UsageError` for numbers that must be above 0 and are not.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))
        _check_positive(lr=self.base_lr())
        self.set_step(0)

    def __repr__(self) -> str:
        lrs = self.get_last_lr()
        more = f" and {len(lrs) - 5} more groups" if len(lrs) > 5 else ""
        return f"{type(self).__name__}(iteration {self.last_step}: lr {', '.join(f'{lr:.6g}' for lr in lrs[:5])}{more})"

    def base_lr(self, group: int = 0) -> float:
        """The learning rate that a group began with."""
        own = self.optimizer.param_groups[group]
        if "initial_lr" not in own:  # it was added later
            own["initial_lr"] = float(own["lr"])
        return own["initial_lr"]

    def lr_at(self, step: int, group: int = 0) -> float:
        """The learning rate of a group at an iteration, counted from 0."""
        raise NotImplementedError

    def step(self) -> None:
        """Set the learning rates of the next iteration."""
        self.set_step(self.last_step + 1)

    def set_step(self, step: int) -> None:
        """Set the learning rates of iteration ``step``."""
        self.last_step = step
        for i, group in enumerate(self.optimizer.param_groups):
            set_lr(group, self.lr_at(step, i))

    def get_last_lr(self) -> list[float]:
        """The groups' learning rates, as they are now."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        """The iteration; the optimizer's own state has the learning rates."""
        return {"last_step": self.last_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the saved iteration. Load the optimizer first: it knows the learning rates at the start."""
        self.set_step(state["last_step"])


class MultiStepLR(Schedule):
    """lr = base_lr * gamma^(how many of ``milestones`` have passed): in He et al. 2015, 0.1 at 32k and 48k iterations of
    ``optimizer``.
    """

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer)

    def lr_at(self, step: int, group: int = 0) -> float:
        return self.base_lr(group) * self.gamma ** bisect_right(self.milestones, step)


class StepLR(Schedule):
    """lr = base_lr * gamma^(step // step_size), for each group of ``optimizer``."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        _check_positive(step_size=step_size)
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def lr_at(self, step: int, group: int = 0) -> float:
        return self.base_lr(group) * self.gamma ** (step // self.step_size)


class ExponentialLR(StepLR):
    """lr = base_lr * gamma^step, for each group of ``optimizer``."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        super().__init__(optimizer, 1, gamma)


class LambdaLR(Schedule):
    """lr = base_lr * lr_lambda(step): a function, or a list of one for each group of ``optimizer``.

    Raises `UsageError` for a list of another length.
    """

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]]) -> None:
        groups = len(optimizer.param_groups)
        self.functions = [lr_lambda] * groups if callable(lr_lambda) else list(lr_lambda)
        if len(self.functions) != groups or not all(map(callable, self.functions)):
            raise UsageError(f"lr_lambda must be a function, or a list of one for each of the {groups} groups")
        super().__init__(optimizer)

    def lr_at(self, step: int, group: int = 0) -> float:
        return self.base_lr(group) * self.functions[group](step)


class LinearLR(Schedule):
    """lr = base_lr * factor, where factor goes from ``start_factor`` to ``end_factor`` in ``total_iters`` equal steps of
    ``optimizer``, then stays.
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        _check_positive(total_iters=total_iters)
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer)

    def lr_at(self, step: int, group: int = 0) -> float:
        return self.base_lr(group) * _linear(self.start_factor, self.end_factor, min(1.0, step / self.total_iters))


class CosineAnnealingLR(Schedule):
    """lr = eta_min + (base_lr - eta_min) (1 + cos(pi step / T_max)) / 2, for each group of ``optimizer``: half a cosine of
    ``T_max`` iterations from base_lr down to ``eta_min``; after that it rises again (Loshchilov and Hutter 2017, eq. 5).
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        _check_positive(T_max=T_max)
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def lr_at(self, step: int, group: int = 0) -> float:
        return _cosine(self.base_lr(group), self.eta_min, step / self.T_max)


class OneCycleLR(Schedule):
    """Up from max_lr / div_factor to ``max_lr`` in the first ``pct_start`` of ``total_steps`` iterations, then down to
    max_lr / div_factor / final_div_factor at the last one, constant from there (Smith and Topin, arXiv 1708.07120).

    With ``cycle_momentum`` the momentum (of AdamW, the first of the betas) moves the other way, from ``max_momentum`` down
    to ``base_momentum`` and back.
    ``max_lr``, ``base_momentum`` and ``max_momentum`` are numbers, or lists of one for each group. In place of
    ``total_steps``, ``epochs`` and ``steps_per_epoch`` may be given. The way of ``optimizer`` up and down is half a cosine,
    or a line: ``anneal_strategy`` "cos" or "linear". Raises `UsageError` for values out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        *,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise UsageError("OneCycleLR needs total_steps, or epochs and steps_per_epoch")
            total_steps = epochs * steps_per_epoch
        peaks = _per_group("max_lr", max_lr, optimizer)
        _check_positive(total_steps=total_steps, max_lr=min(peaks))
        _check_positive(div_factor=div_factor, final_div_factor=final_div_factor)
        if not 0 <= pct_start <= 1:
            raise UsageError(f"pct_start is the rising part of the cycle, within [0, 1], got {pct_start}")
        if anneal_strategy not in ("cos", "linear"):
            raise UsageError(f'anneal_strategy must be "cos" or "linear", got {anneal_strategy!r}')
        low, high = (
            _per_group(name, value, optimizer)
            for name, value in (("base_momentum", base_momentum), ("max_momentum", max_momentum))
        )
        self.last, self.peak = total_steps - 1, pct_start * total_steps - 1
        self.lrs = [(lr / div_factor, lr, lr / div_factor / final_div_factor) for lr in peaks]
        self.momenta = list(zip(high, low, high, strict=True)) if cycle_momentum else []
        self.anneal = _cosine if anneal_strategy == "cos" else _linear
        super().__init__(optimizer)

    def lr_at(self, step: int, group: int = 0) -> float:
        return self._between(self.lrs[group], step) if group < len(self.lrs) else self.base_lr(group)

    def set_step(self, step: int) -> None:
        super().set_step(step)
        for values, group in zip(self.momenta, self.optimizer.param_groups, strict=False):
            moved = self._between(values, step)
            if "betas" in group:
                group["betas"] = moved, group["betas"][1]
            else:
                group["momentum"] = moved

    def _between(self, values: tuple[float, float, float], step: int) -> float:
        """``values`` are those at the first step, at the peak (which may lie between two steps) and at the last step."""
        first, top, end = values
        step = min(step, self.last)
        if step == self.peak:
            return top
        if step < self.peak:
            return self.anneal(first, top, step / self.peak)
        return self.anneal(top, end, (step - self.peak) / (self.last - self.peak))


class SequentialLR(Schedule):
    """One of ``schedulers`` after the other: the next one begins at each of ``milestones``, with its own iteration 0.

    All are of one ``optimizer``. Raises `UsageError` if they are not, or the milestones do not fit.
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[Schedule], milestones: Sequence[int]) -> None:
        self.schedulers, self.milestones = list(schedulers), list(milestones)
        if len(self.milestones) != len(self.schedulers) - 1 or self.milestones != sorted(self.milestones):
            raise UsageError("SequentialLR needs one milestone fewer than schedules, in rising order")
        if any(schedule.optimizer is not optimizer for schedule in self.schedulers):
            raise UsageError("SequentialLR: its schedules must be of its own optimizer")
        super().__init__(optimizer)

    def set_step(self, step: int) -> None:
        schedule, own_step = self._now(step)
        schedule.set_step(own_step)  # whatever else it moves, such as the momentum
        super().set_step(step)

    def lr_at(self, step: int, group: int = 0) -> float:
        schedule, own_step = self._now(step)
        return schedule.lr_at(own_step, group)

    def _now(self, step: int) -> tuple[Schedule, int]:
        i = bisect_right(self.milestones, step)
        return self.schedulers[i], step - (self.milestones[i - 1] if i else 0)


class Warmup(Schedule):
    """``schedule`` with its first ``total_iters`` learning rates reduced: multiplied by ``factor`` ("constant": He et al.
    train 110 layers with 0.01 for about 400 iterations), or by a number that grows evenly from ``factor`` to 1 ("linear"):
    that is ``kind``.

    The schedule is not delayed: its milestones count from the first iteration. Raises `UsageError` for another ``kind``.
    """

    def __init__(self, schedule: Schedule, total_iters: int, factor: float = 0.1, kind: str = "linear") -> None:
        _check_positive(total_iters=total_iters)
        if kind not in ("linear", "constant"):
            raise UsageError(f'a warm-up is "linear" or "constant", got {kind!r}')
        self.schedule, self.total_iters, self.factor, self.kind = schedule, total_iters, factor, kind
        super().__init__(schedule.optimizer)

    def set_step(self, step: int) -> None:
        self.schedule.set_step(step)  # whatever else it moves, such as the momentum
        super().set_step(step)

    def lr_at(self, step: int, group: int = 0) -> float:
        done = min(1.0, step / self.total_iters)
        grown = done if self.kind == "linear" else math.floor(done)
        return self.schedule.lr_at(step, group) * _linear(self.factor, 1.0, grown)


def _per_group(name: str, value: float | Sequence[float], optimizer: Optimizer) -> list[float]:
    """A number for each group of an optimizer."""
    groups = len(optimizer.param_groups)
    values = list(value) if isinstance(value, Sequence) else [value] * groups
    if len(values) != groups:
        raise UsageError(f"{name} must be a number, or a list of one for each of the {groups} groups; got {value!r}")
    return [float(v) for v in values]


def _linear(start: float, end: float, done: float) -> float:
    return start + (end - start) * done


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise UsageError(f"{name} must be above 0, got {number}")
