"""Ctrl-C between any two steps of the engine: what a graph had locked is writable once the graph is gone, the modes are as
before, and the next training step has the right bits.
"""

import dis
import gc
import sys

import numpy as np
import pytest

import tinyres as tr
import tinyres.functional as F
from tinyres import autograd, guards, locks

pytestmark = pytest.mark.usefixtures("nothing_locked")
ENGINE = {module.__file__ for module in (autograd, guards, locks)}
x = np.random.default_rng(0).standard_normal((2, 3))
base = np.random.default_rng(1).standard_normal((2, 3, 3))
parameters = [tr.Tensor(base[0], requires_grad=True), tr.Tensor(base[1].T, requires_grad=True)]  # views of one array


def step():
    v, w = parameters
    v.grad = w.grad = None
    with tr.no_grad():
        F.relu(v)
    y = F.linear(F.relu(F.linear(tr.Tensor(x), v)), w)
    (y * y + y).sum().backward()
    return v.grad.tobytes() + w.grad.tobytes()


class Interrupt:
    """Raises KeyboardInterrupt at the k-th place in the engine where Python looks for signals: where a function begins,
    after a call, at the end of a round of a loop. The beginning of a mode's `__exit__` is left out: no code in Python can
    help there.
    """

    def __init__(self, k):
        self.left, self.last = k, {}

    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename not in ENGINE or frame.f_code.co_name == "__exit__":
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            before, now = self.last.get(frame), dis.opname[frame.f_code.co_code[frame.f_lasti]]
            self.last[frame] = now
            if before and before.startswith(("RESUME", "CALL", "JUMP_BACKWARD")) and now != "CACHE":
                self.left -= 1
                if self.left == 0:
                    self.last.clear()
                    sys.settrace(None)
                    raise KeyboardInterrupt
        return self


def interrupted(k):
    trace = Interrupt(k)
    sys.settrace(trace)
    try:
        step()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="before Python 3.11 no instruction tells where signals are looked for"
)
@pytest.mark.skipif(sys.gettrace() is not None, reason="something else traces this process: coverage, a debugger")
def test_an_interrupt_anywhere_leaves_nothing_locked_and_no_mode_on():
    with tr.use_backend("numpy"):
        right, k = step(), 1
        while interrupted(k):
            writable = [array.flags.writeable for array in (base, *(p.data for p in parameters))]
            if not all(writable):  # an operation's own frames may be in a cycle
                gc.collect()
                writable = [array.flags.writeable for array in (base, *(p.data for p in parameters))]
            assert all(writable) and not locks._locked, f"interrupt {k}: {writable}"
            assert guards.flags.grad and not guards.flags.anomaly, f"interrupt {k}"
            if k % 25 == 0:
                assert step() == right
            k += 1
        assert k > 300 and step() == right
