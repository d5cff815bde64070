"""Winograd's minimal filtering (Lavin and Gray 2015, arXiv 1509.09308): its matrices, and code that applies them.

F(m x m, 3 x 3) makes an m x m tile of outputs from an (m + 2) x (m + 2) tile d of inputs and a 3 x 3 filter g,

    y = A^T [ (G g G^T) * (B^T d B) ] A        (* elementwise, then summed over input channels)

with (m + 2)^2 multiplications per tile instead of 9 m^2: 2.25 times fewer at m = 2, 4 times fewer at m = 4. The sums
over channels are (m + 2)^2 matrix products. Row or column of the matrices by m + 1 points p_j and infinity,

    A^T[i, j] = p_j^i,   G[j] = (1, p_j, p_j^2) / prod over k != j of (p_j - p_k),
    B^T[j] = the coefficients of prod over k != j of (x - p_k);   infinity takes the last of each A^T, G, and all p_k.

The cotangents follow by transposing: with dM = A dy A^T,  dg = G^T [ sum over tiles of (B^T d B) * dM ] G.

Points decide about rounding. At m = 4 the usual 0, +-1, +-2 lose; measured at 64 channels, in units of 2^-24 of the
result's root mean square, as root mean square and largest: 29 and 485 for them, 13 and 111 for 0, +-5/8, +-3/2, whose
entries in B^T and A^T are still exact. (Barabasz et al. 2018, arXiv 1803.10986, on why such points do better.)
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from numba import types
from numba.extending import intrinsic
from numpy import float32
from numpy.polynomial import polynomial

from tinyres.kernels.cpu.simd import call, constant, fma, load, offset, scaled_sum, store

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


def row_groups(matrix: Matrix) -> list[tuple[int, ...]]:
    """The rows that share work, see `emit_rows`, in groups; each row in one of them."""
    count = len(matrix)
    if any(_mirrored(a, b) for a, b in zip(transposed(matrix), transposed(matrix)[1:], strict=False)):
        return [tuple(range(0, count, 2)), tuple(range(1, count, 2))]
    seconds = [i for i in range(1, count) if _mirrored(matrix[i - 1], matrix[i])]
    return [(i, i + 1) if i + 1 in seconds else (i,) for i in range(count) if i not in seconds]


def emit_rows(builder: Any, matrix: Matrix, rows: Sequence[int], value: Callable[[int], Any]) -> list[Any]:
    """The elements ``rows`` of matrix @ values as vector instructions; ``value(j)`` emits element j of the values.

    The points come in pairs p, -p, so that rows (of B^T, G, A) or columns (of A^T, G^T) do: they differ in the signs of
    every other element. Such rows share their even and odd parts, such columns the sum and the difference of what they
    multiply: B^T at m = 4 takes 12 instructions, not 20.
    """
    columns, terms = transposed(matrix), []  # terms: a column, and what emits the value that it multiplies
    for j, column in enumerate(columns):
        if j and _mirrored(columns[j - 1], column):
            even = tuple(0.0 if i % 2 else f for i, f in enumerate(columns[j - 1]))
            odd = tuple(f if i % 2 else 0.0 for i, f in enumerate(columns[j - 1]))
            pair = functools.cache(lambda j=j: (value(j - 1), value(j)))
            terms[-1:] = [(even, lambda pair=pair: builder.fadd(*pair())), (odd, lambda pair=pair: builder.fsub(*pair()))]
        else:
            terms.append((column, lambda j=j: value(j)))
    values = [emit() if any(column[i] for i in rows) else None for column, emit in terms]
    kept, results = transposed(tuple(column for column, _ in terms)), []
    for i in rows:
        if i - 1 in rows and _mirrored(kept[i - 1], kept[i]):
            continue
        if i + 1 in rows and _mirrored(kept[i], kept[i + 1]):
            even, odd = (tuple(0.0 if j % 2 != part else f for j, f in enumerate(kept[i])) for part in (0, 1))
            factor = _common(odd)
            a = scaled_sum(builder, list(zip(even, values, strict=True)))
            b = scaled_sum(builder, [(f / factor, v) for f, v in zip(odd, values, strict=True)])
            if factor == 1:
                results += [builder.fadd(a, b), builder.fsub(a, b)]
            else:
                results += [fma(builder, b, constant(b.type.count, f), a) for f in (factor, -factor)]
        else:
            results.append(scaled_sum(builder, list(zip(kept[i], values, strict=True))))
    return results


def _mirrored(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether b is a with its odd elements negated, and both parts exist."""
    same = all(q == p * (-1) ** j for j, (p, q) in enumerate(zip(a, b, strict=True)))
    return same and any(a[::2]) and any(a[1::2])


def _common(row: tuple[float, ...]) -> float:
    """An element of the row by which the others divide without rounding in float32, so that it may be applied last."""
    elements = [f for f in row if f]
    exact = [d for d in elements if all(float(float32(f / d)) * d == f for f in elements)]
    return exact[0] if exact else 1.0


@intrinsic(prefer_literal=True)
def transform(
    typing: Any,
    lanes: Any,
    m: Any,
    name: Any,
    source: Any,
    row: Any,
    pixel: Any,
    target: Any,
    target_row: Any,
    target_pixel: Any,
) -> Any:
    """target = T source T^T for one tile and ``lanes`` channels, T the matrix called ``name`` of F(m x m, 3 x 3); with
    ", added" behind the name, target += T source T^T.

    Element (i, j) of the source is the vector at source + i * row + j * pixel; likewise the target.
    """
    called, _, added = name.literal_value.partition(", ")
    width, matrix = lanes.literal_value, matrices(m.literal_value)[called]

    def product(builder: Any, source: Any, row: Any, pixel: Any, target: Any, target_row: Any, target_pixel: Any) -> None:
        size = len(matrix[0])
        # what 32 registers cannot hold between the two products is made group by group, from values loaded again
        for rows in row_groups(matrix) if len(matrix) * size > 30 else [tuple(range(len(matrix)))]:
            columns = []
            for j in range(size):
                start = offset(builder, source, pixel, j)
                element = functools.cache(lambda i, start=start: load(builder, width, offset(builder, start, row, i)))
                columns.append(emit_rows(builder, matrix, rows, element))
            for i, row_values in zip(rows, zip(*columns, strict=True), strict=True):
                start = offset(builder, target, target_row, i)
                for j, value in enumerate(emit_rows(builder, matrix, range(len(matrix)), row_values.__getitem__)):
                    place = offset(builder, start, target_pixel, j)
                    store(builder, builder.fadd(load(builder, width, place), value) if added else value, place)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        call(builder, f"{called}{added}_{m.literal_value}_{width}", product, args[3:])
        return context.get_dummy_value()

    return types.void(lanes, m, name, *[types.intp] * 6), emit
