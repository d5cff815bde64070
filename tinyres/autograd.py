"""The tape: what a forward pass remembers, and the walk that turns it into gradients.

Every operation is a `Function` with ``forward`` and ``backward`` side by side, on plain arrays. Applying one to tensors
leaves a `Node` that knows its inputs. `backward` visits the nodes from the loss to the leaves, in order of rank (the
longest way down to a leaf), so that a tensor that was used twice, such as the input of a residual block, is visited after
both of its cotangents have arrived.

In this package a *cotangent* of an array ``a`` is the derivative of the loss by ``a``: same shape, written ``da``.

That is the whole engine. What it refuses, and why, stands in `tinyres.guards`; how arrays are kept from being written to
while a graph needs them, in `tinyres.locks`.
"""

import heapq
import itertools
import weakref
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tinyres import guards, locks
from tinyres.errors import GraphError
from tinyres.hooks import Hooks, passed_on
from tinyres.kernels import dispatch, recording
from tinyres.kernels.arrays import Array, array_module
from tinyres.kernels.contract import Kernels

Cotangents: TypeAlias = Array | tuple[Array | None, ...]  # what an operation's backward returns: one per input


class Node:
    """One applied operation: the ``ctx`` of its forward and backward, and its place in the graph."""

    def __init__(self, function: "type[Function]", needs_input_grad: tuple[bool, ...], recording: bool) -> None:
        self._leases: list[locks.Lease] = []
        self.edges: tuple[Any, ...] | None = None  # per input: its Node, or itself if it is a leaf, or None; None once freed
        self.function = function
        self.needs_input_grad = needs_input_grad
        self.recording = recording  # whether there may be a backward pass
        self.kernels: Kernels = dispatch.current()
        self.saved: tuple[Any, ...] = ()
        self.rank = 0
        self.output: tuple[tuple[int, ...], Any] | None = None  # shape and dtype
        self.retained: weakref.ref | None = None  # the tensor that asked for its gradient by retain_grad()
        self.hooks: Hooks | None = None  # of that tensor, by register_hook()
        self.arrived: tuple[Array | None, ...] = (None,) * len(needs_input_grad)  # in a backward pass: see `Function`
        self.where = guards.caller() if guards.is_anomaly_enabled() else ""

    def save(self, *arrays: Any) -> Any:
        """Keeps arrays for the backward pass (``ctx.saved``) and returns them, a single one as itself."""
        if self.recording:
            self._leases += locks.lock(arrays)
            self.saved += arrays
        return arrays[0] if len(arrays) == 1 else arrays

    def free(self) -> None:
        """Lets go of everything that the backward pass needed."""
        self.edges = None
        if self.hooks:
            self.hooks.clear()
        self.saved, self._leases = (), []

    def name(self) -> str:
        """That of the operation."""
        return self.function.__name__

    @property
    def next_functions(self) -> "tuple[tuple[Node | AccumulateGrad | None, int], ...]":
        """For each input, where its cotangent goes: the node that made it, `AccumulateGrad` of a leaf, or None where it
        needs none. Each stands before a 0, as in PyTorch, where a node may have several outputs.
        """
        if self.edges is None:
            raise GraphError(f"the inputs of {self.name()} are forgotten: backward() freed the graph. Look before that.")
        return tuple((e if e is None or isinstance(e, Node) else AccumulateGrad(e), 0) for e in self.edges)

    def __repr__(self) -> str:
        return f"<{self.name()}>"

    def __getstate__(self) -> Any:
        guards.refuse_copy(self)

    if TYPE_CHECKING:  # an operation may keep other things on its ctx, under names of its own

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...


class AccumulateGrad:
    """The end of a graph, for those who walk it by `Node.next_functions`: the leaf ``variable``."""

    next_functions = ()

    def __init__(self, variable: Any) -> None:
        self.variable = variable

    def name(self) -> str:
        return "AccumulateGrad"

    def __repr__(self) -> str:
        return f"<AccumulateGrad {self.variable.dtype}{list(self.variable.shape)}>"


class Function:
    """An operation: ``forward(ctx, *arrays, **attributes)`` returns an array, ``backward(ctx, dy)`` the cotangents of the
    inputs (one array, or a tuple with None where none is needed).

    Both are static. ``ctx.save(...)`` keeps what backward needs, ``ctx.saved`` gives it back, ``ctx.needs_input_grad``
    says for which inputs a cotangent is wanted, ``ctx.kernels`` is the backend.

    Whose array is a cotangent? One that is handed to ``backward`` is *borrowed*: an addition hands the same array to both
    of its inputs, so nobody writes into it. An operation whose backward returns only arrays that it has just made, each a
    different one, says so with ``fresh``: then the walk owns them, and may add to them in place.

    Where the graph forks, ``ctx.arrived[i]`` is the cotangent of input i that has come from elsewhere, if the walk owns it
    (else None). A backward that adds its own to that in place returns it, and nothing is left to add.
    """

    fresh = False

    @staticmethod
    def forward(ctx: Node, *arrays: Any, **attributes: Any) -> Array:
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        raise NotImplementedError

    @classmethod
    def apply(cls, *inputs: Any, **attributes: Any) -> Any:
        """Runs ``forward`` on the tensors' arrays, and records it when an input requires a gradient."""
        guards.check_devices(cls.__name__, inputs)
        if (notes := recording.active()) is not None:
            notes.leaves.update((id(t), t) for t in inputs if t.node is None and (t.requires_grad or not notes.owns(t.data)))
        needs = tuple(t.requires_grad for t in inputs)
        node = Node(cls, needs, guards.is_grad_enabled() and any(needs))
        numbers = {key: value.item() if isinstance(value, np.generic) else value for key, value in attributes.items()}
        data = cls.forward(node, *(t.data for t in inputs), **numbers)
        if guards.is_anomaly_enabled():
            guards.check_finite(data, node, "forward pass")
        result = inputs[0].wrap(np.asarray(data) if isinstance(data, np.generic) else data)  # (a sum may be a scalar)
        if node.recording:
            node.edges = tuple((t.node or t) if t.requires_grad else None for t in inputs)
            node.rank = 1 + max(t.node.rank if t.node else 0 for t in inputs)
            node.output = result.shape, result.dtype
            result.node, result.requires_grad = node, True
        if guards.flags.calls is not None:
            guards.flags.calls.append((cls, tuple(t.data for t in inputs), numbers, result.data))
        return result


def backward(tensor: Any, gradient: Any = None, retain_graph: bool = False) -> None:
    """Adds the derivative of ``tensor`` by every leaf that requires a gradient to that leaf's ``.grad``.

    ``gradient`` is the cotangent to start from, of the tensor's shape; a tensor of one element needs none. The graph is
    freed on the way, unless ``retain_graph``. Raises `GraphError` for a graph that is freed or was never recorded.
    """
    gradient = guards.starting_cotangent(tensor, gradient)
    if tensor.node is None:
        accumulate_grad(tensor, passed_on(tensor.hooks, gradient))
    else:
        before = guards.flags.grad
        try:  # (as `no_grad` does; here without a call, so that no Ctrl-C comes between and leaves recording off)
            guards.flags.grad = False
            walk(tensor.node, gradient, retain_graph)
        finally:
            guards.flags.grad = before


def walk(last: Node, gradient: Array, retain_graph: bool) -> None:
    """From the node ``last``, whose cotangent is ``gradient``, to the leaves.

    The table holds, for each node that is still to be visited, what has arrived of its cotangent, and whether the walk
    owns that array. The first arrival is borrowed, unless it is fresh. When a second meets a borrowed one, their sum is a
    new array, which the walk owns; what arrives after that is accumulated in place. An engine that always added in place
    would be wrong on the smallest diamond, ``x + x``.

    Hooks are shown what is complete. A leaf that has some waits in the table, where it is left over at the end.
    """
    table: dict[Any, tuple[Array, bool]] = {last: (gradient, False)}
    order = itertools.count()  # breaks ties in the heap by order of arrival
    heap = [(-last.rank, next(order), last)]
    while heap:
        node = heapq.heappop(heap)[2]
        dy = passed_on(node.hooks, table.pop(node)[0])
        retained = node.retained and node.retained()
        if retained is not None:
            accumulate_grad(retained, dy)
        guards.check_not_freed(node)
        edges, fresh = node.edges or (), node.function.fresh
        node.arrived = tuple(owned_cotangent(table, edge) for edge in edges)
        for edge, dx, arrived in zip(edges, cotangents(node, dy), node.arrived, strict=True):
            if edge is None or (arrived is not None and dx is arrived):
                continue
            if not isinstance(edge, Node) and not edge.hooks:
                accumulate_grad(edge, dx, fresh)
            elif edge in table:
                table[edge] = add_cotangents(table[edge], (dx, fresh), node.kernels), True
            else:
                table[edge] = dx, fresh
                if isinstance(edge, Node):
                    heapq.heappush(heap, (-edge.rank, next(order), edge))
        node.arrived = ()  # a graph that is retained keeps no cotangents
        if not retain_graph:
            node.free()
    for leaf, (dx, _) in table.items():
        accumulate_grad(leaf, passed_on(leaf.hooks, dx))


def cotangents(node: Node, dy: Array) -> tuple[Any, ...]:
    """The cotangents of the node's inputs: one backward pass."""
    result = node.function.backward(node, dy)
    result = result if isinstance(result, tuple) else (result,)
    guards.check_cotangents(node, result)
    return result


def owned_cotangent(table: dict[Any, tuple[Array, bool]], edge: Any) -> Array | None:
    """What has arrived at an edge, if the walk owns it."""
    array, owned = table.get(edge, (None, False)) if isinstance(edge, Node) else (None, False)
    return array if owned else None


def add_cotangents(first: tuple[Array, bool], second: tuple[Array, bool], kernels: Kernels) -> Array:
    """The sum of two cotangents, in the place of one that is owned if there is one."""
    (total, owned), (other, _) = (first, second) if first[1] else (second, first)
    if not owned:
        return kernels.add(total, other)
    kernels.accumulate(total, other)
    return total


def accumulate_grad(tensor: Any, gradient: Array, owned: bool = False) -> None:
    """Adds to ``tensor.grad``. The first one is copied if it is borrowed."""
    if tensor.grad is None:
        if not owned:
            recording.refuse_on_host("NumPy copies a gradient")
        tensor.grad = gradient if owned else array_module(gradient).array(gradient)
    else:
        tensor.grad += gradient


__all__ = ["AccumulateGrad", "Function", "Node", "backward"]


def __dir__() -> list[str]:
    return __all__
