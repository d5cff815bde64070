"""`tinyres where`: the six places of every operation, as they are in the source now."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli_commands import error_of, process

from tinyres import ops
from tinyres.cli import main, places
from tinyres.kernels.contract import FILES

ENTRIES = [*places.operations(), *places.single_kernels()]


def line_of(place):
    return place.path.read_text("utf-8").splitlines()[place.line - 1]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_each_place_is_the_line_that_defines_the_function(entry):
    assert entry.summary
    for title, passes in entry.places().items():
        for found in passes.values():
            if title == places.CALLED:
                assert all(re.search(rf"\b{entry.name}\b", line_of(place)) for place in found)
                continue
            for place in found:
                wanted = "__global__" if place.path.suffix == ".cu" else "def"
                assert re.search(rf"\b{wanted}\b.* {place.name.split('.')[-1]}\(", line_of(place))


def test_every_operation_is_found_and_has_a_kernel_in_every_place_or_in_none():
    assert [entry.name for entry in sorted(places.operations(), key=lambda e: e.name)] == sorted(ops.__all__)
    for entry in places.operations():
        found = entry.places()
        assert list(found) == ["formula", *places.PLACES.values()] or not any(entry.kernels.values())
        for title in ("definition", "NumPy made fast"):
            assert all(len(found[title][name]) == len(used) for name, used in entry.kernels.items() if title in found)


def test_every_kernel_of_the_contract_has_a_definition_and_cuda_code():
    for entry in places.single_kernels():
        found = entry.places()
        definition, reference = (found[title][""][0] for title in ("definition", "NumPy made fast"))
        assert definition.path == places.KERNELS / "naive" / f"{FILES[entry.name]}.py" and not definition.owner
        assert not reference.owner or reference.path.name == "arrays.py"
        sources = [place for place in found["CUDA C++"][""] if place.path.suffix == ".cu"]
        assert sources or entry.name == "cast"  # which is a copy


def test_the_places_of_the_join_and_of_a_convolution():
    join = places.find("add_relu").places()
    assert [place.name for place in join["formula"]["backward"]] == ["AddReLU.backward"]
    assert [place.name for place in join["definition"]["backward"]] == ["relu_backward"]
    assert [place.path.name for place in join["CUDA C++"]["forward"]][1:] == ["join.cu"]
    conv = places.find("Conv2d").places()
    assert [p.name for p in conv["SIMD"]["backward"]] == ["conv2d_backward_input", "conv2d_backward_weight"]
    started = {place.path.name for place in conv["CUDA C++"]["forward"]}
    assert started == {"conv.py", "conv_depthwise.cu", "conv_exact.cu", "conv_tensor_forward.cu", "im2col.cu"}


def test_what_a_backend_leaves_to_the_reference_says_so(capsys):
    (place,) = places.find("note").places()["SIMD"][""]
    assert place.owner == "reference" and place.path == places.KERNELS / "reference" / "step.py"
    assert main(["where", "note"]) == 0
    assert "(the reference's)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["add_relu", "AddReLU", "addrelu"])
def test_names_of_functions_and_of_classes_mean_the_same(name, capsys, monkeypatch):
    monkeypatch.chdir(places.PACKAGE.parent)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["where", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith("AddReLU\n") and "tinyres/ops/join.py:" in out and str(places.PACKAGE) not in out


@pytest.mark.parametrize("columns", ["80", "120", "160"])
def test_a_table_of_all_loses_nothing_to_a_narrow_terminal(columns, capsys, monkeypatch):
    monkeypatch.chdir(places.PACKAGE.parent)
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["where"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= int(columns) and "…" not in out
    for entry in [*places.operations(), *places.other_kernels()]:
        assert re.search(rf"^ *{entry.name} +tinyres/\S+\.py:\d+( |$)", out, re.MULTILINE)


def test_json_says_the_same(capsys):
    assert main(["where", "relu", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["name"] == "ReLU" and entry["kernels"] == {"forward": ["relu"], "backward": ["relu_backward"]}
    (place,) = entry["places"]["definition"]["backward"]
    assert place["name"] == "relu_backward" and Path(place["path"]).name == "elementwise.py"


def test_an_unknown_name_is_one_error_with_the_closest(capsys):
    assert "the closest are Conv2d" in error_of(capsys, main(["where", "conv3d"]))
    error_of(capsys, main(["where", "a name that is like no other"]))


def test_no_backend_is_imported():
    done = process("where", "batch_norm")
    assert done.returncode == 0 and "BatchNorm" in done.stdout
    script = "from tinyres.cli import main; main(['where', 'conv2d']); import sys; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=places.PACKAGE.parent)


# kernels that an operation takes from a file of another name, and why
ELSEWHERE = {
    ("Add", "add"): "an addition may broadcast; where it need not, it is one pass over the elements",
    ("AddReLU", "relu_backward"): "the join's gradient is the ReLU's",
    ("Linear", "cast"): "in mixed precision, dx goes back to the dtype of x",
}


def test_an_operation_and_its_kernels_are_in_files_of_one_name():
    found = {
        (entry.name, kernel)
        for entry in places.operations()
        for kernel in itertools.chain(*entry.kernels.values())
        if entry.formula["forward"][0].path.stem != FILES[kernel]
    }
    assert found == set(ELSEWHERE)
    for folder, kernel in itertools.product(places.PLACES, FILES):
        first = next(iter(places.kernel_places(kernel, folder)), None)
        if first and not first.owner:
            assert first.name == kernel and first.path == places.KERNELS / folder / f"{FILES[kernel]}.py"


def test_the_page_of_the_docs_is_what_the_command_writes(capsys):
    page = Path(__file__).parent.parent / "docs" / "ops.md"
    assert main(["where", "--markdown"]) == 0
    assert capsys.readouterr().out == page.read_text("utf-8"), "tinyres where --markdown > docs/ops.md"
    links = re.findall(r"\]\((.+?)\)", page.read_text("utf-8"))
    assert links and all((page.parent / link).is_file() for link in links)
