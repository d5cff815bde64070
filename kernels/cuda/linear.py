"""The linear layer and its gradients: `src/linear.cu`."""

from tinyres.kernels.arrays import Array, ceil_div
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda.common import C_TYPES, c_type, empty, in_memory
from tinyres.kernels.cuda.launch import kernel

TILE = 16  # as in the source
EXACT = ("float32", "float64")


def linear(x: Array, w: Array, b: Array | None) -> Array:
    macros = _macros(x, w, b)
    x, w, b = in_memory(x), in_memory(w), None if b is None else in_memory(b)
    (n, inputs), outputs = x.shape, len(w)
    y = empty(w, (n, outputs))
    if y.size:
        kernel("linear", "linear", **macros)(_tiles(n, outputs), (TILE, TILE), x, w, b, y, n, inputs, outputs)
    return y


def linear_backward_input(dy: Array, w: Array) -> Array:
    macros = _macros(dy, dy, w)
    dy, w = in_memory(dy), in_memory(w)
    (n, outputs), inputs = dy.shape, w.shape[1]
    dx = empty(w, (n, inputs))
    if dx.size:
        run = kernel("linear", "linear_backward_input", **macros)
        run(_tiles(n, inputs), (TILE, TILE), dy, w, dx, n, inputs, outputs)
    return dx


def linear_backward_weight(dy: Array, x: Array) -> Array:
    macros = _macros(x, dy)
    dy, x = in_memory(dy), in_memory(x)
    (n, outputs), inputs = dy.shape, x.shape[1]
    dw = empty(dy, (outputs, inputs))
    if dw.size:
        run = kernel("linear", "linear_backward_weight", **macros)
        run(_tiles(outputs, inputs), (TILE, TILE), dy, x, dw, n, inputs, outputs)
    return dw


def linear_backward_bias(dy: Array) -> Array:
    macros = _macros(dy, dy)
    dy = in_memory(dy)
    n, outputs = dy.shape
    db = empty(dy, (outputs,))
    if db.size:
        kernel("linear", "linear_backward_bias", **macros)(ceil_div(outputs, 32), (32, 32), dy, db, n, outputs)
    return db


def _macros(x: Array, *others: Array) -> dict[str, str]:
    """x may have 16 bits per element where the others are float32."""
    real = c_type(*others, allowed=EXACT)
    stored = C_TYPES.get(x.dtype.name, "")
    if stored not in ((real,) if real == "double" else (real, "half", "bfloat16")):
        raise Unsupported(f"of dtype {x.dtype.name} with {others[0].dtype.name}")
    return {"REAL": real, "INPUT": stored}


def _tiles(rows: int, columns: int) -> int:
    return ceil_div(rows, TILE) * ceil_div(columns, TILE)
