"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2): Adam (Kingma & Ba 2015, arXiv 1412.6980) with a weight
decay beside the gradient. PyTorch's update rule, one kernel call for all parameters of a group.

    p = p - lr * weight_decay * p
    m = beta1 * m + (1 - beta1) * g           the gradient's mean; m and v start at zero
    v = beta2 * v + (1 - beta2) * g^2         that of its square
    p = p - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)          in step t = 1, 2, ...

Each element moves by about lr, whatever the size of its gradient. The weight decay is not part of g: there it would be
divided by sqrt(v) too, and weights with large gradients would hardly decay.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from tinyres.errors import UsageError
from tinyres.kernels import dispatch
from tinyres.optim.optimizer import Optimizer, Params
from tinyres.tensor import Tensor


class AdamW(Optimizer):
    """p = p - lr * (weight_decay * p + m' / (sqrt(v') + eps)) with m' and v' the running means of the gradient and of its
    square, divided by 1 - beta^t; ``betas`` are those of the two.

    ``params`` are tensors, or groups: dicts with "params" and the options that differ from the arguments.

    >>> optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
    >>> optim.AdamW(optim.weight_decay_groups(model, 0.05), lr=0.01)

    Arguments stand where PyTorch has them. ``amsgrad``, ``maximize``, ``capturable`` and ``differentiable`` must be off;
    ``foreach`` and ``fused`` change nothing, since a group is one kernel call anyway.

    With a ``skip`` in `step`, the host reads it: on a GPU that waits for the backward pass.

    Raises `UsageError` for values out of range, for a tensor that does not require a gradient, and for one given twice.
    """

    OPTIONS = ("lr", "betas", "eps", "weight_decay")
    OTHERS: ClassVar[dict[str, tuple[Any, ...]]] = {
        "amsgrad": (False,),
        "capturable": (False,),
        "decoupled_weight_decay": (True,),  # (PyTorch's AdamW is an Adam with this on)
        **Optimizer.OTHERS,
    }
    SLOTS: ClassVar[dict[str, str]] = {
        "step": "the count of steps",
        "exp_avg": "the mean of gradients",
        "exp_avg_sq": "the mean of squares",
    }

    def __init__(
        self,
        params: Params,
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        defaults |= {"maximize": maximize, "foreach": foreach, "capturable": capturable}
        defaults |= {"differentiable": differentiable, "fused": fused, "decoupled_weight_decay": True}
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], live: list[tuple[int, Tensor]], skip: Any) -> None:
        if skip is not None and skip:
            return
        params, grads = [p.data for _, p in live], [p.grad for _, p in live]
        means, squares = ([self._slot(i, p, slot) for i, p in live] for slot in ("exp_avg", "exp_avg_sq"))
        counts = [self._state[i].setdefault("step", np.zeros((), np.float32)) for i, _ in live]
        for count in counts:
            count += 1
        steps = [int(count) for count in counts]
        options = group["betas"], group["eps"], group["weight_decay"]
        dispatch.current().adamw(params, grads, means, squares, steps, float(group["lr"]), *options)

    def _slot_shape(self, slot: str, parameter: Tensor) -> tuple[int, ...]:
        return () if slot == "step" else parameter.shape

    def _load_slot(self, position: int, parameter: Tensor, slot: str, array: np.ndarray) -> None:
        if slot == "step":  # (a number for the host)
            self._state.setdefault(position, {})[slot] = np.array(array, np.float32)
        else:
            super()._load_slot(position, parameter, slot, array)

    def _numbers(self) -> tuple[str, ...]:
        return ("eps", "weight_decay")

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        betas = options["betas"]
        try:
            right = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        except TypeError:
            right = False
        if not right:
            raise UsageError(f"betas must be two numbers within [0, 1), got {betas!r}")
