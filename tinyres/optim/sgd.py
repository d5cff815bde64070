"""Stochastic gradient descent with momentum: PyTorch's update rule, one kernel call for all parameters of a group.

    g = gradient + weight_decay * p
    v = momentum * v + g                      v starts at zero
    p = p - lr * v                            nesterov: p - lr * (g + momentum * v)

Weight decay is part of the gradient, so momentum carries it too; in the paper's recipe all parameters decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tinyres.device import check_same_device, move
from tinyres.errors import CheckpointError, UsageError
from tinyres.guards import enable_grad
from tinyres.kernels import dispatch
from tinyres.kernels.arrays import array_module
from tinyres.locks import unshare
from tinyres.nn import Module, Parameter
from tinyres.tensor import Tensor

OPTIONS = ("lr", "momentum", "weight_decay", "nesterov")
# PyTorch's further options, with the values that they may have here: those that change nothing
OTHERS = {"dampening": (0,), "maximize": (False,), "differentiable": (False,), "foreach": (None, False, True)}
OTHERS["fused"] = OTHERS["foreach"]
INSTEAD = {"maximize": "negate the loss"}


class SGD:
    """p = p - lr * v with v = momentum * v + g and g = gradient + weight_decay * p; with ``nesterov``, g + momentum * v in
    place of v.

    ``params`` are tensors, or groups: dicts with "params" and the options that differ from the arguments.

    >>> optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    >>> optim.SGD([{"params": body}, {"params": head, "lr": 0.01}], lr=0.1)

    A learning rate may be a float32 array of shape () on the parameters' device, which schedules then write to: a step
    that was captured as a CUDA graph reads it anew at each replay.

    Arguments stand where PyTorch has them. ``dampening``, ``maximize`` and ``differentiable`` must be off; ``foreach`` and
    ``fused`` change nothing, since a group is one kernel call anyway.

    Raises `UsageError` for values out of range, for a tensor that does not require a gradient, and for one given twice.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: Any = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        if isinstance(params, Tensor):
            raise UsageError("SGD takes a list of tensors or groups, got one tensor; write [tensor]")
        given: list[Any] = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        self.defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        self.defaults |= {"dampening": dampening, "maximize": maximize, "differentiable": differentiable}
        self.defaults |= {"foreach": foreach, "fused": fused}
        self.param_groups: list[dict[str, Any]] = []
        self._momentum_buffers: dict[int, Any] = {}  # by position of the parameter over all groups
        for group in groups:
            self.add_param_group(group)
        if not self._parameters():
            raise UsageError("SGD got no parameters")

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group: a dict with "params", a tensor or several, and the options that differ from the arguments."""
        full = _group(group, self.defaults)
        ids = [id(parameter) for parameter in (*self._parameters(), *full["params"])]
        if len(set(ids)) < len(ids):
            raise UsageError("SGD got the same parameter twice; put each into one group, once")
        self.param_groups.append(full)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def step(self, closure: Callable[[], Any] | None = None, *, skip: Any = None) -> Any:
        """Update every parameter that has a gradient, in place. Nothing changes if ``skip`` (an int32 array of shape () on
        the parameters' device) is not 0.

        ``closure``, if given, is called first, with recording on: it computes the loss and its gradients, and returns the
        loss, which this returns. A parameter whose value a graph still needs (one that was not walked backward) goes on with
        a copy of its array.
        """
        if closure is not None and not callable(closure):
            raise UsageError(f"step(closure) takes a function that returns the loss, got {type(closure).__name__}")
        loss = enable_grad()(closure)() if closure else None
        unshare(parameter for parameter in self._parameters() if parameter.grad is not None)
        start = 0
        for group in self.param_groups:
            live = [(i, p) for i, p in enumerate(group["params"], start) if p.grad is not None]
            start += len(group["params"])
            if not live:
                continue
            params, grads = [p.data for _, p in live], [p.grad for _, p in live]
            buffers = [self._momentum_buffer(i, p) for i, p in live] if group["momentum"] else []
            options = [group[option] for option in OPTIONS]
            dispatch.current().sgd(params, grads, buffers, *options, *([] if skip is None else [skip]))
        return loss

    def _momentum_buffer(self, position: int, parameter: Tensor) -> Any:
        if position not in self._momentum_buffers:
            self._momentum_buffers[position] = array_module(parameter.data).zeros_like(parameter.data)
        buffer = self._momentum_buffers[position] = move(self._momentum_buffers[position], parameter.device)
        return buffer

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters: their ``.grad`` becomes None, or an array of zeros."""
        for parameter in self._parameters():
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad = array_module(parameter.grad).zeros_like(parameter.grad)

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's: "state" has {"momentum_buffer": array} by the position of the parameter over all groups, the arrays
        copies as NumPy arrays; "param_groups" the groups' options, with positions as "params".
        """
        start, groups = 0, []
        for group in self.param_groups:
            positions = list(range(start, start + len(group["params"])))
            start += len(positions)
            groups.append({**group, "lr": float(group["lr"]), "params": positions})
        buffers = sorted(self._momentum_buffers.items())
        return {"state": {i: {"momentum_buffer": np.array(Tensor(b).numpy())} for i, b in buffers}, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, of this optimizer or of PyTorch's SGD. Raises `CheckpointError`, and changes
        nothing, if it does not fit.
        """
        parameters = self._parameters()
        groups = state["param_groups"]
        buffers = {i: np.asarray(b) for i, one in state["state"].items() if (b := one.get("momentum_buffer")) is not None}
        sizes, own = [len(group["params"]) for group in groups], [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise CheckpointError(f"the optimizer's state has groups of {sizes} parameters, the optimizer {own}")
        for i, buffer in buffers.items():
            shape = parameters[i].shape if i in range(len(parameters)) else None
            if buffer.shape != shape:
                raise CheckpointError(f"the momentum of parameter {i} has shape {buffer.shape}, the parameter {shape}")
        try:
            for group in groups:
                _check({"momentum": 0.0, **{option: group[option] for option in (*OPTIONS, *OTHERS) if option in group}})
        except (UsageError, TypeError, ValueError) as error:
            raise CheckpointError(f"the optimizer's state does not fit: {error}") from None
        for group, saved in zip(self.param_groups, groups, strict=True):
            set_lr(group, saved.get("lr", group["lr"]))
            known = ("initial_lr", *OPTIONS, *OTHERS)
            group.update({option: saved[option] for option in known if option in saved and option != "lr"})
        self._momentum_buffers = {}
        for i, buffer in buffers.items():
            self._momentum_buffer(i, parameters[i])[...] = array_module(parameters[i].data).asarray(buffer)

    def __repr__(self) -> str:
        lines = [f"SGD of {len(self._parameters())} tensors"]
        for i, group in enumerate(self.param_groups[:10]):
            lines.append(f"group {i}: " + ", ".join(f"{option} {group[option]}" for option in OPTIONS))
        lines += [f"and {len(self.param_groups) - 10} groups more"] * (len(self.param_groups) > 10)
        return "\n  ".join(lines)


def _group(group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A group with all its options, checked."""
    unknown = set(group) - {"params", "initial_lr", *OPTIONS, *OTHERS} if isinstance(group, dict) else {"params"}
    if unknown or "params" not in group:
        got = sorted(group, key=str) if isinstance(group, dict) else type(group).__name__
        raise UsageError(f'a group is a dict with "params" and any of {", ".join((*OPTIONS, *OTHERS))}; got {got}')
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    if params and all(isinstance(p, tuple) and len(p) == 2 for p in params):  # named_parameters()
        params = [parameter for _, parameter in params]
    full = {**defaults, **group, "params": params}
    for parameter in params:
        if not isinstance(parameter, Tensor) or not (parameter.requires_grad or isinstance(parameter, Parameter)):
            what = (
                f"one of shape {parameter.shape} that does not"
                if isinstance(parameter, Tensor)
                else type(parameter).__name__
            )
            raise UsageError(f"SGD updates tensors that require a gradient, got {what}")
    if isinstance(full["lr"], Tensor):
        full["lr"] = full["lr"].data if full["lr"].dtype == np.float32 and not full["lr"].shape else full["lr"].item()
    full.update({option: float(full[option]) for option in ("lr", "momentum", "weight_decay") if is_number(full[option])})
    _check(full)
    if not is_number(full["lr"]):
        check_same_device("SGD", lr=full["lr"], **{f"parameter {i}": p.data for i, p in enumerate(params)})
    return full


def _check(options: dict[str, Any]) -> None:
    """Raises `UsageError` for options out of range."""
    for option in ("lr", "momentum", "weight_decay"):
        value = options.get(option, 0.0)
        if not is_number(value):
            if option != "lr" or not hasattr(value, "dtype"):
                raise UsageError(f"{option} is a number, got {type(value).__name__}")
            if value.shape != () or value.dtype != np.float32:
                raise UsageError(f"an array as lr is float32 of shape (), got {value.dtype} of shape {value.shape}")
        if not value >= 0:
            raise UsageError(f"{option} must be 0 or more, got {value}")
    for option, harmless in OTHERS.items():
        if options.get(option, harmless[0]) not in harmless:
            raise UsageError(
                f"SGD has no {option}={options[option]!r} as PyTorch has; {INSTEAD.get(option, 'leave it out')}"
            )
    if options.get("nesterov") and not options["momentum"]:
        raise UsageError("nesterov=True needs a momentum above 0")


def is_number(value: Any) -> bool:
    """Whether it is a number, NumPy's included, and no array (which a step may read anew at each replay)."""
    return isinstance(value, int | float | np.generic)


def set_lr(group: dict[str, Any], lr: float) -> None:
    """Set a group's learning rate, in place if it is an array."""
    if is_number(group["lr"]):
        group["lr"] = float(lr)
    else:
        group["lr"][...] = lr


def weight_decay_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for SGD: weights of two dimensions or more decay; biases and the parameters of batch norm do not.

    The paper's recipe decays everything; this is for recipes that do not.
    """
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
