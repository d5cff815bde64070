"""The gradient by path length: how much of it has passed through how many branches.

Through B residual blocks lead 2^B paths, and each passes through the branch of a block or around it. The backward walk is
linear in the cotangent, so the parts need not be sampled, as Veit et al. 2016 (arXiv 1605.06431) do: the walk carries one
cotangent per length k, and where a join sends ds into its branch, k grows by one. After B blocks there are B + 1 parts, and
their sum is the gradient. One walk calls each backward pass once per length that arrives there.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres import guards
from tinyres.autograd import Node
from tinyres.explain.joins import Join
from tinyres.explain.trace import backward_of, norm
from tinyres.kernels.arrays import Array
from tinyres.tensor import Tensor

MOST_BLOCKS = 60  # of larger nets only if asked: the walk costs about blocks / 2 backward passes


@dataclass
class Paths:
    """The gradient at the first block's input, by the number of branches that it has passed through.

    ``share[k]`` = <g_k, g> / |g|^2 of the part g_k of length k, so that they sum to 1; a share is negative where a part
    points against the whole. ``norms[k]`` = |g_k|. ``predicted[k]`` is what the blocks' ratios r alone would give, if the
    two terms of each block were orthogonal: the coefficients of the product of (1 + r^2 t) / (1 + r^2). ``binomial[k]`` is
    the share of the paths that have this length. ``relative_error`` = max |sum of the parts - g| / max |g|. The stem, the
    head and projections count for no length.
    """

    share: list[float]
    norms: list[float]
    predicted: list[float]
    binomial: list[float]
    relative_error: float

    @property
    def mean_length(self) -> float:
        """The mean of the lengths, weighted with the shares."""
        return float(np.dot(np.arange(len(self.share)), self.share))

    @property
    def predicted_mean(self) -> float:
        return float(np.dot(np.arange(len(self.predicted)), self.predicted))

    def json(self) -> dict[str, Any]:
        return {**vars(self), "mean_length": self.mean_length, "predicted_mean": self.predicted_mean}

    def __getitem__(self, length: int) -> tuple[float, float]:
        """(norm, share) of one length."""
        return self.norms[length], self.share[length]

    def __len__(self) -> int:
        return len(self.share)


def paths_to(loss: Tensor, joins: list[Join], gradient: Array, ratios: list[float]) -> Paths:
    """Walks to the input of the first of ``joins``. ``gradient`` is what `backward` leaves there."""
    assert loss.node is not None
    start = guards.starting_cotangent(loss, None)
    parts = _walk(loss.node, start, {join.node: join for join in joins}, joins[0].fork)
    # parts are summed in float64: the rounding of this sum is not the walk's
    whole = gradient.astype(np.float64)
    square = norm(gradient) ** 2 or 1.0
    lengths = range(len(joins) + 1)
    arrays = [parts[k].astype(np.float64) if k in parts else 0.0 * whole for k in lengths]
    error = float(abs(sum(arrays) - whole).max()) / (float(abs(whole).max()) or 1.0)
    predicted = binomial = np.ones(1)
    for r in ratios:
        weight = r * r / (1 + r * r) if np.isfinite(r) else 1.0
        predicted = np.convolve(predicted, [1 - weight, weight])
        binomial = np.convolve(binomial, [0.5, 0.5])
    shares = [float((part * whole).sum()) / square for part in arrays]
    return Paths(shares, [norm(part) for part in arrays], predicted.tolist(), binomial.tolist(), error)


def _walk(last: Node, start: Array, joins: dict[Node, Join], goal: Any) -> dict[int, Array]:
    """The cotangent of ``goal``, a node or a leaf, by length."""
    table: dict[Any, dict[int, Array]] = {last: {0: start}}
    order = itertools.count()
    heap: list[tuple[int, int, Any]] = [(-last.rank, next(order), last)]
    with guards.no_grad():
        while heap:
            place = heapq.heappop(heap)[2]
            parts = table.pop(place)
            if place is goal:
                return parts
            if not isinstance(place, Node):
                continue
            join = joins.get(place)
            for length, dy in parts.items():
                sent = backward_of(place, dy)
                for i, (edge, dx) in enumerate(zip(place.edges or (), sent, strict=True)):
                    if edge is None or (not isinstance(edge, Node) and edge is not goal):
                        continue
                    if edge not in table:
                        table[edge] = {}
                        heapq.heappush(heap, (-getattr(edge, "rank", 0), next(order), edge))
                    reached = length + (join is not None and i == join.branch)
                    held = table[edge]
                    held[reached] = held[reached] + dx if reached in held else dx
    return {}
