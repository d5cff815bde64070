"""A process that is forked while other threads work: the child goes on, whatever they were doing."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import tinyres as tr
from tinyres.kernels import forks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

HEAD = """
import os, signal, sys, threading
import numpy as np, tinyres as tr, tinyres.functional as F
from tinyres.kernels import dispatch
signal.alarm(60)

def forever(work):
    threading.Thread(target=lambda: [work() for _ in iter(int, 1)], daemon=True).start()

def fork(times, work):
    sys.setswitchinterval(1e-6)
    for _ in range(times):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)  # ends a child that hangs
            work()
            os._exit(7)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == 7, code
    os.write(1, b"through")
    os._exit(0)
"""
x = "x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)\n"
TRAIN = """
def work():
    net = tr.models.resnet(8)
    F.cross_entropy(net(tr.tensor(x)), [1, 2, 3, 4]).backward()
    tr.optim.SGD(net.parameters(), lr=0.1).step()
work()
"""
WORK = {
    "train": x + TRAIN,
    "draw random numbers": "def work(): tr.default_generator().standard_normal(10_000)\n",
    "print": (
        "from tinyres.train.progress import Lines\n"
        "sys.stdout = open(os.devnull, 'w')\n"
        "def work(): Lines().message('epoch')\n"
    ),
    "use the pool": (
        "from tinyres.kernels.cpu import buffers\n"
        "chance = np.random.default_rng(0)\n"
        "def work(): buffers.empty((int(chance.integers(1, 1 << 22)),)); buffers.trim()\n"
    ),
    "compile": (
        "import numba, tinyres.kernels.cpu\n"
        "def work(): numba.cfunc('int64(int64)')(lambda a: a + 1)\n"  #  not from the cache
        "work()\n"
    ),
    "choose the first backend": "def work(): dispatch._load.cache_clear(); tr.use_backend('numpy')\n",
}


def run(script):
    environment = {**os.environ, "PYTHONPATH": str(Path(tr.__file__).parent.parent)}
    return subprocess.run(
        [sys.executable, "-c", HEAD + script], capture_output=True, text=True, env=environment, timeout=120
    )


@pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed")
@pytest.mark.parametrize("what", WORK)
def test_a_child_goes_on_that_was_forked_while_a_thread_was_at_it(what):
    done = run(WORK[what] + "forever(work)\nforever(work)\nfork(20, work)\n")
    assert done.stdout == "through", done.stderr[-3000:]


@pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed")
def test_a_child_that_was_forked_while_a_thread_imported_the_kernels_computes():
    done = run(x + "forever(lambda: F.relu(tr.tensor(x)))\nfork(1, lambda: F.relu(tr.tensor(x)))\n")
    assert done.stdout == "through", done.stderr[-3000:]


def test_two_threads_that_fork_at_once_let_go_of_every_lock():
    done = run(
        "import time\n"
        "def forks():\n"
        "    pid = os.fork()\n"
        "    if pid == 0: os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "forever(forks)\n"
        "fork(50, lambda: tr.default_generator().standard_normal())\n"
    )
    assert done.stdout == "through", done.stderr[-3000:]
    assert not forks._taken.pop_all()._exit_callbacks
