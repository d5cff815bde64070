"""Which algorithm a convolution uses: direct, or Winograd's F(2x2, 3x3) or F(4x4, 3x3).

Users ask with `algorithm` and `describe`, and overrule with `set_algorithm` or the environment variable ``TINYRES_CONV``,
which is "auto" (the choice below), "direct", "winograd2" or "winograd4".  Winograd does 3x3 at stride 1 only.
"""

import os

from tinyres.kernels.arrays import Pair

ALGORITHMS = ("auto", "direct", "winograd2", "winograd4")
PASSES = ("forward", "backward_input", "backward_weight")
_TILES = {"direct": 0, "winograd2": 2, "winograd4": 4}

_asked: str | None = None


def set_algorithm(name: str | None) -> None:
    """Use one of `ALGORITHMS` wherever it can be, from now on; None goes back to ``TINYRES_CONV``.

    Raises ValueError for another name."""
    global _asked
    _asked = None if name is None else _known(name, "the algorithm")


def algorithm(kind: str, n: int, c: int, f: int, size: Pair, kernel: Pair = (3, 3), stride: Pair = (1, 1)) -> str:
    """The algorithm of one of `PASSES` of a convolution of N images, C to F channels, ``size`` the map that it writes
    (the gradients: that of x for the input's, that of y for the weights')."""
    if kind not in PASSES:
        raise ValueError(f"the pass is {kind!r}; it must be one of {', '.join(PASSES)}.")
    asked = _asked or _known(os.environ.get("TINYRES_CONV") or "auto", "TINYRES_CONV")
    if kernel != (3, 3) or stride != (1, 1):
        return "direct"
    return asked if asked != "auto" else min(_TILES, key=lambda name: _cost(_TILES[name], n, c, f, size))


def tile(kind: str, n: int, c: int, f: int, size: Pair, kernel: Pair, stride: Pair) -> int:
    """The same as Winograd's m, 0 for direct."""
    return _TILES[algorithm(kind, n, c, f, size, kernel, stride)]


def describe(n: int, c: int, f: int, size: Pair, kernel: Pair = (3, 3), stride: Pair = (1, 1)) -> str:
    """One line about a layer: its three algorithms and what they multiply.  ``size`` is the output map's."""
    names = {
        "forward": algorithm("forward", n, c, f, size, kernel, stride),
        "backward_input": algorithm("backward_input", n, f, c, size, kernel, stride),
        "backward_weight": algorithm("backward_weight", n, c, f, size, kernel, stride),
    }
    layer = f"{kernel[0]}x{kernel[1]} stride {stride[0]}, {c} to {f} channels, {n} maps of {size[0]}x{size[1]}"
    return f"{layer}: " + ", ".join(f"{kind.replace('_', ' ')} {name}" for kind, name in names.items())


def _cost(m: int, n: int, c: int, f: int, size: Pair) -> float:
    """Estimated vector instructions, up to a constant, in the unit of one multiply-add for 16 floats.

    Direct: 9 C F a pixel, 16 to a vector.  Winograd, for a tile: (m + 2)^2 C F, and the transforms of C and F channels,
    measured in cycles (two multiply-adds each) for a vector of 16 channels on Zen 5; plus the filters' transforms."""
    fp = -(-f // 16) * 16
    if m == 0:
        return n * size[0] * size[1] * 9 * c * fp / 16
    tiles = n * -(-size[0] // m) * -(-size[1] // m)
    cp = -(-c // 16) * 16
    a_vector = 2 * (200 if m == 4 else 90)
    return tiles * ((m + 2) ** 2 * c * fp + a_vector * (cp + fp)) / 16 + 2 * 300 * c * fp / 16


def _known(name: str, what: str) -> str:
    if name not in ALGORITHMS:
        raise ValueError(f"{what} is {name!r}; it must be one of {', '.join(ALGORITHMS)}.")
    return name
