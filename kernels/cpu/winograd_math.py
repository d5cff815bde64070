"""Winograd's minimal filtering (Lavin and Gray 2015, arXiv 1509.09308): its matrices, and code that applies them.

F(m x m, 3 x 3) makes an m x m tile of outputs from an (m + 2) x (m + 2) tile d of inputs and a 3 x 3 filter g,

    y = A^T [ (G g G^T) * (B^T d B) ] A        (* elementwise, then summed over input channels)

with (m + 2)^2 multiplications for a tile instead of 9 m^2: 2.25 times fewer at m = 2, 4 times fewer at m = 4.  The sums
over channels are (m + 2)^2 matrix products.  Row or column of the matrices by m + 1 points p_j and infinity,

    A^T[i, j] = p_j^i,   G[j] = (1, p_j, p_j^2) / prod over k != j of (p_j - p_k),
    B^T[j] = the coefficients of prod over k != j of (x - p_k);   infinity takes the last of each A^T, G, and all p_k.

The cotangents follow by transposing: with dM = A dy A^T,  dg = G^T [ sum over tiles of (B^T d B) * dM ] G.

Points decide about rounding.  At m = 4 the usual 0, +-1, +-2 lose; measured at 64 channels, in units of 2^-24 of the
result's root mean square, as root mean square and largest: 29 and 485 for them, 13 and 111 for 0, +-5/8, +-3/2, whose
entries in B^T and A^T are still exact.  (Barabasz et al. 2018, arXiv 1803.10986, on why such points do better.)
"""

from typing import Any

from numba import types
from numba.extending import intrinsic
from numpy import float32
from numpy.polynomial import polynomial

from tinyres.kernels.cpu.simd import constant, fma, load, offset, scaled_sum, store

Matrix = tuple[tuple[float, ...], ...]

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)}  # pairs side by side


def transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def matrices(m: int) -> dict[str, Matrix]:
    """Name of a transform: the matrix that it applies from the left and, transposed, from the right."""
    points = POINTS[m]
    end = (0.0,) * m
    output = (*(tuple(p**i for i in range(m)) for p in points), (*end[1:], 1.0))  # A
    inputs, filters = [], []
    for p in points:
        others = [q for q in points if q != p]
        inputs.append((*map(float, polynomial.polyfromroots(others)), 0.0))
        scale = float(polynomial.polyval(p, polynomial.polyfromroots(others)))
        filters.append((1 / scale, p / scale, p * p / scale))
    inputs.append(tuple(map(float, polynomial.polyfromroots(points))))
    filters.append((0.0, 0.0, 1.0))
    return {
        "input": tuple(inputs),
        "filter": tuple(filters),
        "output": transposed(output),
        "output_cotangent": output,
        "filter_cotangent": transposed(tuple(filters)),
    }


def emit_product(builder: Any, matrix: Matrix, values: list[Any]) -> list[Any]:
    """matrix @ values as vector instructions.

    The points come in pairs p, -p, so that rows (of B^T, G, A) or columns (of A^T, G^T) do: they differ in the signs of
    every other element.  Such pairs share their even and odd parts: B^T at m = 4 takes 12 instructions, not 20."""
    columns = transposed(matrix)
    values, columns = list(values), list(columns)
    for j in range(len(values) - 1):  # columns u + v, u - v: add and subtract the values first
        a, b = columns[j], columns[j + 1]
        if sum(map(bool, a)) > 1 and a != b and all(p == q * (-1) ** i for i, (p, q) in enumerate(zip(a, b, strict=True))):
            both, apart = builder.fadd(values[j], values[j + 1]), builder.fsub(values[j], values[j + 1])
            values[j], values[j + 1] = both, apart
            columns[j] = tuple(p if i % 2 == 0 else 0 for i, p in enumerate(a))
            columns[j + 1] = tuple(0 if i % 2 == 0 else p for i, p in enumerate(a))
    rows, results = transposed(tuple(columns)), []
    for i, row in enumerate(rows):
        before = rows[i - 1] if i else None
        if before and _mirrored(before, row):
            parts = [[(f if j % 2 == odd else 0.0) for j, f in enumerate(before)] for odd in (0, 1)]
            factor = _common(parts[1])
            even = scaled_sum(builder, list(zip(parts[0], values, strict=True)))
            odd = scaled_sum(builder, [(f / factor, v) for f, v in zip(parts[1], values, strict=True)])
            if factor == 1:
                results[-1:] = [builder.fadd(even, odd), builder.fsub(even, odd)]
            else:
                results[-1:] = [fma(builder, odd, constant(odd.type.count, f), even) for f in (factor, -factor)]
        else:
            results.append(scaled_sum(builder, list(zip(row, values, strict=True))))
    return results


def _mirrored(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether b is a with its odd elements negated, and both parts exist."""
    same = all(q == p * (-1) ** j for j, (p, q) in enumerate(zip(a, b, strict=True)))
    return same and any(a[::2]) and any(a[1::2])


def _common(row: list[float]) -> float:
    """An element of the row by which the others divide without rounding in float32, so that it may be applied last."""
    elements = [f for f in row if f]
    exact = [d for d in elements if all(float(float32(f / d)) * d == f for f in elements)]
    return exact[0] if exact else 1.0


@intrinsic(prefer_literal=True)
def transform(
    typing: Any, lanes: Any, m: Any, name: Any, source: Any, row: Any, pixel: Any, target: Any, target_row: Any,
    target_pixel: Any,
) -> Any:  # fmt: skip
    """target = T source T^T for one tile and ``lanes`` channels, T the matrix called ``name`` of F(m x m, 3 x 3).

    Element (i, j) of the source is the vector at source + i * row + j * pixel; likewise the target."""
    width, matrix = lanes.literal_value, matrices(m.literal_value)[name.literal_value]

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, row, pixel, target, target_row, target_pixel = args[3:]
        size = len(matrix[0])
        columns = []
        for j in range(size):
            at = offset(builder, source, pixel, j)
            column = [load(builder, width, offset(builder, at, row, i)) for i in range(size)]
            columns.append(emit_product(builder, matrix, column))
        for i in range(len(matrix)):
            at = offset(builder, target, target_row, i)
            for j, value in enumerate(emit_product(builder, matrix, [c[i] for c in columns])):
                store(builder, value, offset(builder, at, target_pixel, j))
        return context.get_dummy_value()

    return types.void(lanes, m, name, *[types.intp] * 6), emit
