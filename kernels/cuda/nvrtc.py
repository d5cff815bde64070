"""Compiles the kernels for GPUs on a machine without one, and tells what they take of it.

NVRTC, the compiler that also compiles them on a user's card, needs neither a GPU nor a driver. What every variant takes
stands in `resources.txt`: a kernel that got heavier shows in a diff. What has been compiled is kept (`cache`), so that only
the variants of a changed source are compiled again.

    python -m tinyres.kernels.cuda.nvrtc [--write]
"""

import ctypes
import functools
import glob
import importlib.util
import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from ctypes.util import find_library
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from tinyres.kernels.cuda import cache
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


def _options(macros: Macros, architecture: int) -> list[str]:
    definitions = [f"-D{name}={value}" for name, value in macros]
    return [*OPTIONS, *definitions, *BY_CUPY, f"-arch=sm_{architecture}", "--ptxas-options=-v"]


def _kept(text: str, macros: Macros, architecture: int) -> Path:
    """The file of what is made of a source, if it has been compiled."""
    return cache.path("nvrtc", ".log+cubin", _build(), *_options(macros, architecture), text)


def compile_source(text: str, macros: Macros, architecture: int) -> Compiled:
    """The machine code of a source for an architecture (75: sm_75): as it was kept, or compiled now. Raises CompileError."""
    kept = _kept(text, macros, architecture)
    made = cache.read(kept)
    if made is None:
        made = b"\0".join(_compile(text, _options(macros, architecture), "CUBIN"))
        cache.write(kept, made)
    log, _, cubin = made.partition(b"\0")
    report = log.decode()
    return Compiled(cubin, _parse(report), [line for line in report.splitlines() if "warning" in line.lower()])


def _compile(text: str, options: list[str], result: str) -> tuple[bytes, bytes]:
    """The log and the ``CUBIN`` or the ``PTX`` of a source. Raises CompileError."""
    nvrtc, program = _library(), ctypes.c_void_p()

    def read(what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, content)
        return content.raw

    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = nvrtc.nvrtcCompileProgram(program, len(options), given)
        log = read("ProgramLog").rstrip(b"\0")
        if failed:
            raise CompileError(f"{' '.join(options)}:\n{log.decode()[:4000]}")
        return log, read(result)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@functools.cache
def _build() -> str:
    """Which NVRTC this is, to the last digit: the comments that it writes at the top of its PTX."""
    _, ptx = _compile("", ["-arch=compute_90"], "PTX")
    return "\n".join(line for line in ptx.decode().splitlines() if line.startswith("//"))


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


def builds(*files: str) -> list[Build]:
    """All there is to compile of the files, or of every file: each variant for every architecture that it can run on, the
    rare ones for one.
    """
    return [
        (file, variant.macros, architecture)
        for file in files or sorted(VARIANTS)
        for variant in variants(file).values()
        for architecture in architectures()
        if architecture >= variant.capability and (architecture == 90 or not variant.rare)
    ]


def _one(build: Build) -> Compiled | CompileError:
    file, macros, architecture = build
    try:
        return compile_source(source(file), macros, architecture)
    except CompileError as error:
        return error


def compile_all(*files: str, tell: Callable[[str], None] = lambda line: None) -> dict[Build, Compiled | CompileError]:
    """Every build of the files, or of every file, compiled, or why that failed. ``tell`` is called with a line per file that
    had to be compiled.

    The work goes over the machine's cores, in processes: inside one, NVRTC compiles one program at a time.
    """
    wanted, made, began = builds(*files), dict[Build, Compiled | CompileError](), time.monotonic()
    new = [build for build in wanted if not _kept(source(build[0]), *build[1:]).exists()]
    if new:
        with ProcessPoolExecutor(min(len(new), os.cpu_count() or 1), get_context("spawn")) as pool:
            results = zip(new, pool.map(_one, new), strict=True)
            for file, of_file in itertools.groupby(results, lambda pair: pair[0][0]):
                before = len(made)
                made.update(of_file)
                tell(f"{file}.cu: {len(made) - before} builds, done after {time.monotonic() - began:.0f} s")
    return {build: made.get(build) or _one(build) for build in wanted}


def table(made: dict[Build, Compiled | CompileError]) -> str:
    """What `resources.txt` holds, from every file's builds."""
    shown = architectures()
    rows: dict[tuple[str, str, str], dict[int, str]] = {}
    for (file, macros, architecture), compiled in made.items():
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
    text = table(compile_all(tell=functools.partial(print, file=sys.stderr, flush=True)))
    if "--write" in sys.argv[1:]:
        TABLE.write_text(text, "utf-8")
    else:
        print(text, end="")
