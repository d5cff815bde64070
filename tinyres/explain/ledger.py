"""The gradient ledger: what each residual block receives, lends to its two sides, and gets back.

    z = relu(F(x) + s(x))        ds = dz where z > 0        dx = J_s^T ds + J_F^T ds

For each block the two terms are computed apart, by walking from the join down each side. The sum is compared with the
cotangent that `backward` itself leaves at the block's input, and what the join sends with what its formula says it must.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

import tinyres.functional as F
from tinyres import autograd, guards
from tinyres.autograd import Node
from tinyres.errors import UsageError
from tinyres.explain import picture, words
from tinyres.explain.joins import Join, due, joins, nodes_of, rectified
from tinyres.explain.paths import MOST_BLOCKS, Paths, paths_to
from tinyres.explain.row import Row
from tinyres.explain.svg import Svg
from tinyres.explain.trace import backward_of, norm, total
from tinyres.explain.watch import Seen, watch
from tinyres.kernels.arrays import Array, array_module
from tinyres.nn import Module
from tinyres.ops.join import SubsamplePad
from tinyres.random import default_generator
from tinyres.tensor import Tensor


@dataclass
class Ledger:
    """``rows``, one for each block from the first to the last, and ``paths``, the gradient by path length, None where it was
    not asked for. ``loss`` is the number that the step came to.
    """

    loss: float
    rows: list[Row]
    paths: Paths | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, name: int | str) -> Row:
        """A row by number or by name."""
        if isinstance(name, str):
            for row in self.rows:
                if row.name == name:
                    return row
            raise UsageError(f"the ledger has no block {name!r}; it has {', '.join(row.name for row in self.rows)}")
        return self.rows[name]

    @property
    def adds_up(self) -> bool:
        """Whether every block's gradient is the sum of its two parts."""
        return all(row.words.startswith("adds up") for row in self.rows if row.shortcut != "none")

    def json(self) -> dict[str, Any]:
        """Everything but the arrays, as `json.dumps` takes it."""
        paths = self.paths.json() if self.paths else None
        return {"loss": self.loss, "adds_up": self.adds_up, "rows": [row.json() for row in self.rows], "paths": paths}

    def __str__(self) -> str:
        return words.table(self.rows, self.paths)

    __repr__ = __str__

    def svg(self) -> Svg:
        """The picture: per block, what was lent, what came back through either side, and the sum, on a logarithmic axis."""
        return picture.dots(self.rows)

    _repr_svg_ = svg

    def _repr_html_(self) -> str:
        return words.html(self.rows, self.paths) + self.svg()


def gradient_ledger(
    model: Module,
    batch: tuple[Any, Any],
    *,
    loss: Any = F.cross_entropy,
    paths: bool | None = None,
    arrays: bool = False,
    training: bool = True,
) -> Ledger:
    """The ledger of one step of ``model`` on ``batch``, (images, labels), as the model and ``loss`` take them.

    ``paths``: whether to compute the gradient by path length (see `Paths`); by default for nets of up to 60 blocks.
    ``arrays``: whether each row keeps "dz", "ds", "through_shortcut", "through_branch" and "dx". With ``training``
    the step is one of training: batch norm uses the batch's statistics. The model is left as it was, with its modes, running
    statistics and gradients, and so is the default generator. Raises `UsageError` for a model without blocks.
    """
    images, labels = batch
    with _left_alone(model):
        model.train(training)
        if not isinstance(images, Tensor):
            images = np.asarray(images)
            images = Tensor(images.astype(next((p.dtype for p in model.parameters()), images.dtype), copy=False))
        with guards.enable_grad(), watch(model) as seen:
            value = loss(model(images), labels)
        return ledger_of(value, seen, paths=paths, arrays=arrays)


def ledger_of(loss: Tensor, seen: Seen | None = None, *, paths: bool | None = None, arrays: bool = False) -> Ledger:
    """The ledger of a graph that was made by hand, from its loss, with names from `watch` if there are any. ``paths`` and
    ``arrays`` are as for `gradient_ledger`. Raises `UsageError` for a loss without a graph, and a graph without blocks.

    >>> x = tr.tensor([[1.0, 2.0]], requires_grad=True)
    >>> print(ledger_of(F.add_relu(F.linear(x, w), x).sum()))
    """
    if loss.node is None or loss.node.edges is None:
        raise UsageError("gradient_ledger: the loss has no graph; compute it with gradients enabled, before backward()")
    seen = seen or Seen()
    nodes = nodes_of(loss.node)
    found = joins(nodes)
    plain = _plain_blocks(seen, found)
    if not found and not plain:
        raise UsageError("gradient_ledger: no blocks found: no shortcut in the graph, and no repeated blocks in the model")
    wanted = {place for join in found for place in (join.node, join.fork)} | {p for _, x, z in plain for p in (x, z)}
    arrived = engine_cotangents(loss, wanted)
    projections = {_projection(join, arrived) for join in found}
    rows = [(_rank(join.fork), _row(join, arrived, seen, arrays, "C" in projections)) for join in found]
    rows += [(_rank(x), _plain_row(name, arrived[z], arrived[x], z, arrays)) for name, x, z in plain]
    ledger = Ledger(float(loss.data), [row for _, row in sorted(rows, key=lambda pair: pair[0])])
    if found and (paths or (paths is None and len(found) <= MOST_BLOCKS)):
        ratios = [row.ratio for row in ledger.rows if row.ratio is not None]
        ledger.paths = paths_to(loss, found, arrived[found[0].fork], ratios)
    return ledger


def engine_cotangents(loss: Tensor, places: Collection[Any]) -> dict[Any, Array]:
    """What `backward` itself leaves at nodes and leaves of a graph, by one ordinary walk. Graph and gradients stay."""
    assert loss.node is not None
    nodes = nodes_of(loss.node)
    leaves = {id(e): e for node in nodes for e in node.edges or () if e is not None and not isinstance(e, Node)}
    retained = {node: node.retained for node in nodes}
    gradients = [(leaf, leaf.grad) for leaf in leaves.values()]
    kept = {place: SimpleNamespace(grad=None) for place in places if isinstance(place, Node)}
    try:
        for leaf in leaves.values():
            leaf.grad = None
        for node in nodes:
            node.retained = (lambda node=node: kept[node]) if node in kept else None  # type: ignore[assignment,misc]
        autograd.backward(loss, retain_graph=True)
        return {place: kept[place].grad if place in kept else place.grad for place in places}
    finally:
        for node, before in retained.items():
            node.retained = before
        for leaf, grad in gradients:
            leaf.grad = grad


def walk_side(nodes: Collection[Node], start: Any, dy: Array, fork: Any) -> Array | None:
    """What a side of a block sends to its fork, given what the join sends to ``start``, its last operation: J^T ds.

    ``nodes`` are the side's. None if nothing arrives.
    """
    table, order = {start: [dy]}, itertools.count()
    heap = [(-_rank(start), next(order), start)]
    while heap:
        place = heapq.heappop(heap)[2]
        if place is fork:
            return total(table[place])
        for edge, dx in zip(place.edges, backward_of(place, total(table.pop(place))), strict=True):
            if edge is fork or edge in nodes:
                if edge not in table:
                    table[edge] = []
                    heapq.heappush(heap, (-_rank(edge), next(order), edge))
                table[edge].append(dx)
    return None


def _row(join: Join, arrived: dict[Any, Array], seen: Seen, arrays: bool, all_project: bool) -> Row:
    node, dz, dx = join.node, arrived[join.node], arrived[join.fork]
    with guards.no_grad():
        to_branch, ds = due(join, dz)
        a = walk_side(join.shortcut_nodes, node.edges[join.shortcut], ds, join.fork)  # type: ignore[index]
        b = walk_side(join.branch_nodes, node.edges[join.branch], to_branch, join.fork)  # type: ignore[index]
        sent = backward_of(node, dz)
    a, b = (array_module(dx).zeros_like(dx) if part is None else part for part in (a, b))
    z, error = rectified(node), words.largest(dx - (a + b)) / (words.largest(dx) or 1.0)
    both = norm(a) * norm(b)
    shortcut = _projection(join, arrived)
    said = words.verdict(dx, a, b, error, (to_branch, sent[join.branch]), (ds, sent[join.shortcut]))
    return Row(
        name=seen.block(join.node),
        shortcut="C" if all_project and shortcut == "B" else shortcut,
        arrives=norm(dz),
        open=1.0 if z is None else float((z > 0).mean()),
        lent=norm(ds),
        through_shortcut=norm(a),
        through_branch=norm(b),
        total=norm(dx),
        ratio=norm(b) / norm(a) if norm(a) else float("inf"),
        cosine=float((a.astype(np.float64) * b).sum()) / both if both else 0.0,
        error=error,
        words=said,
        arrays={"dz": dz, "ds": ds, "through_shortcut": a, "through_branch": b, "dx": dx} if arrays else {},
    )


def _plain_row(name: str, dz: Array, dx: Array, node: Node, arrays: bool) -> Row:
    z = rectified(node)
    share = 1.0 if z is None else float((z > 0).mean())
    kept = {"dz": dz, "dx": dx} if arrays else {}
    return Row(name, "none", norm(dz), share, None, None, norm(dx), norm(dx), None, None, None, "no shortcut", kept)


def _plain_blocks(seen: Seen, found: list[Join]) -> list[tuple[str, Any, Node]]:
    """(name, input, output) of the blocks of a net without shortcuts: what a Sequential lists and has layers inside."""
    inner: dict[str, tuple[str, Any, Node]] = {}
    for name, _, source, output in () if found else seen.blocks:
        outer = any(other.startswith(f"{name}.") for other in inner)
        if name.rpartition(".")[2].isdigit() and source is not None and not outer:
            inner[name] = name, source, output
    return list(inner.values())


def _projection(join: Join, arrived: dict[Any, Array]) -> str:
    """The kind of a shortcut: "identity", the paper's options "A", "B" and "C", or "other"."""
    made = [node.function for node in join.shortcut_nodes]
    if not made:
        return "identity"
    if made == [SubsamplePad]:
        return "A"
    if any(function.__name__ in ("Conv2d", "Linear", "MatMul") for function in made):
        return "C" if arrived[join.node].shape == arrived[join.fork].shape else "B"
    return "other"


def _rank(place: Any) -> int:
    return getattr(place, "rank", 0)


@contextlib.contextmanager
def _left_alone(model: Module) -> Iterator[None]:
    """Afterwards a model has the modes and buffers that it had before, and the default generator its state."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.data.copy()) for buffer in model.buffers()]
    state = default_generator().bit_generator.state
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, before in buffers:
            buffer.data[...] = before
        default_generator().bit_generator.state = state
