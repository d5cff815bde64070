"""The backward walk as a list of steps: what arrives at each node, and what it sends on."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

import numpy as np

from tinyres import guards
from tinyres.autograd import Node, cotangents
from tinyres.errors import UsageError
from tinyres.explain.joins import Join, Stage, joins, nodes_of, stages
from tinyres.explain.watch import Seen
from tinyres.kernels.arrays import Array, array_module
from tinyres.tensor import Tensor


class Arrival(NamedTuple):
    """A cotangent on its arrival: from which step (-1: the start), and whether it is lent, so that nobody may change it."""

    source: int
    array: Array
    lent: bool


class Send(NamedTuple):
    """A cotangent that a step sends: of which of the node's inputs, to where (a layer's or a parameter's name), on which
    side of a block it travels ("branch", "shortcut", or "" outside of blocks and to parameters), and the number of the step
    where it arrives, -1 for a leaf.
    """

    input: int
    target: str
    array: Array
    side: str = ""
    step: int = -1


@dataclass
class Step:
    """One node's turn, the ``number``-th from 0. ``dy`` is the sum of its ``arrivals``, ``sends`` what its backward pass
    makes of it. ``op`` is the node's operation, ``name`` the layer that made it, ``rank`` its place in the order of the
    forward pass, ``shape`` that of its output.

    ``kind`` is "join" where a branch and a shortcut are added, "fork" where several cotangents arrive, else "". ``block`` is
    the name of the innermost residual block that the node belongs to, if any.
    ``stages`` are the operations of a node that does several in one pass: a fused join is batch norm, addition and ReLU.
    """

    number: int
    op: str
    name: str
    rank: int
    shape: tuple[int, ...]
    kind: str
    arrivals: list[Arrival]
    dy: Array
    sends: list[Send] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    block: str = ""

    def __str__(self) -> str:
        arrives = ", ".join(
            f"{a.source if a.source >= 0 else 'start'}{' lent' * a.lent} {size(a.array)}" for a in self.arrivals
        )
        sends = ", ".join(f"{s.target} {size(s.array)}" for s in self.sends)
        first = f"{self.number:>3} {self.op:<16} {self.name:<18} {self.kind:<5} arrives [{arrives}]  sends {sends}"
        inside = (f"      {stage.op:<10} {stage.formula}: {size(stage.array)}" for stage in self.stages)
        return "\n".join([first, *inside])


class Trace(list[Step]):
    """The steps of one backward walk, in order; ``gradients`` has what arrived at each parameter or other leaf, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: dict[str, Array] = {}

    def table(self, block: str = "") -> str:
        """The steps as text, or those of one block, such as "layer1.0". Numbers are Euclidean norms."""
        return "\n".join(map(str, self.of(block) if block else self))

    def of(self, block: str) -> list[Step]:
        """The steps of one block, or of the layers whose names begin so. Raises `UsageError` if there are none."""
        chosen = [s for s in self if block in (s.block, s.name) or s.name.startswith(f"{block}.")]
        if not chosen:
            names = ", ".join(dict.fromkeys(s.block or s.name.rpartition(".")[0] or s.name for s in self))
            raise UsageError(f"no step of the trace belongs to {block!r}; the trace has: {names}")
        return chosen

    def __repr__(self) -> str:
        return f"Trace of {len(self)} steps, {len(self.gradients)} leaves\n{self.table() if self else ''}"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


def norm(array: Array) -> float:
    """The Euclidean norm of all elements, in float64."""
    return float(np.sqrt(float((array.astype(np.float64) ** 2).sum())))


def size(array: Array) -> str:
    return f"{norm(array):.3g}"


def trace(loss: Tensor, seen: Seen | None = None, gradient: Any = None, names: Mapping[str, Tensor] | None = None) -> Trace:
    """Walks from ``loss`` to the leaves as ``loss.backward()`` does, and keeps every step.

    ``seen``, from `watch`, gives the names of layers, ``names`` those of single tensors. ``gradient`` is the cotangent to
    start from; a loss of one element needs none. Nothing is freed and no ``.grad`` is changed, so that ``loss.backward()``
    can follow, with the same bits. All cotangents are kept, which takes about as much memory as the forward pass. Raises
    `GraphError` for a graph that is freed or was never recorded.
    """
    start = guards.starting_cotangent(loss, gradient)
    found, seen = Trace(), seen or Seen()
    seen.add(names or {})
    if loss.node is None:
        found.gradients[seen.name(loss)] = start
        return found
    leaves = _Leaves(seen)
    found_joins = joins(nodes_of(loss.node))
    numbers, aims = dict[Node, int](), list[list[Any]]()
    own = {join.node: join for join in found_joins}
    within = _within(found_joins)
    table: dict[Node, list[Arrival]] = {loss.node: [Arrival(-1, start, True)]}
    order = itertools.count()
    heap = [(-loss.node.rank, next(order), loss.node)]
    with guards.no_grad():
        while heap:
            node = heapq.heappop(heap)[2]
            arrivals = table.pop(node)
            dy = total([a.array for a in arrivals])
            kind = "join" if node in own else "fork" if len(arrivals) > 1 else ""
            op = node.function.__name__
            block = own.get(node) or within.get(node)
            step = Step(len(found), op, seen.name(node), node.rank, dy.shape, kind, arrivals, dy, [], stages(node, dy))
            step.block = seen.block(block.node) if block else ""
            found.append(step)
            numbers[node] = step.number
            aims.append([edge for edge in node.edges or () if edge is not None])
            for i, (edge, dx) in enumerate(zip(node.edges or (), backward_of(node, dy), strict=True)):
                if edge is None:
                    continue
                step.sends.append(Send(i, leaves.name(edge), dx, block.side(node, i, edge) if block else ""))
                if isinstance(edge, Node):
                    if edge not in table:
                        table[edge] = []
                        heapq.heappush(heap, (-edge.rank, next(order), edge))
                    table[edge].append(Arrival(step.number, dx, not node.function.fresh))
                else:
                    name = leaves.name(edge)
                    found.gradients[name] = found.gradients[name] + dx if name in found.gradients else dx
    for step, edges in zip(found, aims, strict=True):
        step.sends = [s._replace(step=numbers.get(edge, -1)) for s, edge in zip(step.sends, edges, strict=True)]
    return found


def _within(found: list[Join]) -> dict[Node, Join]:
    """The innermost block that each node lies in, its join apart."""
    largest_first = sorted(found, key=lambda join: -len(join.branch_nodes | join.shortcut_nodes))
    return {node: join for join in largest_first for node in join.branch_nodes | join.shortcut_nodes}


class _Leaves:
    """Names of leaves, each its own: two nameless ones of the same shape are told apart by a number."""

    def __init__(self, seen: Seen) -> None:
        self.seen, self.known, self.used = seen, dict[int, str](), set[str]()

    def name(self, place: Any) -> str:
        name = self.known.get(id(place)) or self.seen.name(place)
        if id(place) not in self.known and not isinstance(place, Node):
            for number in itertools.count(2):
                if name not in self.used:
                    break
                name = f"{self.seen.name(place)} #{number}"
            self.known[id(place)] = name
            self.used.add(name)
        return name


def total(arrays: list[Array]) -> Array:
    """The sum, in order of arrival."""
    result = arrays[0]
    for array in arrays[1:]:
        result = array_module(result).asarray(result + array)
    return result


def backward_of(node: Node, dy: Array) -> tuple[Any, ...]:
    """The cotangents of a node's inputs, each an array of its own: nothing is added in place to what came from elsewhere."""
    guards.check_not_freed(node)
    node.arrived = (None,) * len(node.edges or ())
    try:
        return cotangents(node, dy)
    finally:
        node.arrived = ()
