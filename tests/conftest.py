"""What all tests share: tinyres is importable from a bare checkout, and every test leaves the process as it found it."""

import gc
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("tinyres") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

os.environ.setdefault("TINYRES_EMULATOR", "checked")  # memory of emulated kernels is guarded and poisoned
os.environ.setdefault("TINYRES_TF32", "0")  # the tests' tolerances are those of float32


def pytest_report_collectionfinish(config):
    """Which backends the tests run on, which not and why; and what is left out unless it is asked for."""
    lines = []
    if "backends" in sys.modules:  # (else none of the tests asks)
        from backends import BACKENDS, REASONS

        lines = [f"backends: {', '.join(BACKENDS)}", *(f"not here: {name}: {why}" for name, why in REASONS.items() if why)]
    if not find_spec("torch"):
        lines.append("not here: PyTorch, and comparisons with it")
    if config.option.markexpr == "not kernels":
        lines.append('left out: what only a change of kernels can break (pytest -m kernels; everything: pytest -m "")')
    return lines


def pytest_collection_modifyitems(items):
    if not find_spec("torch"):
        items[:] = [item for item in items if not item.get_closest_marker("torch")]
    items.sort(key=lambda item: item.path.name.startswith("test_bench_"))  # last, when what they run has been compiled


@pytest.fixture(autouse=True)
def same_backend_and_seed():
    """The backend and the default generator after a test are those before it."""
    import tinyres as tr
    from tinyres.kernels import dispatch

    chosen, blocks, state = (
        list(dispatch._chosen),
        list(dispatch._blocks.backends),
        tr.default_generator().bit_generator.state,
    )
    on_gpu = "tinyres.kernels.cuda.on_gpu"
    loaded = on_gpu in sys.modules
    yield
    if not loaded and sys.modules.pop(on_gpu, None):  # with a CuPy that only that test had
        dispatch._load.cache_clear()
    dispatch._chosen[:] = chosen
    assert dispatch._blocks.backends == blocks, "a test has left a block of use_backend open"
    tr.default_generator().bit_generator.state = state


@pytest.fixture
def nothing_locked():
    """No graph of an earlier test is alive: an exception that went through its frames leaves it to the collector."""
    gc.collect()
