"""What a user meets at the prompt: names to complete, help, types, and what an object shows of itself."""

import ast
import importlib
import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import tinyres as tr

PARTS = ["autograd", "data", "errors", "explain", "functional", "lab", "models", "nn", "ops", "optim", "train", "weights"]
MODULES = [tr, *(importlib.import_module(f"tinyres.{part}") for part in [*PARTS, "nn.init"])]
ON_DEMAND = [tr.draw, tr.gradient_ledger, tr.profile, tr.trace, tr.watch]


def offered(module):
    """The functions and classes of a module that are ours: constants have no help of their own."""
    return [
        value
        for value in (getattr(module, name) for name in module.__all__)
        if hasattr(value, "__name__") and not inspect.ismodule(value)
    ]


PUBLIC = {f"{value.__module__}.{value.__name__}": value for module in MODULES for value in offered(module)}
PUBLIC |= {f"{value.__module__}.{value.__name__}": value for value in ON_DEMAND}
OPERATIONS = {name: value for name, value in PUBLIC.items() if name.startswith(("tinyres.functional.", "tinyres.ops."))}
LAYERS = {name: value for name, value in PUBLIC.items() if name.startswith("tinyres.nn.layers.")}


def doc_of(value):
    return inspect.cleandoc((vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or "")


def parts_of(value):
    """A function; of a class, its constructor and its own public methods."""
    if not inspect.isclass(value):
        return [value]
    own = [item for name, item in vars(value).items() if name == "__init__" or not name.startswith("_")]
    return [item for item in own if inspect.isfunction(item) and item.__module__ == value.__module__]


def raised_in(function):
    """The errors that a function raises itself, by name."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except OSError:  # of a dataclass: made, not written
        return set()
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {call.func.id for call in calls if isinstance(call.func, ast.Name)} & {*tr.errors.__all__}


def test_completion_offers_public_names_alone():
    def others(module):
        return {name for name in dir(module) if not re.fullmatch("__[a-z]+__", name)}

    assert others(tr) == {*tr.__all__, *PARTS, *(value.__name__ for value in ON_DEMAND)}
    for module in MODULES[1:]:
        assert others(module) == {*module.__all__}, module.__name__


def test_each_name_that_is_offered_is_there():
    for module in MODULES:
        assert [name for name in dir(module) if not hasattr(module, name)] == []


def test_all_functions_of_functional_are_public():
    own = {name for name, value in vars(tr.functional).items() if getattr(value, "__module__", "") == "tinyres.functional"}
    assert {name for name in own if name.islower() and not name.startswith("_")} == {*tr.functional.__all__}


@pytest.mark.parametrize("name", PUBLIC)
def test_help_says_what_it_does_and_which_errors_it_raises(name):
    value, text = PUBLIC[name], doc_of(PUBLIC[name])
    assert len(text) > 10, "no docstring of its own"
    for part in parts_of(value):
        unnamed = {error for error in raised_in(part) if error not in text and error not in (part.__doc__ or "")}
        assert not unnamed, f"{part.__name__} raises {unnamed}"


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isclass(value)])
def test_help_of_a_class_explains_its_arguments(name):
    value, text = PUBLIC[name], doc_of(PUBLIC[name])
    if "__init__" in vars(value) and not name.startswith(("tinyres.autograd", "tinyres.errors")):
        names = [n for n in inspect.signature(value).parameters if n not in ("args", "kwargs")]
        assert [n for n in names if not re.search(rf"\b{n}\b", text)] == []


@pytest.mark.parametrize("name", OPERATIONS | LAYERS)
def test_help_of_an_operation_has_formula_and_shapes(name):
    text = doc_of(PUBLIC[name])
    assert "->" in text or name.startswith("tinyres.ops.")
    assert re.search(r"=|max\(|mean of|means of", text)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if ".functional." in name])
def test_help_of_a_function_names_errors_and_its_operation(name):
    assert re.search(r"Raises\s+`\w+Error`", doc_of(PUBLIC[name]))


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_know_the_package_and_find_what_is_wrong(checker, tmp_path):
    """As installed by pip, if it was; CI installs it as the README says."""
    if not importlib.util.find_spec(checker):
        pytest.skip(f"{checker} is not installed")
    script = shutil.copy(Path(__file__).parent / "typed_script.py", tmp_path)
    options = ["--hide-error-context", "--no-color-output"] if checker == "mypy" else ["--pythonpath", sys.executable]
    installed = any(found.metadata["Name"] == "tinyres" for found in importlib.metadata.distributions())
    environment = os.environ | ({} if installed else {"MYPYPATH": str(Path(tr.__file__).parents[1])})
    command = [sys.executable, "-m", checker, *options, script]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    wrong = [i for i, line in enumerate(Path(script).read_text("utf-8").splitlines(), 1) if line.endswith("# wrong")]
    assert sorted({int(line) for line in re.findall(r"typed_script\.py:(\d+):.*error", said)}) == wrong, said
