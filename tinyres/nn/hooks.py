"""What calls a module's hooks. Those of the backward pass hang on nodes of their own in the graph, `ops.Alias`:

    argument -> fire -> record -> forward() -> record -> fire -> output          (the backward pass comes from the right)

All gradients by the arguments must be there before a hook can see them, and the walk visits nodes by rank: so all nodes
"record" of one side get one rank, and all nodes "fire" the rank below, whatever they stand for. The first of these to be
visited calls the hooks; each passes on what they made of its own gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from tinyres import ops
from tinyres.errors import UsageError
from tinyres.hooks import Hooks, read_only, replacement
from tinyres.kernels.arrays import Array
from tinyres.tensor import Tensor

Gradients = tuple[Array | None, ...]


def before(
    hook: Callable[..., Any], with_kwargs: bool, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a module after one of its pre-hooks."""
    replaced = hook(module, args, kwargs) if with_kwargs else hook(module, args)
    if replaced is None:
        return args, kwargs
    if not with_kwargs:
        return (replaced if isinstance(replaced, tuple) else (replaced,)), kwargs
    if isinstance(replaced, tuple) and len(replaced) == 2 and isinstance(replaced[1], dict):
        return (replaced[0] if isinstance(replaced[0], tuple) else (replaced[0],)), replaced[1]
    raise UsageError(
        f"a forward pre-hook with kwargs must return None or a tuple (args, kwargs), got {type(replaced).__name__}"
    )


class Side:
    """The arguments of a call, or its outputs. When the gradients by all of them are there, ``done(gradients)`` is called,
    and returns what is to be passed on in their place.
    """

    def __init__(self, values: Iterable[Any], done: Callable[[Gradients], Gradients]) -> None:
        self.done = done
        self.arrived: dict[int, Array] = {}
        self.replaced: Gradients | None = None  # what the hooks made of them, in this backward pass
        self.values = list(values)
        self.places = [i for i, v in enumerate(self.values) if isinstance(v, Tensor) and v.requires_grad]
        for step in (self.fire, self.record):
            for i in self.places:
                self.values[i] = ops.Alias.apply(self.values[i])
                self.values[i].node.hooks = {step: functools.partial(step, i)}
            rank = max((self.values[i].node.rank for i in self.places), default=0)
            for i in self.places:
                self.values[i].node.rank = rank

    def take(self) -> list[Any]:
        """The values, to go on with; they are not kept here, so that graph and hooks do not hold each other."""
        values, self.values = self.values, [None] * len(self.values)
        return values

    def record(self, i: int, gradient: Array) -> None:
        if self.replaced is not None:  # by an earlier backward pass, which retained the graph
            self.arrived, self.replaced = {}, None
        self.arrived[i] = gradient

    def fire(self, i: int, gradient: Array) -> Array | None:
        if self.replaced is None:
            self.replaced = self.done(tuple(map(self.arrived.get, range(len(self.values)))))
        return self.replaced[i]


class Passing:
    """One call of a module that has backward hooks."""

    def __init__(self, module: Any, hooks: Hooks) -> None:
        self.module, self.hooks = module, hooks
        self.grad_output: Gradients = ()
        self.nobody: Gradients | None = None  # grad_input, if no argument needs a gradient

    def inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        side = Side(args, self.call)
        self.nobody = None if side.places else (None,) * len(args)
        return tuple(side.take())

    def outputs(self, output: Any) -> Any:
        many = isinstance(output, tuple | list)
        values = Side(output if many else (output,), self.keep).take()
        if hasattr(output, "_fields"):
            return type(output)(*values)
        return type(output)(values) if many else values[0]

    def keep(self, gradients: Gradients) -> Gradients:
        self.grad_output = gradients
        if self.nobody is not None:
            self.call(self.nobody)
        return gradients

    def call(self, gradients: Gradients) -> Gradients:
        """Every hook, each with what the one before it has returned."""
        name = type(self.module).__name__
        for hook in tuple(self.hooks.values()):
            given = hook(self.module, tuple(g if g is None else read_only(g) for g in gradients), self.grad_output)
            if given is None:
                continue
            given = given if isinstance(given, tuple) else (given,)
            if len(given) != len(gradients):
                raise UsageError(
                    f"a backward hook of {name} returned {len(given)} gradients for {len(gradients)} positional arguments"
                )
            what = f"a backward hook of {name}"
            gradients = tuple(g if g is None else replacement(new, g, what) for new, g in zip(given, gradients, strict=True))
        return gradients
