"""The text of the ``.cu`` files, and the kernels in it: their names, parameters and types, read from the source."""

import functools
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

SOURCES = Path(__file__).parent / "src"
TYPES = {  # of C, by their size and kind in NumPy
    "float": "f4",
    "double": "f8",
    "half": "f2",
    "bfloat16": "bfloat16",
    "int": "i4",
    "unsigned": "u4",
    "uint32_t": "u4",
    "long long": "i8",
    "uint64_t": "u8",
    "uint8_t": "u1",
    "signed char": "i1",
}
FORMATS = {"f4": "f4x", "f8": "d", "i4": "i4x", "u4": "I4x", "i8": "q", "u8": "Q"}  # of numbers, for `struct`
_SIGNATURE = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)')
Macros = tuple[tuple[str, str], ...]


class LaunchError(TypeError):
    """A kernel was given what it does not take: a mistake in this package, not of its user."""


class KernelFault(RuntimeError):
    """A kernel touched memory that is not its own, or its threads did not meet at a barrier."""


class Parameter(NamedTuple):
    """Of a kernel: its name, its type in NumPy's spelling, and what it is."""

    name: str
    dtype: str
    is_array: bool
    is_const: bool
    is_index: bool  # of type INDEX, which becomes wider where a number does not fit


@functools.cache
def source(file: str) -> str:
    """The text of ``src/FILE.cu`` with what it includes in its place. Compilers name the lines of the files themselves."""
    seen: set[str] = set()

    def read(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        lines = [f'#line 1 "{name}"']
        for number, line in enumerate((SOURCES / name).read_text("utf-8").splitlines(), 1):
            included = re.fullmatch(r'#include "(\w+\.cuh)"\s*(//.*)?', line)
            if included:
                lines += [read(included[1]), f'#line {number + 1} "{name}"']
            elif line != "#pragma once":
                lines.append(line)
            else:
                lines.append("")
        return "\n".join(lines)

    return read(f"{file}.cu") + "\n"


def _signatures(text: str) -> dict[str, str]:
    """The names of a source's kernels, and what stands between their parentheses."""
    return dict(_SIGNATURE.findall(re.sub(r"//[^\n]*", "", text)))


def kernel_names(text: str) -> list[str]:
    return list(_signatures(text))


def signature(text: str, name: str, macros: Macros) -> list[Parameter]:
    """The parameters of the kernel ``name`` in a source, with macros in their place."""
    found = _signatures(text).get(name)
    if found is None:
        raise LaunchError(f"no kernel {name!r}; there are {', '.join(kernel_names(text))}")
    given, parameters = {"REAL": "float", "INDEX": "int"} | dict(macros), []
    given["ACC"] = "double" if given["REAL"] == "double" else "float"
    for one in found.split(","):
        words = re.sub(r"__restrict__", " ", one).replace("*", " * ").split()
        c_type = " ".join(given.get(word, word) for word in words[:-1] if word not in ("const", "*"))
        is_array = "*" in words
        if c_type not in TYPES or not (is_array or TYPES[c_type] in FORMATS):
            raise LaunchError(f"{name}: the launcher does not know the type of {one.strip()!r}")
        parameters.append(Parameter(words[-1], TYPES[c_type], is_array, "const" in words, "INDEX" in words and not is_array))
    return parameters


class KernelSource:
    """A kernel of a source with its macros set."""

    def __init__(self, file: str, name: str, macros: Macros) -> None:
        self.file, self.name, self.macros = file, name, macros
        self.parameters = signature(source(file), name, macros)
        # how the emulation takes the arguments: each in 8 bytes
        self.layout = struct.Struct("<" + "".join("Q" if p.is_array else FORMATS[p.dtype] for p in self.parameters))


@functools.cache
def np_name(dtype: str) -> str:
    """The name of a dtype, as ``array.dtype.name`` gives it."""
    return dtype if dtype == "bfloat16" else np.dtype(dtype).name
