"""The definitions in loops: complete, on their own, and wrong as soon as one of their lines is.

What holds them: PyTorch (test_ops_cases.py), central differences of themselves, and every other backend, whose results are
compared with theirs.
"""

import importlib
import itertools
import sys
from pathlib import Path

import cases
import definitions
import numpy as np
import pytest
import test_ops_cases as operations
from cases import BY_NAME
from test_cuda_augment import PUBLISHED
from test_imports import imported

import tinyres as tr
import tinyres.functional as F
from tinyres.errors import GraphError
from tinyres.kernels import contract, dispatch, naive

FOLDER = Path(naive.__file__).parent
number = itertools.count()


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Makes a copy of the definitions with one line changed, the backend "broken"."""

    def make(file, right, wrong):
        name = f"broken_definitions_{next(number)}"
        (tmp_path / name).mkdir()
        for path in FOLDER.glob("*.py"):
            text = path.read_text("utf-8")
            if path.stem == file:
                assert text.count(right) == 1, f"{right!r} must be in {file}.py once"
                text = text.replace(right, wrong)
            (tmp_path / name / path.name).write_text(text.replace("tinyres.kernels.naive", name), "utf-8")
        monkeypatch.setitem(dispatch.BACKENDS, "broken", name)
        dispatch._load.cache_clear()
        return importlib.import_module(name)

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    for name in [name for name in sys.modules if name.startswith("broken_definitions_")]:
        del sys.modules[name]
    dispatch._load.cache_clear()


CONV = "conv2d[2,3,6,7][4,3,3,3]-bias-p1"
BN, JOIN = "batch_norm[3,4,5,2]-train", "batch_norm_add_relu[3,4,5,2]-train"
# what is wrong -> file, right, wrong, the case that shows it
BACKWARD = {
    "batch norm without the way through the variance": ("norm", "dvar * 2 * centred / m + dmean / m", "dmean / m", BN),
    "batch norm without the way through the mean": ("norm", " + dmean / m\n", "\n", BN),
    "batch norm with half of the variance's slope": ("norm", "* -0.5 * s**-3", "* -0.25 * s**-3", BN),
    "batch norm whose weight is not in dx": ("norm", "dxhat = dz[:, c] * weight[c]", "dxhat = dz[:, c]", BN),
    "join that forgets what the ReLU cut off": ("join", "ds = relu_backward(dz, z)", "ds = dz", JOIN),
    "join that gives the shortcut nothing": (
        "join",
        "return dx, dweight, dbias, ds",
        "return dx, dweight, dbias, 0 * ds",
        JOIN,
    ),
    "join whose cotangent is added once more": (
        "join",
        "return dx, dweight, dbias, ds",
        "return dx + ds, dweight, dbias, ds",
        JOIN,
    ),
    "ReLU open for its zeros": ("elementwise", "np.where(y <= 0, dy.dtype", "np.where(y < 0, dy.dtype", "relu"),
    "windows that overwrite each other": (
        "conv",
        "dwindow += w[f] * dy[n, f, i, j]\n    dx",
        "dwindow[...] = w[f] * dy[n, f, i, j]\n    dx",
        CONV,
    ),
    "filter's gradient of the last window alone": (
        "conv",
        "dw[f] += window * dy[n, f, i, j]\n    return",
        "dw[f] = window * dy[n, f, i, j]\n    return",
        CONV,
    ),
    "gradient of the last output alone": ("linear", "dx[n] += dy", "dx[n] = dy", "linear"),
    "maximum that keeps its last cotangent": ("pool", "kernel[1])] += dy", "kernel[1])] = dy", "max_pool2d-3-1-1"),
    "loss that does not know what is wished for": (
        "loss",
        "(np.exp(row) - ",
        "(np.exp(row) - 0 * ",
        "cross_entropy-0.0-mean",
    ),
    "shortcut read between its pixels": ("join", "dx[:, k, i * stride,", "dx[:, k, i,", "subsample_pad-2-4-2-4"),
}
FORWARD = {
    "channels of another group": (
        "conv",
        "group * channels : (group + 1)",
        "0 * channels : (0 + 1)",
        "conv2d[2,4,6,7][6,2,3,3]-s2-p1-g2",
    ),
    "unbiased variance": ("norm", "** 2).sum() / m", "** 2).sum() / (m - 1)", BN),
    "eps outside the root": ("norm", "/ math.sqrt(var[c] + eps) + bias", "/ (math.sqrt(var[c]) + eps) + bias", BN),
    "join without its ReLU": ("join", "return relu(x + y)", "return x + y", JOIN),
    "padding that is not counted": (
        "pool",
        "window.sum() / window.size",
        "window.mean(where=window != 0)",
        "avg_pool2d-3-2-1",
    ),
    "smoothing at the label only": (
        "loss",
        "np.full(log_p.shape[1], label",
        "np.full(log_p.shape[1], 0 * label",
        "cross_entropy-0.1-none",
    ),
}


@pytest.mark.parametrize("fault", BACKWARD)
def test_a_wrong_line_of_a_backward_pass_is_noticed(fault, broken):
    file, right, wrong, name = BACKWARD[fault]
    cases.expected_gradients(name)
    broken(file, right, wrong)
    with tr.use_backend("broken"):
        with pytest.raises(AssertionError):
            operations.check_case(BY_NAME[name], "broken")
        with pytest.raises(GraphError, match="the central difference"):
            operations.check_gradient(BY_NAME[name])


@pytest.mark.parametrize("fault", FORWARD)
def test_a_wrong_line_of_a_forward_pass_is_noticed_by_every_other_backend(fault, broken, monkeypatch):
    file, right, wrong, name = FORWARD[fault]
    operations.check_case(BY_NAME[name], "numpy")
    fault = broken(file, right, wrong)
    monkeypatch.setattr(definitions, "naive", fault)
    monkeypatch.setattr(cases, "naive", fault)
    cases.expected.cache_clear()
    try:
        with tr.use_backend("numpy"), pytest.raises(AssertionError):
            operations.check_case(cases.BY_NAME[name], "numpy")
    finally:
        cases.expected.cache_clear()


def gradients(backend):
    """Those of a residual network on two small images."""
    tr.manual_seed(0)
    model, rng = tr.models.resnet(8), np.random.default_rng(0)
    images, labels = rng.standard_normal((2, 3, 8, 8)).astype(np.float32), rng.integers(0, 10, 2)
    with tr.use_backend(backend):
        F.cross_entropy(model(tr.tensor(images)), labels).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_broken_on_purpose_the_join_changes_the_gradients(broken):
    """Its backward gives zeros: then nothing before the last block learns."""
    usual = gradients("naive")
    assert all(g.any() for g in usual.values())
    broken("join", "return dx, dweight, dbias, ds\n", "return 0 * dx, 0 * dweight, 0 * dbias, 0 * ds\n")
    changed = gradients("broken")
    assert {name for name, g in changed.items() if g.any()} == {"fc.weight", "fc.bias"}
    for name in ("fc.weight", "fc.bias"):
        np.testing.assert_array_equal(changed[name], usual[name])


def test_a_network_has_the_gradients_of_the_numpy_backend():
    usual, naive = map(gradients, ("numpy", "naive"))
    for name, g in usual.items():
        np.testing.assert_allclose(naive[name], g, atol=1e-4 * abs(g).max(), err_msg=name)


def test_it_has_every_kernel_and_imports_no_other_implementation():
    assert set(contract.kernels_of("tinyres.kernels.naive")) == set(contract.NAMES)
    allowed = {"numpy", "math", "functools", "typing", "collections.abc"}
    for path in FOLDER.glob("*.py"):
        for _, name in imported(path.read_text("utf-8"), f"tinyres.kernels.naive.{path.stem}"):
            module = name.rpartition(".")[0]
            own = module.startswith(("tinyres.kernels.naive", "tinyres.kernels.arrays"))
            assert (
                own
                or module in allowed
                or name in allowed
                or (path.stem, module) == ("__init__", "tinyres.kernels.contract")
            )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_left_to_the_reference_which_is_on_record(dtype, monkeypatch):
    monkeypatch.setattr(dispatch, "_record", {})
    x = tr.tensor([[-1.0, 2.0]]).to(dtype)
    with tr.use_backend("naive"):
        assert F.relu(x).data.tolist() == [[0, 2]]
        with tr.strict(), pytest.raises(dispatch.BackendError, match="'naive' does not do this relu: 16 bits"):
            F.relu(x)
    assert [entry[:2] for entry in tr.explain_dispatch()] == [("naive", "relu")]


def test_the_generator_gives_its_published_answers():
    for counter, key, result in PUBLISHED:
        counter, key, result = ([int(word, 16) for word in text.split()] for text in (counter, key, result))
        assert list(naive.augment.philox(counter, key)) == result
