"""Stochastic gradient descent with momentum: PyTorch's update rule, one kernel call for all parameters of a group.

    g = gradient + weight_decay * p
    v = momentum * v + g                      v starts at zero
    p = p - lr * v                            nesterov: p - lr * (g + momentum * v)

Weight decay is part of the gradient, so momentum carries it too; in the paper's recipe all parameters decay.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tinyres.errors import UsageError
from tinyres.kernels import dispatch
from tinyres.optim.optimizer import Optimizer, Params
from tinyres.tensor import Tensor


class SGD(Optimizer):
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

    OPTIONS = ("lr", "momentum", "weight_decay", "nesterov")
    OTHERS: ClassVar[dict[str, tuple[Any, ...]]] = {"dampening": (0,), **Optimizer.OTHERS}
    SLOTS: ClassVar[dict[str, str]] = {"momentum_buffer": "the momentum"}

    def __init__(
        self,
        params: Params,
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
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        defaults |= {"dampening": dampening, "maximize": maximize, "differentiable": differentiable}
        super().__init__(params, defaults | {"foreach": foreach, "fused": fused})

    def _update(self, group: dict[str, Any], live: list[tuple[int, Tensor]], skip: Any) -> None:
        params, grads = [p.data for _, p in live], [p.grad for _, p in live]
        buffers = [self._slot(i, p, "momentum_buffer") for i, p in live] if group["momentum"] else []
        options = [self._lr(group, params[0]), *(group[option] for option in self.OPTIONS[1:])]
        dispatch.current().sgd(params, grads, buffers, *options, *([] if skip is None else [skip]))

    def _numbers(self) -> tuple[str, ...]:
        return ("momentum", "weight_decay")

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        if options.get("nesterov") and not options["momentum"]:
            raise UsageError("nesterov=True needs a momentum above 0")
