"""Which part may import which: down only. And what `import tinyres` needs: NumPy."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tinyres

# from the bottom up; a part imports from its own row and from those before it
LAYERS = [
    {"errors", "files", "kernels", "markup", "random"},
    {"device"},
    {"guards", "hooks", "locks"},
    {"autograd"},
    {"ops"},
    {"tensor_methods"},
    {"tensor"},
    {"losses", "norms"},
    {"functional", "gradcheck"},
    {"nn", "optim", "data", "weights"},
    {"models"},
    {"captured"},
    {"explain", "export", "profiler", "train"},
    {"benchmarks"},
    {"course", "lab"},
    {"cli", "__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
NOT_AT_IMPORT = {
    "numba",
    "rich",
    "matplotlib",
    "safetensors",
    "torch",
    "cupy",
    "threadpoolctl",
    "ml_dtypes",
    "onnx",
    "onnxruntime",
}

PACKAGE = Path(tinyres.__file__).parent


def folder(name: str) -> Path:
    """A part of the package, which in a checkout may lie beside the folder tinyres."""
    return PACKAGE / name if (PACKAGE / name).exists() else PACKAGE.parent / name


def modules(prefix: str, top: Path) -> list[tuple[str, Path]]:
    return [(".".join([prefix, *p.relative_to(top).with_suffix("").parts]), p) for p in sorted(top.rglob("*.py"))]


FILES = modules("tinyres", PACKAGE)
for beside in ("kernels", "benchmarks"):
    if not (PACKAGE / beside).exists():
        FILES += modules(f"tinyres.{beside}", folder(beside))


def imported(source: str, module: str):
    """(line, full name) of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def part_of(name: str) -> str | None:
    """The part of tinyres that a full name belongs to, "" for tinyres itself, None for other packages."""
    first, _, rest = name.partition(".")
    return None if first != "tinyres" else rest.partition(".")[0]


def wrong_imports(source: str, module: str) -> list[str]:
    own, found = part_of(module), []
    for line, name in imported(source, module):
        other = part_of(name)
        if other is None or other == own:
            continue
        if own == "kernels":
            found.append(f"line {line}: kernels/ imports {name}")
        elif other not in LEVEL:
            if not (other == "" or other.startswith("__")) and not hasattr(tinyres, other):
                found.append(f"line {line}: {name} is in no layer; add it to the table")
            elif LEVEL[own] < LEVEL["models"]:
                found.append(f"line {line}: {own} imports the whole package")
        elif LEVEL[other] > LEVEL[own]:
            found.append(f"line {line}: {own} imports {name}, which is above it")
    return found


@pytest.mark.parametrize(("module", "path"), FILES, ids=[module for module, _ in FILES])
def test_imports_point_down(module, path):
    if module == "tinyres.__init__":
        return  # the front door
    assert part_of(module) in LEVEL, f"{module} is in no layer; add it to the table"
    assert not wrong_imports(path.read_text("utf-8"), module)


def test_the_import_check_finds_what_it_looks_for():
    assert wrong_imports("from tinyres.nn import Module", "tinyres.ops.linear")
    assert wrong_imports("def f():\n    import tinyres.train.loop", "tinyres.data.loader")
    assert wrong_imports("from tinyres import models", "tinyres.nn.layers")
    assert wrong_imports("from ..models import resnet20", "tinyres.nn.layers")
    assert wrong_imports("from tinyres.errors import ShapeError", "tinyres.kernels.reference.conv")
    assert wrong_imports("import tinyres", "tinyres.kernels.dispatch")
    assert not wrong_imports("from tinyres.kernels import dispatch", "tinyres.kernels.reference.conv")
    assert not wrong_imports("from tinyres import nn\nfrom . import cifar\nimport numpy", "tinyres.models.mlp")


def test_every_part_of_the_table_is_there_and_every_part_that_is_there_is_in_the_table():
    there = {part_of(module) for module, _ in FILES} - {"__init__"}
    assert there == set(LEVEL)


def import_graph(files: dict[str, str]) -> dict[str, set[str]]:
    """module -> the modules of ``files`` (name -> source) that it imports, those inside functions too."""
    graph = {}
    for module, source in files.items():
        found = set()
        for _, name in imported(source, module):
            while name and name not in files:  # tinyres.nn.module.Module is in tinyres.nn.module
                name = name.rpartition(".")[0]
            found.add(name)
        graph[module] = found - {module, ""}
    return graph


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, or none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        found = next(filter(None, (visit(other, [*path, module]) for other in sorted(graph[module]))), [])
        done.add(module)
        return found

    return next(filter(None, (visit(module, []) for module in sorted(graph))), [])


def test_no_modules_import_one_another_in_a_circle():
    sources = {module.removesuffix(".__init__"): path.read_text("utf-8") for module, path in FILES}
    del sources["tinyres"]  # the front door
    graph = import_graph(sources)
    assert sum(map(len, graph.values())) > 100
    assert not cycle(graph)


def test_a_circle_is_found_within_a_row_too():
    one_row = {
        "tinyres.optim.sgd": "def f():\n    from tinyres.optim import ema",
        "tinyres.optim.ema": "from tinyres.nn.module import Module",
        "tinyres.nn.module": "import tinyres.optim.sgd",
        "tinyres.optim": "from tinyres.optim.sgd import SGD",
    }
    assert cycle(import_graph(one_row)) == ["tinyres.nn.module", "tinyres.optim.sgd", "tinyres.optim.ema"]
    one_row["tinyres.nn.module"] = "import numpy"
    assert not cycle(import_graph(one_row))


def test_the_package_names_no_implementation_but_the_reference():
    """Which backend runs, and what it can do, is asked of `dispatch`."""
    allowed = {"arrays", "contract", "costs", "dispatch", "forks", "recording", "reference"}
    for module, path in FILES:
        if not module.startswith(("tinyres.kernels.", "tinyres.benchmarks.")):
            for line, name in imported(path.read_text("utf-8"), module):
                if name.startswith("tinyres.kernels."):
                    assert name.split(".")[2] in allowed, f"{module}, line {line}: imports {name}"


def test_one_file_alone_imports_numbas_cuda():
    """It is to become a package of its own with parts left out: what has to change for that is in one place."""
    found = {
        module
        for module, path in FILES
        for _, name in imported(path.read_text("utf-8"), module)
        if name == "numba.cuda" or name.startswith("numba.cuda.")
    }
    assert found == {"tinyres.kernels.numba_cuda.runtime"}


def python(script: str, cwd: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, env=env, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_tinyres_loads_numpy_alone(tmp_path):
    others = python(f"import sys, tinyres; print({NOT_AT_IMPORT!r} & set(sys.modules))", tmp_path)
    assert others == "set()"


@pytest.mark.parametrize("part", ["functional", "nn", "models", "optim", "data", "weights", "export"])
def test_a_part_that_is_loaded_on_demand_needs_numpy_alone_too(part, tmp_path):
    assert python(f"import sys, tinyres as tr; tr.{part}; print({NOT_AT_IMPORT!r} & set(sys.modules))", tmp_path) == "set()"


def test_a_bare_checkout_finds_the_kernels_beside_the_package(tmp_path):
    where = python("import tinyres.kernels.reference as r, tinyres; print(tinyres.__file__); print(r.__file__)", tmp_path)
    package, kernels = map(Path, where.splitlines())
    assert package == PACKAGE / "__init__.py" and kernels == folder("kernels") / "reference" / "__init__.py"
