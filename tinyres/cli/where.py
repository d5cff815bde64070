"""``tinyres where``: the six places of an operation, from its formula to CUDA."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from tinyres.cli import places
from tinyres.cli.places import Entry, Place

PAGE = """\
# Every operation, in six places

Written by `tinyres where --markdown`; `tinyres where NAME` shows the lines of one operation. In reading order:

- the **formula**, with both passes and what is kept between them
- the **definition**, in loops and plain arithmetic (backend `naive`)
- **NumPy made fast**: the reference (backend `numpy`)
- **SIMD**: compiled for the CPU by Numba (backend `numba`)
- **CUDA C++**: the wrapper in Python, and the kernels that it starts (backends `cupy`, `cuda-emulated`)
- **CUDA in Python**: Numba's dialect of CUDA (backend `numba-cuda`)

Each kernel has one name, in a file of one name, in all of them.
"""
LEFT = "the reference's"  # what a backend leaves to it


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "where",
        help="where an operation is written: formula, definition, NumPy, SIMD, CUDA",
        allow_abbrev=False,
        description="Shows the six places of an operation in reading order, with file and line of its passes: the formula "
        "(tinyres/ops), the definition in loops (kernels/naive), NumPy made fast (kernels/reference), SIMD (kernels/cpu), "
        "CUDA C++ (kernels/cuda) and CUDA in Python (kernels/numba_cuda). Without NAME, every operation in a line.",
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="an operation or a kernel: add_relu, AddReLU, conv2d, sgd, ..."
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print it as JSON")
    form.add_argument("--markdown", action="store_true", help="print the page docs/ops.md, of all operations")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    entries = [places.find(arguments.name)] if arguments.name else [*places.operations(), *places.other_kernels()]
    if arguments.markdown:
        print(markdown(entries), end="")
    elif arguments.json:
        print(json.dumps([as_json(entry) for entry in entries], indent=1))
    else:
        show(entries[0]) if arguments.name else show_all(entries)


def show(entry: Entry) -> None:
    """One operation or kernel: its places, one below the other."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(entry.name, style="bold")
    console.print(entry.summary, end="\n\n", markup=False)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for title, passes in entry.places().items():
        for name, found in passes.items():
            lines = [
                f"{'  ' * (place.path.suffix == '.cu')}{short(place.path)}:{place.line} {place.name}{note(place)}"
                for place in found
            ]
            table.add_row(title, name, "\n".join(lines) or LEFT)
            title = ""
    console.print(table, markup=False)
    if not any(entry.kernels.values()):
        console.print("\nNo kernel: its passes are array operations of NumPy, or of CuPy.")


def show_all(entries: list[Entry]) -> None:
    """A row for each operation and each kernel that none calls."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("operation", "formula", "kernels"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        formula = [f"{short(place.path)}:{place.line}" for found in entry.formula.values() for place in found]
        kernels = dict.fromkeys(kernel for used in entry.kernels.values() for kernel in used)
        table.add_row(entry.name, *formula[:1], "\n".join(kernels))
    console = Console(highlight=False)
    console.print(table)
    folders = ", ".join(f"kernels/{folder}" for folder in places.PLACES)
    console.print(f"\nEach kernel has one name in {folders}; tinyres where NAME shows the lines.", markup=False)


def short(path: Path) -> str:
    """Relative to the current folder, where that is shorter."""
    return min(os.path.relpath(path), str(path), key=len)


def as_json(entry: Entry) -> dict[str, Any]:
    def plain(place: Place) -> dict[str, Any]:
        return {"path": str(place.path), "line": place.line, "name": place.name} | (
            {"owner": place.owner} if place.owner else {}
        )

    found = {t: {name: [plain(p) for p in ps] for name, ps in passes.items()} for t, passes in entry.places().items()}
    return {"name": entry.name, "summary": entry.summary, "kernels": entry.kernels, "places": found}


def markdown(entries: list[Entry]) -> str:
    """The page of the documentation: links without lines, so that it changes only where a function moves."""
    page = [PAGE]
    for entry in entries:
        if not any(entry.kernels.values()):
            continue
        page += [f"## {entry.name}", "", entry.summary, ""]
        page += [f"| | {' | '.join(entry.formula)} |", "|---" * (1 + len(entry.formula)) + "|"]
        for title, passes in entry.places().items():
            page.append(f"| {title} | {' | '.join(links(found) or LEFT for found in passes.values())} |")
        page.append("")
    free = [entry for entry in entries if not any(entry.kernels.values())]
    page += ["## Without a kernel", "", "Array operations of NumPy, or of CuPy:", ""] if free else []
    page += [f"- {links(entry.formula['forward'], entry.name)}: {entry.summary}" for entry in free]
    return "\n".join(page) + "\n"


def links(found: list[Place], name: str = "") -> str:
    """A link to each file, and the functions that are meant in it."""
    files: dict[Path, list[Place]] = {}
    for place in found:
        files.setdefault(place.path, []).append(place)
    cells = []
    for path, inside in files.items():
        root = places.KERNELS if path.is_relative_to(places.KERNELS) else places.PACKAGE
        relative = f"{root.name}/{path.relative_to(root).as_posix()}"
        names = dict.fromkeys(f"`{name or place.name}`{note(place)}" for place in inside)
        cells.append(f"[{path.name}](../{relative}) {', '.join(names)}")
    return "<br>".join(cells)


def note(place: Place) -> str:
    """Whose it is, where a backend leaves a kernel to another."""
    return f" ({LEFT if place.owner == 'reference' else 'shared'})" if place.owner else ""
