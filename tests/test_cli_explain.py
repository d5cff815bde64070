"""``tinyres explain``: the ledger on a terminal and as JSON, pictures, the page; and one line for every mistake."""

import json
import os
import re
from pathlib import Path

import pytest

import tinyres as tr
from tinyres.cli import main
from tinyres.cli.explain import print_json
from tinyres.data import Loader
from tinyres.kernels import dispatch
from tinyres.train.checkpoint import save_network

SMALL = ["--backend", "numpy", "--batch-size", "8"]
shapes = tr.data.shapes(n_train=16, n_test=6)
MEAN, SCALE = tr.data.normalisation(shapes.train_images, per="channel", divide_std=True)


@pytest.fixture(autouse=True)
def small_data(monkeypatch, tmp_path):
    monkeypatch.setattr("tinyres.data.shapes", lambda: shapes)
    monkeypatch.setattr("tinyres.explain.page.data.DEPTHS", ("plain8",))
    monkeypatch.setattr("tinyres.explain.page.data.DEEP_NET", "resnet8")
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path / "no-data"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("TINYRES_BACKEND", raising=False)
    monkeypatch.chdir(tmp_path)
    with tr.use_backend("numpy"):
        yield


def explain(*arguments):
    return main(["explain", *arguments, *SMALL])


def ledger(net):
    images, labels = shapes.train_images, shapes.train_labels
    return tr.gradient_ledger(
        net, next(iter(Loader(images, labels, 8, shuffle=False, augment=False, mean=MEAN, scale=SCALE)))
    )


def started(name="resnet", seed=0, **options):
    tr.manual_seed(seed)
    return getattr(tr.models, name)(8, **options)


def saved(path, net):
    save_network(path, net, {"name": "resnet8", "shortcut": "A", "num_classes": 10}, MEAN, SCALE, {"data": "shapes"})
    return net


def test_the_table_fits_80_columns_and_says_what_the_ledger_says(capsys):
    assert explain("--model", "resnet8", "--compare", "plain8", "--paths") == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    found = ledger(started())
    for row in found:
        (line,) = [line for line in printed.splitlines() if line.startswith(row.name)]
        cells = line.split()
        assert cells[1] == row.shortcut
        assert [float(c) for c in cells[2:]] == pytest.approx(
            [row.arrives, row.open, row.lent, row.through_shortcut, row.through_branch, row.total, row.ratio, row.cosine],
            rel=0.01,
            abs=0.006,
        )
    assert "adds up in every block" in printed
    assert f"{found.paths.share[2]:.4f}" in printed
    ratio = ledger(started("plain"))[0].total / ledger(started("plain"))[-1].total
    assert re.search(rf"plain8 +0 +3 .* {re.escape(f'{ratio:.3g}')} ", printed)
    assert "\x1b" not in printed


def test_json_is_the_ledger_and_alone_on_standard_output(capsys):
    assert explain("--model", "resnet8", "--shortcut", "B", "--compare", "plain8", "--json", "--picture", "a.svg") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    exact = json.loads(json.dumps(ledger(started(shortcut="B")).json()))
    assert found["ledger"] == exact
    assert found["compare"]["ledger"]["rows"][0]["ratio"] is None
    assert (found["model"], found["seed"], found["batch"], found["backend"]) == ("resnet8", 0, 8, "numpy")
    assert printed.err == "written: a.svg\n"
    picture = Path("a.svg").read_text()
    assert picture.lstrip().startswith("<?xml") and "resnet8" in picture and "plain8" in picture


def test_json_has_no_number_that_json_does_not_know(capsys):
    print_json({"ratio": float("inf"), "rows": [{"cosine": float("nan"), "total": 2.5}]})
    assert json.loads(capsys.readouterr().out) == {"ratio": None, "rows": [{"cosine": None, "total": 2.5}]}


def test_a_run_and_a_file_of_weights_show_their_own_network(capsys):
    net = saved(Path("weights.safetensors"), started(seed=3))
    Path("run").mkdir()
    saved(Path("run/last.safetensors"), net)
    for source in (["run"], ["--checkpoint", "weights.safetensors"], ["--model", "resnet8", "--seed", "3"]):
        assert explain(*source, "--json") == 0
        assert json.loads(capsys.readouterr().out)["ledger"] == json.loads(json.dumps(ledger(net).json()))
    assert explain("run", "--compare", "weights.safetensors", "--picture", "a.png") == 0
    printed = capsys.readouterr().out
    assert "resnet8 of run, shapes, batch 8" in printed and "written: a.png" in printed
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


def test_norms_by_depth_are_those_of_each_network_and_seed(capsys):
    assert explain("--norms", "plain8, resnet8", "--seeds", "2", "--seed", "4", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["networks"]
    assert [(row["model"], row["seed"]) for row in rows] == [(n, s) for n in ("plain8", "resnet8") for s in (4, 5)]
    for row in rows:
        totals = [one.total for one in ledger(started(row["model"][:-1], row["seed"]))]
        assert row["norms"] == pytest.approx(totals, rel=1e-4)
        assert row["first_over_last"] == pytest.approx(totals[0] / totals[-1], rel=1e-4)
        assert row["per_block"] ** 2 == pytest.approx(row["first_over_last"], rel=1e-6)
    assert explain("--norms", "plain8,resnet8", "--picture", "n.svg") == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80 and "first / last" in printed


def page_data(path):
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', Path(path).read_text("utf-8"), re.S)
    assert held
    return json.loads(held[1])


def test_the_page_is_written_of_a_start_and_of_a_run(capsys):
    assert explain("--html", "page.html", "--model", "resnet8", "--train-steps", "2", "--images", "2", "--quick") == 0
    printed = capsys.readouterr().out
    assert "resnet8 was trained for it: 2 steps" in printed and "written: page.html, " in printed
    data = page_data("page.html")
    assert data["meta"]["command"].startswith("tinyres explain --model resnet8")
    assert "--html page.html --quick --train-steps 2 --images 2" in data["meta"]["command"]
    assert len(data["images"]) == 2
    assert data["states"]["start"]["ledger"] == json.loads(json.dumps(ledger(started()).json()["rows"]))
    Path("run").mkdir()
    net = saved(Path("run/last.safetensors"), started(seed=3))
    Path("run/config.json").write_text(json.dumps({"settings": {"seed": 7}}))
    assert explain("run", "--html", "page.html", "--quick") == 0
    data = page_data("page.html")
    assert data["states"]["trained"]["ledger"] == json.loads(json.dumps(ledger(net).json()["rows"]))
    assert data["states"]["start"]["ledger"] == json.loads(json.dumps(ledger(started(seed=7)).json()["rows"]))


def test_a_page_that_is_interrupted_leaves_the_old_one(monkeypatch, capsys):
    Path("page.html").write_text("old")

    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("tinyres.explain.page.data.settings", stop)
    assert explain("--html", "page.html", "--model", "resnet8", "--train-steps", "1") == 130
    assert Path("page.html").read_text() == "old" and os.listdir() == ["page.html"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--quick"], "--quick needs --html"),
        (["--seeds", "3"], "--seeds needs --norms"),
        (["--html", "a.html", "--json"], "--json does not go with --html"),
        (["--norms", "plain8", "--model", "resnet8"], "--model does not go with --norms"),
        (["--norms", ","], "--norms names no network"),
        (["--norms", "plain9"], "got 9"),
        (["run", "--model", "resnet8"], "RUN and --model name two networks"),
        (["run"], "run holds no training run: there is no last.safetensors in it"),
        (["nowhere"], "cannot read nowhere"),
        (["--checkpoint", "w.safetensors", "--shortcut", "B"], "--checkpoint has its own shortcuts"),
        (["run", "--html", "a.html", "--train-steps", "9"], "RUN is trained already"),
        (["--model", "nonsense"], "no network is called 'nonsense'"),
        (["--model", "plain8", "--html", "a.html"], "plain8 has no shortcuts"),
        (["--html", "a.txt"], "--html must name a file that ends in .html or .htm, got 'a.txt'"),
        (["--html", "no/a.html"], "does not exist"),
        (["--html", "folder.html"], "folder.html cannot be written"),
        (["--picture", "a.jpg"], "--picture must name a file that ends in .svg or .png"),
        (["--batch-size", "17", "--model", "resnet8"], "--batch-size 17: shapes has 16 training images"),
        (["--images", "9", "--html", "a.html", "--model", "resnet8"], "9 are more than the batch has"),
        (["--checkpoint", "w.safetensors", "--data", "cifar100"], "cifar100"),
    ],
)
def test_a_mistake_is_one_line_and_status_2_and_nothing_is_written(arguments, said, capsys):
    Path("run").mkdir()
    Path("folder.html").mkdir()
    saved(Path("w.safetensors"), started())
    before = sorted(os.listdir())
    assert main(["explain", *SMALL, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("tinyres: error: ") and printed.err.count("\n") == 1 and said in printed.err
    assert printed.out == "" and sorted(os.listdir()) == before


def test_a_backend_of_another_device_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(dispatch.current(), "device", "cuda")
    assert explain("--model", "resnet8") == 2
    assert "explain works on the CPU, and numpy does not" in capsys.readouterr().err
