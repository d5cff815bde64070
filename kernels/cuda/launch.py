"""The typed launcher: runs a kernel of a ``.cu`` file on NumPy arrays (emulated) or on CuPy arrays (on the GPU).

CUDA checks nothing of what it is given. Here the signature is read from the source, and every launch is checked against
it: how many arguments, their types, contiguity, one device for all, and whether numbers fit. Where an array is so large
that indices might not fit into an int, the kernel runs as it is compiled with INDEX = long long.

    run = kernel("elementwise", "add_relu", REAL="float")
    run(blocks, threads, x, y, z, n, packs)
"""

import functools
import math
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyres.kernels.arrays import array_module

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
WIDE = 1 << 30  # elements from which on indices are long long: half of what fits, since a loop steps beyond the end
LARGEST_SHARED = 227 << 10  # bytes of a block's shared memory on the largest cards (sm_90, sm_100); gpu.py asks the card
_FORMATS = {"f4": "f4x", "f8": "d", "i4": "i4x", "u4": "I4x", "i8": "q", "u8": "Q"}  # of numbers, for `struct`
_SCALARS = {dtype: np.dtype(dtype).type for dtype in _FORMATS}
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
        if c_type not in TYPES or not (is_array or TYPES[c_type] in _FORMATS):
            raise LaunchError(f"{name}: the launcher does not know the type of {one.strip()!r}")
        parameters.append(Parameter(words[-1], TYPES[c_type], is_array, "const" in words, "INDEX" in words and not is_array))
    return parameters


class Kernel:
    """A kernel of a source with its macros set, compiled when it first runs on a device."""

    def __init__(self, file: str, name: str, macros: Macros) -> None:
        self.file, self.name, self.macros = file, name, macros
        self.parameters = signature(source(file), name, macros)
        # how the emulation takes the arguments: each in 8 bytes
        self.layout = struct.Struct("<" + "".join("Q" if p.is_array else _FORMATS[p.dtype] for p in self.parameters))

    def __call__(self, grid: int | Sequence[int], block: int | Sequence[int], *args: Any, shared: int = 0) -> None:
        """Runs it. ``grid`` and ``block`` are one to three sizes, ``shared`` the bytes of dynamic shared memory.

        Raises LaunchError for arguments of the wrong kind, KernelFault for what the emulation finds.
        """
        if len(args) != len(self.parameters):
            raise LaunchError(f"{self.name} takes {len(self.parameters)} arguments, got {len(args)}")
        if self._is_wide(args):
            wide = kernel(self.file, self.name, **(dict(self.macros) | {"INDEX": "long long"}))
            return wide(grid, block, *args, shared=shared)
        sizes = _sizes(self.name, grid, block)
        if not 0 <= shared <= LARGEST_SHARED:
            raise LaunchError(f"{self.name}: {shared} bytes of shared memory, and no card has more than {LARGEST_SHARED}")
        xp, values = self._check(args)
        device(xp).launch(self, *sizes, shared, values)

    def _is_wide(self, args: tuple[Any, ...]) -> bool:
        """Whether an index might not fit into an int, and INDEX is one."""
        if dict(self.macros).get("INDEX") == "long long":
            return False
        return any(
            (p.is_array and getattr(value, "size", 0) >= WIDE) or (p.is_index and isinstance(value, int) and value >= WIDE)
            for p, value in zip(self.parameters, args, strict=True)
        )

    def _check(self, args: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        """The module of the arrays, and the arguments with numbers in NumPy's types."""
        devices, values, xp = set(), [], None
        for parameter, value in zip(self.parameters, args, strict=True):
            if not parameter.is_array:
                values.append(self._scalar(parameter, value))
                continue
            values.append(value)
            if value is None:
                continue
            flags = None if isinstance(value, np.generic) else getattr(value, "flags", None)
            if flags is None or _name(value.dtype) != np_name(parameter.dtype):
                got = type(value).__name__ if flags is None else f"an array of {value.dtype}"
                raise self._error(parameter, f"an array of {np_name(parameter.dtype)} is expected, got {got}")
            if not flags.c_contiguous:
                raise self._error(parameter, f"must be contiguous; shape {value.shape}, strides {value.strides}")
            if isinstance(value, np.ndarray):
                if not parameter.is_const and not flags.writeable:
                    raise self._error(parameter, "is written to, and the array is read-only")
                devices.add("the host")
                xp = np
            else:
                xp = array_module(value)
                devices.add(f"{xp.__name__}:{value.device.id}")
        if len(devices) != 1:
            wrong = f"all arrays must be on one device, got {sorted(devices)}" if devices else "no array says where to run"
            raise LaunchError(f"{self.name}: {wrong}")
        return xp, values

    def _scalar(self, parameter: Parameter, value: Any) -> Any:
        """A number in NumPy's type of a parameter. An array, even of shape (), is refused: it would be read from a GPU."""
        if not isinstance(value, (int, float, np.number, np.bool_)):
            shape = f" of shape {value.shape}" if hasattr(value, "shape") else ""
            raise self._error(parameter, f"a number is expected, got {type(value).__name__}{shape}")
        kind = _SCALARS[parameter.dtype]
        if parameter.dtype[0] == "f":
            return kind(value)
        if not math.isfinite(value) or int(value) != value:
            raise self._error(parameter, f"a whole number is expected, got {value!r}")
        try:
            return kind(int(value))
        except OverflowError:
            raise self._error(parameter, f"{value} does not fit into {np_name(parameter.dtype)}") from None

    def _error(self, parameter: Parameter, text: str) -> LaunchError:
        return LaunchError(f"{self.name}, argument {parameter.name}: {text}")


Sizes = tuple[int, int, int]


def _sizes(name: str, grid: int | Sequence[int], block: int | Sequence[int]) -> tuple[Sizes, Sizes]:
    """Both as three numbers that CUDA takes."""
    grids, blocks = (tuple(s) if isinstance(s, (tuple, list)) else (s,) for s in (grid, block))
    g, b = ((*sizes, 1, 1)[: max(3, len(sizes))] for sizes in (grids, blocks))
    fits = len(g) == len(b) == 3 and min(g) > 0 and min(b) > 0 and g[0] < 1 << 31 and max(g[1:]) <= 65535
    if not (fits and b[0] * b[1] * b[2] <= 1024 and b[2] <= 64):
        raise LaunchError(f"{name}: a grid of {grids} blocks of {blocks} threads cannot be launched")
    return g, b  # type: ignore[return-value]


@functools.cache
def np_name(dtype: str) -> str:
    """The name of a dtype, as ``array.dtype.name`` gives it."""
    return dtype if dtype == "bfloat16" else np.dtype(dtype).name


@functools.cache
def _name(dtype: Any) -> str:
    return dtype.name


@functools.lru_cache(maxsize=None, typed=True)
def kernel(file: str, name: str, **macros: Any) -> Kernel:
    """The kernel ``name`` of ``src/FILE.cu``, compiled with these macros."""
    given = ((key, str(int(value) if isinstance(value, bool) else value)) for key, value in macros.items())
    return Kernel(file, name, tuple(sorted(given)))


def device(xp: Any) -> Any:
    """What runs kernels on arrays of a module: NumPy's are emulated, CuPy's run on the GPU."""
    if xp is np:
        from tinyres.kernels.cuda import emulator

        return emulator
    from tinyres.kernels.cuda import gpu

    return gpu
