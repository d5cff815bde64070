"""How sure a benchmark is: intervals, comparisons, tables of pages, runs that are interrupted, and other peers."""

import json
import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import tinyres as tr
from tinyres.benchmarks import compare, machine, report, spread, steps, tables, timing
from tinyres.cli import main

ROOT = Path(__file__).parent.parent
MARK = "<!-- tinyres bench table"
PAGES = [page for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if MARK in page.read_text("utf-8")]


def bench(*words):
    return main(["bench", *map(str, words)])


# --- intervals -----------------------------------------------------------------------------------------------------------


def test_quartiles_are_numpy_s():
    for n in (1, 2, 5, 10, 11):
        values = np.random.default_rng(n).random(n).tolist()
        assert spread.quartiles(values) == pytest.approx(np.quantile(values, [0.25, 0.75]))


def test_the_interval_of_a_median_is_the_one_of_the_tables():
    for n, k in ((5, 0), (6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (30, 10), (50, 18)):  # David and Nagaraja's k at 95 %
        values = list(range(n))
        random.Random(n).shuffle(values)
        assert spread.of_median(values) == ((k - 1, n - k) if k else None), n


def test_intervals_hold_the_true_ratio_as_often_as_they_say():
    drawn = np.random.default_rng(0).lognormal(0, 0.3, (2000, 2, 12))
    paired = [spread.of_paired_ratio(a, b) for a, b in drawn.tolist()]
    of_two = [spread.of_ratio(a, (2 * b).tolist()) for a, b in ((one[0].tolist(), one[1]) for one in drawn)]
    assert 0.94 < np.mean([low <= 1 <= high for low, high in paired]) < 0.99
    assert np.mean([low <= 0.5 <= high for low, high in of_two]) > 0.95


# --- comparisons ---------------------------------------------------------------------------------------------------------


def result(seconds, **machine_):
    rows = [{"row": "numba", "median_seconds": float(np.median(seconds)), "seconds": list(seconds)}]
    about = {"processor": "p", "threads": 2, "load": 0.1, "versions": {"numpy": "2.0"}, "environment": {}} | machine_
    return {
        "benchmark": "train",
        "argv": [],
        "complete": True,
        "machine": about,
        "cases": [{"model": "resnet20", "batch": 8, "training": True, "best_peer": None, "rows": rows}],
    }


ONE = [1.00, 1.01, 1.02, 0.99, 0.98, 1.03, 0.97]


@pytest.mark.parametrize(
    ("times", "verdict", "status"),
    [
        ([1.5 * t for t in ONE], "slower", 1),
        ([1.04 * t for t in ONE], "no difference shown", 0),
        ([0.5 * t for t in ONE], "faster", 0),
        ([1.5 * t for t in ONE[:5]], "too few rounds", 2),
    ],
)
def test_a_comparison_says_what_is_sure_and_fails_above(times, verdict, status, tmp_path, capsys):
    for name, seconds in (("a", ONE), ("b", times)):
        report.save(result(seconds), tmp_path / f"{name}.json")
    assert bench("compare", tmp_path / "a.json", tmp_path / "b.json") == 0
    shown = capsys.readouterr().out
    assert f"  {verdict}\n" in shown and "not the same" not in shown
    assert bench("compare", tmp_path / "a.json", tmp_path / "b.json", "--fail-above", "5%") == status
    assert bench("compare", tmp_path / "a.json", tmp_path / "a.json", "--fail-above", "1.05") == 0
    assert bench("compare", tmp_path / "a.json", tmp_path / "b.json", "--fail-above", "none") == 2


def test_a_comparison_warns_of_everything_else_that_differs():
    other = result(ONE, threads=4, simd_bits=256, load=3.0, versions={"numpy": "2.4"}, environment={"OMP_NUM_THREADS": "1"})
    lines = "\n".join(compare.warnings(result(ONE, simd_bits=512), other | {"complete": False}))
    for part in ("threads: 2 and 4", "SIMD width: 512 and 256", "version of numpy: 2.0 and 2.4"):
        assert f"not the same {part}" in lines
    assert "not the same OMP_NUM_THREADS: not set and 1" in lines
    assert "busy before the second run: load 3.0" in lines and "the second result is incomplete" in lines
    assert compare.warnings(result(ONE), result(ONE)) == []


# --- tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_its_results(page):
    text = page.read_text("utf-8")
    assert tables.rewritten(text, page.parent) == text, f"tinyres bench table --rewrite {page.relative_to(ROOT)}"


def test_there_are_such_pages_and_a_wrong_figure_is_noticed_and_mended(tmp_path, capsys):
    assert {page.name for page in PAGES} >= {"README.md", "cpu.md"}
    page = tmp_path / "page.md"
    report.save(result(ONE), tmp_path / "r.json")
    page.write_text("before\n<!-- tinyres bench table r.json -->\n| 9 |\n<!-- end -->\nafter\n")
    assert bench("table", "--rewrite", page) == 0
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after"
    assert "| resnet20, training, batch 8 | 8.00 (7.88 - 8.12) |  |" in lines
    assert bench("table", tmp_path / "r.json") == 0 and lines[4] in capsys.readouterr().out
    assert bench("table") == 2


def test_ratios_are_rounded_down():
    assert tables._ratio([1.999] * 7, [1.0] * 7) == "**1.99** (1.99 - 1.99)"


# --- runs ----------------------------------------------------------------------------------------------------------------


TRAIN = ("train", "--models", "resnet8", "--batch-sizes", "2", "--backends", "numpy", "--peers", "none")


def test_a_run_in_fresh_processes_keeps_their_medians(tmp_path, capsys):
    out = tmp_path / "r.json"
    assert bench(*TRAIN, "--rounds", 2, "--processes", 2, "--out", out) == 0
    found = json.loads(out.read_text())
    (row,) = found["cases"][0]["rows"]
    assert [len(row[key]) for key in ("seconds", "seconds_within")] == [2, 2] and found["processes"] == 2
    assert row["seconds"] == [pytest.approx(np.median(one)) for one in row["seconds_within"]]
    about = found["machine"]
    assert {"load", "cores", "usable_cores", "simd_bits", "memory_gib", "threads", "environment"} <= about.keys()
    assert found["complete"] is True and "started" in found and "commit" in found
    shown = capsys.readouterr().out
    assert "quartiles" in shown and "GFLOP/s*" in shown and "direct-convolution equivalent" in shown


def test_an_interrupted_run_keeps_the_rows_and_rounds_that_it_has(tmp_path, capsys, monkeypatch):
    def stopped(model, batch, rows, rounds, training, into):
        into.seconds.update(numpy=[0.1, 0.2, 0.3])
        into.first.update(numpy=[1.0])
        if batch == 4:
            raise KeyboardInterrupt
        return into

    monkeypatch.setattr(steps, "measure", stopped)
    monkeypatch.setattr(steps, "_memory", lambda *_: {})
    monkeypatch.setattr(machine, "limits", dict)
    out = tmp_path / "new" / "r.json"
    assert bench(*TRAIN[:4], "2,4,8", *TRAIN[5:], "--rounds", 9, "--out", out) == 130
    assert "has the 2 rows measured so far, marked as incomplete" in capsys.readouterr().err
    found = report.load(out)
    assert [case["batch"] for case in found["cases"]] == [2, 4] and found["complete"] is False
    row = found["cases"][1]["rows"][0]
    assert row["seconds"] == [0.1, 0.2, 0.3] and row["first_seconds"] == 1.0


def test_a_place_that_cannot_be_written_is_an_error_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps, "run", lambda *_, **__: pytest.fail("it measured"))
    (tmp_path / "file").write_text("")
    (tmp_path / "r").write_text("")
    for out in (tmp_path / "file" / "r.json", tmp_path / "r.json", tmp_path / "r.txt"):
        assert bench(*TRAIN, "--out", out) == 2, out


def test_the_first_call_is_in_no_rate():
    calls = []

    def row():
        calls.append(None)
        if len(calls) == 1:
            timing.time.sleep(0.05)

    timed = timing.interleaved({"row": row}, 3)
    assert timed.first["row"][0] > 0.04 > max(timed.seconds["row"]) and len(timed.seconds["row"]) == 3


# --- peers ---------------------------------------------------------------------------------------------------------------


OTHERS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "jax jit": "jax"}


@pytest.mark.parametrize("row", [row for row, package in OTHERS.items() if find_spec(package)])
@pytest.mark.parametrize("name", ["resnet8", "plain8", "resnet164"])
def test_other_peers_compute_the_same_network(row, name):
    from tinyres.benchmarks import networks, peers

    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    tr.manual_seed(0)
    net = networks.ours(name).eval()
    tr.manual_seed(0)
    theirs = np.asarray(peers.step(name, row, images, np.zeros(3, np.int64), False)())
    with tr.no_grad():
        ours = net(tr.tensor(images)).numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * max(1, np.abs(ours).max()))


if find_spec("jax"):

    @pytest.mark.parametrize("name", ["resnet8", "plain8"])
    def test_jax_trains_the_same_network(name):
        from tinyres.benchmarks import peers

        rng = np.random.default_rng(0)  # as `make_step` draws
        images, labels = rng.standard_normal((4, 3, 32, 32), np.float32), rng.integers(0, 10, 4)
        tr.manual_seed(0)
        theirs, ours = peers.step(name, "jax jit", images, labels, True), steps.make_step(name, 4, "numpy")
        for _ in range(3):
            assert float(theirs()) == pytest.approx(ours().item(), rel=2e-4)
