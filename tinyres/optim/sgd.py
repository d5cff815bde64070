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


class SGD:
    """``params`` are tensors, or groups: dicts with "params" and the options that differ from the arguments.

    >>> optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    >>> optim.SGD([{"params": body}, {"params": head, "lr": 0.01}], lr=0.1)

    A learning rate may be a float32 array of shape () on the parameters' device, which schedules then write to: a step
    that was captured as a CUDA graph reads it anew at each replay.

    Raises `UsageError` for values out of range, for a tensor that does not require a gradient, and for one given twice.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: Any,
        momentum: float = 0.0,
        *,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        given: list[Any] = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        self.param_groups: list[dict[str, Any]] = [_group(group, defaults) for group in groups]
        self._momentum_buffers: dict[int, Any] = {}  # by position of the parameter over all groups
        ids = [id(parameter) for parameter in self._parameters()]
        if not ids:
            raise UsageError("SGD got no parameters")
        if len(set(ids)) < len(ids):
            raise UsageError("SGD got the same parameter twice; put each into one group, once")

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

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters: their ``.grad`` becomes None."""
        for parameter in self._parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The groups' options, and copies of the momentum arrays by the position of their parameter over all groups."""
        start, groups = 0, []
        for group in self.param_groups:
            positions = list(range(start, start + len(group["params"])))
            start += len(positions)
            groups.append({**group, "lr": float(group["lr"]), "params": positions})
        buffers = {i: np.array(Tensor(buffer).numpy()) for i, buffer in self._momentum_buffers.items()}
        return {"param_groups": groups, "momentum_buffers": buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises `CheckpointError`, and changes nothing, if it does not fit."""
        parameters = self._parameters()
        groups, buffers = state["param_groups"], state["momentum_buffers"]
        sizes, own = [len(group["params"]) for group in groups], [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise CheckpointError(f"the optimizer's state has groups of {sizes} parameters, the optimizer {own}")
        for i, buffer in buffers.items():
            shape = parameters[i].shape if i in range(len(parameters)) else None
            if buffer.shape != shape:
                raise CheckpointError(f"the momentum of parameter {i} has shape {buffer.shape}, the parameter {shape}")
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update({**saved, "lr": group["lr"], "params": group["params"]})
            set_lr(group, saved["lr"])
        self._momentum_buffers = {}
        for i, buffer in buffers.items():
            self._momentum_buffer(i, parameters[i])[...] = array_module(parameters[i].data).asarray(buffer)


def _group(group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A group with all its options, checked."""
    unknown = set(group) - {"params", *OPTIONS}
    if unknown or "params" not in group:
        raise UsageError(f'a group is a dict with "params" and any of {", ".join(OPTIONS)}; got {sorted(group)}')
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    full = {**defaults, **group, "params": params}
    for parameter in params:
        if not isinstance(parameter, Tensor) or not (parameter.requires_grad or isinstance(parameter, Parameter)):
            what = (
                f"one of shape {parameter.shape} that does not"
                if isinstance(parameter, Tensor)
                else type(parameter).__name__
            )
            raise UsageError(f"SGD updates tensors that require a gradient, got {what}")
    full.update({option: float(full[option]) for option in ("lr", "momentum", "weight_decay") if is_number(full[option])})
    if not is_number(full["lr"]):
        if full["lr"].shape != () or full["lr"].dtype != np.float32:
            raise UsageError(f"an array as lr is float32 of shape (), got {full['lr'].dtype} of shape {full['lr'].shape}")
        check_same_device("SGD", lr=full["lr"], **{f"parameter {i}": p.data for i, p in enumerate(params)})
    for option in ("lr", "momentum", "weight_decay"):
        if not full[option] >= 0:
            raise UsageError(f"{option} must be 0 or more, got {full[option]}")
    if full["nesterov"] and not full["momentum"]:
        raise UsageError("nesterov=True needs a momentum above 0")
    return full


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
