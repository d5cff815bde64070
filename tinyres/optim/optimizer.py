"""What the optimizers share: groups of parameters with their options, and the state of each parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np

from tinyres.device import check_same_device, move
from tinyres.errors import CheckpointError, UsageError
from tinyres.guards import enable_grad, is_grad_enabled
from tinyres.kernels import recording
from tinyres.kernels.arrays import array_module
from tinyres.locks import unshare
from tinyres.nn import Module, Parameter
from tinyres.tensor import Tensor

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


class Optimizer:
    """Base: an optimizer says which options its groups have, which arrays it keeps for a parameter, and how it updates the
    parameters of one group.

    ``params`` are tensors, or groups: dicts with "params" and the options that differ from ``defaults``. Raises `UsageError`
    for options out of range, for a tensor that does not require a gradient, and for one given twice.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ()
    # PyTorch's further options, with the values that they may have here: those that change nothing
    OTHERS: ClassVar[dict[str, tuple[Any, ...]]] = {
        "maximize": (False,),
        "differentiable": (False,),
        "foreach": (None, False, True),
        "fused": (None, False, True),
    }
    INSTEAD: ClassVar[dict[str, str]] = {"maximize": "negate the loss"}
    SLOTS: ClassVar[dict[str, str]] = {}  # the arrays of a parameter, as PyTorch names them, and what they are

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise UsageError(f"{self._name} takes a list of tensors or groups, got one tensor; write [tensor]")
        given: list[Any] = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self._state: dict[int, dict[str, Any]] = {}  # by position of the parameter over all groups
        for group in groups:
            self.add_param_group(group)
        if not self._parameters():
            raise UsageError(f"{self._name} got no parameters")

    @property
    def _name(self) -> str:
        return type(self).__name__

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group: a dict with "params", a tensor or several, and the options that differ from the arguments."""
        full = self._group(group)
        ids = [id(parameter) for parameter in (*self._parameters(), *full["params"])]
        if len(set(ids)) < len(ids):
            raise UsageError(f"{self._name} got the same parameter twice; put each into one group, once")
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
            if live:
                self._update(group, live, skip)
        if (notes := recording.active()) is not None:
            if not is_grad_enabled():
                notes.refuse("it updates weights under no_grad(), where a recording takes them for constant")
            now = self._fixed()
            notes.requires(lambda: self._fixed() == now)
        return loss

    def _fixed(self) -> Any:
        """What a recorded step knows once and for all: the options but for the learning rate, and the state's arrays."""
        options = [[group[option] for option in self.OPTIONS if option != "lr"] for group in self.param_groups]
        return (
            options,
            [is_number(g["lr"]) for g in self.param_groups],
            [[*map(id, s.values())] for s in self._state.values()],
        )

    def _lr(self, group: dict[str, Any], array: Any) -> Any:
        """The learning rate of a group; for a step that is being recorded, where replays find it."""
        lr, notes = group["lr"], recording.active()
        if notes is None or not is_number(lr):
            return lr
        if array.dtype != np.float32:
            notes.refuse(f"it updates parameters of {array.dtype}, and learning rates are float32 in a recording")
        kept = array_module(array).full((), lr, np.float32)
        notes.before_replay(lambda: kept.fill(group["lr"]))
        return kept

    def _update(self, group: dict[str, Any], live: list[tuple[int, Tensor]], skip: Any) -> None:
        """Update the parameters of a group that have a gradient, each with its position."""
        raise NotImplementedError

    def _slot(self, position: int, parameter: Tensor, slot: str) -> Any:
        """An array of the parameter's state, on its device: zeros at first."""
        state = self._state.setdefault(position, {})
        if slot not in state:
            state[slot] = array_module(parameter.data).zeros_like(parameter.data)
        state[slot] = move(state[slot], parameter.device)
        return state[slot]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters: their ``.grad`` becomes None, or an array of zeros."""
        for parameter in self._parameters():
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad = array_module(parameter.grad).zeros_like(parameter.grad)

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's: "state" has the arrays of each parameter by its position over all groups, as NumPy arrays and copies;
        "param_groups" the groups' options, with positions as "params".
        """
        start, groups = 0, []
        for group in self.param_groups:
            positions = list(range(start, start + len(group["params"])))
            start += len(positions)
            groups.append({**group, "lr": float(group["lr"]), "params": positions})
        state = {i: {k: np.array(Tensor(a).numpy()) for k, a in one.items()} for i, one in sorted(self._state.items())}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, of this optimizer or of PyTorch's of the same name. Raises `CheckpointError`,
        and changes nothing, if it does not fit.
        """
        parameters = self._parameters()
        groups = state["param_groups"]
        new = {
            i: {slot: np.asarray(one[slot]) for slot in self.SLOTS if one.get(slot) is not None}
            for i, one in state["state"].items()
        }
        sizes, own = [len(group["params"]) for group in groups], [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise CheckpointError(f"the optimizer's state has groups of {sizes} parameters, the optimizer {own}")
        for i, arrays in new.items():
            for slot, array in arrays.items():
                shape = self._slot_shape(slot, parameters[i]) if i in range(len(parameters)) else None
                if array.shape != shape:
                    what = self.SLOTS[slot]
                    raise CheckpointError(f"{what} of parameter {i} has shape {array.shape}, the parameter {shape}")
        try:
            for group in groups:
                self._check({**self.defaults, **{k: v for k, v in group.items() if k in (*self.OPTIONS, *self.OTHERS)}})
        except (UsageError, TypeError, ValueError) as error:
            raise CheckpointError(f"the optimizer's state does not fit: {error}") from None
        for group, saved in zip(self.param_groups, groups, strict=True):
            set_lr(group, saved.get("lr", group["lr"]))
            known = ("initial_lr", *self.OPTIONS, *self.OTHERS)
            group.update({option: saved[option] for option in known if option in saved and option != "lr"})
        self._state = {}
        for i, arrays in new.items():
            for slot, array in arrays.items():
                self._load_slot(i, parameters[i], slot, array)

    def _slot_shape(self, slot: str, parameter: Tensor) -> tuple[int, ...]:
        return parameter.shape

    def _load_slot(self, position: int, parameter: Tensor, slot: str, array: np.ndarray) -> None:
        self._slot(position, parameter, slot)[...] = array_module(parameter.data).asarray(array)

    def __repr__(self) -> str:
        lines = [f"{self._name} of {len(self._parameters())} tensors"]
        for i, group in enumerate(self.param_groups[:10]):
            shown = {option: f"{v:g}" if type(v := group[option]) is float else v for option in self.OPTIONS}
            lines.append(f"group {i}: " + ", ".join(f"{option} {value}" for option, value in shown.items()))
        lines += [f"and {len(self.param_groups) - 10} groups more"] * (len(self.param_groups) > 10)
        return "\n  ".join(lines)

    # --- checks -------------------------------------------------------------------------------------------------------

    def _group(self, group: dict[str, Any]) -> dict[str, Any]:
        """A group with all its options, checked."""
        options = (*self.OPTIONS, *self.OTHERS)
        unknown = set(group) - {"params", "initial_lr", *options} if isinstance(group, dict) else {"params"}
        if unknown or "params" not in group:
            got = sorted(group, key=str) if isinstance(group, dict) else type(group).__name__
            raise UsageError(f'a group is a dict with "params" and any of {", ".join(options)}; got {got}')
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        if params and all(isinstance(p, tuple) and len(p) == 2 for p in params):  # named_parameters()
            params = [parameter for _, parameter in params]
        full = {**self.defaults, **group, "params": params}
        for parameter in params:
            if not isinstance(parameter, Tensor) or not (parameter.requires_grad or isinstance(parameter, Parameter)):
                what = (
                    f"one of shape {parameter.shape} that does not"
                    if isinstance(parameter, Tensor)
                    else type(parameter).__name__
                )
                raise UsageError(f"{self._name} updates tensors that require a gradient, got {what}")
        if isinstance(full["lr"], Tensor):
            full["lr"] = full["lr"].data if full["lr"].dtype == np.float32 and not full["lr"].shape else full["lr"].item()
        full.update({key: float(full[key]) for key in ("lr", *self._numbers()) if is_number(full[key])})
        self._check(full)
        if not is_number(full["lr"]):
            check_same_device(self._name, lr=full["lr"], **{f"parameter {i}": p.data for i, p in enumerate(params)})
        return full

    def _numbers(self) -> tuple[str, ...]:
        """The options besides lr that are a number of 0 or more."""
        return ("weight_decay",)

    def _check(self, options: dict[str, Any]) -> None:
        """Raises `UsageError` for options out of range."""
        for option in ("lr", *self._numbers()):
            value = options.get(option, 0.0)
            if not is_number(value):
                if option != "lr" or not hasattr(value, "dtype"):
                    raise UsageError(f"{option} is a number, got {type(value).__name__}")
                if value.shape != () or value.dtype != np.float32:
                    raise UsageError(f"an array as lr is float32 of shape (), got {value.dtype} of shape {value.shape}")
            if not value >= 0:
                raise UsageError(f"{option} must be 0 or more, got {value}")
        for option, harmless in self.OTHERS.items():
            if options.get(option, harmless[0]) not in harmless:
                instead = self.INSTEAD.get(option, "leave it out")
                raise UsageError(f"{self._name} has no {option}={options[option]!r} as PyTorch has; {instead}")


def is_number(value: Any) -> bool:
    """Whether it is a number, NumPy's included, and no array (which a step may read anew at each replay)."""
    return isinstance(value, int | float | np.generic)


def set_lr(group: dict[str, Any], lr: float) -> None:
    """Set a group's learning rate, in place if it is an array."""
    recording.refuse("it sets a learning rate; step the schedule outside of the function")
    if is_number(group["lr"]):
        group["lr"] = float(lr)
    else:
        group["lr"][...] = lr


def weight_decay_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: weights of two dimensions or more decay; biases and the parameters of batch norm do not.

    The paper's recipe decays everything; this is for recipes that do not.
    """
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
