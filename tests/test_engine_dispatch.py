"""The choice of a backend, what falls back, and what strict mode refuses."""

import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from backends import BACKENDS

import tinyres as tr
import tinyres.functional as F
from tinyres.kernels import arrays, contract, dispatch, reference
from tinyres.kernels.dispatch import BackendError


@pytest.fixture
def half(monkeypatch):
    """A backend "half" that has its own relu, for float32 only, and no other kernel; records its calls."""
    module = types.ModuleType("half_backend")
    module.calls = []

    def relu(x):
        if x.dtype != np.float32:
            raise contract.Unsupported(f"only float32, not {x.dtype}")
        module.calls.append(x.shape)
        return np.maximum(x, 0)

    module.relu = relu
    monkeypatch.setitem(sys.modules, "half_backend", module)
    monkeypatch.setitem(dispatch.BACKENDS, "half", "half_backend")
    monkeypatch.setattr(dispatch, "_record", {})
    dispatch._load.cache_clear()
    yield module
    dispatch._load.cache_clear()


def test_use_backend_as_a_call_and_as_a_block(half):
    before = tr.get_backend()
    with tr.use_backend("half"):
        assert tr.get_backend() == "half"
        with tr.use_backend("numpy"):
            assert tr.get_backend() == "numpy"
        assert tr.get_backend() == "half"
    assert tr.get_backend() == before
    with pytest.raises(ZeroDivisionError), tr.use_backend("half"):
        raise ZeroDivisionError
    assert tr.get_backend() == before
    tr.use_backend("half")
    assert tr.get_backend() == "half"


def test_a_backend_runs_its_own_kernels_and_the_rest_falls_back_on_record(half):
    x = tr.tensor([-1.0, 2.0], requires_grad=True)
    with tr.use_backend("half"):
        F.relu(x).sum().backward()
        F.relu(x)
        F.relu(tr.tensor(np.ones(2)))
    np.testing.assert_array_equal(x.grad, [0, 1])
    assert half.calls == [(2,), (2,)]
    assert tr.explain_dispatch() == [
        ("half", "relu", "only float32, not float64", 1),
        ("half", "relu_backward", "not implemented", 1),
    ]


def test_a_folder_with_files_of_the_contract_is_a_backend(tmp_path, monkeypatch):
    """One function in one file will do: it is found by its name, where the contract has it."""
    folder = tmp_path / "quarter_backend"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from tinyres.kernels.contract import kernels_of\n\nglobals().update(kernels_of(__name__))\n"
    )
    (folder / "elementwise.py").write_text("def relu(x):\n    return x + 10\n\n\ndef conv2d(*args):\n    1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(dispatch.BACKENDS, "quarter", "quarter_backend")
    monkeypatch.setattr(dispatch, "_record", {})
    with tr.use_backend("quarter"):
        assert F.relu(tr.tensor([-1.0])).item() == 9 and F.relu6(tr.tensor([7.0])).item() == 6
        F.conv2d(tr.tensor(np.ones((1, 1, 1, 1))), tr.tensor(np.ones((1, 1, 1, 1))))  # in another file than the contract's
    assert [entry[1:3] for entry in tr.explain_dispatch()] == [("conv2d", "not implemented"), ("relu6", "not implemented")]


def test_strict_mode_refuses_instead(half):
    with tr.use_backend("half"):
        with tr.strict():
            F.relu(tr.tensor([1.0]))
            with pytest.raises(BackendError, match=r"'half' does not do this relu: only float32, not float64 \(strict"):
                F.relu(tr.tensor(np.ones(1)))
            with pytest.raises(BackendError, match="relu6: not implemented"):
                F.relu6(tr.tensor([1.0]))
        F.relu6(tr.tensor([1.0]))
    assert [entry[1] for entry in tr.explain_dispatch()] == ["relu6"]


def test_backward_runs_on_the_backend_of_its_forward(half):
    x = tr.tensor([1.0], requires_grad=True)
    with tr.use_backend("half"):
        y = F.relu(x)
    y.backward()
    assert [entry[:2] for entry in tr.explain_dispatch()] == [("half", "relu_backward")]


def test_an_error_inside_a_kernel_is_not_a_fall_back(half):
    half.relu6 = lambda x: 1 / 0
    dispatch._load.cache_clear()
    with tr.use_backend("half"), pytest.raises(ZeroDivisionError):
        F.relu6(tr.tensor([1.0]))


def test_an_unknown_backend_is_named_with_those_that_exist():
    before = tr.get_backend()
    with pytest.raises(BackendError, match=r"no backend 'gpu'; there is numpy"):
        tr.use_backend("gpu")
    assert tr.get_backend() == before


def test_a_backend_that_cannot_be_imported_says_why(monkeypatch):
    monkeypatch.setitem(dispatch.BACKENDS, "absent", "tinyres_has_no_such_module")
    with pytest.raises(BackendError, match="'absent' cannot run here: No module named"):
        tr.use_backend("absent")
    available = tr.available_backends()
    assert available["numpy"] == "" and "No module named" in available["absent"]


def test_the_reference_runs_without_a_wrapper():
    with tr.use_backend("numpy"):
        assert dispatch.current().relu is reference.relu
        with pytest.raises(AttributeError, match="the contract has no kernel 'gelu'"):
            _ = dispatch.current().gelu


def run(script, **env):
    environment = {**os.environ, "PYTHONPATH": str(Path(tr.__file__).parent.parent), **env}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)


def test_the_environment_names_the_backend():
    done = run("import tinyres as tr; print(tr.get_backend())", TINYRES_BACKEND="numpy")
    assert done.stdout == "numpy\n", done.stderr
    done = run("import tinyres as tr; print('imported'); tr.get_backend()", TINYRES_BACKEND="abacus")
    error = done.stderr.splitlines()[-1]
    assert done.stdout == "imported\n" and "BackendError" in error and "TINYRES_BACKEND" in error and "'abacus'" in error


def test_an_operation_on_a_backend_that_does_not_exist_raises_one_error():
    """And nothing else is written: the operation that never came to be has nothing to clean up."""
    script = "import tinyres as tr\ntry: tr.tensor([1.0]) * 2\nexcept Exception as error: print(type(error).__name__)"
    done = run(script, TINYRES_BACKEND="abacus")
    assert (done.stdout, done.stderr) == ("BackendError\n", "")


def test_the_environment_sets_the_number_of_threads(monkeypatch):
    for text in ("2", "1"):
        monkeypatch.setenv("TINYRES_THREADS", text)
        arrays.threads.cache_clear()
        assert arrays.threads() == int(text)
    for text in ("0", "-1", "two", "1.5", "²", "1025", "1000000", "9" * 20):
        monkeypatch.setenv("TINYRES_THREADS", text)
        arrays.threads.cache_clear()
        with pytest.raises(ValueError, match=rf"TINYRES_THREADS is '{text}'; it must be a whole number from 1 up to 1024"):
            arrays.threads()
    monkeypatch.delenv("TINYRES_THREADS")
    arrays.threads.cache_clear()
    assert arrays.threads() >= 1


def test_blocks_come_back_in_order_and_cover_everything():
    for count, block in ((0, 3), (1, 3), (3, 3), (10, 3), (10, 1)):
        parts = arrays.for_blocks(lambda s: list(range(s.start, s.stop)), count, block)
        assert [i for part in parts for i in part] == list(range(count)) and all(len(p) <= block for p in parts)


def test_an_error_in_a_thread_reaches_the_caller():
    def work(block):
        if block.start == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        arrays.for_blocks(work, 4, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_kernels_run_in_a_forked_process():
    """A child has none of its parent's threads; a pool that it inherited would wait for ever."""
    done = run(
        "import os, warnings, numpy as np\n"
        "warnings.simplefilter('ignore')\n"
        "from tinyres.kernels import reference as r\n"
        "x = np.ones((8, 40000), np.float32)\n"
        "r.relu(x)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    r.relu(x); os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n",
        TINYRES_THREADS="2",
    )
    assert done.stdout == "7\n", done.stderr


@pytest.fixture
def no_choice(monkeypatch):
    monkeypatch.setattr(dispatch, "_chosen", [])
    dispatch._default.cache_clear()
    yield
    dispatch._default.cache_clear()


def test_a_default_that_cannot_run_is_not_replaced_in_silence(monkeypatch, no_choice):
    monkeypatch.delenv("TINYRES_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_reason", lambda name: "no compiler" if name == "numba" else "")
    with pytest.warns(UserWarning, match=r"'numba' cannot run here, and 'numpy' is several times slower: no compiler"):
        assert tr.get_backend() == "numpy"
    dispatch._default.cache_clear()
    monkeypatch.setenv("TINYRES_BACKEND", "numpy")
    assert tr.get_backend() == "numpy"  # (a warning would be an error here)


# --- threads ---


def test_a_block_is_its_threads_own_however_blocks_overlap(no_choice):
    tr.use_backend("naive")
    steps, seen = [threading.Event() for _ in range(3)], {}

    def first():
        with tr.use_backend("numpy"):
            steps[0].set()
            steps[1].wait(5)
            seen["first"] = tr.get_backend()
        steps[2].set()

    def second():
        steps[0].wait(5)
        seen["outside"] = tr.get_backend()
        block = tr.use_backend("cuda-emulated" if "cuda-emulated" in BACKENDS else "numba")
        steps[1].set()
        with block:
            steps[2].wait(5)
            seen["second"] = tr.get_backend()

    threads = [threading.Thread(target=f) for f in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen["first"] == "numpy" and seen["second"] not in ("numpy", "naive") and seen["outside"] == "naive"
    assert tr.get_backend() == "naive"


def test_a_choice_holds_to_the_end_of_the_block_that_it_is_made_in(no_choice):
    tr.use_backend("naive")
    with tr.use_backend("numpy"):
        tr.use_backend("naive")
        assert tr.get_backend() == "naive"
        with tr.use_backend("numpy"):
            assert tr.get_backend() == "numpy"
        assert tr.get_backend() == "naive"
        tr.use_backend("numpy")
        assert tr.get_backend() == "numpy"
    assert tr.get_backend() == "naive"
    block = tr.use_backend("numpy")
    for _ in range(2):  # a block may be entered again
        with block:
            assert tr.get_backend() == "numpy"
        assert tr.get_backend() == "naive"
    seen = []
    thread = threading.Thread(target=lambda: (tr.use_backend("numpy"), seen.append(tr.get_backend())))
    thread.start()
    thread.join()
    assert seen == ["numpy"] and tr.get_backend() == "numpy"  # of the process, whichever thread chooses it


def test_an_error_in_a_block_leaves_it():
    before = tr.get_backend()
    with pytest.raises(KeyError), tr.use_backend("naive"):
        raise KeyError
    with pytest.raises(BackendError), tr.use_backend("naive"):
        tr.use_backend("abacus")
    assert tr.get_backend() == before
