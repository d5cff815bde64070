"""The command ``tinyres export``: where it finds weights, where it writes, and what it says."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

import tinyres as tr
from tinyres import models
from tinyres.cli import export as command
from tinyres.cli import main
from tinyres.export import NAMINGS
from tinyres.train import load_network
from tinyres.train.checkpoint import save_network
from tinyres.weights import load_file

MEAN, SCALE = np.float32([0.5, 0.4, 0.3]).reshape(3, 1, 1), np.float32([4, 5, 6]).reshape(3, 1, 1)
onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))), reason="onnx or onnxruntime is not installed"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that is the current one, with a run in it and a file of weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    network = {"name": "resnet8", "shortcut": "B", "num_classes": 3}
    tr.manual_seed(0)
    model = models.build(**network)
    result = {"data": "folder", "source": {"path": "x", "size": 12, "split": 0.2, "seed": 0}}
    for path in ("run/best.safetensors", "weights.safetensors"):
        save_network(Path(path), model, network, MEAN, SCALE, result, ["cat", "dog", "é"])
    return tmp_path


def said(capsys, *words, status=0):
    assert main(["export", *words]) == status
    output = capsys.readouterr()
    return (output.err if status else output.out).strip()


@onnx
def test_a_run_becomes_a_file_of_onnx_beside_it(folder, capsys):
    first, second = said(capsys, "run", "--format", "onnx").splitlines()
    path = os.path.join("run", "best.onnx")
    assert first == f"{path}: resnet8, input (batch, 3, 12, 12), images normalised as in training; logits (batch, 3)"
    assert second.startswith("ONNX Runtime ") and "gives the same logits for random images: the largest" in second
    from onnx import load

    texts = {entry.key: entry.value for entry in load(path).metadata_props}
    assert texts["classes"] == '["cat", "dog", "\\u00e9"]' and '"shortcut": "B"' in texts["network"]
    again = said(capsys, "run", "--format", "onnx", "--normalise", "--size", "16", "--force", "--out", path)
    assert "input (batch, 3, 16, 16), images in 0..1" in again


@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_a_state_dict_is_written_beside_the_weights_and_comes_back(form, naming, folder, capsys):
    ending = {"torch": ".pth", "safetensors": ".safetensors"}[form]
    line = said(capsys, "weights.safetensors", "--format", form, "--naming", naming)
    path = f"weights-{naming}{ending}"
    images = "images with mean 0.5,0.4,0.3 and deviation 0.25,0.2,0.1667"
    assert line == f"{path}: resnet8, a state dict in the naming {naming}, for {images}"
    words = ["--model", "resnet8", "--shortcut", "B", "--mean", "0.5,0.4,0.3", "--std", "0.25,0.2,0.16666667"]
    assert main(["import-weights", path, *words, "--out", "back.safetensors"]) == 0
    back, before = load_network("back.safetensors"), load_network("weights.safetensors")
    arrays = before.model.state_dict()
    assert all(np.array_equal(array, arrays[name]) for name, array in back.model.state_dict().items())
    np.testing.assert_allclose(back.scale, before.scale, rtol=1e-6)


def test_the_names_are_those_of_cifar_s_repositories_unless_others_are_asked_for(folder, capsys):
    said(capsys, "run", "--format", "torch", "--out", "x.pt")
    assert "linear.weight" in load_file("x.pt")[0]
    assert tuple(NAMINGS) == tuple(sorted(command.NAMES, key=list(NAMINGS).index))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("run", "--format"),
        ("run --format keras", "'keras'"),
        ("nothing --format onnx", "nothing does not exist; expected a run's folder, or a file of weights"),
        (". --format onnx", "holds no training run"),
        ("file --format torch", "cannot read file"),
        ("run --format onnx --out there.onnx", "there.onnx exists already, and nothing was changed"),
        ("run --format onnx --out no/x.onnx", "does not exist"),
        ("run --format onnx --out x.pth", "a file that ends in .onnx"),
        ("run --format torch --out x.onnx", "a file that ends in .pth"),
        ("run --format onnx --naming cifar", "--naming is for state dicts, not for --format onnx"),
        ("run --format torch --normalise", "--normalise is for ONNX, not for --format torch"),
        ("run --format torch --size 8", "--size is for ONNX"),
        ("run --format onnx --size 3", "at least 4"),
        ("weights.safetensors --format safetensors --out weights.safetensors --force", "the file of weights itself"),
        ("mobile.safetensors --format torch", "the naming 'cifar' has no names for this network"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, says, folder, capsys, monkeypatch):
    Path("file").write_text("not weights at all")
    Path("there.onnx").write_text("what was there")
    network = {"name": "mobilenet_v2_cifar", "num_classes": 10}
    if "mobile" in words:
        save_network(Path("mobile.safetensors"), models.build(**network), network, MEAN, SCALE)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    line = said(capsys, *words.split(), status=2)
    assert line.startswith("tinyres: error: ") and "\n" not in line and says in line
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_where_nothing_can_be_written_is_said_before_weights_are_read(folder, capsys, monkeypatch):
    monkeypatch.setattr("tinyres.train.load_network", lambda *_: pytest.fail("it was read"))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "its folder is read-only" in said(capsys, "run", "--format", "torch", status=2)


def test_an_import_into_a_folder_that_is_not_there_fails_before_anything_is_read(folder, capsys, monkeypatch):
    monkeypatch.setattr("tinyres.weights.load_file", lambda *_: pytest.fail("it was read"))
    assert main(["import-weights", "weights.safetensors", "--model", "resnet8", "--out", "no/x.safetensors"]) == 2
    assert f"the folder {folder / 'no'} does not exist" in capsys.readouterr().err
