"""Options from a file, runs with several seeds, and the curves of several runs."""

import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
from test_train_trainer import outcome

import tinyres as tr
from tinyres.cli import main
from tinyres.cli.train import options as declared

SHAPES = tr.data.shapes(n_train=32, n_test=8)
TRAIN = ["train", "--data", "shapes", "--model", "resnet8", "--epochs", "1", "--batch-size", "16", "--backend", "numpy"]


@pytest.fixture(autouse=True)
def small_and_here(monkeypatch, tmp_path):
    monkeypatch.setattr("tinyres.data.shapes", lambda: SHAPES)
    monkeypatch.setattr("tinyres.train.folder.write_curves", lambda path, *rest: path.write_bytes(b"a picture"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.chdir(tmp_path)
    with tr.use_backend("numpy"):
        yield


def fails(capsys: Any, *command: str) -> str:
    assert main(list(command)) == 2
    error = capsys.readouterr().err
    assert error.startswith("tinyres: error: ") and error.count("\n") == 1
    return error


TOML = """
data = "shapes"
model = "resnet8"
backend = "numpy"
epochs = 1
batch-size = 16
optimizer = "adamw"
weight_decay = 0.2
label-smoothing = 0.1
no-augment = true
strict = false
"""
SAME = ["--optimizer", "adamw", "--weight-decay", "0.2", "--label-smoothing", "0.1", "--no-augment"]


@pytest.mark.parametrize("ending", ["toml", "yaml"])
def test_a_file_says_what_the_command_line_would(ending):
    if ending == "yaml":
        pytest.importorskip("yaml", reason="PyYAML is not installed")
    Path(f"o.{ending}").write_text(TOML if ending == "toml" else TOML.replace(" = ", ": "))
    assert main([*TRAIN, *SAME, "--out", "typed"]) == 0
    assert main(["train", "--config", f"o.{ending}", "--out", "read"]) == 0
    assert main(["train", "--config", "typed/config.json", "--out", "again"]) == 0
    assert outcome(Path("typed")) == outcome(Path("read")) == outcome(Path("again"))
    assert main(["train", "--config", f"o.{ending}", "--seed", "7", "--label-smoothing", "0", "--out", "other"]) == 0
    settings = json.loads(Path("other/config.json").read_text())["settings"]
    assert (settings["seed"], settings["optimizer"], "label smoothing" in settings) == (7, "adamw", False)


@pytest.mark.parametrize(
    "text, says",
    [
        ("epoch = 3", "no option epoch; did you mean epochs?"),
        ("zzz = 3", "no option zzz (see tinyres train --help)"),
        ("out = 'x'", "no option out"),
        ("epochs = 'many'", "argument --epochs: expected an integer of at least 1, got 'many'"),
        ("epochs = 1.5", "argument --epochs: expected an integer"),
        ("lr = [1, 2]", "lr has the value [1, 2]; expected one number or text"),
        ("lr = true", "lr has the value True"),
        ("no-augment = 1", "no-augment is true or false, got 1"),
        ("optimizer = 'lion'", "argument --optimizer: invalid choice: 'lion'"),
        ("epochs = ", "cannot be read"),
        ("", ""),
    ],
)
def test_a_wrong_file_is_one_line(text, says, capsys):
    if not text:
        Path("o.toml").write_bytes(b"\xff\xfe")
        assert "cannot be read" in fails(capsys, "train", "--config", "o.toml")
        Path("o.json").write_text("[1]")
        assert "holds no names with values" in fails(capsys, "train", "--config", "o.json")
        Path("o.json").write_text('{"settings": {}, "processes": [], "options": []}')
        assert "was not started by this command" in fails(capsys, "train", "--config", "o.json")
        assert "takes a .toml or .yaml file" in fails(capsys, "train", "--config", "o.ini")
        assert "No such file" in fails(capsys, "train", "--config", "none.toml")
    else:
        Path("o.toml").write_text(text)
        error = fails(capsys, "train", "--config", "o.toml")
        assert says in error and "o.toml" in error
    assert not Path("runs").exists()


def test_every_option_that_a_run_remembers_can_stand_in_a_file():
    import argparse

    from tinyres.cli.config import from_file, words_of

    parser = argparse.ArgumentParser()
    declared(parser)
    values: dict[str, Any] = {}
    for action in parser._actions:
        if action.dest != "help":
            choice = next(iter(action.choices or ()), None)
            values[action.dest] = True if action.nargs == 0 else choice or ("9" if action.type else "text")
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    Path("all.toml").write_text("\n".join(lines))
    found = from_file("all.toml", declared)
    assert {key: str(value).removesuffix(".0") for key, value in found.items()} == {k: str(v) for k, v in values.items()}
    assert len(words_of(found)) > 40


# --- several seeds ---------------------------------------------------------------------------------------------------


def test_seeds_are_trained_one_by_one_and_their_mean_and_deviation_shown(capsys):
    assert main([*TRAIN, "--seeds", "3", "--seed", "5", "--out", "s"]) == 0
    shown = capsys.readouterr().out
    result = json.loads(Path("s/seeds.json").read_text())
    assert [one["seed"] for one in result["results"]] == [5, 6, 7]
    errors = []
    for seed in (5, 6, 7):
        assert main([*TRAIN, "--seed", str(seed), "--out", f"alone-{seed}"]) == 0
        assert outcome(Path(f"s/seed-{seed}")) == outcome(Path(f"alone-{seed}"))
        errors.append(json.loads(Path(f"alone-{seed}/metrics.jsonl").read_text())["test_error"])
    assert [one["last"] for one in result["results"]] == errors
    assert result["mean"]["last"] == pytest.approx(statistics.mean(errors))
    assert result["deviation"]["last"] == pytest.approx(statistics.stdev(errors))
    assert f"{statistics.mean(errors):.2f} ± {statistics.stdev(errors):.2f}" in shown


def test_seeds_go_on_where_they_were_stopped(monkeypatch, capsys):
    from tinyres.train import Trainer

    fit, fits = Trainer.fit, list[str]()

    def stopped(self, *arguments, **options):
        fits.append(self.folder.path.name)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return fit(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "fit", stopped)
    assert main([*TRAIN, "--seeds", "3", "--out", "s"]) == 130
    assert "train --resume --out s\n" in capsys.readouterr().err
    assert "s already holds a run (seeds.json)" in fails(capsys, *TRAIN, "--seeds", "3", "--out", "s")
    assert main(["train", "--resume", "--out", "s"]) == 0
    assert fits == ["seed-0", "seed-1", "seed-0", "seed-1", "seed-2"]
    assert len(json.loads(Path("s/seeds.json").read_text())["results"]) == 3
    Path("s/seeds.json").write_text('{"options": [5]}')
    assert "s/seeds.json does not tell the options of its runs" in fails(capsys, "train", "--resume", "--out", "s")


def test_a_change_on_resuming_is_taken_from_the_command_line_alone(capsys):
    assert main([*TRAIN, "--out", "run"]) == 0
    assert main(["train", "--resume", "--out", "run", "--epochs", "2", "--lr", "0.01"]) == 0
    assert main(["train", "--resume", "--out", "run"]) == 0
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 2
    changes = json.loads(Path("run/config.json").read_text())["changes"]
    assert [change["epochs"] for change in changes] == [[1, 2]]
    capsys.readouterr()
    assert "label smoothing was None" in fails(capsys, "train", "--resume", "--out", "run", "--label-smoothing", "0.1")


# --- curves ----------------------------------------------------------------------------------------------------------


def metrics(folder: str, errors: list[float], held_out: str = "test") -> None:
    Path(folder).mkdir(parents=True)
    lines = [
        {"epoch": i + 1, "train_loss": 1.0, "train_error": 50.0, f"{held_out}_loss": 2.0, f"{held_out}_error": error}
        for i, error in enumerate(errors)
    ]
    Path(folder, "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_runs_are_drawn_together_and_listed(capsys, monkeypatch):
    from tinyres.train import curves

    drawn = []
    monkeypatch.setattr(curves, "write_figure", lambda path, figure: drawn.append(figure))
    metrics("x/one", [40, 30, 35])
    metrics("y/one", [50, 20], "validation")
    metrics("seeds/seed-0", [11, 12])
    metrics("seeds/seed-1", [14, 13])
    assert main(["plot", "x/one", "y/one/metrics.jsonl", "seeds", "--log"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["x/one", "test", "3", "35.00", "30.00", "2"] in shown
    assert ["y/one", "validation", "2", "20.00", "20.00", "2"] in shown
    (right,) = [axes for axes in drawn[0].axes if axes.get_title(loc="left") == "error, %"]
    curves_of = {line.get_label(): (line.get_color(), list(line.get_ydata())) for line in right.lines}
    assert curves_of["x/one: 30.00 % at best"][1] == [40, 30, 35]
    seeds = next(colour for label, (colour, _) in curves_of.items() if "seeds: 11.00 to 13.00 % at best" in label)
    assert [list(line.get_ydata()) for line in right.lines if line.get_color() == seeds and line.get_alpha() is None] == [
        [11, 12],
        [14, 13],
    ]
    assert right.get_yscale() == "log"


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture_is_written(ending):
    metrics("one", [40, 30])
    metrics("two", [41, 20])
    assert main(["plot", "one", "two", "--out", f"p.{ending}"]) == 0
    first = Path(f"p.{ending}").read_bytes()
    assert first[:8] == b"\x89PNG\r\n\x1a\n" if ending == "png" else b"<svg" in first
    assert main(["plot", "one", "two", "--out", f"p.{ending}"]) == 0
    assert Path(f"p.{ending}").read_bytes() == first


HUGE = json.dumps({"epoch": 1, "train_loss": 10**400, "train_error": 1, "test_loss": 1, "test_error": 1})


def test_what_is_no_run_is_one_line(capsys):
    Path("empty").mkdir()
    for content in ("", "{", "[1]", '{"test_error": "x"}', '{"test_error": 1}', HUGE, "[" * 100_000, "\udcff"):
        Path("bad.jsonl").write_bytes(content.encode("utf-8", "surrogateescape"))
        assert "bad.jsonl" in fails(capsys, "plot", "bad.jsonl")
    assert "it has no metrics.jsonl" in fails(capsys, "plot", "empty")
    assert "there is no run none" in fails(capsys, "plot", "none")
    metrics("one", [40])
    assert "must name a file that ends in .png or .svg" in fails(capsys, "plot", "one", "--out", "x.pdf")
    assert "does not exist" in fails(capsys, "plot", "one", "--out", "no/x.png")
