"""Runs CUDA kernels on NumPy arrays: compiles them with the machine's C++ compiler and `src/emulator.h`.

``TINYRES_EMULATOR=checked`` (the tests) puts every array of a launch in front of a page that may not be touched, fills
outputs with NaN before they are written, and runs a block's threads in the order that ``TINYRES_EMULATOR_ORDER`` says: 0
forward, 1 backward (and then arrays stand behind such a page), and each higher number another random one.
"""

import contextlib
import ctypes
import functools
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinyres.kernels.arrays import ceil_div
from tinyres.kernels.cuda import cache
from tinyres.kernels.cuda.sources import SOURCES, KernelFault, KernelSource, Macros, kernel_names, source

OPTIONS = ("-std=c++17", "-shared", "-fPIC", "-w", "-U_FORTIFY_SOURCE", "-ffp-contract=off")  # no other bits by -O3
POISON = "-ftrivial-auto-var-init=pattern"  # unset locals show; GCC has it from version 12 on
CHECKED = ("-O2", "-fsanitize=alignment,bounds,signed-integer-overflow,shift,integer-divide-by-zero", POISON)
UNCHECKED = ("-O3", "-fsanitize=alignment")  # emulator.h reports what these find
PAGE = mmap.PAGESIZE
_lock = threading.RLock()  # the emulation's state is global, and a compilation need not be done twice
_local = threading.local()  # what this thread records: `recording`


def _after_fork() -> None:
    """A thread of the parent may have held the lock. (A fork does not wait for it: a launch may take minutes.)"""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Report(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("block", ctypes.c_uint * 3),
        ("thread", ctypes.c_uint * 3),
        ("text", ctypes.c_char * 200),
    )


def compiler() -> str | None:
    """The C++ compiler: ``CXX``, else g++ or clang++, whichever is there."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++"))), None)


def checked() -> bool:
    """Whether memory is guarded and poisoned."""
    return os.environ.get("TINYRES_EMULATOR") == "checked"


def check() -> None:
    """Raises RuntimeError, with the reason, if nothing can be emulated on this machine."""
    if sys.platform != "linux":
        raise RuntimeError("it needs Linux")
    if compiler() is None:
        raise RuntimeError("it needs a C++ compiler: g++ or clang++, or the one that CXX names")
    _library("", (), checked())


@functools.cache
def _compiler_version(cxx: str) -> str:
    """What the compiler says that it is: another version makes other code."""
    with contextlib.suppress(OSError):  # `_compile` will tell
        return subprocess.run([cxx, "--version"], capture_output=True, text=True).stdout
    return ""


@functools.cache
def _library(text: str, macros: Macros, checks: bool) -> ctypes.CDLL:
    """The shared library made of a source. It is compiled once and kept for later processes."""
    cxx = compiler()
    if cxx is None:
        raise RuntimeError("there is no C++ compiler")
    more = os.environ.get("TINYRES_EMULATOR_OPTIONS", "").split()  # -fsanitize=address, -g
    options = [*OPTIONS, *(CHECKED if checks else UNCHECKED), *(f"-D{name}={value}" for name, value in macros), *more]
    host = (SOURCES / "emulator.h").read_text("utf-8")
    exports = "".join(f"EXPORT({name})\n" for name in kernel_names(text))
    unit = f'#line 1 "emulator.h"\n{host}\n{text}\n{exports}'
    target = cache.path("cuda-emulated", ".so", cxx, _compiler_version(cxx), platform.machine(), *options, unit)
    if cache.read(target) is None:
        with tempfile.TemporaryDirectory() as work:
            (Path(work) / "unit.cpp").write_text(unit, "utf-8")
            command = [cxx, *options, "-o", f"{work}/unit.so", f"{work}/unit.cpp"]
            error = _compile(command)
            if error and POISON in error:  # a compiler that does not know it
                error = _compile([option for option in command if option != POISON])
            if error:
                raise RuntimeError(f"{cxx} failed: {_first_error(error)}")
            target = cache.write(target, (Path(work) / "unit.so").read_bytes())
    library = ctypes.CDLL(str(target))
    library.tinyres_report.restype = ctypes.POINTER(_Report)
    return library


def _compile(command: list[str]) -> str:
    """What the compiler has to say if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return done.stderr or f"exit status {done.returncode}" if done.returncode else ""


def _first_error(text: str) -> str:
    """The first error of a compiler's many, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next((line for line in lines if re.search(r"\berror\b", line)), lines[0])
    taken = re.search(r"conflicting declaration of C function|ambiguates? (old|built-in) declaration", first)
    return first[:400] + " (a kernel cannot have the name of a C function)" * bool(taken)


@functools.cache
def _entry(kernel: KernelSource, checks: bool) -> Any:
    """The function that runs a kernel."""
    with _lock:
        library = _library(source(kernel.file), kernel.macros, checks)
    run = getattr(library, f"tinyres_{kernel.name}")
    run.argtypes = [ctypes.c_uint] * 6 + [ctypes.c_size_t, ctypes.c_uint, ctypes.c_char_p]
    run.report = library.tinyres_report
    return run


def launch(kernel: KernelSource, grid: tuple[int, ...], block: tuple[int, ...], shared: int, values: list[Any]) -> None:
    """Runs a kernel whose arguments have been checked; while a graph is captured, records it."""
    if getattr(_local, "recording", None) is not None:
        _local.recording.append(functools.partial(_run, kernel, grid, block, shared, values))
    else:
        _run(kernel, grid, block, shared, values)


def _run(kernel: KernelSource, grid: tuple[int, ...], block: tuple[int, ...], shared: int, values: list[Any]) -> None:
    checks = checked()
    run = _entry(kernel, checks)
    order, regions = int(os.environ.get("TINYRES_EMULATOR_ORDER", "0")), dict[str, tuple[int, int]]()
    guarded = _guarded(kernel, values, order == 1, regions) if checks else contextlib.nullcontext(values)
    with _lock, guarded as given:
        arguments = [
            (0 if value is None else value.__array_interface__["data"][0]) if parameter.is_array else value
            for parameter, value in zip(kernel.parameters, given, strict=True)
        ]
        status = run(*grid, *block, shared, order, kernel.layout.pack(*arguments))
        if status:
            raise KernelFault(_explain(kernel, run.report().contents, status, given, regions))


def _explain(
    kernel: KernelSource, report: _Report, status: int, values: list[Any], regions: dict[str, tuple[int, int]]
) -> str:
    """What a launch that failed did; ``regions`` are the addresses that can only be meant to be of an array."""
    where = f"{kernel.name}, block {tuple(report.block)}, thread {tuple(report.thread)}"
    if status == 1:
        return f"{where}: {report.text.decode()}"
    touched = {}
    for parameter, value in zip(kernel.parameters, values, strict=True):
        if parameter.is_array and value is not None:
            begin = value.ctypes.data
            first, end = regions.get(parameter.name, (begin - PAGE, begin + value.nbytes + PAGE))
            if first <= report.address < end:
                index = (report.address - begin) // value.itemsize
                touched[parameter.name] = f"{parameter.name}[{index}], which has {value.size} elements"
    if touched:  # more than one, if they are the same array or views of one
        return f"{where}: touches {' = '.join(touched.values())}"
    return f"{where}: touches memory that is no array's ({report.address:#x})"


def copy(target: Any, array: Any) -> None:
    """target[...] = array; while a graph is captured, it is recorded."""
    if getattr(_local, "recording", None) is not None:
        _local.recording.append(functools.partial(_copy, target, array))
    else:
        _copy(target, array)


def _copy(target: Any, array: Any) -> None:
    with np.errstate(over="ignore"):  # into 16 bits, what is too large becomes an infinity
        target[...] = array


# --- checked launches ------------------------------------------------------------------------------------------------


class _Mapping:
    """Memory between two pages that may not be touched."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size + 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.whole = np.frombuffer(self.memory, np.uint8)
        base = self.whole.ctypes.data
        libc = ctypes.CDLL(None)
        for page in (base, base + PAGE + size):
            libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0)
        self.inside = self.whole[PAGE : PAGE + size]


_free: dict[int, list[_Mapping]] = {}  # by size


def _groups(values: list[np.ndarray]) -> list[list[np.ndarray]]:
    """The arrays, those that share memory together."""
    groups: list[list[np.ndarray]] = []
    end = 0
    for value in sorted(values, key=lambda v: v.ctypes.data):
        begin = value.ctypes.data
        if groups and begin < end:
            groups[-1].append(value)
        else:
            groups.append([value])
        end = max(end, begin + value.nbytes)
    return groups


@contextlib.contextmanager
def _guarded(
    kernel: KernelSource, values: list[Any], in_front: bool, regions: dict[str, tuple[int, int]]
) -> Iterator[list[Any]]:
    """Copies of the arrays that end where a page begins that may not be touched, or with ``in_front`` begin where one ends;
    up to 15 bytes away, so that they lie as the originals do with respect to packs of 16 bytes. What a kernel may write to
    is copied back. Arrays that share memory go on to share it. Fills ``regions``, see `_explain`.
    """
    taken: list[tuple[_Mapping, int, int]] = []  # where in which mapping a group lies
    copies: dict[int, np.ndarray] = {}  # by the id of the original
    is_array = [p.is_array and value is not None for p, value in zip(kernel.parameters, values, strict=True)]
    for group in _groups([value for value, yes in zip(values, is_array, strict=True) if yes]):
        begin = group[0].ctypes.data
        used = max(v.ctypes.data + v.nbytes for v in group) - begin
        size = ceil_div(max(used + 15, 1), PAGE) * PAGE
        mapping = (_free.setdefault(size, []) or [_Mapping(size)]).pop()
        mapping.inside[:] = 0xFF
        start = 0 if in_front else size - used - 15
        start += (begin - start) % 16  # as from the beginning of a pack
        taken.append((mapping, start, start + used))
        for value in group:
            first = start + value.ctypes.data - begin
            copies[id(value)] = mapping.inside[first : first + value.nbytes].view(value.dtype).reshape(value.shape)
            copies[id(value)][...] = value
    given = [copies[id(value)] if yes else value for value, yes in zip(values, is_array, strict=True)]
    for parameter, copy, yes in zip(kernel.parameters, given, is_array, strict=True):
        for mapping, _, _ in taken if yes else ():
            base = mapping.inside.ctypes.data
            if base <= copy.ctypes.data < base + len(mapping.inside):
                regions[parameter.name] = (base - PAGE, base + len(mapping.inside) + PAGE)
    try:
        yield given
        for mapping, start, end in taken:
            if (mapping.inside[:start] != 0xFF).any() or (mapping.inside[end:] != 0xFF).any():
                base = mapping.inside.ctypes.data
                names = [p.name for p in kernel.parameters if not p.is_const and regions.get(p.name, (0,))[0] == base - PAGE]
                raise KernelFault(f"{kernel.name} writes outside {' or '.join(names)}")
        for parameter, value, copy, yes in zip(kernel.parameters, values, given, is_array, strict=True):
            if yes and not parameter.is_const:
                value[...] = copy
    finally:
        for mapping, _, _ in taken:
            _free.setdefault(len(mapping.inside), []).append(mapping)


# --- graphs ----------------------------------------------------------------------------------------------------------


class Graph:
    """What a CUDA graph is on a GPU (see `gpu.Graph`): launches that are recorded, not run, and replayed together. The
    arrays that they use are kept with them.

    What NumPy itself does between launches, such as the copy of a reshape, is not recorded, where a GPU would record it:
    if a launch reads an array that was made so, `capture` raises RuntimeError.
    """

    runs = False

    def __init__(self) -> None:
        self.launches: list[Callable[[], Any]] = []

    def memory(self) -> contextlib.AbstractContextManager[None]:
        """The block runs as it is."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """The block's launches are recorded and do not run; those of other threads run as ever."""
        _local.recording = recording = []
        watch = not tracemalloc.is_tracing()  # (else what it knows is also of before the capture)
        try:
            if watch:
                tracemalloc.start()
            yield
            if watch:
                _check_all_recorded(recording)
            self.launches = recording
        finally:
            if watch:
                tracemalloc.stop()
            _local.recording = None

    def replay(self) -> None:
        for run in self.launches:
            run()


def _check_all_recorded(recording: list[Any]) -> None:
    """Raises RuntimeError if something reads numbers that were made during the recording, but not by what is recorded."""
    written: set[int] = set()
    for entry in recording:
        if entry.func is _copy:
            (target, array), name = entry.args, "a copy"
            read, write = [array], [target]
        else:
            kernel, *_, values = entry.args
            arrays = [(p.is_const, v) for p, v in zip(kernel.parameters, values, strict=True) if isinstance(v, np.ndarray)]
            read, write, name = [v for const, v in arrays if const], [v for const, v in arrays if not const], kernel.name
        for owner in map(_owner, read):
            floating = owner.dtype.kind not in "iub"  # (whole numbers are lists of addresses and the like, which stay)
            if floating and id(owner) not in written and tracemalloc.get_object_traceback(owner):
                raise RuntimeError(f"{name} reads an array of {owner.shape} that NumPy made, and would not make again")
        written.update(id(_owner(array)) for array in write)


def _owner(array: np.ndarray) -> np.ndarray:
    """Whose memory an array is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


# --- what `gpu` has too ----------------------------------------------------------------------------------------------


def synchronize() -> None:
    """Nothing is ever under way."""


def elapsed_ms(run: Callable[[], Any], repeats: int = 1) -> float:
    """Milliseconds of a ``run()`` in the emulation, the mean over ``repeats``."""
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return 1e3 * (time.perf_counter() - began) / repeats


def describe() -> dict[str, Any]:
    return {"gpu": "none: emulated on the CPU", "compiler": compiler()}
