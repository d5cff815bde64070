"""The command ``tinyres``: what it prints, and that every mistake ends with one line on standard error and status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyres as tr
from tinyres import models
from tinyres.cli import main
from tinyres.data import Dataset
from tinyres.weights import save_safetensors

SMALL = ["train", "--data", "shapes", "--model", "resnet8", "--epochs", "1", "--batch-size", "8", "--backend", "numpy"]


@pytest.fixture(autouse=True)
def small_data_and_quick_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr("tinyres.data.shapes", lambda: shapes)
    monkeypatch.setattr("tinyres.train.folder.write_curves", lambda path, *rest: path.write_bytes(b"a picture"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path / "no-data"))
    monkeypatch.delenv("TINYRES_BACKEND", raising=False)
    monkeypatch.chdir(tmp_path)
    with tr.use_backend("numpy"):
        yield


shapes: Dataset = tr.data.shapes(n_train=24, n_test=6)


def tinyres(*arguments: str) -> int:
    return main(list(arguments))


def train(*more: str) -> int:
    return tinyres(*SMALL, *more)


def error_of(capsys: pytest.CaptureFixture[str], status: int) -> str:
    """The one line on standard error of a command that failed as it should."""
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("tinyres: error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    return error


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command as a process, found wherever the package under test lies."""
    assert tr.__file__
    environment = {**os.environ, "PYTHONPATH": str(Path(tr.__file__).parent.parent)}
    return subprocess.run(
        [sys.executable, "-m", "tinyres", *arguments],
        text=True,
        timeout=120,
        **{"capture_output": True, "env": environment, **options},
    )


# --- what it prints -----------------------------------------------------------------------------------------------------


def test_help_and_version_as_a_process() -> None:
    version = process("--version")
    assert (version.returncode, version.stdout) == (0, f"tinyres {tr.__version__}\n")
    text = process("train", "--help").stdout
    assert all(option in text for option in ("--resume", "--recipe", "--validation", "onecycle", "he2015", "Ctrl-C"))


@pytest.mark.parametrize(
    "command", ["train", "eval", "explain", "info", "data", "import-weights", "export", "summary", "where", "bench"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        tinyres(command, "--help")
    assert end.value.code == 0
    assert "usage: tinyres " + command in capsys.readouterr().out
    assert command in process_help(capsys)


def process_help(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        tinyres("--help")
    return capsys.readouterr().out


def test_train_then_eval_then_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--limit-train", "16") == 0
    printed = capsys.readouterr()
    assert "resnet8, 75,290 parameters, on shapes: 16 training and 6 test images" in printed.out
    assert "onecycle: 1 epochs of 2 steps, batch 8, lr 0.025; kernels: numpy; folder: runs/shapes-resnet8" in printed.out
    assert "\nepoch 1/1  loss " in printed.out
    assert "best test error: " in printed.out
    assert "\x1b" not in printed.out
    assert printed.err == ""
    line = json.loads(Path("runs/shapes-resnet8/metrics.jsonl").read_text())
    for name in ("last", "best"):
        assert tinyres("eval", f"runs/shapes-resnet8/{name}.safetensors") == 0
        tested = capsys.readouterr().out
        assert tested.startswith("resnet8 on 6 test images of shapes: accuracy ")
        assert f"error {line['test_error']:.2f} %, loss {line['test_loss']:.4f}" in tested
    assert tinyres("train", "--resume", "--out", "runs/shapes-resnet8") == 0
    assert "all epochs are done" in capsys.readouterr().out


def test_resume_takes_the_options_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shortcut", "B", "--seed", "5", "--no-augment", "--validation", "8", "--lr", "0.01", "--recipe", "he2015"]
    assert train(*options, "--out", "here") == 0
    first = capsys.readouterr().out
    assert tinyres("train", "--resume", "--out", "here") == 0
    again = capsys.readouterr().out
    assert again.splitlines()[:3] == first.splitlines()[:3]
    assert again.splitlines()[-1] == first.splitlines()[-1]
    settings = json.loads(Path("here/config.json").read_text())["settings"]
    assert settings["network"]["shortcut"] == "B"
    assert (settings["seed"], settings["augment"], settings["recipe"]) == (5, False, "he2015")


def test_summary_counts_parameters_and_multiply_adds(capsys: pytest.CaptureFixture[str]) -> None:
    assert tinyres("summary", "resnet20") == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-2:] == ["269,722", "40,551,040"]
    assert tinyres("summary", "resnet20", "--shortcut", "B") == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-2:] == ["272,474", "40,813,184"]


def test_info_tells_versions_kernels_data_and_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyres.available_backends", lambda: {"numpy": "", "cuda": "there is no GPU"})
    monkeypatch.setattr("tinyres.explain_dispatch", lambda: [("numpy", "conv2d", "groups", 3)])
    assert tinyres("info") == 0
    text = capsys.readouterr().out
    for part in (
        tr.__version__,
        np.__version__,
        "cores",
        "numpy: yes (in use)",
        "cuda: no: there is no GPU",
        "conv2d fell back to the reference 3 times: groups",
        "cifar10: not here; tinyres data get cifar10",
        f"TINYRES_DATA={os.environ['TINYRES_DATA']}",
        "TINYRES_BACKEND is not set",
    ):
        assert part in text


def test_data_list_tells_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert tinyres("data", "list") == 0
    text = capsys.readouterr().out
    assert "cifar100  60,000 photographs" in text
    assert "not here; tinyres data get cifar100" in text


def test_weights_from_elsewhere_are_imported_and_tested(capsys: pytest.CaptureFixture[str]) -> None:
    arrays = models.build("resnet8", shortcut="A", num_classes=10).state_dict()
    theirs = {f"module.{name.replace('fc.', 'linear.')}": array for name, array in arrays.items()}
    save_safetensors("theirs.safetensors", theirs)
    assert tinyres("import-weights", "theirs.safetensors", "--model", "resnet8", "--out", "ours.safetensors") == 0
    assert "75,290 parameters, 10 classes, for images with mean (0.485, 0.456, 0.406)" in capsys.readouterr().out
    assert tinyres("eval", "ours.safetensors", "--data", "shapes", "--limit-test", "5") == 0
    assert "resnet8 on 5 test images of shapes" in capsys.readouterr().out
    loaded = tr.train.load_network(Path("ours.safetensors"))
    np.testing.assert_allclose(loaded.mean.ravel(), (0.485, 0.456, 0.406), rtol=1e-6)
    np.testing.assert_allclose(1 / loaded.scale.ravel(), (0.229, 0.224, 0.225), rtol=1e-6)

    assert (
        tinyres(
            "import-weights",
            "theirs.safetensors",
            "--model",
            "resnet8",
            "--out",
            "more.safetensors",
            "--mean",
            "0,0,0",
            "--std",
            "1, 1,1",
        )
        == 0
    )
    assert (tr.train.load_network(Path("more.safetensors")).scale == 1).all()


# --- mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "COMMAND"),
        ("dance", "'dance'"),
        ("train --model resnet8000x", "no network is called 'resnet8000x'"),
        ("train --model resnet21", "the nearest are 20 and 26"),
        ("train --model plain8 --shortcut A", "plain8 takes no option shortcut"),
        ("train --shortcut D", "'D'"),
        ("train --data imagenet", "'imagenet'"),
        ("train --data cifar10", "tinyres data get cifar10"),
        ("train --data cifar10 --data-dir nowhere", "nowhere"),
        ("train --recipe magic", "'magic'"),
        ("train --epochs -3", "--epochs: expected an integer of at least 1, got '-3'"),
        ("train --epochs 0", "--epochs: expected an integer of at least 1"),
        ("train --epochs 1e3", "--epochs: expected an integer of at least 1"),
        ("train --batch-size 0", "--batch-size"),
        ("train --batch-size 25", "from 1 to the 24 training images"),
        ("train --lr nan", "--lr: expected a number above 0, got 'nan'"),
        ("train --lr inf", "--lr"),
        ("train --lr 0", "--lr"),
        ("train --lr fast", "--lr"),
        ("train --seed -1", "--seed"),
        ("train --save-every -1", "--save-every"),
        ("train --limit-train 25", "shapes has 24 train images"),
        ("train --limit-test 7", "shapes has 6 test images"),
        ("train --validation 24", "validation"),
        ("train --backend magic", "there is no backend 'magic'"),
        ("train --unknown", "--unknown"),
        ("train --mod resnet8", "--mod"),
        ("train --out file/run", "file"),
        ("train --out file", "file"),
        ("eval nothing.safetensors", "nothing.safetensors"),
        ("eval .", ". holds no training run"),
        ("eval file", "file"),
        ("eval file --backend magic", "there is no backend 'magic'"),
        ("import-weights file --model resnet20 --out new", "file"),
        ("import-weights nothing --model resnet20 --out file", "file exists already, and nothing was changed"),
        ("import-weights nothing --model resnet20 --out new --mean 1,2", "three numbers"),
        ("import-weights nothing --model resnet20 --out new --std 1,2,x", "--std"),
        ("import-weights nothing --model resnet20 --out new --std 1,2,0", "above 0"),
        ("summary resnet9", "the nearest are"),
        ("summary", "MODEL"),
        ("data", "list|get"),
        ("data get shapes", "'shapes'"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_was_wrong(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("not weights at all")
    words = arguments.split()
    if words[:1] == ["train"]:
        words += ["--data", "shapes"] if "--data" not in words else []
        words += ["--model", "resnet8"] if "--model" not in words else []
        words += ["--batch-size", "8"] if "--batch-size" not in words else []
    error = error_of(capsys, tinyres(*words))
    assert says in error
    assert Path("file").read_text() == "not weights at all"
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_a_run_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    train()
    before = {path.name: path.read_bytes() for path in Path("runs/shapes-resnet8").iterdir()}
    capsys.readouterr()
    error = error_of(capsys, train())
    assert "already holds a run" in error
    assert "--resume" in error
    assert {path.name: path.read_bytes() for path in Path("runs/shapes-resnet8").iterdir()} == before


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--seed 1", "seed was 0 and is 1 now"),
        ("--limit-train 9", "training images was 24 and is 9 now"),
        ("--no-augment", "augment was True and is False now"),
        ("--shortcut B", "network was"),
        ("--recipe he2015", "recipe was 'onecycle' and is 'he2015' now"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(option: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    train("--out", "run")
    capsys.readouterr()
    assert says in error_of(capsys, tinyres("train", "--resume", "--out", "run", *option.split()))


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_damaged_checkpoint_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    train("--out", "run")
    capsys.readouterr()
    path = Path(f"run/{name}.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    if name == "last":
        assert "run/last.safetensors" in error_of(capsys, tinyres("train", "--resume", "--out", "run"))
    assert f"run/{name}.safetensors" in error_of(capsys, tinyres("eval", str(path)))


@pytest.mark.parametrize("options", [["--epochs", "x"], ["--dance"], [5], "text", None])
def test_a_checkpoint_with_impossible_options_is_one_line(options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from tinyres.train import checkpoint

    train("--out", "run")
    capsys.readouterr()
    arrays, momentum, texts = checkpoint.read(Path("run/last.safetensors"))
    texts["run"]["options"] = options
    checkpoint.write(Path("run/last.safetensors"), arrays, momentum, texts)
    error = error_of(capsys, tinyres("train", "--resume", "--out", "run"))
    assert "run/last.safetensors does not tell the options of its run" in error


def test_a_network_of_other_classes_is_not_tested(capsys: pytest.CaptureFixture[str]) -> None:
    model = models.build("resnet8", num_classes=3)
    description = {"name": "resnet8", "num_classes": 3}
    tr.train.save_network(Path("three.safetensors"), model, description, np.float32(0), np.float32(1))
    error = error_of(capsys, tinyres("eval", "three.safetensors", "--data", "shapes"))
    assert "tells 3 classes apart and shapes has 10" in error


def test_a_learning_rate_that_is_too_high_ends_with_the_op_and_a_good_checkpoint(
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    error = error_of(capsys, train("--lr", "1e30", "--out", "run", "--save-every", "0"))
    assert "Try a lower learning rate than 1e+30; run/last.safetensors is the last good checkpoint" in error
    assert "epoch 1/1, step " in error
    arrays, _, _ = tr.train.checkpoint.read(Path("run/last.safetensors"))
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert not recwarn.list


def test_a_variable_without_meaning_is_one_line() -> None:
    for name, says in (("TINYRES_THREADS", "TINYRES_THREADS is 'many'"), ("TINYRES_BACKEND", "no backend 'many'")):
        ended = process("info", env={**os.environ, name: "many", "PYTHONPATH": str(Path(tr.__file__).parent.parent)})
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert says in ended.stderr


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in error_of(capsys, train("--out", "run"))


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr("tinyres.train.Trainer.fit", none_left)
    assert "not enough memory (Unable to allocate 9 TiB); try a smaller --batch-size" in error_of(capsys, train())


def test_ctrl_c_before_the_training_is_one_word(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tinyres.data.shapes", pressed)
    assert train() == 130
    assert capsys.readouterr().err == "\ntinyres: interrupted\n"


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("tinyres.train.Trainer.fit", broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        train()


def test_a_reader_that_has_gone_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    ended = process("summary", "resnet20", stdout=write, stderr=subprocess.PIPE, capture_output=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")
