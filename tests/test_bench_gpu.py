"""`tinyres bench gpu`: the whole course of the command, at tiny sizes in the emulation; its figures mean nothing there."""

import contextlib
import gc
import json
import sys
import time
import types
import weakref

import numpy as np
import pytest
from backends import require

import tinyres as tr
from tinyres.benchmarks import gpu, gpu_parity, gpu_peers, gpu_run, gpu_steps, peers, plots
from tinyres.cli import main
from tinyres.kernels.cuda import im2col


@pytest.fixture
def emulated():
    require("cuda-emulated")


def tiny(said=None, **changed):
    """A run at tiny sizes; what it says is appended to ``said``."""
    return gpu_run.Run("cuda-emulated", gpu_run.TINY._replace(**changed), (said if said is not None else []).append)


def test_it_goes_through_all_its_parts_and_prints_a_table_last(tmp_path, capsys, emulated):
    assert main(["bench", "gpu", "--backend", "cuda-emulated", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["benchmark"] == "gpu" and result["tiny"] and "emulated" in result["gpu"]["gpu"]
    failed = {name: part for name, part in result.items() if isinstance(part, str) and part.startswith("failed")}
    assert not failed and not result["cut_short"] and set(gpu.PARTS) <= set(result)
    errors = {row["case"]: row["error"] for row in result["parity"]}
    assert len(errors) > 40 and max(errors.values()) < 1e-5
    kernels = {row["kernel"]: row for row in result["kernels"]}
    assert set(kernels) >= {"conv2d", "batch_norm_backward", "sgd", "cross_entropy_mean", "crop_flip"}
    copy = result["limits"]["copy_gb_per_s"]
    for row in result["kernels"]:
        assert row["of_copy"] == pytest.approx(row["gb_per_s"] / copy) and row["of_matmul"] is None
    assert kernels["conv2d"]["bytes"] > 0 and kernels["conv2d"]["flops"] > 0
    bandwidth = {row["kernel"]: row for row in result["bandwidth"]}
    assert all(row["ms"] > 0 and row["of_copy"] == pytest.approx(row["gb_per_s"] / copy) for row in bandwidth.values())
    assert bandwidth["im2col 3x3"]["bytes"] == 4 * (4 * 4 * 32 + 4 * 4 * 9 * 32)  # one image of 4 x 4, and its columns
    assert {row["row"] for row in result["steps"]} == {"cuda-emulated float32", "cuda-emulated bfloat16"}
    assert result["training"]["not_captured"] == "" and len(result["training"]["lines"]) == 1
    assert result["sanitizer"] == {"none": "clean"} and result["compiled"] == "not run: PyTorch has no GPU"

    steps = result["parity_of_steps"]
    assert (steps["model"], steps["batch"], steps["steps"]) == ("resnet8", 2, 3)
    rows = {(row["row"], row["against"]): row for row in steps["rows"]}
    for oracle in ["NumPy float64"] + ["PyTorch float64"] * peers.installed():
        exact, rounded = (rows[f"cuda-emulated {how}", oracle] for how in ("exact", "TF32"))
        assert max(exact["losses"]) < 1e-5 and exact["worst_gradient"] < 1e-4 and exact["worst_parameter"] < 1e-4
        assert len(exact["losses"]) == 3 and exact["gradient"] < rounded["gradient"] < 0.5

    lines = capsys.readouterr().out.strip().splitlines()
    table = lines[lines.index("the kernels against the NumPy path, the copy's bandwidth and the matrix product") :]
    assert any(line.startswith("bn relu 16 32x32 ") for line in table)
    assert any(line.startswith("parity: ") for line in table) and any("BELOW 85%" in line for line in table)
    pictures = [tmp_path / f"{name}.png" for name in ("steps", "bandwidth", "roofline")]
    assert lines[-1] == "written: " + ", ".join(map(str, [tmp_path / "result.json", *pictures]))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert main(["bench", "compare", str(tmp_path / "result.json"), str(tmp_path / "result.json")]) == 0
    assert "1.00x" in capsys.readouterr().out


def test_without_a_gpu_it_says_so_and_what_can_be_run(tmp_path, capsys):
    if not tr.available_backends()["cupy"]:
        pytest.skip("there is a GPU")
    assert main(["bench", "gpu", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "backend cupy cannot run here" in error and "--backend cuda-emulated" in error
    assert main(["bench", "gpu", "--backend", "numba", "--out", str(tmp_path)]) == 2
    assert "not numba" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_an_error_before_anything_is_measured(tmp_path, capsys, emulated, monkeypatch):
    monkeypatch.setattr(gpu, "run", lambda *_: pytest.fail("it began"))
    (tmp_path / "file").touch()
    assert main(["bench", "gpu", "--backend", "cuda-emulated", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- when something fails, or the time is up ---------------------------------------------------------------------------


def test_a_part_that_fails_does_not_lose_the_others_nor_the_picture_of_the_rest(tmp_path, emulated, monkeypatch):
    def fail(one):
        raise MemoryError("no memory\non the card")  # as CuPy's OutOfMemoryError, which is no RuntimeError

    saved = []

    def save(one):
        saved.append(json.loads((tmp_path / "result.json").read_text()))
        return {"copy_gb_per_s": 10.0}

    parts = dict.fromkeys(gpu.PARTS, lambda one, data, out: "not run")
    parts |= {"limits": lambda one, data, out: fail(one), "tests": lambda one, data, out: save(one)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu_peers, "release", lambda: fail(None))  # after a kernel's fault every call of CUDA does
    said = []
    result = gpu.run("cuda-emulated", tmp_path, None, tiny=True, say=said.append)
    assert result["limits"] == "failed: MemoryError: no memory\non the card" and any("Traceback" in text for text in said)
    assert saved[0]["limits"] == result["limits"]  # on disk while the command goes on
    assert "limits: failed: MemoryError: no memory" in gpu.table(result) and plots.draw(result, tmp_path) == []


def test_no_part_begins_when_the_time_is_up(tmp_path, emulated, monkeypatch):
    monkeypatch.setattr(gpu_run, "TINY", gpu_run.TINY._replace(seconds=gpu_run.MARGIN))
    monkeypatch.setattr(gpu, "TINY", gpu_run.TINY)
    result = gpu.run("cuda-emulated", tmp_path, None, tiny=True, say=lambda _: None)
    assert {result[name] for name in gpu.PARTS} == {"left out: no time"}
    assert sum(line.endswith("left out: no time") for line in gpu.table(result)) == len(gpu.PARTS)


def test_a_part_that_is_cut_short_keeps_what_it_has_and_says_so(emulated):
    said = []
    one = tiny(said)
    for item in one.in_time("kernels", ["a", "b", "c"]):
        if item == "b":
            one.began -= one.plan.seconds  # a long measurement
    assert item == "b" and one.cut_short == {"kernels": "2 of 3"} and said == ["cut short: no time after 2 of 3"]
    assert gpu.kernels(one) == [] and one.cut_short["kernels"].startswith("0 of ")


def test_a_training_run_stops_when_the_time_is_up(tmp_path, emulated, monkeypatch):
    one = tiny(seconds=0.0)
    with pytest.raises(gpu_run.OutOfTime, match=r"no time after step 1 of 2 of epoch 1/1"):
        gpu_steps.training(one, tr.data.load("shapes").limit(16, 8), tmp_path)
    monkeypatch.setattr(one, "late", lambda: False)
    monkeypatch.setattr(gpu_steps, "training", lambda *_: (_ for _ in ()).throw(gpu_run.OutOfTime("no time after step 1")))
    assert gpu._outcome(one, "training", lambda: gpu_steps.training()) == "cut short: no time after step 1"


def test_a_network_that_does_not_fit_has_a_row_that_says_so_and_the_next_is_measured(emulated, monkeypatch):
    def of_network(one, model, batch):
        if model == "large":
            raise MemoryError("no memory")
        return [gpu_steps._row(one, model, batch, "torch eager", [2.0]), gpu_steps._row(one, model, batch, "ours", [1.0])]

    monkeypatch.setattr(gpu_steps, "_of_network", of_network)
    rows = gpu_steps.steps(tiny(steps={"large": [8], "small": [8]}))
    assert [(row["model"], row.get("ms")) for row in rows] == [("large", None), ("small", 2.0), ("small", 1.0)]
    lines = gpu._step_lines({"steps": rows, "compiled": "left out: no time"})
    assert "2.00 x torch eager,   2.00 x best torch" in lines[1] and "failed: MemoryError: no memory" in lines[2]


def test_a_command_ends_with_all_that_it_started_when_its_time_is_up(tmp_path):
    """And what it started does not keep us waiting, though it holds the output open."""
    go, late = tmp_path / "go", tmp_path / "late"
    child = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.05)\nopen({str(late)!r}, 'w')"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); print('on', flush=True)"
    words = [sys.executable, "-c", f"{parent}; time.sleep(60)"]
    assert gpu_run.command(words, 3) == (None, "on\n")
    go.touch()
    time.sleep(0.5)
    assert not late.exists()
    assert gpu_run.command([sys.executable, "-c", "import sys; print('no'); sys.exit(3)"], 60) == (3, "no\n")


def test_the_sanitizer_says_what_it_was_cut_short_in(emulated, monkeypatch):
    given = []
    monkeypatch.setattr(gpu, "command", lambda words, seconds: given.append(seconds) or (None, "half"))
    assert gpu.sanitizer(tiny(seconds=90.0)) == {"none": "cut short: no time"} and given[0] < 90
    monkeypatch.setattr(gpu, "command", lambda words, seconds: (9, "ERROR SUMMARY: 3 errors"))
    assert gpu.sanitizer(tiny()) == {"none": "ERROR SUMMARY: 3 errors"}


def test_pytorchs_compiler_gets_the_time_that_is_left(emulated, monkeypatch):
    monkeypatch.setattr(gpu_peers, "available", lambda: True)
    answers = [(0, "autotuning\n[3.0, 1.0, 2.0]\n"), (None, "autotuning\n"), (1, "[1.0]\nno compiler")]
    monkeypatch.setattr(gpu_steps, "command", lambda words, seconds: answers.pop(0))
    assert [row["ms"] for row in gpu_steps.compiled(tiny())] == [2.0]
    assert "still compiling" in gpu_steps.compiled(tiny())[0]["failed"]
    assert gpu_steps.compiled(tiny())[0]["failed"] == "[1.0]\nno compiler"


# --- what is measured is what it is called -----------------------------------------------------------------------------


def test_the_bandwidth_of_im2col_is_that_of_a_whole_column_matrix(emulated, monkeypatch):
    seen, run = [], im2col._im2col

    def record(x, columns, *rest):
        run(x, columns, *rest)
        seen.append((x, columns))

    monkeypatch.setattr(im2col, "_im2col", record)
    gpu.bandwidth(tiny())
    x, columns = seen[0]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))  # (N, H, W, C, 3, 3)
    np.testing.assert_array_equal(columns, windows.transpose(0, 1, 2, 4, 5, 3).reshape(columns.shape))


@pytest.mark.parametrize(("share", "text"), [(0.85, "reaches 85%"), (0.8499, "BELOW 85%"), (None, "no copy")])
def test_each_row_says_whether_it_reaches_what_is_required(share, text):
    assert text in gpu.verdict(share)


def test_parity_of_steps_sees_a_wrong_gradient(emulated, monkeypatch):
    """Of one bias, by one part in a hundred."""
    one = tiny()
    good = gpu_parity._plain("resnet8", gpu_parity.Data(*_images(4), 2))
    bad = good._replace(gradients=[*good.gradients[:-1], 1.01 * good.gradients[-1]])
    found = gpu_parity._distances(one.plan.parity[0], bad, good)
    assert found["worst_gradient"] == pytest.approx(0.01) and found["worst_gradient_of"] == "fc.bias"
    assert found["losses"] == [0, 0] and 0 < found["gradient"] < 0.01 and found["parameters"] == 0


def _images(count):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 3, 32, 32), np.uint8), rng.integers(0, 10, count)


def test_the_products_are_exact_or_not_as_asked_and_the_setting_is_as_before(emulated, monkeypatch):
    from tinyres.kernels.cuda.conv import tf32_allowed

    for before in ("1", None):
        monkeypatch.setenv("TINYRES_TF32", before) if before else monkeypatch.delenv("TINYRES_TF32")
        for allowed in (False, True):
            with gpu_parity._tf32(allowed):
                assert tf32_allowed() == allowed
        assert gpu_parity.os.environ.get("TINYRES_TF32") == before


@pytest.mark.torch
def test_a_captured_step_of_pytorch_keeps_the_arrays_that_its_graph_knows_by_address(monkeypatch):
    import torch

    replayed, stream = [], types.SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": contextlib.nullcontext,
        "graph": contextlib.nullcontext,
        "CUDAGraph": lambda: types.SimpleNamespace(replay=lambda: replayed.append(1)),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("randn", "randint"):
        on_cpu = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, on_cpu=on_cpu, device=None: on_cpu(*args))
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # and as it was, afterwards
    network = peers.network("resnet8")
    weight = weakref.ref(next(network.parameters()))
    replay = gpu_peers.step(network, "torch cuda graph", 2)
    del network
    gc.collect()
    replay()
    assert replayed == [1] and weight() is not None
    del replay
    gc.collect()
    assert weight() is None
