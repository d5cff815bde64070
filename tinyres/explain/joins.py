"""Where a graph has a shortcut: the joins, the two sides of each, and the fork where the sides come from.

The tape has no fork: a fork is a node whose output was used twice. A join is an addition, alone or within a larger
operation, of two results that come from one fork. Its *branch* is the side with more operations, its *shortcut* the other.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from tinyres.autograd import Node
from tinyres.kernels.arrays import Array, array_module
from tinyres.ops.arithmetic import Add, unbroadcast
from tinyres.ops.elementwise import ReLU
from tinyres.ops.join import AddReLU, BatchNormAddReLU
from tinyres.ops.norm import BatchNorm, as_maps, in_shape


class Stage(NamedTuple):
    """One of the operations that a node does in one pass: its name, its formula backward, and the cotangent it sends on."""

    op: str
    formula: str
    array: Array


def rectified(node: Node) -> Array | None:
    """The result z of an operation that ends in a ReLU, as it was kept for backward; None for any other operation."""
    if node.function in (ReLU, AddReLU):
        return node.saved[0]
    return node.saved[1] if node.function in (BatchNorm, BatchNormAddReLU) else None


def stages(node: Node, dy: Array) -> list[Stage]:
    """What a node does backward, operation by operation, with the plain kernels: of a fused join the ReLU, the addition and
    the batch norm. Empty if the node is one operation.
    """
    if node.function is not AddReLU and not (node.function in (BatchNorm, BatchNormAddReLU) and rectified(node) is not None):
        return []
    xp, z = array_module(dy), rectified(node)
    assert z is not None
    ds = xp.where(z > 0, dy, xp.zeros_like(dy))
    found = [Stage("ReLU", "ds = dz where z > 0, else 0", ds)]
    if node.function is not BatchNorm:
        found.append(Stage("Add", "the same ds to the branch and to the shortcut", ds))
    if node.function is not AddReLU:
        x, _, weight, mean, var = node.saved
        dx, _, _ = node.kernels.batch_norm_backward(
            as_maps(ds), as_maps(x), None, weight, mean, var, node.eps, node.training
        )
        formula = "dx = weight / sqrt(var + eps) (ds - mean(ds) - xhat mean(ds xhat))"
        found.append(
            Stage("BatchNorm", formula if node.training else "dx = weight / sqrt(var + eps) ds", in_shape(dx, dy.shape))
        )
    return found


class Join(NamedTuple):
    """A residual block in the graph: ``fork``, a node or a leaf, is its input. ``branch`` and ``shortcut`` are the sides'
    places among the inputs of ``node``; ``branch_nodes`` and ``shortcut_nodes`` are what lies between the join and the fork.
    """

    node: Node
    fork: Any
    branch: int
    shortcut: int
    branch_nodes: frozenset[Node]
    shortcut_nodes: frozenset[Node]

    def side(self, node: Node, i: int, edge: Any) -> str:
        """On which side lies what ``node``, of this block, sends to ``edge``, its input ``i``. Parameters lie on none."""
        if node is self.node:
            return {self.branch: "branch", self.shortcut: "shortcut"}.get(i, "")
        for nodes, side in ((self.branch_nodes, "branch"), (self.shortcut_nodes, "shortcut")):
            if node in nodes and (edge is self.fork or edge in nodes):
                return side
        return ""


def nodes_of(last: Node) -> list[Node]:
    """All nodes of a graph, in the order of the backward walk: from the highest rank to the lowest."""
    order, seen, heap = itertools.count(), {last}, [(-last.rank, 0, last)]
    found = []
    while heap:
        node = heapq.heappop(heap)[2]
        found.append(node)
        for edge in node.edges or ():
            if isinstance(edge, Node) and edge not in seen:
                seen.add(edge)
                heapq.heappush(heap, (-edge.rank, next(order), edge))
    return found


def joins(nodes: list[Node]) -> list[Join]:
    """The joins among nodes, from the input of the network to its output."""
    return [join for node in reversed(nodes) for join in _join(node)]


def _join(node: Node) -> Iterator[Join]:
    if (
        node.function not in (Add, AddReLU, BatchNormAddReLU)
        or node.edges is None
        or any(edge is None for edge in node.edges[:2])
    ):
        return
    fork, sides = _where_sides_meet(node.edges[0], node.edges[1])
    if fork is None or sides[0] == sides[1]:  # (both empty: x + x)
        return
    branch = 0 if node.function is BatchNormAddReLU or len(sides[0]) >= len(sides[1]) else 1
    yield Join(node, fork, branch, 1 - branch, sides[branch], sides[1 - branch])


def _where_sides_meet(first: Any, second: Any) -> tuple[Any, list[frozenset[Node]]]:
    """Down from both at once, by rank: what is reached from both is the fork. And the nodes above it on either side."""
    order, heap, reached = itertools.count(), list[tuple[int, int, Any]](), dict[int, set[int]]()
    sides: tuple[set[Node], set[Node]] = (set(), set())

    def reach(place: Any, side: int) -> None:
        if id(place) not in reached:
            heapq.heappush(heap, (-getattr(place, "rank", 0), next(order), place))
        reached.setdefault(id(place), set()).add(side)

    reach(first, 0)
    reach(second, 1)
    while heap:
        place = heapq.heappop(heap)[2]
        which = reached[id(place)]
        if len(which) == 2:
            return place, [frozenset(side) for side in sides]
        for side in which:
            if isinstance(place, Node):
                sides[side].add(place)
                for edge in place.edges or ():
                    if edge is not None:
                        reach(edge, side)
    return None, []


def due(join: Join, dz: Array) -> tuple[Array, Array]:
    """What the join must send to the branch's last operation and to the shortcut, by the plain kernels, given its cotangent.

    For the shortcut that is ds, and for the branch too, unless the join includes the branch's batch norm.
    """
    node = join.node
    if node.function is Add:
        return unbroadcast(dz, node.operands[join.branch]), unbroadcast(dz, node.operands[join.shortcut])
    parts = stages(node, dz)
    return parts[-1].array, parts[1].array
