"""Every set of macros that a ``.cu`` file is compiled with.

A macro can make code that nobody has compiled before a user's card asks for it.  So the launcher takes only the sets that
stand here, and the tests compile each of them for each architecture, without a GPU (`nvrtc`).
"""

import functools
import itertools
import re
from pathlib import Path
from typing import NamedTuple

Macros = tuple[tuple[str, str], ...]
ALL = ("float", "double", "half", "bfloat16")


class Variant(NamedTuple):
    """A set of macros, in the launcher's order; the compute capability that it needs, times ten; and why its threads may
    keep something in local memory ("" if they may not)."""

    macros: Macros
    capability: int = 75
    stack: str = ""


def _each(*reals: str, capability: int = 75, stack: str = "", **macros: object) -> list[Variant]:
    """One variant for each type of REAL, with other macros."""
    sets = [{key: str(value) for key, value in macros.items()} | {"REAL": real} for real in reals]
    return [Variant(tuple(sorted(one.items())), capability, stack) for one in sets]


# by file; where a file uses INDEX, each set is there again with INDEX=long long
VARIANTS: dict[str, list[Variant]] = {
    "conv_exact": [
        one
        for rows, filters, each in ((128, 16, 4), (128, 32, 8), (64, 16, 4), (64, 32, 4), (64, 64, 8))
        for one in _each("float", "double", TILE_M=rows, TILE_F=filters, EACH=each)
    ],
    "elementwise": _each(*ALL),
    "im2col": [  # operands, weights of that type or float, and results of either
        *(one for real in ("float", "double") for one in _each(real, LEFT=real, RIGHT=real, RESULT=real)),
        *(
            one
            for real, right, result in itertools.product(("half", "bfloat16"), ("", "float"), ("", "float"))
            for one in _each(real, LEFT=real, RIGHT=right or real, RESULT=result or real)
        ),
    ],
    "step": [Variant(())],
}


@functools.cache
def variants(file: str) -> dict[Macros, Variant]:
    """The variants of ``src/FILE.cu`` by their macros, those for large arrays included."""
    listed = VARIANTS.get(file, [])
    if re.search(r"\bINDEX\b", (Path(__file__).parent / "src" / f"{file}.cu").read_text("utf-8")):
        listed = [*listed, *(v._replace(macros=tuple(sorted([*v.macros, ("INDEX", "long long")]))) for v in listed)]
    return {variant.macros: variant for variant in listed}


def check(file: str, macros: Macros) -> Variant:
    """The variant of these macros.  Raises LookupError if it is not registered: a mistake in this package."""
    found = variants(file).get(macros)
    if found is None:
        given = " ".join(f"{name}={value}" for name, value in macros) or "no macros"
        raise LookupError(f"{file}.cu with {given} is not in kernels/cuda/variants.py: no test has compiled it for a GPU")
    return found
