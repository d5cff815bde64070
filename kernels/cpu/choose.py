"""Which algorithm a convolution uses: direct, or Winograd's F(2x2, 3x3) or F(4x4, 3x3).

Users ask with `algorithm` and `describe`, and overrule with `set_algorithm` or the environment variable ``TINYRES_CONV``,
which is "auto" (the choice below), "direct", "winograd2" or "winograd4". Winograd does 3x3 at stride 1 only.
"""

import functools
import os

from tinyres.kernels.arrays import BackendError, Pair, ceil_div

ALGORITHMS = ("auto", "direct", "winograd2", "winograd4")
PASSES = ("forward", "backward_input", "backward_weight")
_TILES = {"direct": 0, "winograd2": 2, "winograd4": 4}

_asked: str | None = None


def set_algorithm(name: str | None) -> None:
    """Use one of `ALGORITHMS` wherever it can be, from now on; None goes back to ``TINYRES_CONV``.

    Raises ValueError for another name.
    """
    global _asked
    _asked = None if name is None else _known(name, "the algorithm")


def algorithm(kind: str, n: int, c: int, f: int, size: Pair, kernel: Pair = (3, 3), stride: Pair = (1, 1)) -> str:
    """The algorithm of one of `PASSES` of a convolution of N images, C to F channels, ``size`` the map that it writes
    (the gradients: that of x for the input's, that of y for the weights').
    """
    if kind not in PASSES:
        raise ValueError(f"the pass is {kind!r}; it must be one of {', '.join(PASSES)}.")
    asked = _asked or _known(os.environ.get("TINYRES_CONV") or "auto", "TINYRES_CONV")
    if kernel != (3, 3) or stride != (1, 1):
        return "direct"
    return asked if asked != "auto" else _cheapest(kind, n, c, f, size)


def tile(kind: str, n: int, c: int, f: int, size: Pair, kernel: Pair, stride: Pair) -> int:
    """The same as Winograd's m, 0 for direct."""
    return _TILES[algorithm(kind, n, c, f, size, kernel, stride)]


def describe(n: int, c: int, f: int, size: Pair, kernel: Pair = (3, 3), stride: Pair = (1, 1)) -> str:
    """One line about a layer: its three algorithms and what they multiply. ``size`` is the output map's."""
    names = {
        "forward": algorithm("forward", n, c, f, size, kernel, stride),
        "backward_input": algorithm("backward_input", n, f, c, size, kernel, stride),
        "backward_weight": algorithm("backward_weight", n, c, f, size, kernel, stride),
    }
    layer = f"{kernel[0]}x{kernel[1]} stride {stride[0]}, {c} to {f} channels, {n} maps of {size[0]}x{size[1]}"
    return f"{layer}: " + ", ".join(f"{kind.replace('_', ' ')} {name}" for kind, name in names.items())


@functools.cache
def _cheapest(kind: str, n: int, c: int, f: int, size: Pair) -> str:
    return min(_TILES, key=lambda name: _cost(kind, _TILES[name], n, c, f, size))


# For each pair of channels, whatever the images are: packing or transforming its filter, or summing and transforming back
# its gradient. In multiply-adds of vectors, of which a Zen 5 core does two per cycle; measured there at 16 lanes.
_ONCE = {"filter": {0: 58, 2: 25, 4: 40}, "gradient": {0: 100, 2: 80, 4: 190}}
_TRANSFORM = {2: 180, 4: 400}  # the same for a vector of 16 channels of a tile: both its transforms, halved
_FAR = 1 << 23  # bytes of transformed filters from which they take three times as long: they come from beyond the core


def _cost(kind: str, m: int, n: int, c: int, f: int, size: Pair) -> float:
    """Estimated time in multiply-adds of vectors of 16 floats.

    Direct: 9 C F per pixel. Winograd: (m + 2)^2 C F per tile, of which 8 are done at a time, and the transforms.
    """
    cp, fp = ceil_div(c, 16) * 16, ceil_div(f, 16) * 16
    once = _ONCE["gradient" if kind == "backward_weight" else "filter"][m] * c * fp
    if m == 0:
        return n * size[0] * size[1] * 9 * c * fp / 16 / 0.8 + once
    tiles = n * ceil_div(size[0], m) * ceil_div(size[1], m)
    points = (m + 2) ** 2
    once *= 3 if 4 * points * c * fp > _FAR else 1
    return ceil_div(tiles, 8) * 8 * points * c * fp / 16 / 0.9 + tiles * _TRANSFORM[m] * (cp + fp) / 16 + once


def _known(name: str, what: str) -> str:
    if name not in ALGORITHMS:
        raise BackendError(f"{what} is {name!r}; it must be one of {', '.join(ALGORITHMS)}.")
    return name
