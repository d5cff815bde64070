"""Runs CUDA kernels on NumPy arrays: compiles them with the machine's C++ compiler and `src/emulator.h`.

``TINYRES_EMULATOR=checked`` (the tests) puts every array of a launch in front of a page that may not be touched, fills
outputs with NaN before they are written, and runs a block's threads in the order that ``TINYRES_EMULATOR_ORDER`` says: 0
forward, 1 backward, and each higher number another random one.
"""

import contextlib
import ctypes
import functools
import hashlib
import mmap
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinyres.kernels.cuda.launch import SOURCES, Kernel, KernelFault, Macros, kernel_names, source

OPTIONS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-w", "-U_FORTIFY_SOURCE", "-ftrivial-auto-var-init=pattern")
PAGE = mmap.PAGESIZE
_lock = threading.Lock()  # the emulation's state is global


class _Report(ctypes.Structure):
    _fields_ = [  # noqa: RUF012
        ("address", ctypes.c_uint64), ("block", ctypes.c_uint * 3), ("thread", ctypes.c_uint * 3), ("text", ctypes.c_char * 200),
    ]  # fmt: skip


def compiler() -> str | None:
    """The C++ compiler: ``CXX``, else g++ or clang++, whichever is there."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++"))), None)


def checked() -> bool:
    """Whether memory is guarded and poisoned."""
    return os.environ.get("TINYRES_EMULATOR") == "checked"


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tinyres" / "cuda-emulated"


@functools.cache
def _library(text: str, macros: Macros) -> ctypes.CDLL:
    """The shared library made of a source.  It is compiled once and kept for later processes."""
    cxx = compiler()
    assert cxx, "the backend was not checked"
    definitions = [f"-D{name}={value}" for name, value in macros]
    host = (SOURCES / "emulator.h").read_text("utf-8")
    exports = "".join(f"EXPORT({name})\n" for name in kernel_names(text))
    unit = f"{host}\n{text}\n{exports}"
    digest = hashlib.sha256("\n".join([cxx, *OPTIONS, *definitions, unit]).encode()).hexdigest()[:24]
    folder = _cache()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        folder = Path(tempfile.mkdtemp(prefix="tinyres-"))
    target = folder / f"{digest}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            (Path(work) / "unit.cpp").write_text(unit, "utf-8")
            command = [cxx, *OPTIONS, *definitions, "-o", f"{work}/unit.so", f"{work}/unit.cpp"]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr[-4000:]}")
            os.replace(f"{work}/unit.so", target)
    library = ctypes.CDLL(str(target))
    library.tinyres_report.restype = ctypes.POINTER(_Report)
    return library


def launch(kernel: Kernel, grid: tuple[int, ...], block: tuple[int, ...], shared: int, values: list[Any]) -> None:
    """Runs a kernel whose arguments have been checked."""
    library = _library(source(kernel.file), kernel.macros)
    if _recording is not None:
        _recording.append((kernel, grid, block, shared, values))
    with _lock, _guarded(kernel, values) if checked() else contextlib.nullcontext(values) as given:
        cells = [
            ctypes.c_void_p(value.ctypes.data if value is not None else None)
            if parameter.is_array
            else ctypes.c_char_p(value.tobytes())
            for parameter, value in zip(kernel.parameters, given, strict=True)
        ]
        addresses = [
            ctypes.addressof(cell) if parameter.is_array else ctypes.cast(cell, ctypes.c_void_p).value
            for parameter, cell in zip(kernel.parameters, cells, strict=True)
        ]
        order = int(os.environ.get("TINYRES_EMULATOR_ORDER", "0"))
        run = getattr(library, f"tinyres_{kernel.name}")
        three = ctypes.c_uint * 3
        status = run(three(*grid), three(*block), ctypes.c_size_t(shared), order, (ctypes.c_void_p * len(cells))(*addresses))
        if status:
            raise KernelFault(_explain(kernel, library.tinyres_report().contents, status, given))


def _explain(kernel: Kernel, report: _Report, status: int, values: list[Any]) -> str:
    where = f"{kernel.name}, block {tuple(report.block)}, thread {tuple(report.thread)}"
    if status == 1:
        return f"{where}: {report.text.decode()}"
    for parameter, value in zip(kernel.parameters, values, strict=True):
        if parameter.is_array and value is not None:
            offset = report.address - value.ctypes.data
            if -PAGE <= offset < value.nbytes + PAGE:
                return f"{where}: touches {parameter.name}[{offset // value.itemsize}], which has {value.size} elements"
    return f"{where}: touches memory that is no array's ({report.address:#x})"


# --- checked launches ------------------------------------------------------------------------------------------------


class _Mapping:
    """Memory between two pages that may not be touched."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size + 2 * PAGE)
        self.whole = np.frombuffer(self.memory, np.uint8)
        base = self.whole.ctypes.data
        libc = ctypes.CDLL(None)
        for page in (base, base + PAGE + size):
            libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0)
        self.inside = self.whole[PAGE : PAGE + size]


_free: dict[int, list[_Mapping]] = {}  # by size


@contextlib.contextmanager
def _guarded(kernel: Kernel, values: list[Any]) -> Iterator[list[Any]]:
    """Copies of the arrays that end (to a multiple of 16 bytes) where a page begins that may not be touched; what a kernel
    may write to is copied back.  An array that is passed twice stays one."""
    taken: dict[int, tuple[_Mapping, np.ndarray, np.ndarray]] = {}
    given = list(values)
    for i, (parameter, value) in enumerate(zip(kernel.parameters, values, strict=True)):
        if not parameter.is_array or value is None:
            continue
        if value.ctypes.data not in taken:
            size = -(-max(value.nbytes, 1) // PAGE) * PAGE
            mapping = (_free.setdefault(size, []) or [_Mapping(size)]).pop()
            mapping.inside[:] = 0xFF
            start = size - -(-value.nbytes // 16) * 16
            copy = mapping.inside[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
            copy[...] = value
            taken[value.ctypes.data] = (mapping, value, copy)
        given[i] = taken[value.ctypes.data][2]
    try:
        yield given
        for mapping, value, copy in taken.values():
            start = copy.ctypes.data - mapping.inside.ctypes.data
            if (mapping.inside[:start] != 0xFF).any() or (mapping.inside[start + copy.nbytes :] != 0xFF).any():
                name = next(p.name for p, g in zip(kernel.parameters, given, strict=True) if g is copy)
                raise KernelFault(f"{kernel.name} writes outside {name}, which has {value.size} elements")
        for i, parameter in enumerate(kernel.parameters):
            if parameter.is_array and not parameter.is_const and values[i] is not None:
                values[i][...] = given[i]
    finally:
        for mapping, _, _ in taken.values():
            _free.setdefault(len(mapping.inside), []).append(mapping)


# --- graphs ----------------------------------------------------------------------------------------------------------

_recording: list[tuple[Kernel, tuple[int, ...], tuple[int, ...], int, list[Any]]] | None = None


class Graph:
    """Launches that were recorded, with the arrays that they use; `replay` does them again."""

    def __init__(self, launches: list[tuple[Kernel, tuple[int, ...], tuple[int, ...], int, list[Any]]]) -> None:
        self.launches = launches

    def replay(self) -> None:
        for one in self.launches:
            launch(*one)


@contextlib.contextmanager
def capture() -> Iterator[Graph]:
    """``with capture() as graph:`` runs the block and records its launches in ``graph``."""
    global _recording
    graph = Graph([])
    _recording = graph.launches
    try:
        yield graph
    finally:
        _recording = None
