"""The labs: rules that can go either way, runs that are resumed and spread, and results that follow from their runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tinyres
from tinyres.cli import main
from tinyres.errors import UsageError
from tinyres.explain.page.lesions import Cuts
from tinyres.lab import NAMES, find, images
from tinyres.lab.experiment import FAILS, HOLDS, OPEN, Run, conclude
from tinyres.lab.landscape import not_convex
from tinyres.lab.report import markdown_report
from tinyres.lab.running import Task, finite, perform
from tinyres.lab.statistics import above, below, difference, digits, holds, interval
from tinyres.lab.study import judged, study

ROOT = Path(tinyres.__file__).parent.parent
DOCS = ROOT / "docs"


# --- rules ---------------------------------------------------------------------------------------------------------------


def test_a_difference_counts_if_student_s_interval_does_not_hold_zero():
    # 2.776 * sqrt(2/3) = 2.267 standard deviations, with three seeds each
    a = [-1.0, 0.0, 1.0]
    assert above("", [v + 2.26 for v in a], a).sign == 0 and above("", [v + 2.27 for v in a], a).sign == 1
    assert below("", [v + 2.27 for v in a], a).sign == -1 and below("", [v - 2.27 for v in a], a).sign == 1
    low, high = interval([1.0, 2.0, 3.0])
    np.testing.assert_allclose([low, high], [2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5])
    assert above("", [1.0, 2.0, 3.0], -0.5).sign == 1 and above("", [1.0, 2.0, 3.0], -0.4).sign == 0


def test_one_seed_no_seed_and_what_is_not_finite_decide_nothing():
    for values in ([5.0], [], [float("nan"), 5.0], [float("inf"), 5.0]):
        assert above("", values, 0).sign == 0 and below("", values, 0.0).sign == 0
        assert above("", values, [1.0, 1.1, 1.2]).sign == 0
    assert difference([1.0], [1.0, 2.0]) == (-np.inf, np.inf)


def test_an_interval_must_hold_the_theory_and_be_narrow():
    assert holds("", [0.49, 0.5, 0.51], 0.5).sign == 1
    assert holds("", [0.49, 0.5, 0.51], 0.6).sign == -1
    assert holds("", [0.1, 0.5, 0.9], 0.5).sign == 0  # it holds everything


def test_a_claim_holds_by_all_its_checks_and_fails_by_one():
    assert conclude([1, 1]) == HOLDS and conclude([1, 0]) == OPEN and conclude([0, -1]) == FAILS and conclude([]) == OPEN


def test_numbers_are_shown_to_three_digits():
    shown = ["0.00123", "12.3", "1234", "1.2e-5", "3.0e7", "not finite"]
    assert [digits(v) for v in (0.0012345, 12.3456, 1234.5, 1.2e-5, 3e7, float("nan"))] == shown


@pytest.fixture(params=[name for name in NAMES if (DOCS / "labs" / name / "result.json").exists()])
def committed(request):
    result = json.loads((DOCS / "labs" / request.param / "result.json").read_text("utf-8"))
    return find(request.param), result, [Run.read(one) for one in result["runs"]]


def rounded(value):
    """Numbers to nine digits: another processor adds in another order."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def test_the_verdicts_in_the_documents_follow_from_the_runs_by_the_rules_in_the_code(committed):
    lab, result, runs = committed
    found = finite(judged(lab, runs, result["config"]))
    for claim, known in zip(found["claims"], result["claims"], strict=True):
        assert claim == known
    assert found["verdict"] == result["verdict"] and rounded(found["numbers"]) == rounded(result["numbers"])
    assert result["complete"] and result["scale"] == "quick" and result["seeds"] >= 3
    assert {(json.dumps(s), seed) for s in lab.settings(result["config"]) for seed in range(result["seeds"])} <= {
        (json.dumps(r.setting), r.seed) for r in runs
    }


def test_a_claim_whose_numbers_change_their_sign_changes_its_verdict(committed):
    """Every claim, on the numbers of its own result: with their sign turned what was larger is smaller; a hundredfold they
    are beyond every bound.
    """
    lab, result, _ = committed
    numbers = {name: one["values"] for name, one in result["numbers"].items()}
    for claim in lab.claims:
        verdict, checks = claim.verdict(numbers)
        turned = [claim.verdict({n: [f * v for v in values] for n, values in numbers.items()})[0] for f in (-1, 100)]
        if verdict == HOLDS:
            assert FAILS in turned, claim.text
        same, _ = claim.verdict({name: [1.0 + 0.1 * k for k in range(3)] for name in numbers})
        assert same != HOLDS, claim.text
        assert checks


def test_shuffled_labels_leave_degradation_open():
    lab = find("degradation")
    numbers = json.loads((DOCS / "labs/degradation/result.json").read_text("utf-8"))["numbers"]
    numbers = {name: one["values"] for name, one in numbers.items()}
    assert lab.claims[0].verdict(numbers)[0] == HOLDS
    control = json.loads((DOCS / "labs/degradation-shuffled/result.json").read_text("utf-8"))
    assert control["config"]["shuffle_labels"] and control["verdict"] == OPEN
    learned = {name: one["values"] for name, one in control["numbers"].items()}
    assert min(learned["resnet56, training loss"]) > 1 and lab.claims[0].verdict(learned)[0] == OPEN
    deep = lab.claims[0].verdict({name: [v / 3 for v in values] for name, values in numbers.items()})
    assert deep[0] == HOLDS  # the rule looks at differences, not at sizes


def test_the_page_of_the_labs_is_that_of_the_results():
    found = [(find(n), json.loads((DOCS / "labs" / n / "result.json").read_text("utf-8"))) for n in NAMES]
    folders = {name: DOCS / "labs" / name for name in NAMES}
    assert markdown_report(found, folders, DOCS / "labs.md") == (DOCS / "labs.md").read_text("utf-8")
    for name in NAMES:
        assert {"figure.png", "figure.svg", "page.md"} <= {p.name for p in folders[name].iterdir()}


# --- statistics of single labs -------------------------------------------------------------------------------------------


def test_a_bowl_is_convex_a_saddle_is_not_and_a_step_is_in_parts():
    x, y = np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21))
    assert not_convex(x**2 + 3 * y**2 + x * y) == 0
    assert not_convex(x**2 - y**2) == 1 and not_convex(x * y) == 1
    assert not_convex(x**2 - 0.01 * y**2) == 0  # bent, but not by enough
    assert 0.3 < not_convex(np.cos(3 * x) + 0 * y) < 0.7


def test_cuts_are_those_of_the_net_with_its_parts_taken_out():
    tinyres.manual_seed(0)
    net, random = tinyres.models.resnet(14), np.random.default_rng(0)
    x, labels = random.standard_normal((40, 3, 16, 16)).astype(np.float32), random.integers(0, 10, 40)
    for bn in (m for m in net.modules() if isinstance(m, tinyres.nn.BatchNorm2d)):
        bn.weight.data[...] = random.uniform(0.5, 2, bn.weight.shape)

    def error(model):
        return float(np.mean(model.eval()(tinyres.tensor(x)).data.argmax(1) != labels))

    cuts = Cuts(net, x, labels)
    assert cuts.whole() == error(net)
    net.layer2[1].bn2.weight.data[...] = net.layer2[1].bn2.bias.data[...] = 0
    assert cuts.without_branch(3) == error(net)
    swapped = replace_blocks(tinyres.models.resnet(14), Cuts(net, x, labels).chain.model)
    first, second = list(swapped.layer1)
    first_state, second_state = first.state_dict(), second.state_dict()
    first.load_state_dict(second_state)
    second.load_state_dict(first_state)
    assert Cuts(net, x, labels).swapped(0) == error(swapped)


def replace_blocks(new, old):
    new.load_state_dict({name.replace("shortcut.shortcut", "shortcut"): a for name, a in old.state_dict().items()})
    return new


# --- running -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_lab_runs_and_writes_what_it_should_and_no_more_the_second_time(name, tmp_path):
    result = study(name, tmp_path, "tiny", seeds=1, jobs=0)
    assert {p.name for p in tmp_path.iterdir()} == {"result.json", "figure.png", "figure.svg", "page.md"}
    assert json.loads((tmp_path / "result.json").read_text("utf-8")) == finite(result)
    assert {claim["verdict"] for claim in result["claims"]} == {OPEN} == {result["verdict"]}  # one seed decides nothing
    before = (tmp_path / "result.json").read_bytes()
    assert study(name, tmp_path, "tiny", seeds=1, jobs=0) and (tmp_path / "result.json").read_bytes() == before


def command(*arguments):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return [sys.executable, "-m", "tinyres", "lab", *map(str, arguments)], env


def runs_in(folder):
    try:
        return json.loads((folder / "result.json").read_text("utf-8"))["runs"]
    except FileNotFoundError:
        return []


def results(folder):
    return [{k: v for k, v in run.items() if k != "seconds"} for run in runs_in(folder)]


def test_a_lab_that_was_killed_goes_on_and_gives_the_same_numbers_as_one_that_was_not(tmp_path):
    line, env = command("degradation", "--scale", "tiny", "--backend", "numba", "--jobs", 2, "--out", tmp_path / "killed")
    process = subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for _ in range(3000):  # kernels may have to be compiled first
        if runs_in(tmp_path / "killed") or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    there = results(tmp_path / "killed")
    assert 0 < len(there) < 15
    with tinyres.use_backend("numba"):
        study("degradation", tmp_path / "killed", "tiny", jobs=1)
        study("degradation", tmp_path / "whole", "tiny", jobs=2)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert all(run in results(tmp_path / "killed") for run in there)


def test_a_run_whose_process_dies_is_run_again(tmp_path):
    """The first process that is about to train is killed."""
    mark, site = tmp_path / "died", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, pathlib, sys, threading, time\n"
        "def die():\n"
        "    mark = pathlib.Path(os.environ['DIES_ONCE'])\n"
        "    while 'tinyres.train.trainer' not in sys.modules:\n"
        "        time.sleep(0.01)\n"
        "    try:\n"
        "        mark.touch(exist_ok=False)\n"
        "    except FileExistsError:\n"
        "        return\n"
        "    os.kill(os.getpid(), 9)\n"
        "if any('spawn_main' in a for a in sys.orig_argv):\n"
        "    threading.Thread(target=die, daemon=True).start()\n"
    )
    line, env = command("degradation", "--scale", "tiny", "--seeds", 1, "--jobs", 2, "--out", tmp_path / "out")
    env |= {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "DIES_ONCE": str(mark)}
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert mark.exists() and len(runs_in(tmp_path / "out")) == 5


def test_two_workers_of_a_cluster_one_of_which_is_killed_give_the_same_result(tmp_path):
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    script = (
        "import os, signal, sys, threading, time\n"
        "import dask\n"
        "dask.config.set({'distributed.worker.daemon': False, 'distributed.scheduler.allowed-failures': 5})\n"
        "import tinyres\n"
        "from distributed import LocalCluster\n"
        "from tinyres.lab.study import study\n"
        "if __name__ == '__main__':\n"
        "    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)\n"
        "    victims = [w.pid for w in cluster.workers.values()]\n"
        "    result = os.path.join(sys.argv[1], 'result.json')\n"
        "    def kill():\n"
        "        while not os.path.exists(result):\n"
        "            time.sleep(0.05)\n"
        "        os.kill(victims[0], signal.SIGKILL)\n"
        "    threading.Thread(target=kill, daemon=True).start()\n"
        "    tinyres.use_backend('numba')\n"
        "    study('degradation', sys.argv[1], 'tiny', scheduler=cluster.scheduler_address)\n"
        "    print('workers', len(victims))\n"
        "    cluster.close()\n"
    )
    (tmp_path / "cluster.py").write_text(script)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TINYRES_THREADS": "1"}
    line = [sys.executable, str(tmp_path / "cluster.py"), str(tmp_path / "cluster")]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "workers 2" in done.stdout, done.stderr
    with tinyres.use_backend("numba"):
        study("degradation", tmp_path / "here", "tiny", jobs=2)
    assert results(tmp_path / "cluster") == results(tmp_path / "here") and len(runs_in(tmp_path / "here")) == 15


def test_what_a_long_run_keeps_is_continued_and_then_removed(tmp_path, monkeypatch):
    config = {**images.TINY, "images": 32, "epochs": 3}
    data = images.small(config)
    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt), images.checkpoints_in(str(kept)):
        monkeypatch.setattr(images.Trainer, "_stop_or_save", stop_after(3, images.Trainer._stop_or_save))
        images.trained("resnet8", data, 0, config)
    monkeypatch.undo()
    assert (kept / "last.safetensors").exists()
    with images.checkpoints_in(str(kept)):
        again = images.curve(images.trained("resnet8", data, 0, config))
    assert not kept.exists() and again == images.curve(images.trained("resnet8", data, 0, config))


def stop_after(steps, usual):
    def stop_or_save(self):
        nonlocal steps
        steps -= 1
        if steps == 0:
            self._interrupt.asked = True
        return usual(self)

    return stop_or_save


def test_labels_are_shuffled_by_the_seed_and_images_shrunk_by_means():
    config = images.TINY
    plain, one, other = images.small(config), *(images.small({**config, "shuffle_labels": True}, s) for s in (0, 1))
    assert sorted(one.train_labels) == sorted(plain.train_labels)
    assert not np.array_equal(one.train_labels, plain.train_labels) and not np.array_equal(
        one.train_labels, other.train_labels
    )
    square = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    assert np.array_equal(images.shrunk(square, 2)[0, 0], [[2, 4], [10, 12]])  # 2.5, 4.5, ...: halves to even
    with pytest.raises(UsageError, match="cannot be shrunk to 5 x 5; it must divide both"):
        images.shrunk(square, 5)


def test_a_net_that_diverges_is_a_result(tmp_path):
    result = study("degradation", tmp_path, "tiny", seeds=2, jobs=0, changes={"lr": 1e30, "depths": [8]})
    assert np.isnan(result["numbers"]["plain8, training loss"]["values"]).all() and result["verdict"] == OPEN
    assert "| plain8, training loss | not finite |" in (tmp_path / "page.md").read_text("utf-8")


def test_what_is_not_finite_is_none_in_a_result_and_numbers_are_python_s():
    got = finite({1: np.float32(1 / 3), "b": [np.nan, np.inf, np.int64(3), True], "c": np.array([1.5])}, 6)
    assert got == {"1": 0.333333, "b": [None, None, 3, True], "c": [1.5]}
    assert type(got["1"]) is float and type(got["b"][2]) is int


def test_a_run_leaves_backend_and_modes_as_they_were():
    before = tinyres.get_backend()
    perform(Task("which-way", {"net": "plain", "gain": 1.0}, 0, find("which-way").scales["tiny"], "numpy"))
    assert tinyres.get_backend() == before and tinyres.is_grad_enabled()


# --- errors --------------------------------------------------------------------------------------------------------------


def fails(capsys, *arguments):
    assert main(["lab", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tinyres: error: ") and error.count("\n") == 1
    return error


def test_what_does_not_exist_is_named_with_what_does(capsys, tmp_path):
    out = ["--scale", "tiny", "--out", tmp_path / "new"]
    assert "no lab is called 'degradaton'; did you mean degradation?" in fails(capsys, "degradaton", *out)
    assert "there are which-way, degradation" in fails(capsys, "zzz", *out)
    assert "degradation has no setting 'colour'; it has depths, data" in fails(
        capsys, "degradation", "--set", "colour=1", *out
    )
    assert 'epochs must be like 2, got "many"' in fails(capsys, "degradation", "--set", "epochs=many", *out)
    assert "depths must be like 8, got true" in fails(capsys, "degradation", "--set", "depths=true", *out)
    assert "expected NAME=VALUE" in fails(capsys, "degradation", "--set", "epochs", *out)
    assert "epochs must be a number of at least 1, got 0" in fails(capsys, "degradation", "--set", "epochs=0", *out)
    assert "points must be a number of at least 3, got 2" in fails(capsys, "landscape", "--set", "points=2", *out)
    with pytest.raises(UsageError, match="no scale is called 'huge'; there are quick, full, tiny"):
        study("identity", tmp_path / "new", "huge")
    assert "--set is for a single lab" in fails(capsys, "all", "--set", "epochs=1", *out)
    assert "give one of them" in fails(capsys, "degradation", "--jobs", 1, "--scheduler", "tcp://127.0.0.1:1", *out)
    assert "--html must name a file that ends in .html" in fails(capsys, "all", "--html", "x.txt", *out)
    assert not (tmp_path / "new").exists()


def test_a_scheduler_that_does_not_answer_is_one_line(tmp_path):
    line, env = command("which-way", "--scale", "tiny", "--scheduler", "nonsense://x", "--out", tmp_path)
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "--scheduler: no scheduler answers at nonsense://x" in done.stderr.splitlines()[-1]


def test_results_of_other_settings_and_what_is_no_result_stay_as_they_are(capsys, tmp_path):
    study("which-way", tmp_path, "tiny", seeds=1, jobs=0)
    before = (tmp_path / "result.json").read_bytes()
    told = fails(capsys, "which-way", "--scale", "tiny", "--set", "batch=2", "--out", tmp_path)
    assert f"{tmp_path} holds results of another config; choose another --out, or delete the folder" in told
    assert "holds results of another lab" in fails(capsys, "degradation", "--scale", "tiny", "--out", tmp_path)
    assert (tmp_path / "result.json").read_bytes() == before
    for damaged in (
        b"{",
        b"[]",
        b'{"lab": 1}',
        before.replace(b'"runs"', b'"ruins"'),
        before.replace(b'"result": {', b'"result": 3, "r": {'),
        before.replace(b'"seed": 0', b'"seed": 1000000000000'),  # as many runs would be wanted
    ):
        (tmp_path / "result.json").write_bytes(damaged)
        assert "is not what a lab writes" in fails(capsys, "which-way", "--scale", "tiny", "--out", tmp_path)
    (tmp_path / "result.json").write_bytes(before.replace(b'"factor"', b'"fector"'))
    assert "is not what a lab writes" in fails(
        capsys, "which-way", "--scale", "tiny", "--seeds", 1, "--jobs", 1, "--out", tmp_path
    )


def test_the_list_and_a_report_of_all(capsys, tmp_path):
    assert main(["lab", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in NAMES)
    one = tmp_path / "labs"
    study("which-way", one, "tiny", seeds=1, jobs=0)
    html = tmp_path / "report.html"
    assert main(["lab", "which-way", "--scale", "tiny", "--seeds", "1", "--out", str(one), "--html", str(html)]) == 0
    text = html.read_text("utf-8")
    assert "data:image/svg+xml;base64," in text and "not decided at this scale" in text and 'id="which-way"' in text
