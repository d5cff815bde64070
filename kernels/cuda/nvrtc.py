"""Compiles the kernels for GPUs on a machine without one, and tells what they take of it.

NVRTC, the compiler that also compiles them on a user's card, needs neither a GPU nor a driver. What every variant takes
stands in `resources.txt`: a kernel that got heavier shows in a diff.

    python -m tinyres.kernels.cuda.nvrtc [--write]
"""

import ctypes
import functools
import glob
import importlib.util
import os
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from pathlib import Path
from typing import NamedTuple

from tinyres.kernels.cuda.gpu import OPTIONS
from tinyres.kernels.cuda.sources import Macros, source
from tinyres.kernels.cuda.variants import VARIANTS, variants

TABLE = Path(__file__).parent / "resources.txt"
ARCHITECTURES = (75, 80, 90, 100, 120)  # compute capability times ten: one of each generation since tensor cores
BY_CUPY = ("-ftz=true", "--device-as-default-execution-space")  # options that CuPy adds, so that this is what runs


class CompileError(RuntimeError):
    """NVRTC refused a source; the text is its log."""


class Resources(NamedTuple):
    """What a kernel takes: registers and bytes of local memory of a thread, bytes of static shared memory of a block."""

    registers: int
    shared: int
    stack: int
    spills: int


class Compiled(NamedTuple):
    cubin: bytes
    kernels: dict[str, Resources]
    warnings: list[str]


def _candidates() -> Iterable[str]:
    """Where libnvrtc may be: NVIDIA's wheels for CUDA 12 and 13, then whatever the system's loader finds."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for wheel in ("cuda_nvrtc", "cu13"):
            yield from sorted(glob.glob(os.path.join(folder, wheel, "lib", "libnvrtc.so.*")))
    yield from filter(None, [find_library("nvrtc")])


@functools.cache
def _library() -> ctypes.CDLL:
    for path in _candidates():
        try:
            return ctypes.CDLL(path)
        except OSError:  # another machine's, or incomplete
            continue
    raise RuntimeError("NVRTC was not found: pip install nvidia-cuda-nvrtc-cu12")


def missing() -> str:
    """Why there is no NVRTC here, or "" if there is."""
    try:
        _library()
    except RuntimeError as error:
        return str(error)
    return ""


def version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def architectures() -> tuple[int, ...]:
    """Those of `ARCHITECTURES` that this NVRTC knows."""
    count = ctypes.c_int()
    _library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    _library().nvrtcGetSupportedArchs(known)
    return tuple(a for a in ARCHITECTURES if a in known)


def compile_source(text: str, macros: Macros, architecture: int) -> Compiled:
    """The machine code of a source for an architecture (75: sm_75). Raises CompileError."""
    nvrtc, program = _library(), ctypes.c_void_p()

    def read(what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, content)
        return content.raw

    definitions = [f"-D{name}={value}" for name, value in macros]
    options = [*OPTIONS, *definitions, *BY_CUPY, f"-arch=sm_{architecture}", "--ptxas-options=-v"]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = nvrtc.nvrtcCompileProgram(program, len(options), given)
        log = read("ProgramLog").rstrip(b"\0").decode()
        if failed:
            raise CompileError(f"sm_{architecture}, {' '.join(options)}:\n{log[:4000]}")
        return Compiled(read("CUBIN"), _parse(log), [line for line in log.splitlines() if "warning" in line.lower()])
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _parse(log: str) -> dict[str, Resources]:
    """The resources in the assembler's report, which has a part for each kernel."""
    kernels = {}
    for part in log.split("Compiling entry function '")[1:]:
        used = re.search(r"Used (\d+) registers", part)
        assert used, f"the assembler reports otherwise than it used to:\n{log}"
        shared = re.search(r"(\d+) bytes smem", part)
        stack, stores, loads = (
            sum(map(int, re.findall(rf"(\d+) bytes {what}", part)))
            for what in ("stack frame", "spill stores", "spill loads")
        )
        kernels[part.partition("'")[0]] = Resources(int(used[1]), int(shared[1]) if shared else 0, stack, stores + loads)
    return kernels


# --- the table -------------------------------------------------------------------------------------------------------

Build = tuple[str, Macros, int]  # file, macros, architecture


def builds() -> list[Build]:
    """All there is to compile: every variant for every architecture that it can run on, the rare ones for one."""
    return [
        (file, variant.macros, architecture)
        for file in sorted(VARIANTS)
        for variant in variants(file).values()
        for architecture in architectures()
        if architecture >= variant.capability and (architecture == 90 or not variant.rare)
    ]


@functools.cache
def compile_all() -> dict[Build, Compiled | CompileError]:
    """Every build, compiled, or why that failed; the work goes over the machine's cores."""

    def one(build: Build) -> Compiled | CompileError:
        file, macros, architecture = build
        try:
            return compile_source(source(file), macros, architecture)
        except CompileError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(builds(), pool.map(one, builds()), strict=True))


def table() -> str:
    """What `resources.txt` holds."""
    shown = architectures()
    rows: dict[tuple[str, str, str], dict[int, str]] = {}
    for (file, macros, architecture), compiled in compile_all().items():
        if isinstance(compiled, CompileError):
            raise compiled
        given = ",".join(f"{name}={value.replace(' ', '-')}" for name, value in macros) or "-"
        for name, needs in compiled.kernels.items():
            cell = f"{needs.registers}/{needs.shared}" if needs.shared else str(needs.registers)
            rows.setdefault((file, name, given), {})[architecture] = cell + "!" * bool(needs.spills)
    lines = [["file", "kernel", "macros", *(f"sm_{a}" for a in shown)]]
    lines += [[*row, *(cells.get(a, ".") for a in shown)] for row, cells in sorted(rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head = [
        f"# NVRTC {version()}: registers of a thread / bytes of static shared memory of a block; ! spills, . not compiled.",
        "# Made by: python -m tinyres.kernels.cuda.nvrtc --write",
    ]
    body = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join([*head, *body]) + "\n"


if __name__ == "__main__":
    if missing():
        sys.exit(missing())
    if "--write" in sys.argv[1:]:
        TABLE.write_text(table(), "utf-8")
    else:
        print(table(), end="")
