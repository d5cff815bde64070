"""The CUDA kernels that Numba compiles, without a GPU: they run in Numba's simulator, and compile for a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinyres as tr

HERE = Path(__file__).parent
ROOT = Path(tr.__file__).parent.parent
KERNELS = Path(tr.kernels.dispatch.__file__).parent / "numba_cuda"


def python(*arguments, simulate):
    path = os.pathsep.join([str(ROOT), str(HERE)])
    env = {**os.environ, "PYTHONPATH": path, "NUMBA_ENABLE_CUDASIM": str(int(simulate))}
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=1200)


def simulated(marks):
    """How many tests of this backend pass in the simulator: all of those with these marks."""
    pytest.importorskip("numba.cuda.simulator", reason="this numba.cuda has no simulator")
    options = ("-q", "-x", "-p", "no:cacheprovider", "-m", marks, "-k", "numba_cuda or numba-cuda")
    files = HERE / "numba_cuda_simulated.py", HERE / "test_nonfinite_kernels.py"
    done = python("-m", "pytest", *options, *files, simulate=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-2000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1])


def test_the_kernels_are_right_in_numbas_simulator():
    assert simulated("not kernels") >= 30


@pytest.mark.kernels
def test_the_operations_are_right_in_numbas_simulator():
    assert simulated("kernels") > 400


@pytest.mark.kernels
def test_every_kernel_compiles_for_a_gpu():
    """The simulator runs Python; what Numba cannot type, or a call that it does not know on a GPU, shows only here."""
    done = python(HERE / "numba_cuda_compile.py", "float32", "float64", simulate=False)
    if done.returncode == 77:
        pytest.skip(f"Numba finds no libnvvm to compile with: {done.stdout.splitlines()[0]}")
    assert done.returncode == 0, done.stderr[-4000:]
    written = {name for file in KERNELS.glob("*.py") for name in re.findall(r"@Kernel\ndef (\w+)", file.read_text("utf-8"))}
    assert len(written) > 20 and set(done.stdout.split()) == written


def test_without_gpu_and_simulator_the_backend_says_what_to_do():
    script = (
        "import tinyres as tr\n"
        "from numba import cuda\n"
        "cuda.is_available = lambda: False\n"
        "print(tr.available_backends()['numba-cuda'])\n"
    )
    done = python("-c", script, simulate=False)
    assert done.stdout == "no CUDA device; NUMBA_ENABLE_CUDASIM=1 runs the kernels in Numba's simulator\n", done.stderr


def test_only_the_runtime_knows_numbas_cuda():
    for file in KERNELS.glob("*.py"):
        if file.name != "runtime.py":
            assert not re.search(r"^\s*(import|from) numba\b", file.read_text("utf-8"), re.MULTILINE), file.name
