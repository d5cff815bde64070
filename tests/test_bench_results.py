"""Results of benchmarks as files: what changed between two of them, and their pictures."""

import json
from pathlib import Path

import pytest

from tinyres.benchmarks import compare, plots, report
from tinyres.cli import main
from tinyres.errors import UsageError

RECORDED = sorted((Path(report.__file__).parent / "results").glob("*.json"))


def on_gpu(card="A card", ms=2.0, **parts):
    """A result of ``tinyres bench gpu``."""
    row = {"ms": ms, "gb_per_s": 90.0, "of_copy": 0.9}
    speed = {"model": "resnet20", "batch": 128, "images_per_second": 128e3 / ms}
    return {
        "benchmark": "gpu",
        "tiny": False,
        "tf32": True,
        "gpu": {"gpu": card},
        "machine": {"processor": "A processor", "threads": 2},
        "limits": {"copy_gb_per_s": 100.0, "matmul_tf32_tflops": 1.0},
        "kernels": [
            {"case": "conv 3x3", "kernel": "conv2d", "flops": 1e9, "bytes": 1e7, "tflops": 0.5, **row},
            {"case": "cast", "kernel": "cast", "flops": 0, "bytes": 1e7, "tflops": 0, **row},
        ],
        "bandwidth": [{"kernel": "add_relu", **row}],
        "steps": [{**speed, "row": "cupy float32", "ms": ms}, {**speed, "row": "all", "batch": 512, "failed": "no memory"}],
        "compiled": [{**speed, "row": "torch compile max-autotune", "ms": 1.0}],
    } | parts


def save(folder, name, result):
    return str(report.save(result, folder / name))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_what_is_recorded_can_be_read_and_compared_with_itself(path):
    result = report.load(path)
    found = compare.changes(result, result)
    assert found and not compare.warnings(result, result)
    rounds = report.samples(result)
    assert {one.verdict for one in found} == {"no difference shown" if rounds else "too few rounds"}


def test_two_results_of_a_gpu_are_compared_row_by_row(tmp_path, capsys):
    before, after = save(tmp_path, "a.json", on_gpu()), save(tmp_path, "b.json", on_gpu("Another card", 0.5))
    assert main(["bench", "compare", before, after]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for row in ("kernel conv 3x3", "bandwidth add_relu", "resnet20 batch 128, cupy float32"):
        assert f"{row} 2.000 0.500 4.00x - too few rounds" in lines
    assert "resnet20 batch 128, torch compile max-autotune 1.000 1.000 1.00x - too few rounds" in lines
    assert not any("512" in line for line in lines)
    assert lines[-1] == "not the same GPU: A card and Another card"
    assert compare.warnings(on_gpu(), on_gpu(tiny=True)) == ["not the same plan: full and tiny"]


def test_parts_that_failed_are_left_out_of_a_comparison(tmp_path):
    failed = on_gpu(kernels="failed: no memory", steps="left out: no time", compiled="not run: PyTorch has no GPU")
    found = compare.changes(report.load(save(tmp_path, "a.json", failed)), on_gpu())
    assert [one.name for one in found] == ["bandwidth add_relu"]
    with pytest.raises(UsageError, match="no row in common"):
        compare.changes(failed, on_gpu(bandwidth="failed: no memory"))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "not JSON",
        '{"benchmark": "gpu"}',
        '{"benchmark": "train", "machine": {}}',
        '{"benchmark": "ops", "machine": {}, "rows": [1]}',
        '{"benchmark": "profile", "machine": "x", "rows": [], "seconds": 1}',
    ],
)
def test_a_file_that_is_no_result_is_one_clear_error(text, tmp_path, capsys):
    (tmp_path / "a.json").write_text(text)
    assert main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "a.json is " in error


def drawn(result, folder):
    return [path.name for path in plots.draw(result, folder)]


def test_the_pictures_of_a_gpus_result(tmp_path):
    assert drawn(on_gpu(), tmp_path) == ["steps.png", "bandwidth.png", "roofline.png"]


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ({"limits": "failed: no memory"}, ["steps.png"]),
        ({"limits": {"copy_gb_per_s": 100.0}}, ["steps.png", "bandwidth.png", "roofline.png"]),  # PyTorch has no GPU
        ({"steps": "left out: no time", "compiled": "left out: no time"}, ["bandwidth.png", "roofline.png"]),
        ({"steps": "left out: no time"}, ["steps.png", "bandwidth.png", "roofline.png"]),
        ({"bandwidth": [], "kernels": "failed: no memory"}, ["steps.png"]),
    ],
)
def test_a_part_without_figures_has_no_picture(parts, names, tmp_path):
    assert drawn(on_gpu(**parts), tmp_path) == names


def test_the_chart_of_bandwidths_shows_what_is_required_and_the_copy():
    import matplotlib.figure

    axes = matplotlib.figure.Figure().subplots()
    plots._bandwidth(axes, on_gpu())
    assert [bar.get_height() for bar in axes.patches] == [90.0]
    assert [line.get_ydata()[0] for line in axes.lines] == [85, 100]
    assert [text.get_text() for text in axes.texts] == ["85 %", "copy: 100 GB/s"]


def test_the_chart_of_steps_has_a_group_for_each_network_and_batch():
    import matplotlib.figure

    axes = matplotlib.figure.Figure().subplots()
    plots._steps(axes, on_gpu())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["resnet20\nbatch 128"]
    assert [bar.get_height() for bar in axes.patches] == [64e3, 128e3]


@pytest.mark.parametrize("path", [p for p in RECORDED if "profile" not in p.stem], ids=lambda path: path.stem)
def test_the_recorded_results_of_a_cpu_have_their_pictures(path, tmp_path):
    names = drawn(json.loads(path.read_text("utf-8")), tmp_path)
    assert names == {"ops": ["layers.png", "roofline.png"]}.get(path.stem, [path.stem.split("-")[0] + ".png"])
