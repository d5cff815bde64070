"""Where each operation is written: its six places, found in the text of the source, so that no backend need be imported.

A kernel has the same name, in a file of the same name, in each folder of `PLACES`. What a backend leaves to another one is
an import or an assignment in its file, which is followed.
"""

import ast
import difflib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tinyres
import tinyres.kernels
from tinyres.errors import UsageError
from tinyres.kernels.contract import FILES

PACKAGE, KERNELS = Path(tinyres.__file__).parent, Path(tinyres.kernels.__file__).parent
FORMULA, CALLED = "formula", "called by"
PLACES = {  # in reading order: the folder of kernels, and what is to be read there
    "naive": "definition",
    "reference": "NumPy made fast",
    "cpu": "SIMD",
    "cuda": "CUDA C++",
    "numba_cuda": "CUDA in Python",
}


@dataclass(frozen=True)
class Place:
    """A function and where it begins. ``owner`` is the folder that holds it if it is not the one that was looked into."""

    path: Path
    line: int
    name: str
    owner: str = ""


@dataclass(frozen=True)
class Entry:
    """An operation, or a single kernel, whose ``formula`` is where it is called. ``formula`` and ``kernels`` are by pass:
    "forward" and "backward", or "" for a single kernel.
    """

    name: str
    summary: str
    formula: dict[str, list[Place]]
    kernels: dict[str, list[str]]

    def places(self) -> dict[str, dict[str, list[Place]]]:
        """By place in reading order, and by pass. An empty list: the backend has no such kernel, the reference's runs."""
        first = {CALLED if "" in self.formula else FORMULA: self.formula}
        if not any(self.kernels.values()):
            return first
        return first | {
            title: {
                name: [place for kernel in used for place in kernel_places(kernel, folder)]
                for name, used in self.kernels.items()
            }
            for folder, title in PLACES.items()
        }


class Source:
    """The text of a module: what its names stand for."""

    def __init__(self, module: str) -> None:
        top, _, rest = module.removeprefix("tinyres.").partition(".")
        root = KERNELS if top == "kernels" else PACKAGE / top
        path = root.joinpath(*rest.split(".")) if rest else root
        self.module, self.path = module, path.with_suffix(".py") if not path.is_dir() else path / "__init__.py"
        self.names: dict[str, ast.AST] = {}
        self.imports: dict[str, tuple[str, str]] = {}  # name -> the module that it comes from, and its name there
        self.tree = ast.parse(self.path.read_text("utf-8"))
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.names[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.names[node.targets[0].id] = node.value
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tinyres."):
                for alias in node.names:
                    self.imports[alias.asname or alias.name] = (node.module or "", alias.name)  # which may be "*"


@functools.cache
def source(module: str) -> Source | None:
    """The module's text; None if there is no such file."""
    try:
        return Source(module)
    except FileNotFoundError:
        return None


def definition(module: str, name: str) -> tuple[Source, ast.FunctionDef] | None:
    """The function that ``name`` stands for in a module, wherever that has it from."""
    text = source(module)
    if text is None:
        return None
    if name in text.imports:
        return definition(*text.imports[name])
    node = text.names.get(name)
    if isinstance(node, ast.Name):  # name = other
        return definition(module, node.id)
    if isinstance(node, ast.FunctionDef):
        return text, node
    return definition(text.imports["*"][0], name) if "*" in text.imports else None


def reached(text: Source, node: ast.AST, stop: frozenset[str] = frozenset()) -> Iterator[tuple[Source, ast.AST]]:
    """``node``, and what it names in its own package and what that names in turn, except functions called as in ``stop``.

    Of a module that is named alone (``for module in (conv_depthwise, conv_exact)``), the function of node's name is meant.
    """
    package, own, seen, queue = text.module.rpartition(".")[0], getattr(node, "name", ""), set(), [(text, node)]
    while queue:
        text, part = queue.pop(0)
        if part in seen:
            continue
        seen.add(part)
        yield text, part
        for inner in ast.walk(part):
            if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.attr not in stop:
                name, attribute = inner.value.id, inner.attr
            elif isinstance(inner, ast.Name) and inner.id not in stop:
                name, attribute = inner.id, own
            else:
                continue
            module, other = text.imports.get(name, (text.module, name))
            if module == package:  # the name is that of a module
                module, other = f"{package}.{other}", attribute
            target = source(module) if module.startswith(f"{package}.") else None
            if target and isinstance(target.names.get(other), ast.FunctionDef | ast.ClassDef):
                queue.append((target, target.names[other]))


def kernel_places(kernel: str, folder: str) -> list[Place]:
    """Where a kernel stands in a folder of kernels; of CUDA's, the wrapper and what it starts. Empty: it has none."""
    found = definition(f"tinyres.kernels.{folder}.{FILES[kernel]}", kernel)
    if found is None:
        return []
    text, node = found
    owner = text.module.split(".")[2]
    places = [Place(text.path, node.lineno, node.name, "" if owner == folder else owner)]
    return places + (device_code(text, node) if owner == "cuda" else [])


def device_code(text: Source, node: ast.FunctionDef) -> list[Place]:
    """The functions of `src/*.cu` that a wrapper starts: ``kernel(file, name)``, where the name may be an argument."""
    for stop in (frozenset(FILES), frozenset[str]()):  # not those of other kernels, unless it has none of its own
        reach = [inner for _, part in reached(text, node, stop) for inner in ast.walk(part)]
        calls = [n for n in reach if isinstance(n, ast.Call) and ast.unparse(n.func).split(".")[-1] == "kernel" and n.args]
        files = {str(n.args[0].value): n.args[0] for n in calls if isinstance(n.args[0], ast.Constant)}
        texts = {n.value for n in reach if isinstance(n, ast.Constant) and n not in files.values()}
        found = [place for file in files for place in global_functions(KERNELS / "cuda" / "src" / f"{file}.cu")]
        if started := [place for place in found if place.name in texts]:
            return started
    return []


@functools.cache
def global_functions(path: Path) -> list[Place]:
    """The kernels of a CUDA C++ file."""
    lines = enumerate(path.read_text("utf-8").splitlines(), 1)
    pattern = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\(')
    return [Place(path, number, match[1]) for number, line in lines if (match := pattern.match(line))]


def kernel_calls(node: ast.AST) -> list[tuple[str, int]]:
    """The kernels that a piece of code names (``ctx.kernels.relu``, ``dispatch.current().sgd``), and in which lines."""
    return [
        (inner.attr, inner.lineno)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and inner.attr in FILES
        if ast.unparse(inner.value).endswith(("kernels", "current()"))
    ]


@functools.cache
def operations() -> list[Entry]:
    """Every operation of `tinyres.ops`: its passes, and the kernels that they call."""
    entries = []
    for path in sorted((PACKAGE / "ops").glob("*.py")):
        text = Source(f"tinyres.ops.{path.stem}")
        for node in text.tree.body:
            if isinstance(node, ast.ClassDef) and "Function" in map(ast.unparse, node.bases):
                entries.append(_operation(text, node))
    return entries


def _operation(text: Source, node: ast.ClassDef) -> Entry:
    passes = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
    passes = {name: passes[name] for name in ("forward", "backward")}
    kernels = {
        name: list(dict.fromkeys(kernel for _, reach in reached(text, part) for kernel, _ in kernel_calls(reach)))
        for name, part in passes.items()
    }
    formula = {name: [Place(text.path, part.lineno, f"{node.name}.{name}")] for name, part in passes.items()}
    return Entry(node.name, _first(node), formula, kernels)


@functools.cache
def single_kernels() -> list[Entry]:
    """Every kernel of the contract."""
    calls: dict[str, list[Place]] = {kernel: [] for kernel in FILES}
    elsewhere = (KERNELS, PACKAGE / "benchmarks", PACKAGE / "explain")  # inside, where it is installed; no path of training
    for path in sorted(PACKAGE.rglob("*.py")):
        if any(path.is_relative_to(folder) for folder in elsewhere):
            continue
        for name, node in functions(ast.parse(path.read_text("utf-8"))):
            for kernel, line in kernel_calls(node):
                calls[kernel].append(Place(path, line, name))
    promises = {part.name: _first(part) for _, part in functions(Source("tinyres.kernels.contract").tree)}
    return [Entry(kernel, promises[kernel], {"": calls[kernel]}, {"": [kernel]}) for kernel in FILES]


def other_kernels() -> list[Entry]:
    """The kernels that no operation calls: of the update, of the loader, of the engine itself."""
    used = {kernel for entry in operations() for kernels in entry.kernels.values() for kernel in kernels}
    return [entry for entry in single_kernels() if entry.name not in used]


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions and methods of a module, with the names of their classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{part.name}", part) for part in node.body if isinstance(part, ast.FunctionDef))


def _first(node: ast.ClassDef | ast.FunctionDef) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())


def find(name: str) -> Entry:
    """The operation or the kernel called ``name``: AddReLU, add_relu, conv2d_backward_weight.

    Raises `UsageError` with the closest names if there is none.
    """
    entries = {plain(entry.name): entry for entry in [*single_kernels(), *operations()]}  # of two, the operation
    if plain(name) in entries:
        return entries[plain(name)]
    close = difflib.get_close_matches(plain(name), entries, 5, 0.5)
    hint = f"; the closest are {', '.join(entries[c].name for c in close)}" if close else ""
    raise UsageError(f"there is no operation or kernel {name!r}{hint} (tinyres where lists all)")


def plain(name: str) -> str:
    """AddReLU and add_relu are the same."""
    return name.replace("_", "").lower()
