"""Every set of macros that a ``.cu`` file is compiled with.

A macro can make code that nobody has compiled before a user's card asks for it. So the launcher takes only the sets that
stand here, and the tests compile each of them for each architecture, without a GPU (`nvrtc`).
"""

import functools
import itertools
import re
from pathlib import Path
from typing import NamedTuple

Macros = tuple[tuple[str, str], ...]
HALVES = ("half", "bfloat16")
ALL = ("float", "double", *HALVES)
PACK = {"float": 4, "double": 2, "half": 8, "bfloat16": 8}  # elements of 16 bytes


class Variant(NamedTuple):
    """A set of macros, in the launcher's order; the compute capability that it needs, times ten; why its threads may keep
    something in local memory ("" if they may not); and whether it is so seldom launched that the tests compile it for one
    architecture only.
    """

    macros: Macros
    capability: int = 75
    stack: str = ""
    rare: bool = False


def _each(*reals: str, capability: int = 75, stack: str = "", rare: bool = False, **macros: object) -> list[Variant]:
    """One variant for each type of REAL, with other macros."""
    sets = [{key: str(value) for key, value in macros.items()} | {"REAL": real} for real in reals]
    return [Variant(tuple(sorted(one.items())), capability, stack, rare) for one in sets]


def _beside_float(name: str) -> list[Variant]:
    """Each type of REAL, with a second macro of the same type; for the short ones also with float."""
    return [
        v
        for real in ALL
        for other in dict.fromkeys((real, "float" if real in HALVES else real))
        for v in _each(real, **{name: other})
    ]


# by file; where a file uses INDEX, each set is there again with INDEX=long long
VARIANTS: dict[str, list[Variant]] = {
    "augment": _each(*ALL),
    "conv_depthwise": _beside_float("PARAM"),
    "conv_exact": [
        one
        for rows, filters, each in ((128, 16, 4), (128, 32, 8), (64, 16, 4), (64, 32, 4), (64, 64, 8))
        for real in ("float", "double")
        for one in _each(real, TILE_M=rows, TILE_F=filters, EACH=each, rare=real == "double")
    ],
    "conv_tensor_forward": [
        one
        for real, tile, words in (
            ("float", 16, 4),
            ("float", 32, 4),
            *((real, *two) for real in HALVES for two in ((16, 2), (32, 2), (32, 4))),
        )
        for one in _each(real, TILE_F=tile, WORDS=words, capability=75 if real == "half" else 80)
    ],
    "conv_tensor_weight": [
        one
        for real, tile, taps in itertools.product(("float", *HALVES), (16, 32), (1, 3))
        for one in _each(real, TILE=tile, TAPS=taps, capability=75 if real == "half" else 80)
    ],
    "elementwise": _each(*ALL),
    "im2col": [  # operands, weights of that type or float, and results of either
        *(one for real in ("float", "double") for one in _each(real, LEFT=real, RIGHT=real, RESULT=real)),
        *(
            one
            for real, right, result in itertools.product(HALVES, ("", "float"), ("", "float"))
            for one in _each(real, LEFT=real, RIGHT=right or real, RESULT=result or real)
        ),
    ],
    "join": [one for real in ALL for width in (1, PACK[real]) for one in _each(real, WIDTH=width)],
    "linear": [*_each("double", INPUT="double"), *(v for one in ("float", *HALVES) for v in _each("float", INPUT=one))],
    "loss": [one for label in ("int", "long long") for one in _each("float", "double", LABEL=label)],
    "norm": [
        *(v for width in (1, 4) for v in _each("float", VECTOR="float", WIDTH=width)),
        *(v for width in (1, 2) for v in _each("double", VECTOR="double", WIDTH=width)),
        *(v for width in (1, 8) for v in _each(*HALVES, VECTOR="float", WIDTH=width)),
    ],
    "pool": [
        one
        for place in ("uint8_t", "int", "long long")
        for real in ALL
        for width in (1, PACK[real])
        for one in _each(real, WIDTH=width, PLACE=place, rare=place != "uint8_t")  # windows of more than 256 places
    ],
    "step": [Variant(())],
    "update": _each("float", "double"),
}


@functools.cache
def variants(file: str) -> dict[Macros, Variant]:
    """The variants of ``src/FILE.cu`` by their macros, those for large arrays included."""
    listed = VARIANTS.get(file, [])
    if re.search(r"\bINDEX\b", (Path(__file__).parent / "src" / f"{file}.cu").read_text("utf-8")):
        listed = [
            *listed,
            *(v._replace(macros=tuple(sorted([*v.macros, ("INDEX", "long long")])), rare=True) for v in listed),
        ]
    return {variant.macros: variant for variant in listed}


def check(file: str, macros: Macros) -> Variant:
    """The variant of these macros. Raises LookupError if it is not registered: a mistake in this package."""
    found = variants(file).get(macros)
    if found is None:
        given = " ".join(f"{name}={value}" for name, value in macros) or "no macros"
        raise LookupError(f"{file}.cu with {given} is not in kernels/cuda/variants.py: no test has compiled it for a GPU")
    return found
