"""Which convolution algorithm runs, who can overrule it, the matrices behind Winograd, and the cache of compiled code."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba", reason="Numba is not installed")
from tinyres.kernels.cpu import choose, simd, winograd_math


@pytest.fixture(autouse=True)
def as_chosen(monkeypatch):
    monkeypatch.delenv("TINYRES_CONV", raising=False)
    monkeypatch.delenv("TINYRES_LANES", raising=False)
    simd.host_lanes.cache_clear()
    yield
    choose.set_algorithm(None)
    simd.host_lanes.cache_clear()


def test_the_3x3_layers_of_a_cifar_resnet_use_winograd_and_the_rest_does_not():
    for channels, size in ((16, 32), (32, 16), (64, 8)):
        for kind in choose.PASSES:
            assert choose.algorithm(kind, 128, channels, channels, (size, size)).startswith("winograd")
    assert choose.algorithm("forward", 128, 16, 32, (16, 16), stride=(2, 2)) == "direct"
    assert choose.algorithm("forward", 128, 16, 32, (16, 16), kernel=(1, 1)) == "direct"


def test_a_call_overrules_the_environment_and_that_overrules_the_choice(monkeypatch):
    monkeypatch.setenv("TINYRES_CONV", "direct")
    assert choose.algorithm("forward", 128, 64, 64, (8, 8)) == "direct"
    choose.set_algorithm("winograd2")
    assert choose.algorithm("forward", 128, 64, 64, (8, 8)) == "winograd2"
    choose.set_algorithm(None)
    assert choose.algorithm("forward", 128, 64, 64, (8, 8)) == "direct"


def test_an_unknown_name_gets_an_error_that_lists_the_known_ones(monkeypatch):
    with pytest.raises(ValueError, match=r"'fft'.*direct, winograd2, winograd4"):
        choose.set_algorithm("fft")
    monkeypatch.setenv("TINYRES_CONV", "fft")
    with pytest.raises(ValueError, match="TINYRES_CONV"):
        choose.algorithm("forward", 1, 1, 1, (1, 1))
    with pytest.raises(ValueError, match="backward_input"):
        choose.algorithm("backward", 1, 1, 1, (1, 1))


def test_describe_names_the_algorithm_of_each_pass():
    choose.set_algorithm("winograd4")
    text = choose.describe(128, 16, 16, (32, 32))
    assert "3x3" in text and "16 to 16" in text and text.count("winograd4") == 3


def test_the_vector_width_can_be_set_and_nonsense_is_refused(monkeypatch):
    assert simd.host_lanes() in (4, 8, 16)
    monkeypatch.setenv("TINYRES_LANES", "8")
    simd.host_lanes.cache_clear()
    assert simd.host_lanes() == 8
    monkeypatch.setenv("TINYRES_LANES", "5")
    simd.host_lanes.cache_clear()
    with pytest.raises(ValueError, match="TINYRES_LANES"):
        simd.host_lanes()


@pytest.mark.parametrize("m", [2, 4])
def test_the_matrices_make_a_convolution(m):
    """In one dimension, in float64: A^T ((G g) * (B^T d)) correlates d with g; the cotangents transpose it."""
    named = {name: np.array(matrix) for name, matrix in winograd_math.matrices(m).items()}
    rng = np.random.default_rng(0)
    d, g, dy = rng.standard_normal(m + 2), rng.standard_normal(3), rng.standard_normal(m)
    y = named["output"] @ ((named["filter"] @ g) * (named["input"] @ d))
    np.testing.assert_allclose(y, np.correlate(d, g, "valid"), rtol=1e-12)
    dg = named["filter_cotangent"] @ ((named["input"] @ d) * (named["output_cotangent"] @ dy))
    np.testing.assert_allclose(dg, np.correlate(d, dy, "valid"), rtol=1e-12)


@pytest.mark.parametrize("m", [2, 4])
def test_the_entries_that_meet_data_are_exact_in_float32(m):
    for name in ("input", "output", "output_cotangent"):
        matrix = np.array(winograd_math.matrices(m)[name])
        np.testing.assert_array_equal(matrix, matrix.astype(np.float32))


SCRIPT = """
import numpy as np
from tinyres.kernels.cpu import simd, winograd
job = winograd._filter_job(4, 2)
print(job._cache_hits)
"""


def test_a_second_process_finds_compiled_code_unless_the_code_inside_it_changed(tmp_path):
    def hits(before=""):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", before + SCRIPT]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert hits() == 0
    assert hits() == 1
    changed = "from tinyres.kernels.cpu import simd\nsimd._sources = lambda: 'other'\n"
    assert hits(changed) == 0


COMPILED = """
import numpy as np
from numba.core.ccallback import CFunc
compiled, uncached = [], CFunc._compile_uncached
CFunc._compile_uncached = lambda self: compiled.append(self.__name__) or uncached(self)
from tinyres.kernels import cpu
x, vector = np.ones((4, 16, 8, 8), np.float32), np.ones(16, np.float32)
for k, stride, groups in ((3, 1, 1), (3, 2, 1), (1, 1, 1), (3, 1, 16), (3, 2, 16)):
    w, geometry = np.ones((16, 16 // groups, k, k), np.float32), ((stride, stride), (k // 2, k // 2), (1, 1), groups)
    y = cpu.conv2d(x, w, *geometry)
    dx = cpu.conv2d_backward_input(y, w, x.shape, *geometry)
    cpu.conv2d_backward_input(y, w, x.shape, *geometry, dx)
    cpu.conv2d_backward_weight(y, x, w.shape, *geometry)
y, mean, var = cpu.batch_norm_add_relu(x, x, vector, vector, 1e-5, (vector.copy(), vector.copy(), 0.1))
cpu.batch_norm_add_relu_backward(x, x, y, vector, mean, var, 1e-5, True)
print(compiled)
"""


@pytest.mark.parametrize("algorithm", ["winograd4", "direct"])
def test_a_second_process_compiles_no_kernel_of_a_step(algorithm):
    environment = {**os.environ, "TINYRES_CONV": algorithm, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", COMPILED]
    _, second = (subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2))
    assert second.stdout == "[]\n"


def test_without_the_compiler_the_reference_runs():
    script = """
import numpy as np
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cpu import conv
x = np.ones((1, 1, 3, 3), np.float32)
try:
    conv.conv2d(x, x, (1, 1), (1, 1), (1, 1), 1)
except Unsupported as reason:
    print(reason)
"""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "NUMBA_DISABLE_JIT" in done.stdout


def test_where_numba_finds_no_place_for_its_cache_it_gets_one_and_that_is_said(monkeypatch):
    from tinyres.kernels.cpu import jit

    def nowhere(function, more):
        raise RuntimeError(f"cannot cache function {function.__name__!r}: no locator available for file 'x.py'")

    monkeypatch.setattr(jit, "_said", [])
    monkeypatch.setattr(jit.config, "CACHE_DIR", "")
    jit.find_a_cache()
    assert jit.config.CACHE_DIR == "", "where there is a place, nothing changes"
    monkeypatch.setattr(jit, "Cache", nowhere)
    with pytest.warns(UserWarning, match="every process compiles them anew; set NUMBA_CACHE_DIR"):
        jit.find_a_cache()
    assert os.access(jit.config.CACHE_DIR, os.W_OK)
