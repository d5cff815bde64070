"""What a user meets at the prompt: names to complete, help, types, and what an object shows of itself."""

import ast
import base64
import dataclasses
import importlib
import importlib.metadata
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
import textwrap
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinyres as tr
import tinyres.functional as F
from tinyres import markup

PARTS = [
    "autograd",
    "data",
    "errors",
    "explain",
    "export",
    "functional",
    "lab",
    "models",
    "nn",
    "ops",
    "optim",
    "train",
    "weights",
]
MODULES = [tr, *(importlib.import_module(f"tinyres.{part}") for part in [*PARTS, "nn.init"])]
ON_DEMAND = [tr.capture, tr.draw, tr.gradient_ledger, tr.profile, tr.trace, tr.watch]


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
    ours = "tinyres.functional", "tinyres.losses", "tinyres.norms"
    own = {name for name, value in vars(tr.functional).items() if getattr(value, "__module__", "") in ours}
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


def test_help_of_a_network_has_its_shapes():
    nets = {name: value for name, value in PUBLIC.items() if name.startswith("tinyres.models.")}
    assert [name for name, value in nets.items() if "->" not in doc_of(value)] == ["tinyres.models.build"]


@pytest.mark.parametrize("name", OPERATIONS | LAYERS)
def test_help_of_an_operation_has_formula_and_shapes(name):
    text = doc_of(PUBLIC[name])
    assert "->" in text or name.startswith("tinyres.ops.")
    assert re.search(r"=|max\(|mean of|means of", text)


def test_help_of_an_optimizer_has_its_update_rule():
    optimizers = [value for value in PUBLIC.values() if inspect.isclass(value) and tr.optim.Optimizer in value.__bases__]
    assert {tr.optim.SGD, tr.optim.AdamW} <= {*optimizers}
    assert [value for value in optimizers if not re.search(r"\bp = ", doc_of(value))] == []


@pytest.mark.parametrize("name", [name for name in OPERATIONS if ".functional." in name])
def test_help_of_a_function_names_errors_and_its_operation(name):
    assert re.search(r"Raises\s+`\w+Error`", doc_of(PUBLIC[name]))


@pytest.mark.parametrize("checker", [name for name in ("mypy", "pyright") if importlib.util.find_spec(name)])
def test_type_checkers_know_the_package_and_find_what_is_wrong(checker, tmp_path):
    """As installed by pip, if it was; CI installs it as the README says."""
    script = shutil.copy(Path(__file__).parent / "typed_script.py", tmp_path)
    options = ["--hide-error-context", "--no-color-output"] if checker == "mypy" else ["--pythonpath", sys.executable]
    installed = any(found.metadata["Name"] == "tinyres" for found in importlib.metadata.distributions())
    environment = os.environ | ({} if installed else {"MYPYPATH": str(Path(tr.__file__).parents[1])})
    command = [sys.executable, "-m", checker, *options, script]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    wrong = [i for i, line in enumerate(Path(script).read_text("utf-8").splitlines(), 1) if line.endswith("# wrong")]
    assert sorted({int(line) for line in re.findall(r"typed_script\.py:(\d+):.*error", said)}) == wrong, said


@pytest.fixture(scope="module")
def objects():
    """Objects of which a careless repr shows thousands of lines or numbers, with what the first line says of them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 3, 60, 80), np.uint8)
    names = tuple(f"<b>class {i}" for i in range(14))
    data = tr.data.Dataset("<b>", images, np.arange(30) % 14, images[:7], np.zeros(7, np.int64), names)
    model = tr.models.resnet(32)
    with tr.use_backend("numpy"):
        summary = tr.nn.summary(model)
        with tr.profile(model) as profile:
            F.cross_entropy(model(tr.tensor(images[:2].astype(np.float32))), np.array([1, 2])).sum().backward()
    optimizer = tr.optim.SGD([{"params": [p], "lr": 0.5} for p in model.parameters()], lr=0.1)
    loader = tr.data.Loader(images, data.train_labels, 4, augment=False)
    scaler = tr.optim.GradScaler()
    return {
        "Dataset('<b>': 30 training and 7 test images of 3x60x80, 14 classes)": data,
        "Summary(CifarResNet: 78 calls of layers, 464,154 parameters, 68,862,592 multiply-adds)": summary,
        "profile of CifarResNet, ": profile,
        "profile of all that ran, 0 s:": tr.profile(),
        "SGD of 95 tensors": optimizer,
        "StepLR(iteration 0: lr 0.5, 0.5, 0.5, 0.5, 0.5 and 90 more groups)": tr.optim.StepLR(optimizer, 5),
        "Loader(30 images of 3x60x80 in 8 batches of 4, shuffled; next is batch 0 of epoch 0)": loader,
        "EMA(of 157 tensors of CifarResNet, decay=0.9)": tr.optim.EMA(model, 0.9),
        "GradScaler(scale 65536)": scaler,
    }


def test_what_is_shown_at_the_prompt_fits_a_screen(objects):
    for first, value in objects.items():
        lines = repr(value).splitlines()
        assert lines[0].startswith(first)
        assert len(lines) <= 24 and max(map(len, lines)) <= 100, repr(value)


def named(objects, start):
    return next(value for first, value in objects.items() if first.startswith(start))


def test_a_long_profile_keeps_the_longest_kernels_and_the_rest(objects):
    profile = named(objects, "profile of Cifar")
    shown, table = repr(profile).splitlines(), profile.table().splitlines()
    left_out = len(profile.by("kernel")) - (len(shown) - 5)
    assert shown[1:-3] == table[: len(shown) - 4] and shown[-2:] == table[-2:]
    assert shown[-3] == f"... and {left_out} kernels more: see table() and by()"


def test_a_notebook_shows_the_images_of_each_class(objects):
    data = named(objects, "Dataset")
    small = dataclasses.replace(data, train_images=data.train_images[:, :, :20, :30])
    html = small._repr_html_()
    assert "<b>" not in html and "&lt;b&gt;class 9 (2)" in html and "&lt;b&gt;class 10" not in html
    assert "and 4 more classes" in html
    pictures = [Image.open(io.BytesIO(base64.b64decode(found))) for found in re.findall(r"base64,([^\"]+)", html)]
    assert len(pictures) == 10
    expected = np.concatenate([small.train_images[i] for i in (1, 15, 29)], axis=2).transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(pictures[1]), expected)
    large = Image.open(io.BytesIO(base64.b64decode(re.findall(r"base64,([^\"]+)", data._repr_html_())[1])))
    assert large.size == (3 * 80 * 48 // 60, 48)


def cells_of(html):
    rows = re.findall("<tr>(.*?)</tr>", html)
    return [tuple(unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)) for row in rows]


def test_a_notebook_shows_tables(objects):
    summary, profile = named(objects, "Summary"), named(objects, "profile of Cifar")
    _, *rows, total = cells_of(summary._repr_html_())
    assert rows == [row.cells() for row in summary.rows] and total[-2:] == ("464,154", "68,862,592")
    _, *rows, rest = cells_of(profile._repr_html_())
    assert [name for name, *_ in rows] == [name for (name,) in profile.by("kernel")] and rest[0] == "in no kernel"
    assert all(
        " ".join(row).split() == line.split() for row, line in zip(rows, profile.table().splitlines()[1:-2], strict=True)
    )
    assert "nothing was measured" in tr.profile()._repr_html_()


def test_texts_in_tables_are_escaped():
    html = markup.table(("<a>",), [("<script>",)], ("&",))
    assert "<a>" not in html and "<script>" not in html and "&amp;" in html


def test_the_oldest_packages_that_are_tried_are_those_that_setup_allows():
    tests = Path(__file__).parent
    required = (tests.parent / "setup.py").read_text("utf-8").split("install_requires=[")[1].split("],")[0]
    allowed = dict(re.findall(r'"([\w-]+)>=([\d.]+)[";]', required))
    tried = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (tests / "oldest.txt").read_text("utf-8"), re.M))
    assert len(allowed) == required.count(">=") and allowed.keys() == tried.keys()
    assert [name for name in allowed if not f"{tried[name]}.".startswith(f"{allowed[name]}.")] == []
