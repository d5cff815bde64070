"""The typed launcher: runs a kernel of a ``.cu`` file on NumPy arrays (emulated) or on CuPy arrays (on the GPU).

CUDA checks nothing of what it is given.  Here the signature is read from the source, and every launch is checked against
it: how many arguments, their types, contiguity, one device for all, and whether indices fit into an int.

    run = kernel("elementwise", "add_relu", REAL="float")
    run(blocks, threads, x, y, z, n, packs)
"""

import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyres.kernels.arrays import array_module

SOURCES = Path(__file__).parent / "src"
TYPES = {  # of C, by their size and kind in NumPy
    "float": "f4", "double": "f8", "half": "f2", "bfloat16": "bfloat16", "int": "i4", "unsigned": "u4", "long long": "i8",
    "uint64_t": "u8", "uint8_t": "u1", "signed char": "i1",
}  # fmt: skip
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


@functools.cache
def source(file: str) -> str:
    """The text of ``src/FILE.cu`` with what it includes in its place."""
    seen: set[str] = set()

    def read(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        text = (SOURCES / name).read_text("utf-8").replace("#pragma once\n", "")
        return re.sub(r'#include "(\w+\.cuh)"\n', lambda match: read(match[1]), text)

    return read(f"{file}.cu")


def kernel_names(text: str) -> list[str]:
    return [name for name, _ in _SIGNATURE.findall(text)]


def signature(text: str, name: str, macros: Macros) -> list[Parameter]:
    """The parameters of the kernel ``name`` in a source, with macros in their place."""
    found = dict(_SIGNATURE.findall(text)).get(name)
    if found is None:
        raise LaunchError(f"no kernel {name!r}; there are {', '.join(kernel_names(text))}")
    given, parameters = {"REAL": "float", "INDEX": "int"} | dict(macros), []
    for one in found.split(","):
        words = re.sub(r"__restrict__", " ", one).replace("*", " * ").split()
        c_type = " ".join(given.get(word, word) for word in words[:-1] if word not in ("const", "*"))
        if c_type not in TYPES:
            raise LaunchError(f"{name}: the launcher does not know the type of {one.strip()!r}")
        parameters.append(Parameter(words[-1], TYPES[c_type], "*" in words, "const" in words))
    return parameters


class Kernel:
    """A kernel of a source with its macros set, compiled when it first runs on a device."""

    def __init__(self, file: str, name: str, macros: Macros) -> None:
        self.file, self.name, self.macros = file, name, macros
        self.parameters = signature(source(file), name, macros)

    def __call__(self, grid: int | Sequence[int], block: int | Sequence[int], *args: Any, shared: int = 0) -> None:
        """Runs it.  ``grid`` and ``block`` are one to three sizes, ``shared`` the bytes of dynamic shared memory.

        Raises LaunchError for arguments of the wrong kind, KernelFault for what the emulation finds."""
        grids, blocks = _sizes(grid), _sizes(block)
        if not all(0 < g for g in grids) or math.prod(blocks) > 1024 or max(grids[1:]) > 65535 or grids[0] >= 1 << 31:
            raise LaunchError(f"{self.name}: a grid of {grids} blocks of {blocks} threads cannot be launched")
        arrays = [a for a, p in zip(args, self.parameters, strict=False) if p.is_array and a is not None]
        if any(a.size >= 1 << 31 for a in arrays) and dict(self.macros).get("INDEX") != "long long":
            wide = kernel(self.file, self.name, **(dict(self.macros) | {"INDEX": "long long"}))
            return wide(grid, block, *args, shared=shared)
        values = self._check(args)
        device(array_module(arrays[0])).launch(self, grids, blocks, shared, values)

    def _check(self, args: tuple[Any, ...]) -> list[Any]:
        if len(args) != len(self.parameters):
            raise LaunchError(f"{self.name} takes {len(self.parameters)} arguments, got {len(args)}")
        kinds, values = set(), []
        for parameter, value in zip(self.parameters, args, strict=True):
            where = f"{self.name}, argument {parameter.name}"
            if not parameter.is_array:
                values.append(_scalar(where, parameter.dtype, value))
                continue
            values.append(value)
            if value is None:
                continue
            if not hasattr(value, "flags") or value.dtype.name != np_name(parameter.dtype):
                got = f"an array of {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
                raise LaunchError(f"{where}: an array of {np_name(parameter.dtype)} is expected, got {got}")
            if not value.flags.c_contiguous:
                raise LaunchError(f"{where}: must be contiguous; shape {value.shape}, strides {value.strides}")
            if not parameter.is_const and isinstance(value, np.ndarray) and not value.flags.writeable:
                raise LaunchError(f"{where}: is written to, and the array is read-only")
            kinds.add((array_module(value).__name__, getattr(getattr(value, "device", None), "id", 0)))
        if len(kinds) > 1:
            raise LaunchError(f"{self.name}: all arrays must be on one device, got {sorted(kinds)}")
        return values


def _sizes(sizes: int | Sequence[int]) -> tuple[int, int, int]:
    all_three = ((sizes,) if isinstance(sizes, int) else tuple(sizes)) + (1, 1)
    return all_three[0], all_three[1], all_three[2]


def _scalar(where: str, dtype: str, value: Any) -> Any:
    if hasattr(value, "shape") and value.shape != ():
        raise LaunchError(f"{where}: a number is expected, got an array of shape {value.shape}")
    if dtype[0] in "iu" and int(value) != value:
        raise LaunchError(f"{where}: a whole number is expected, got {value!r}")
    try:
        return np.dtype(dtype).type(int(value) if dtype[0] in "iu" else value)
    except OverflowError:
        raise LaunchError(f"{where}: {value} does not fit into {np_name(dtype)}") from None


@functools.cache
def np_name(dtype: str) -> str:
    """The name of a dtype, as ``array.dtype.name`` gives it."""
    return dtype if dtype == "bfloat16" else np.dtype(dtype).name


@functools.cache
def _kernel(file: str, name: str, macros: Macros) -> Kernel:
    return Kernel(file, name, macros)


def kernel(file: str, name: str, **macros: Any) -> Kernel:
    """The kernel ``name`` of ``src/FILE.cu``, compiled with these macros."""
    return _kernel(file, name, tuple(sorted((key, str(value)) for key, value in macros.items())))


def device(xp: Any) -> Any:
    """What runs kernels on arrays of a module: NumPy's are emulated, CuPy's run on the GPU."""
    if xp is np:
        from tinyres.kernels.cuda import emulator

        return emulator
    from tinyres.kernels.cuda import gpu

    return gpu
