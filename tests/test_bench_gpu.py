"""`tinyres bench gpu`: the whole course of the command, at tiny sizes in the emulation; its figures mean nothing there."""

import json

import numpy as np
import pytest
from backends import require

import tinyres as tr
from tinyres.cli import main


def test_it_goes_through_all_its_parts_and_prints_a_table_last(tmp_path, capsys, monkeypatch):
    require("cuda-emulated")
    monkeypatch.setenv("TINYRES_EMULATOR", "")
    assert main(["bench", "gpu", "--backend", "cuda-emulated", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["benchmark"] == "gpu" and result["tiny"] and "emulated" in result["gpu"]["gpu"]
    failed = {name: part for name, part in result.items() if isinstance(part, str) and part.startswith("failed")}
    assert not failed
    errors = {row["case"]: row["error"] for row in result["parity"]}
    assert len(errors) > 40 and max(errors.values()) < 1e-5
    assert {row["kernel"] for row in result["kernels"]} >= {"conv2d", "batch_norm_backward", "sgd", "cross_entropy"}
    assert all(row["ms"] > 0 and np.isfinite(row["gb_per_s"]) for row in result["bandwidth"])
    assert {row["row"] for row in result["steps"]} == {"cuda-emulated float32", "cuda-emulated bfloat16"}
    assert result["training"]["not_captured"] == "" and len(result["training"]["lines"]) == 1
    assert result["sanitizer"] == {"none": "clean"}
    lines = capsys.readouterr().out.strip().splitlines()
    assert any(line.startswith("parity: ") for line in lines[-20:]) and lines[-1].startswith("written: ")


def test_without_a_gpu_it_says_so_and_what_can_be_run(tmp_path, capsys):
    if not tr.available_backends()["cupy"]:
        pytest.skip("there is a GPU")
    assert main(["bench", "gpu", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "backend cupy cannot run here" in error and "--backend cuda-emulated" in error
    assert main(["bench", "gpu", "--backend", "numba", "--out", str(tmp_path)]) == 2
    assert "not numba" in capsys.readouterr().err
