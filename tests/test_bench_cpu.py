"""`tinyres bench ops`, `train`, `profile` and `compare` at tiny sizes; PyTorch is timed at the same work as ours."""

import json

import numpy as np
import pytest

import tinyres as tr
from tinyres.benchmarks import layers, steps
from tinyres.cli import main
from tinyres.kernels import reference
from tinyres.kernels.costs import cost

BATCH = 2
CASES = {case.name: case for case in layers.cases(BATCH)}


def bench(*words):
    return main(["bench", *map(str, words)])


def first(result):
    """The first array of a result that may be a tuple of tuples."""
    while isinstance(result, tuple | list):
        result = next(r for r in result if r is not None)
    return result


@pytest.mark.torch
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.torch and case.kernel != "sgd"])
def test_pytorch_is_timed_at_the_same_work(name, layout):
    import torch

    case = CASES[name]
    theirs = first(case.torch(getattr(torch, layout))()).numpy()
    args = [a.copy("K") if isinstance(a, np.ndarray) else a for a in case.args]
    ours = getattr(reference, case.kernel)(*args)
    ours = args[0] if ours is None else first(ours)  # (in place)
    np.testing.assert_allclose(theirs.reshape(ours.shape), ours, atol=2e-4)


@pytest.mark.torch
def test_the_update_is_timed_at_the_same_parameters():
    case = CASES["sgd resnet20"]
    optimizer = case.torch(None).__self__
    assert [tuple(p.shape) for p in optimizer.param_groups[0]["params"]] == [p.shape for p in case.args[0]]
    assert optimizer.defaults["momentum"] == case.args[4] and optimizer.defaults["weight_decay"] == case.args[5]


def test_each_kernel_of_a_training_step_and_of_an_evaluation_is_a_case():
    profile = tr.profile()
    with tr.use_backend("numpy"), profile:
        steps.make_step("resnet20", BATCH, None)()
        steps.make_step("resnet20", BATCH, None, training=False)()
    called = {kernel for (kernel,) in profile.by("kernel")}
    assert {"conv2d_backward_weight", "accumulate", "batch_norm_inference"} <= called
    assert called <= {case.kernel for case in CASES.values()}


def test_a_step_whose_loss_is_scaled_can_be_profiled():
    model = tr.nn.Linear(3, 2)
    optimizer, scaler = tr.optim.SGD(model.parameters(), lr=0.1), tr.optim.GradScaler(init_scale=2.0)
    with tr.use_backend("numpy"), tr.profile() as profile:
        scaler.backward(model(np.ones((4, 3), np.float32)).sum())
        scaler.step(optimizer)
        scaler.update()
    record = profile.by("kernel")["unscale",]
    assert record.calls == 1 and record.flops == 8 and record.bytes == 2 * 4 * 8 + 4 + 4  # 6 weights, 2 biases; scale, found


def test_costs_are_those_of_the_formulas():
    x = np.zeros((2, 3, 4, 4), np.float32)
    w = np.zeros((5, 3, 3, 3), np.float32)
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    y = reference.conv2d(x, w, *geometry)
    flops = 2 * y.size * 27
    assert cost("conv2d", (x, w, *geometry), y) == (flops, x.nbytes + w.nbytes + y.nbytes)
    assert cost("conv2d_backward_input", (y, w, x.shape, *geometry), x)[0] == flops
    assert cost("conv2d_backward_weight", (y, x, w.shape, *geometry), w)[0] == flops
    assert cost("add_relu", (x, x), x)[1] == 3 * x.nbytes
    assert cost("accumulate", (x, x), None)[1] == 3 * x.nbytes  # read, read, written
    assert cost("sgd", ([x], [x], [x], 0.1, 0.9, 0.0, False), None)[1] == 5 * x.nbytes


def test_bench_ops_measures_every_case_and_draws(tmp_path, capsys, monkeypatch):
    chosen = [CASES[name] for name in ("conv 3x3 16-16 32x32", "bn relu 16 32x32", "crop and flip", "sgd resnet20")]
    monkeypatch.setattr(layers, "cases", lambda batch: chosen)
    out = tmp_path / "ops.json"
    assert bench("ops", "--batch-size", BATCH, "--rounds", 1, "--no-compile", "--out", out) == 0
    result = json.loads(out.read_text())
    assert {row["case"] for row in result["rows"]} == {case.name for case in chosen}
    conv = next(row for row in result["rows"] if row["case"].startswith("conv") and row["row"] == "numpy")
    assert conv["flops"] == 2 * BATCH * 32 * 32 * 16 * 16 * 9
    assert conv["gflops"] == pytest.approx(conv["flops"] / conv["median_seconds"] / 1e9)
    assert {"matmul_gflops", "copy_gb_per_s"} <= set(result["limits"]) and result["machine"]["versions"]["numpy"]
    assert all((tmp_path / "ops" / f"{name}.png").stat().st_size > 10_000 for name in ("layers", "roofline"))
    printed = capsys.readouterr().out
    assert "crop and flip" in printed and f"written: {out}" in printed


def test_bench_train_and_compare(tmp_path, capsys):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    for out, more in ((one, ()), (two, ("--no-torch",))):
        words = ("train", "--models", "resnet20", "--batch-sizes", BATCH, "--rounds", 1, "--no-compile", "--out", out)
        assert bench(*words, *more) == 0
    (case,) = json.loads(one.read_text())["cases"]
    rows = {row["row"]: row for row in case["rows"]}
    flops = 2 * (3 * 40_551_040 - 16 * 27 * 32 * 32) * BATCH  # less the first layer's input gradient
    assert rows["numpy"]["gflops"] == pytest.approx(flops / rows["numpy"]["median_seconds"] / 1e9)
    assert "peak_rss_mib" not in rows["numpy"] or rows["numpy"]["peak_rss_mib"] >= rows["numpy"]["idle_rss_mib"]
    if "torch nchw" in rows:
        assert case["best_peer"].startswith("torch") and rows[case["best_peer"]]["times_best_peer"] == 1
    capsys.readouterr()
    assert bench("compare", one, two) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("resnet20 batch 2, numpy ") for line in lines) and not any("torch" in line for line in lines)
    assert bench("compare", one, tmp_path / "none.json") == 2
    assert "no benchmark result" in capsys.readouterr().err


def test_bench_profile_tells_where_a_step_goes(tmp_path, capsys):
    out = tmp_path / "profile.json"
    assert bench("profile", "--batch-size", BATCH, "--rounds", 1, "--backend", "numpy", "--out", out) == 0
    result = json.loads(out.read_text())
    by_kernel = {row["kernel"]: row for row in result["rows"]}
    assert by_kernel["conv2d"]["calls"] == 19
    assert by_kernel["batch_norm"]["calls"] == 10 and by_kernel["batch_norm_add_relu"]["calls"] == 9
    assert sum(row["seconds"] for row in result["rows"]) + result["in_no_kernel"] == pytest.approx(result["seconds"])
    assert "in no kernel" in capsys.readouterr().out
