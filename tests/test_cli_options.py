"""Options and variables: one parser of names, files checked before the work, help that fits, mistakes that are named."""

import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

import tinyres as tr
from tinyres.benchmarks import peers
from tinyres.cli import COMMANDS, VARIABLES, main, parser
from tinyres.kernels.arrays import compile_listeners
from tinyres.train import Trainer, progress
from tinyres.train.step import Step

ROOT = Path(__file__).parent.parent
SHAPES = tr.data.shapes(n_train=16, n_test=6)
WHAT = [command for name in COMMANDS for command in (name.__name__.rpartition(".")[2],)]


@pytest.fixture(autouse=True)
def small_and_here(monkeypatch, tmp_path):
    monkeypatch.setattr("tinyres.data.shapes", lambda: SHAPES)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.delenv("TINYRES_BACKEND", raising=False)
    monkeypatch.chdir(tmp_path)
    with tr.use_backend("numpy"):
        yield


def typed(line, *more):
    return [*line.split(), *more]


def train(*more):
    return main(typed("train --data shapes --model resnet8 --backend numpy --epochs 1 --batch-size 8", *more))


# --- names of networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet8", "plain14"])
def test_every_command_knows_every_network(name, capsys):
    for command in (
        typed("summary", name),
        typed("explain --batch-size 4 --backend numpy --model", name),
        typed("bench train --batch-sizes 2 --rounds 1 --no-torch --backends numpy --models", name),
        typed("train --data shapes --backend numpy --epochs 1 --batch-size 8 --out run --model", name),
    ):
        assert main(command) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["resnet21", "resnet08", "resnet9999999", "plain", "vgg16", "", "resnet-20", "resnet\u0661\u0664"]
)
def test_every_command_refuses_what_is_none(name, capsys, tmp_path):
    for command in (
        ["summary", name],
        ["explain", "--model", name],
        ["explain", "--norms", f"plain8,{name}x"],
        ["bench", "train", "--models", f"resnet8,{name}x", "--no-torch"],
        ["bench", "profile", "--model", name],
        ["train", "--data", "shapes", "--model", name],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("tinyres: error: ") and len(error.splitlines()) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.torch
@pytest.mark.parametrize("name", ["plain8", "resnet8"])
def test_the_peer_is_the_same_network(name):
    import torch

    mine, theirs = tr.models.build(name), peers.network(name)
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in theirs.parameters())
    shapes = [sorted(tuple(p.shape) for p in net.parameters()) for net in (mine, theirs)]
    assert shapes[0] == shapes[1]
    with torch.no_grad():  # without its branches, a plain net passes nothing on, and a residual net its input
        for block in (part for part in theirs if hasattr(part, "convs")):
            for conv in block.convs:
                conv.weight.zero_()
        x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32))
        y = theirs.eval()(x)
    assert torch.equal(y[0], y[1]) == name.startswith("plain")


# --- files -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["train"], ["ops"], ["profile"]])
@pytest.mark.parametrize("out", ["a.txt", "folder.json", "run.json/x.json", "fifo.json"])
def test_a_result_that_cannot_be_written_is_an_error_before_it_is_measured(command, out, capsys, monkeypatch, tmp_path):
    for module, name in (("steps", "run"), ("layers", "run"), ("floors", "run")):
        monkeypatch.setattr(f"tinyres.benchmarks.{module}.{name}", lambda *given: pytest.fail("it was measured"))
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "run.json").write_text("")
    os.mkfifo(tmp_path / "fifo.json")
    assert main(["bench", *command, "--out", out]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tinyres: error: --out") and out.split("/")[0] in error and len(error.splitlines()) == 1


def test_a_benchmark_compares_no_networks_that_differ(capsys, monkeypatch):
    """resnet50 is ImageNet's here, and PyTorch's part would take it for a CIFAR net of 50 layers."""
    from tinyres.benchmarks import peers

    monkeypatch.setattr(peers, "missing", lambda library: "")
    for name in ("resnet50", "preresnet20", "mobilenet_v2_cifar", "wrn40_2"):
        assert main(typed("bench train --batch-sizes 2 --rounds 1 --models", name)) == 2
        assert f"{name}: the peers have no such network" in capsys.readouterr().err
    assert peers.has("resnet20") and peers.has("plain8") and peers.has("resnet164")


def test_a_result_is_written_into_a_new_folder(tmp_path, capsys):
    bench = typed("bench train --models plain8 --batch-sizes 2 --rounds 1 --no-torch --backends numpy")
    assert main([*bench, "--out", "new/a.json"]) == 0
    assert json.loads((tmp_path / "new/a.json").read_text())["cases"][0]["model"] == "plain8"


def test_a_run_s_folder_is_tested_by_its_best_network(capsys, tmp_path):
    assert train("--out", "run") == 0
    best = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("best test error")).split()[3]
    assert main(["eval", "run", "--backend", "numpy"]) == 0
    assert f"error {best} %" in capsys.readouterr().out
    (tmp_path / "run/best.safetensors").unlink()
    assert main(["eval", "run", "--backend", "numpy"]) == 0
    (tmp_path / "run/last.safetensors").unlink()
    capsys.readouterr()
    assert main(["eval", "run"]) == 2 and "run holds no training run" in capsys.readouterr().err


def test_a_network_is_tested_on_other_images_and_that_is_said(capsys, monkeypatch):
    assert train("--out", "run") == 0
    capsys.readouterr()
    parts = ("train_images", "train_labels", "test_images", "test_labels", "classes")
    other = tr.data.Dataset("cifar10", *(getattr(SHAPES, part) for part in parts))
    monkeypatch.setattr("tinyres.data.load", lambda name, root=None: other)
    assert main(["eval", "run", "--data", "cifar10", "--backend", "numpy"]) == 0
    printed = capsys.readouterr().out
    assert "trained on shapes" in printed and "test images of cifar10" in printed


# --- help and mistakes -----------------------------------------------------------------------------------------------------


def commands():
    """Every command line that has a --help."""
    found = []

    def walk(one, words):
        found.append(words)
        for action in one._actions:
            if hasattr(action, "choices") and isinstance(action.choices, dict):
                for name, sub in action.choices.items():
                    walk(sub, [*words, name])

    walk(parser(), [])
    return found


@pytest.mark.parametrize("width", ["60", "80", "120"])
def test_help_fits_the_terminal(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    assert len(commands()) > 12
    for words in commands():
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("usage: tinyres") and max(map(len, lines)) <= int(width), words


def test_a_wrong_option_names_the_help_of_its_own_command(capsys):
    mistakes = {"train": "--modle x", "bench ops": "--x", "eval": "", "where": "-q", "bench": "", "data get": "x --y"}
    for prog, wrong in mistakes.items():
        assert main([*prog.split(), *wrong.split()]) == 2
        assert capsys.readouterr().err.rstrip().endswith(f"(see tinyres {prog} --help)")


def test_variables_are_checked_before_anything_is_written(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TINYRES_BACKEND", "nunba")
    assert main(["train", "--data", "shapes", "--model", "resnet8", "--epochs", "1"]) == 2
    assert "there is no backend 'nunba'; did you mean numba?" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
    monkeypatch.setenv("TINYRES_BACKEND", "numpy")
    monkeypatch.setenv("TINYRES_THREAD", "2")
    assert main(["summary", "resnet8"]) == 0
    assert (
        capsys.readouterr().err
        == "note: the variable TINYRES_THREAD means nothing to tinyres; did you mean TINYRES_THREADS?\n"
    )


# --- training --------------------------------------------------------------------------------------------------------------


def test_a_short_run_is_told_that_it_is_short(capsys):
    assert train("--out", "a") == 0
    assert "note: 2 steps are few for a learning rate of 0.025" in capsys.readouterr().out
    assert train("--out", "b", "--lr", "0.01") == 0 and train("--out", "c", "--recipe", "he2015") == 0
    assert "note:" not in capsys.readouterr().out


def test_the_compilation_of_kernels_is_said_and_counts_in_no_rate(monkeypatch):
    said, step = [], Step.run

    class Display(progress.Silent):
        def message(self, text):
            said.append(text)

    def slow(self, *given):
        time.sleep(0.3)
        for listener in compile_listeners:
            listener(0.3)
        return step(self, *given)

    monkeypatch.setattr(Step, "run", slow)
    began = time.perf_counter()
    (line,) = Trainer("resnet8", SHAPES, epochs=1, batch_size=4, display=Display()).fit()
    assert time.perf_counter() - began > 1.2 > 4 * 0.3 - 0.01 and compile_listeners == []
    assert sum("compiling kernels" in text for text in said) == 1
    taken = line["seconds"]
    monkeypatch.setattr(Step, "run", step)
    (fast,) = Trainer("resnet8", SHAPES, epochs=1, batch_size=4, display=progress.Silent()).fit()
    assert taken < fast["seconds"] + 1.0 and line["images_per_second"] == pytest.approx(16 / taken, rel=0.1)


@pytest.mark.parametrize(
    "error", [RuntimeError("no font [bold]\x1b"), ImportError("no matplotlib"), OSError(28, "full"), TypeError("x")]
)
def test_a_picture_that_fails_ends_no_training(error, capsys, monkeypatch, tmp_path):
    def fail(*given):
        raise error

    monkeypatch.setattr("tinyres.train.folder.write_curves", fail)
    assert train("--out", "run", "--epochs", "2") == 0
    printed = capsys.readouterr().out
    assert printed.count("no curves.png") == 1 and type(error).__name__ in printed and "\x1b" not in printed
    assert (tmp_path / "run/best.safetensors").exists()


# --- packaging -------------------------------------------------------------------------------------------------------------


def test_the_source_archive_holds_what_its_tests_need(tmp_path):
    pytest.importorskip("setuptools")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "sdist",
        "--dist-dir",
        str(tmp_path),
        "egg_info",
        "--egg-base",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\n")
    wanted = [f for f in listed if f.startswith(("tests/", "kernels/", "tinyres/", "benchmarks/", "docs/", "examples/"))]
    assert (
        set(wanted) - held == set() and {"README.md", "LICENSE", "pyproject.toml", "setup.py", "tests/backends.py"} <= held
    )


def test_advice_to_install_works_from_a_checkout():
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    texts += [path for part in ("tinyres", "kernels", "benchmarks") for path in (ROOT / part).rglob("*.py")]
    assert len(texts) > 100 and [path for path in texts if "pip install 'tinyres" in path.read_text("utf-8")] == []


def test_every_variable_that_the_readme_explains_means_something():
    table = (Path(__file__).parent.parent / "README.md").read_text("utf-8").split("## Environment")[1]
    names = re.findall(r"`(TINYRES_[A-Z0-9_]+)`", table)
    assert len(names) > 8 and set(names) <= set(VARIABLES)
