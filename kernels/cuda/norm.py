"""Batch norm, and for `join` with an addition before the ReLU: `src/norm.cu`, where the passes are explained."""

from typing import Any

from tinyres.kernels.arrays import Array, ceil_div
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda.common import address, as_seen, c_type, empty, in_memory
from tinyres.kernels.cuda.launch import Kernel, kernel

THREADS = 512  # of a block, at most: as in the source
TILE = 32  # columns of a block, at most
STATISTICS_ROWS = 8  # that a thread of the first kernels reads at a time, and one part holds at least of each thread
ROWS = 4  # that a thread of the second kernels reads at a time
PARTS = 128  # of a sum, at most: they fill the card, and few are quick to add up
FORWARD_BLOCKS = 264  # of the second kernel, at most: two fit on a multiprocessor, and each of them adds up the parts
BACKWARD_BLOCKS = 132  # the same: one fits


def batch_norm(
    x: Array, weight: Array, bias: Array, eps: float, relu: bool, running: tuple[Array, Array, float] | None = None
) -> tuple[Array, Array, Array]:
    return forward(x, None, weight, bias, eps, relu, running)


def batch_norm_inference(x: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float, relu: bool) -> Array:
    return inference(x, None, weight, bias, mean, var, eps, relu)


def batch_norm_backward(
    dy: Array, x: Array, y: Array | None, weight: Array, mean: Array, var: Array, eps: float, training: bool
) -> tuple[Array, Array, Array]:
    return backward(dy, x, y, weight, mean, var, eps, training, False)[:3]


def forward(
    x: Array,
    residual: Array | None,
    weight: Array,
    bias: Array,
    eps: float,
    relu: bool,
    running: tuple[Array, Array, float] | None,
) -> tuple[Array, Array, Array]:
    """`batch_norm`; with a residual, `batch_norm_add_relu`."""
    running = running or (None, None, 0.0)
    if not all(a is None or a.flags.c_contiguous for a in running[:2]):
        raise Unsupported("running statistics with gaps between them")
    plan, inside, joined, (*vectors, _, _) = _prepare((x, residual), (weight, bias, *running[:2]))
    mean, var, y = empty(weight, weight.shape), empty(weight, weight.shape), empty(inside, inside.shape)
    parts = plan.new_parts(weight)
    plan.first("batch_norm_statistics", inside, parts, plan.rows, plan.share, plan.columns)
    plan.second(
        "batch_norm_normalise",
        FORWARD_BLOCKS,
        inside,
        parts,
        *vectors,
        joined,
        y,
        mean,
        var,
        *running,
        eps,
        plan.rows,
        plan.share,
        plan.parts,
        plan.columns,
        relu,
    )
    return as_seen(y), mean, var


def inference(
    x: Array, residual: Array | None, weight: Array, bias: Array, mean: Array, var: Array, eps: float, relu: bool
) -> Array:
    """`batch_norm_inference`; with a residual, `batch_norm_add_relu_inference`."""
    plan, inside, joined, vectors = _prepare((x, residual), (mean, var, weight, bias))
    y = empty(inside, inside.shape)
    plan.second("batch_norm_inference", FORWARD_BLOCKS, inside, *vectors, joined, y, eps, plan.rows, plan.columns, relu)
    return as_seen(y)


def backward(
    dy: Array, x: Array, y: Array | None, weight: Array, mean: Array, var: Array, eps: float, training: bool, keeps: bool
) -> tuple[Array, Array, Array, Array | None]:
    """`batch_norm_backward`; with ``keeps``, also dz, and so it is `batch_norm_add_relu_backward`."""
    plan, *activations, (scale, centre, spread) = _prepare((dy, x, y), (weight, mean, var))
    d, inside, result = activations
    dx, dweight, dbias = empty(d, d.shape), empty(weight, weight.shape), empty(weight, weight.shape)
    dz, parts = empty(d, d.shape) if keeps else None, plan.new_parts(weight)
    plan.first("batch_norm_backward_sums", d, inside, result, centre, dz, parts, plan.rows, plan.share, plan.columns)
    if dz is not None:
        d, result = dz, None
    plan.second(
        "batch_norm_backward_input",
        BACKWARD_BLOCKS,
        d,
        inside,
        result,
        parts,
        scale,
        centre,
        spread,
        dx,
        dweight,
        dbias,
        eps,
        plan.rows,
        plan.parts,
        plan.columns,
        training,
    )
    return as_seen(dx), dweight, dbias, None if dz is None else as_seen(dz)


class _Plan:
    """How an (N, H, W, C) array is cut: ``rows`` pixels of ``columns`` of ``width`` channels; the first kernels leave
    ``parts`` of their sums, of ``share`` rows each.
    """

    def __init__(self, x: Array, real: str, vector: str, aligned: bool) -> None:
        channels, pack = x.shape[-1], 16 // x.itemsize
        self.width = pack if aligned and channels % pack == 0 else 1
        self.macros = {"REAL": real, "VECTOR": vector, "WIDTH": self.width}
        self.rows, self.columns = x.size // max(channels, 1), channels // self.width
        self.tiles = max(1, ceil_div(self.columns, TILE))
        wide = max(1, ceil_div(self.columns, self.tiles))
        self.block = (wide, THREADS // wide)
        most = max(1, PARTS // self.tiles)
        self.share = max(ceil_div(self.rows, most), STATISTICS_ROWS * self.block[1])
        self.parts = max(1, ceil_div(self.rows, self.share))
        sums = 8 if vector == "double" else 4
        self.shared = self.block[0] * self.block[1] * (2 * self.width + 1) * sums  # one Moments or Sums per thread

    def new_parts(self, vector: Array) -> Array:
        return empty(vector, (self.parts, 2, self.columns * self.width))

    def first(self, name: str, *arguments: Any) -> None:
        self._kernel(name)((self.parts, self.tiles), self.block, *arguments, shared=self.shared)

    def second(self, name: str, most: int, *arguments: Any) -> None:
        blocks = max(1, min(ceil_div(self.rows, ROWS * self.block[1]), most // self.tiles))
        self._kernel(name)((blocks, self.tiles), self.block, *arguments, shared=self.shared)

    def _kernel(self, name: str) -> Kernel:
        return kernel("norm", name, **self.macros)


def _prepare(activations: tuple[Array | None, ...], vectors: tuple[Array | None, ...]) -> Any:
    """-> plan, *activations as (N, H, W, C), contiguous vectors. Raises Unsupported for dtypes that do not go together."""
    real = c_type(*activations)
    wanted = "float64" if real == "double" else "float32"
    vector = c_type(*vectors, allowed=(wanted,))
    inside = [None if a is None else in_memory(a) for a in activations]
    first = inside[0]
    aligned = not any(address(a) % 16 for a in inside if a is not None)
    flat = [None if a is None else in_memory(a) for a in vectors]
    return _Plan(first, real, vector, aligned), *inside, flat
