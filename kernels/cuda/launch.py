"""The typed launcher: runs a kernel of a ``.cu`` file on NumPy arrays (emulated) or on CuPy arrays (on the GPU).

CUDA checks nothing of what it is given. Here the signature is read from the source, and every launch is checked against
it: how many arguments, their types, contiguity, one device for all, and whether numbers fit. Where an array is so large
that indices might not fit into an int, the kernel runs as it is compiled with INDEX = long long.

    run = kernel("elementwise", "relu_backward", REAL="float")
    run(blocks, threads, dy, y, dx, n, packs)
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyres.kernels.arrays import array_module, name_of
from tinyres.kernels.cuda.sources import FORMATS, KernelSource, LaunchError, Parameter, np_name

WIDE = 1 << 30  # elements from which on indices are long long: half of what fits, since a loop steps beyond the end
LARGEST_SHARED = 227 << 10  # bytes of a block's shared memory on the largest cards (sm_90, sm_100); gpu.py asks the card
_SCALARS = {dtype: np.dtype(dtype).type for dtype in FORMATS}


class Kernel(KernelSource):
    """A kernel that can be launched: compiled when it first runs on a device."""

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
            if flags is None or name_of(value.dtype) != np_name(parameter.dtype):
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
