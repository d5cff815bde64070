"""Arrays that a graph still needs are read-only: a write between forward and backward fails instead of giving a wrong
gradient.
"""

import copy
import gc
import inspect
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tinyres as tr
import tinyres.functional as F
from tinyres import locks
from tinyres.errors import GraphError
from tinyres.locks import unshared

pytestmark = pytest.mark.usefixtures("nothing_locked")


def leaf(*shape):
    return tr.tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)


def test_a_write_between_forward_and_backward_raises_and_after_it_is_free():
    x = leaf(3)
    y = (x * x).sum()
    with pytest.raises(ValueError, match="read-only"):
        x.data[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        x.data -= 0.1 * x.data
    y.backward()
    x.data[0] = 1


def test_the_result_that_an_operation_keeps_is_locked():
    y = F.relu(leaf(3))
    with pytest.raises(ValueError, match="read-only"):
        y.data[0] = 1
    y.sum().backward()
    y.data[0] = 1


def test_a_dropped_graph_unlocks():
    x = leaf(3)
    y = x * x * x
    del y
    x.data[0] = 1
    assert not locks._locked


def test_a_graph_in_a_cycle_unlocks_when_it_is_collected():
    x = leaf(3)
    y = x * x
    y.itself = y
    del y
    assert not x.data.flags.writeable
    gc.collect()
    x.data[0] = 1


def test_two_graphs_unlock_when_the_second_is_through():
    x = leaf(3)
    first, second = (x * x).sum(), (x * x).sum()
    first.backward()
    with pytest.raises(ValueError, match="read-only"):
        x.data[0] = 1
    second.backward()
    x.data[0] = 1


def test_retain_graph_keeps_the_lock():
    x = leaf(3)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    assert not x.data.flags.writeable
    y.backward()
    assert x.data.flags.writeable


def test_no_grad_locks_nothing():
    x = leaf(3)
    with tr.no_grad():
        y = x * x
    x.data[0] = 1
    assert y.data.flags.writeable


def test_an_array_and_its_views_are_locked_together():
    base = np.arange(12.0)
    x = tr.Tensor(base.reshape(3, 4)[:, 1:3], requires_grad=True)
    y = (x * x).sum()
    for array in (base, x.data):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7
        assert unshared(array) is not array
    y.backward()
    base[0], x.data[0] = 7, 8
    assert not locks._locked


@pytest.mark.parametrize("first", [0, 1])
def test_two_views_of_one_base_unlock_in_either_order(first):
    base = np.arange(6.0)
    views = [tr.Tensor(base[:3], requires_grad=True), tr.Tensor(base[3:], requires_grad=True)]
    losses = [(v * v).sum() for v in views]
    losses[first].backward()
    with pytest.raises(ValueError, match="read-only"):
        base[0] = 7
    losses[1 - first].backward()
    base[0], views[0].data[0], views[1].data[0] = 7, 7, 7
    assert not locks._locked


def test_what_was_read_only_before_stays_so():
    a = np.arange(3.0)
    a.flags.writeable = False
    x = tr.Tensor(a, requires_grad=True)
    (x * x).sum().backward()
    assert not a.flags.writeable and (x.grad == 2 * a).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda a: np.lib.stride_tricks.as_strided(a, (3, 4), (8, 8)),
        lambda a: np.broadcast_to(a, (2, 6)),
        lambda a: a[::-2],
        lambda a: np.lib.stride_tricks.sliding_window_view(a, 3),
        lambda a: np.frombuffer(bytearray(a.tobytes())),
        lambda a: a.reshape(2, 3).T,
        lambda a: a[None, :, None],
    ],
    ids=["as_strided", "broadcast_to", "reversed", "windows", "frombuffer", "transposed", "new axes"],
)
def test_any_kind_of_view_is_as_writable_afterwards_as_before(make):
    view = make(np.arange(6.0))
    before = view.flags.writeable
    x = tr.Tensor(view, requires_grad=True)
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad, 2 * view)
    assert view.flags.writeable == before and not locks._locked


def test_a_memory_map_can_be_trained_on(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6.0))
    for mode in ("r", "r+"):
        view = np.load(tmp_path / "a.npy", mmap_mode=mode)
        x = tr.Tensor(view[1:4], requires_grad=True)
        (x * x).sum().backward()
        np.testing.assert_array_equal(x.grad, [2, 4, 6])
        assert view.flags.writeable == (mode == "r+")


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: F.relu(x),
        lambda x: F.relu6(x),
        lambda x: F.add_relu(x, x),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.batch_norm(x, np.zeros(3), np.ones(3), training=True, relu=True),
        lambda x: F.batch_norm(x.reshape(-1, 3), np.zeros(3), np.ones(3), training=True, relu=True),
        lambda x: F.conv2d(x, np.ones((2, 3, 1, 1))),
        lambda x: F.log_softmax(x.reshape(2, -1)),
    ],
    ids=["relu", "relu6", "add_relu", "max_pool2d", "bn_relu", "bn_relu 2-D", "conv2d", "log_softmax"],
)
def test_results_are_writable_once_the_graph_is_walked(operation):
    y = operation(leaf(2, 3, 4, 4))
    y.backward(np.ones(y.shape))
    y.data[...] = 0


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: F.relu(x),
        lambda x: F.add_relu(x, x),
        lambda x: F.log_softmax(x.reshape(2, -1)),
        lambda x: F.batch_norm(x, np.zeros(3), np.ones(3), training=True, relu=True),
        lambda x: F.batch_norm(x.reshape(-1, 3), np.zeros(3), np.ones(3), training=True, relu=True),
    ],
    ids=["relu", "add_relu", "log_softmax", "batch_norm_relu", "batch_norm_relu 2-D"],
)
def test_a_result_that_is_needed_is_read_only_until_then(operation):
    y = operation(leaf(2, 3, 4, 4))
    with pytest.raises(ValueError, match="read-only"):
        y.data[...] = 0


def test_a_write_cannot_slip_in_anywhere_in_a_block():
    """Whatever can be written to between forward and backward does not change the gradients."""
    x, w = leaf(2, 3, 4, 4), leaf(3, 3, 3, 3)
    mean, var = np.zeros(3), np.ones(3)

    def block():
        mean[...], var[...] = 0, 1
        h = F.conv2d(x, w, padding=1)
        b = F.batch_norm(h, mean, var, training=True)
        z = F.batch_norm_add_relu(b, x, mean, var, training=True)
        p = F.global_avg_pool2d(F.max_pool2d(z, 2))
        return [x, w, h, b, z, p], F.cross_entropy(p, np.array([0, 1]))

    def gradients(spoil):
        x.grad = w.grad = None
        tensors, loss = block()
        for array in [t.data for t in tensors[2:]] + [mean, var] if spoil else []:
            if array.flags.writeable:
                array[...] = 99.0
        loss.backward()
        return x.grad, w.grad

    for clean, spoilt in zip(gradients(False), gradients(True), strict=True):
        np.testing.assert_array_equal(clean, spoilt)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps], ids=["deepcopy", "pickle"])
def test_what_belongs_to_a_graph_cannot_be_copied_and_nothing_else_suffers(copied):
    layer = tr.nn.Linear(2, 2)
    layer.last = layer(tr.tensor(np.ones((1, 2), np.float32)))
    for thing in (layer, layer.last, {"hook": [layer.last]}):
        with pytest.raises(GraphError, match=r"recorded Linear cannot be deep-copied or pickled.*detach"):
            copied(thing)
    layer.last.sum().backward()
    layer.last = layer.last.detach()
    copied(layer)
    assert not locks._locked


def test_a_node_that_was_copied_past_its_constructor_holds_what_it_keeps():
    x = leaf(3)
    y = x * x
    copied = object.__new__(type(y.node))
    vars(copied).update(vars(y.node))
    y.sum().backward()
    assert not x.data.flags.writeable
    del copied
    assert x.data.flags.writeable and not locks._locked


@pytest.mark.parametrize("op", [lambda y, x: y * x, lambda y, x: y + x], ids=["mul", "add"])
@pytest.mark.parametrize("left", [None, 30], ids=["anywhere", "at the limit of recursion"])
def test_a_chain_of_any_length_is_dropped_without_recursion(op, left):
    x = leaf(3)
    y = x
    for _ in range(20_000):
        y = op(y, x)
    limit, depth = sys.getrecursionlimit(), len(inspect.stack(0))
    if left:
        sys.setrecursionlimit(depth + left)
    try:
        del y
    finally:
        sys.setrecursionlimit(limit)
    assert x.data.flags.writeable and not locks._locked


def test_a_view_of_what_its_owner_made_read_only_stays_usable():
    a = np.arange(4.0)
    x = tr.Tensor(a[1:], requires_grad=True)
    a.flags.writeable = False
    (x * x).sum().backward()
    assert x.data.flags.writeable and not a.flags.writeable and not locks._locked


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_while_a_thread_records_can_record_too():
    done = run(
        "import os, threading\n"
        "x = tr.tensor(np.ones(8), requires_grad=True)\n"
        "def work(n):\n"
        "    y = x\n"
        "    for _ in range(n): y = y * 1.0\n"
        "    y.sum().backward()\n"
        "work(1)\n"
        "threading.Thread(target=lambda: [work(50) for _ in iter(int, 1)], daemon=True).start()\n"
        "sys.setswitchinterval(1e-6)\n"
        "for _ in range(20):\n"
        "    pid = os.fork()\n"
        "    if pid == 0: work(20); os._exit(7)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert done.stdout == "7\n" * 20, done.stderr


def run(script: str) -> subprocess.CompletedProcess:
    root = str(Path(tr.__file__).parent.parent)
    head = f"import sys; sys.path.insert(0, {root!r})\nimport gc, numpy as np, tinyres as tr\nfrom tinyres import locks\n"
    return subprocess.run([sys.executable, "-W", "error", "-c", head + script], capture_output=True, text=True, timeout=60)


def test_a_graph_that_is_collected_while_another_is_recorded_does_not_block():
    """The collector may run anywhere, in the midst of locking too, and drops nodes that want to unlock."""
    done = run(
        "import faulthandler; faulthandler.dump_traceback_later(20, exit=True)\n"
        "gc.disable()\n"
        "x = tr.tensor(np.ones(3), requires_grad=True)\n"
        "y = x * x; y.itself = y; del y\n"
        "class Lease(locks.Lease):\n"
        "    def __init__(self):\n"
        "        gc.collect()\n"
        "locks.Lease = Lease\n"
        "z = tr.tensor(np.ones(3), requires_grad=True)\n"
        "(z * z * x).sum().backward()\n"
        "assert x.data.flags.writeable and not locks._locked\n"
        "print('through')\n"
    )
    assert done.stdout == "through\n", done.stderr


def test_a_graph_left_over_at_the_end_of_the_process_is_silent():
    done = run(
        "x = tr.tensor(np.ones(3), requires_grad=True)\n"
        "y = x * x; y.itself = y; tr.left = locks.left = np.left = y\n"
        "sys.left = z = x * x\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_thread_finds_its_arrays_unlocked_when_its_backward_returns():
    """Also while other threads are locking theirs."""
    refused, interval = [], sys.getswitchinterval()

    def work():
        x = leaf(3)
        for _ in range(400):
            (x * x).sum().backward()
            if not x.data.flags.writeable:
                refused.append(x)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not refused and not locks._locked
