"""Ctrl-C during a kernel on several threads: nobody writes to memory that was given back, and no helper is lost."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="Numba is not installed")

import tinyres as tr
import tinyres.functional as F
from tinyres.kernels.arrays import threads
from tinyres.kernels.cpu import runtime

pytestmark = pytest.mark.skipif(threads() < 2, reason="one thread has no helpers")


@pytest.fixture(autouse=True)
def on_numba():
    with tr.use_backend("numba"), tr.strict():
        yield


def interrupted(*_):
    raise KeyboardInterrupt


def states():
    return {int(slot[0]) for slot in runtime._helpers().slots}


@pytest.mark.parametrize("moment", ["_claim", "_post", "_work", "_finished"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_exception_leaves_a_kernel_only_when_nobody_writes_any_more(moment, after, monkeypatch):
    x = np.ones((16, 16, 64, 64), np.float32)
    F.relu(x)
    right = getattr(runtime, moment)

    def raising(*arguments):
        if after:
            right(*arguments)
        raise KeyboardInterrupt

    for _ in range(20):
        with monkeypatch.context() as patch:
            patch.setattr(runtime, moment, raising)
            with pytest.raises(KeyboardInterrupt):
                F.relu(x)
        fresh = np.empty_like(F.relu(-x).data)  # the memory of the result that never was is handed out again
        result = F.relu(-x).data
        time.sleep(0.002)
        assert not result.any() and fresh.shape == x.shape, "a helper wrote to an array that it had been let go of"
        assert runtime.CLAIMED not in states()


def test_a_second_exception_does_not_cut_the_wait_short(monkeypatch):
    x = np.ones((16, 16, 64, 64), np.float32)
    F.relu(x)
    calls, settle = [], runtime._settle

    def twice(*arguments):
        calls.append(arguments)
        if len(calls) % 3:
            raise KeyboardInterrupt
        settle(*arguments)

    monkeypatch.setattr(runtime, "_settle", twice)
    monkeypatch.setattr(runtime, "_work", interrupted)
    with pytest.raises(KeyboardInterrupt):
        F.relu(x)
    assert len(calls) == 3


def test_helpers_work_as_before_and_sleep_when_there_is_nothing_to_do(monkeypatch):
    x = np.ones((16, 64, 64, 16), np.float32).transpose(0, 3, 1, 2)  # as kernels want it: no copy comes first
    for moment in ("_claim", "_post", "_work"):
        with monkeypatch.context() as patch:
            patch.setattr(runtime, moment, interrupted)
            with pytest.raises(KeyboardInterrupt):
                F.relu(x)
    until = time.monotonic() + 10
    while states() - {runtime.ASLEEP} and time.monotonic() < until:
        time.sleep(0.01)
    assert states() == {runtime.ASLEEP}
    began = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - began < 0.1, "a helper spins"
    helped, serve = [], runtime._Helpers.post
    monkeypatch.setattr(runtime._Helpers, "post", lambda self, *rest: (serve(self, *rest), helped.append(1))[0])
    for _ in range(50):
        np.testing.assert_array_equal(F.relu(x).data, x)
    assert len(helped) == 50 * min(threads() - 1, len(runtime._helpers().slots))


SCRIPT = """
import gc, random, signal, sys, threading
import numpy as np, tinyres as tr, tinyres.functional as F
from tinyres.kernels.cpu import runtime
chance = random.Random(int(sys.argv[1]))
x = np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32)
nets = []
def train():
    tr.manual_seed(0)
    nets[:] = [tr.models.resnet(8)]
    optimizer = tr.optim.SGD(nets[0].parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        loss = F.cross_entropy(nets[0](tr.tensor(x)), np.arange(16) % 10)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    return b"".join(value.tobytes() for value in nets[0].state_dict().values())
def locked():
    return [name for net in nets for name, p in net.named_parameters() if not p.data.flags.writeable]
right, interrupts = train(), 0
helpers = [t for t in threading.enumerate() if t.name.startswith("tinyres-kernels")]
assert len(helpers) == 1, helpers
signal.signal(signal.SIGALRM, signal.default_int_handler)
while interrupts < 100:
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.03))
        train()
        signal.setitimer(signal.ITIMER_REAL, 0)
        continue
    except KeyboardInterrupt:
        interrupts += 1
    if locked():
        gc.collect()  # an operation's own frames may be in a cycle
    assert not locked(), locked()
    assert runtime.CLAIMED not in runtime._helpers().slots[:, 0], "a helper is lost"
    if interrupts % 10 == 0:
        assert train() == right
signal.setitimer(signal.ITIMER_REAL, 0)
assert train() == right and tr.is_grad_enabled()
assert helpers == [t for t in threading.enumerate() if t.name.startswith("tinyres-kernels")]
print("right")
"""


@pytest.mark.skipif(not hasattr(__import__("signal"), "setitimer"), reason="this system has no timers that send signals")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.kernels) for seed in range(1, 20))])
def test_a_process_survives_a_hundred_interrupts_and_computes_the_same_bits_afterwards(seed):
    """In all: 2,000 interrupts in 20 processes."""
    assert tr.__file__
    environment = {**os.environ, "PYTHONPATH": str(Path(tr.__file__).parent.parent), "TINYRES_BACKEND": "numba"}
    environment["TINYRES_THREADS"] = "2"
    command = [sys.executable, "-X", "faulthandler", "-c", SCRIPT, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr[-3000:]
