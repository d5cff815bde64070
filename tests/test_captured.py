"""Captured steps: the bits of the function itself, recorded anew where they must be, and refused where they cannot be."""

import os
import threading

import numpy as np
import pytest
from backends import BACKENDS

import tinyres as tr
import tinyres.functional as F
from tinyres import nn
from tinyres.errors import UsageError
from tinyres.kernels import recording

BACKEND = "numba"
__test__ = BACKEND in BACKENDS  # else none of these tests is collected


@pytest.fixture(autouse=True)
def numba():
    with tr.use_backend(BACKEND):
        yield


class Run:
    """A network, its optimizer and a training step, which may be captured."""

    def __init__(self, captured=True, model="resnet8", **options):
        tr.manual_seed(0)
        self.model = tr.models.resnet(8) if model == "resnet8" else tr.models.build(model, num_classes=10)
        self.optimizer = tr.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, **options)
        self.step = tr.capture(self.train) if captured else self.train

    def train(self, x, y):
        loss = F.cross_entropy(self.model(x), y, label_smoothing=0.1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def state(self):
        momentum = [a for one in self.optimizer.state_dict()["state"].values() for a in one.values()]
        return [*self.model.state_dict().values(), *(p.grad for p in self.model.parameters()), *momentum]


def batch(i, n=4, size=8):
    rng = np.random.default_rng([i, n])
    return tr.tensor(rng.standard_normal((n, 3, size, size), np.float32)), tr.tensor(rng.integers(0, 10, n))


def same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def compare(captured, eager, steps, schedule=lambda i: 0.05, size=8):
    for i in range(steps):
        for run in (captured, eager):
            run.optimizer.param_groups[0]["lr"] = schedule(i)
        x, y = batch(i, size=size)
        same([captured.step(x, y).data], [eager.step(x, y).data])
        same(captured.state(), eager.state())


# --- the same bits ---------------------------------------------------------------------------------------------------


def test_fifty_steps_with_a_schedule_have_the_same_bits():
    captured, eager = Run(nesterov=True), Run(captured=False, nesterov=True)
    compare(captured, eager, 50, lambda i: 0.1 * 0.95**i)
    assert captured.step.graph and captured.step.reason == "" and captured.step.recordings == 1


@pytest.mark.parametrize("model", ["plain20", "resnet164", "preresnet20", "resnet18"])
def test_a_step_of_every_kind_of_network_is_captured_with_the_same_bits(model):
    captured, eager = Run(model=model), Run(captured=False, model=model)
    compare(captured, eager, 5, size=32 if model == "resnet18" else 8)
    assert captured.step.graph and captured.step.reason == ""


def test_a_depthwise_network_is_captured_with_the_same_bits():
    def make():
        tr.manual_seed(0)
        blocks = [nn.Conv2d(8, 8, 3, stride=s, padding=1, groups=8, bias=False) for s in (1, 2)]
        return nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), *blocks, nn.BatchNorm2d(8), nn.ReLU6(), nn.GlobalAvgPool2d())

    nets = [make() for _ in range(2)]
    steps = [lambda x, dy, net=net: (net.zero_grad(), net(x).backward(dy))[1] for net in nets]
    steps[1] = tr.capture(steps[1])
    for i in range(5):
        x, dy = batch(i)[0], np.random.default_rng(i).standard_normal((4, 8), np.float32)
        for step in steps:
            step(x, tr.tensor(dy))
        same(*[[p.grad for p in net.parameters()] for net in nets])
    assert steps[1].reason == "" and steps[1].graph


def test_many_images_go_through_chains_of_jobs_with_the_same_bits():
    captured, eager = Run(), Run(captured=False)
    for i in range(5):
        x, y = batch(i, n=100, size=32)
        same([captured.step(x, y).data], [eager.step(x, y).data])
        same(captured.state(), eager.state())
    from tinyres.kernels.cpu.graph import chains

    assert max(len(chain.jobs) for chain in chains(captured.step.graph._jobs)) >= 3


def test_a_model_in_evaluation_sees_its_weights_as_they_are_then():
    run = Run(captured=False)
    predict = tr.capture(run.model)
    seen = []
    for i in range(8):
        x, y = batch(i)
        run.step(x, y)
        run.model.eval()
        with tr.no_grad():
            same([predict(x).data], [run.model(x).data])
        run.model.train()
        seen.append(predict.graph)
    assert predict.recordings == 1 and seen[-1] is not None and len({*map(id, seen[3:])}) == 1


def test_arguments_and_results_may_be_nested_and_are_copied_or_not_as_documented():
    @tr.capture
    def double(pair, options):
        return {"sum": F.add_relu(pair[0], pair[1]), "same": pair[0], "none": None, "scale": options["name"]}

    with tr.no_grad():
        results = []
        for i in range(6):
            x, y = (tr.tensor(np.full((2, 3, 4, 4), i + k, np.float32)) for k in (0, 0.5))
            results.append(double([x, y], {"name": "a"}))
            np.testing.assert_array_equal(results[-1]["sum"].numpy(), 2 * i + 0.5)
            np.testing.assert_array_equal(results[-1]["same"].numpy(), i)
            x.data[...] = -1
            np.testing.assert_array_equal(results[-1]["same"].numpy(), i)
    assert double.reason == "" and results[-1]["none"] is None and results[-1]["scale"] == "a"
    assert results[-1]["sum"].data is results[-2]["sum"].data, "the recording's own memory"
    np.testing.assert_array_equal(results[0]["sum"].numpy(), 0.5)


def test_gradients_are_those_of_the_last_step_also_if_they_were_dropped_in_between():
    captured, eager = Run(), Run(captured=False)
    for i in range(6):
        captured.optimizer.zero_grad()
        x, y = batch(i)
        captured.step(x, y), eager.step(x, y)
        same(captured.state(), eager.state())


# --- recorded anew ---------------------------------------------------------------------------------------------------


def test_another_shape_has_a_recording_of_its_own_and_the_first_is_not_lost():
    captured, eager = Run(), Run(captured=False)
    for i in range(12):
        x, y = batch(i, n=(4, 5)[i % 2])
        same([captured.step(x, y).data], [eager.step(x, y).data])
    assert captured.step.recordings == 2
    same(captured.state(), eager.state())


@pytest.mark.parametrize("change", ["array", "mode", "momentum", "frozen", "state"])
def test_what_a_recording_relies_upon_is_looked_at_each_time(change):
    captured, eager = Run(), Run(captured=False)
    compare(captured, eager, 5)
    for run in (captured, eager):
        first = next(run.model.parameters())
        if change == "array":
            first.data = first.data + np.float32(0.25)
        elif change == "mode":
            run.model.layer1.eval()
        elif change == "momentum":
            run.optimizer.param_groups[0]["momentum"] = 0.5
        elif change == "frozen":
            first.requires_grad, first.grad = False, None
        else:
            run.optimizer.load_state_dict(run.optimizer.state_dict())
    for i in range(5, 11):
        x, y = batch(i)
        same([captured.step(x, y).data], [eager.step(x, y).data])
        same(captured.model.state_dict().values(), eager.model.state_dict().values())
    assert captured.step.recordings == 2 and captured.step.reason == ""


def test_the_backend_is_part_of_what_was_recorded():
    captured, eager = Run(), Run(captured=False)
    compare(captured, eager, 4)
    with tr.use_backend("numpy"):
        compare(captured, eager, 2)
        assert captured.step.reason == "the backend numpy records no graphs"
    compare(captured, eager, 2)
    assert captured.step.reason == "" and captured.step.recordings == 1


def test_no_more_than_some_recordings_are_kept():
    @tr.capture
    def double(x):
        return F.add_relu(x, x)

    with tr.no_grad():
        for n in range(1, 30):
            double(tr.tensor(np.ones((n, 1, 2, 2), np.float32)))
    assert len(double._own()) == 8


# --- refused ---------------------------------------------------------------------------------------------------------


def test_dropout_runs_as_it_is_and_draws_anew():
    tr.manual_seed(0)
    drop = tr.capture(nn.Dropout(0.5))
    x = tr.tensor(np.ones((4, 8, 4, 4), np.float32))
    with tr.no_grad():
        results = {drop(x).data.tobytes() for _ in range(6)}
    assert len(results) == 6 and drop.reason == "it draws random numbers on the host"


REFUSED = {
    "a ufunc": (lambda x: tr.Tensor(x.data * 2), "NumPy computes with it: np.multiply"),
    "a reduction": (lambda x: tr.Tensor(x.data.sum(axis=0)), "NumPy computes with it: sum"),
    "a function": (lambda x: tr.Tensor(np.concatenate([x.data, x.data])), "NumPy computes with it: np.concatenate"),
    "a copy": (lambda x: tr.Tensor(x.data.copy()), "NumPy copies it"),
    "a write": (lambda x: (x.data.fill(3), F.relu(x))[1], "NumPy writes to it"),
    "item": (lambda x: F.relu(x) if F.relu(x).data[0, 0, 0, 0] > 9 else F.relu6(x), "it reads single numbers"),
    "float": (lambda x: F.relu(x) if float(F.global_avg_pool2d(x)[0, 0]) > 9 else x, "it reads single numbers"),
    "operator": (lambda x: x * x, "NumPy computes with it: np.multiply"),
    "hidden": (lambda x: tr.Tensor(np.asarray(x.data) + 1), "a replay gives other numbers than the function"),
    "hidden and used": (lambda x: F.relu(tr.Tensor(np.asarray(x.data) + 1)), "a replay gives other numbers"),
    "random": (lambda x: F.relu(x) if tr.default_generator().random() < 2 else x, "it draws random numbers on the host"),
    "number": (lambda x: (F.relu(x), 3.0), "its result holds a number"),
    "backend": (lambda x: (tr.use_backend("numba"), F.relu(x))[1], "it chooses a backend"),
    "fall-back": (lambda x: F.conv2d(x, WEIGHT, dilation=2), "NumPy does the conv2d: dilation"),
}
WEIGHT = tr.tensor(np.ones((2, 3, 3, 3), np.float32))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_replayed_is_refused_with_the_reason(name):
    function, reason = REFUSED[name]
    captured = tr.capture(function)
    with tr.no_grad():
        for i in range(5):
            x, twin = (batch(i)[0] for _ in range(2))
            got, want = captured(x), function(twin)
            leaves = ([], [])
            for value, found in ((got, leaves[0]), (want, leaves[1])):
                found += [v.numpy() for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, tr.Tensor)]
            same(*leaves)
            assert all(type(v) is np.ndarray for v in leaves[0]), "the recorder's own class got out"
    assert reason in captured.reason and captured.graph is None


def test_a_parameter_that_numpy_writes_to_is_noticed():
    run = Run(captured=False)
    first = next(run.model.parameters())

    def decayed(x, y):
        loss = run.train(x, y)
        first.data *= np.float32(0.99)
        return loss

    step, eager = tr.capture(decayed), Run(captured=False)
    for i in range(5):
        x, y = batch(i)
        step(x, y), eager.step(x, y)
        next(eager.model.parameters()).data[...] *= np.float32(0.99)
    same(run.state(), eager.state())
    assert "NumPy computes with it" in step.reason


def test_a_schedule_within_the_step_is_refused():
    run = Run(captured=False)
    schedule = tr.optim.StepLR(run.optimizer, 1, 0.5)
    step = tr.capture(lambda x, y: (run.train(x, y), schedule.step())[0])
    for i in range(5):
        step(*batch(i))
    assert "step the schedule outside" in step.reason and run.optimizer.param_groups[0]["lr"] == 0.05 / 32


def test_gradients_that_add_up_over_calls_are_refused():
    model = tr.models.resnet(8)

    def add(x, y):
        F.cross_entropy(model(x), y).backward()

    step = tr.capture(add)
    for i in range(4):
        step(*batch(i))
    assert "NumPy computes with it: np.add" in step.reason


def test_hooks_and_graphs_that_are_still_there_are_refused():
    model = tr.models.resnet(8)
    predict = tr.capture(model)
    for i in range(4):
        assert predict(batch(i)[0]).requires_grad
    assert "still has a graph" in predict.reason
    handle = model.layer1.register_forward_hook(lambda *args: None)
    predict = tr.capture(model)
    with tr.no_grad():
        for i in range(4):
            predict(batch(i)[0])
    assert predict.reason == "a module has hooks"
    handle.remove()


def test_an_argument_that_requires_a_gradient_gets_it():
    relu = tr.capture(F.relu)
    for i in range(5):
        x = tr.Tensor(batch(i)[0].data, requires_grad=True)
        relu(x).backward(np.ones(x.shape, np.float32))
        np.testing.assert_array_equal(x.grad, x.data > 0)
    assert "requires a gradient" in relu.reason


def test_what_is_no_function_is_refused():
    with pytest.raises(UsageError, match="takes a function or a module, got int"):
        tr.capture(3)


def test_an_exception_leaves_as_it_is_and_the_next_call_starts_anew():
    state = {"fail": True}

    def work(x):
        y = F.relu(x)
        if state["fail"] and recording.active():
            raise ValueError("no")
        return y

    relu = tr.capture(work)
    with tr.no_grad():
        for i in range(3):
            with pytest.raises(ValueError, match="no"):
                relu(batch(i)[0])
        state["fail"] = False
        for i in range(5):
            x = batch(i)[0]
            same([relu(x).data], [np.maximum(x.data, 0)])
    assert relu.graph and relu.reason == ""


def test_an_interrupted_comparison_leaves_what_the_function_has_done(monkeypatch):
    from tinyres.kernels.cpu.graph import Graph

    captured, eager = Run(), Run(captured=False)
    compare(captured, eager, 2)
    x, y = batch(2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Graph, "poison", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        captured.step(x, y)
    eager.step(x, y)
    same(captured.model.state_dict().values(), eager.model.state_dict().values())
    compare(captured, eager, 5)
    assert captured.step.recordings == 2 and captured.step.graph


def test_labels_out_of_range_make_a_nan_and_touch_no_other_memory():
    captured = Run(captured=False)
    loss = tr.capture(lambda x, y: F.cross_entropy(captured.model(x), y))
    with tr.no_grad():
        for i in range(4):
            loss(*batch(i))
        x, y = batch(5)
        for wrong in (10, -1, 2**40):
            y.data[1] = wrong
            assert np.isnan(loss(x, y).item())
    assert loss.graph


# --- together --------------------------------------------------------------------------------------------------------


def test_two_captured_steps_in_two_threads_and_with_the_pool_trimmed_in_between():
    runs, eager = [Run(), Run()], Run(captured=False)
    compare(Run(), eager, 10)

    def work(run):
        with tr.use_backend(BACKEND):
            for i in range(10):
                tr.empty_cache()
                run.step(*batch(i))

    threads = [threading.Thread(target=work, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run in runs:
        same(run.state(), eager.state())
        assert run.step.recordings == 1


def test_one_captured_function_in_two_threads_has_a_recording_in_each():
    relu = tr.capture(F.relu)
    failed = []

    def work(seed):
        with tr.use_backend(BACKEND), tr.no_grad():
            for i in range(40):
                x = batch(100 * seed + i)[0]
                if not np.array_equal(relu(x).data, np.maximum(x.data, 0)):
                    failed.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and relu.recordings == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_process_goes_on_with_a_recording():
    captured, eager = Run(), Run(captured=False)
    compare(captured, eager, 5)
    pid = os.fork()
    if pid == 0:
        try:
            compare(captured, eager, 3)
            os._exit(0 if captured.step.recordings == 1 else 2)
        except BaseException:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    compare(captured, eager, 3)


def test_a_recording_takes_no_more_memory_than_the_step_itself():
    from tinyres.kernels.cpu import buffers

    eager, captured = Run(captured=False), Run()
    tr.empty_cache()
    before = buffers.statistics()["held"]
    for i in range(3):
        eager.step(*batch(i, n=32, size=32))
    needs = buffers.statistics()["held"] - before
    for i in range(5):
        captured.step(*batch(i, n=32, size=32))
    assert captured.step.graph.bytes <= 1.05 * needs


# --- what the checks must catch --------------------------------------------------------------------------------------


def caught():
    """Whether a fault in the recorder shows, in its own check or in the bits."""
    captured, eager = Run(), Run(captured=False)
    try:
        for i in range(6):
            x, y = batch(i, n=64, size=16)
            same([captured.step(x, y).data], [eager.step(x, y).data])
            same(captured.state(), eager.state())
    except AssertionError:
        return True
    return "other numbers" in captured.step.reason


def test_nothing_is_caught_where_nothing_is_wrong():
    assert not caught()


def test_a_wait_that_is_left_out_is_caught(monkeypatch):
    from tinyres.kernels.cpu import graph

    monkeypatch.setattr(graph, "_conflict", lambda first, second, by_image=False: False)
    assert caught()


def test_memory_that_is_handed_out_too_early_is_caught(monkeypatch):
    from tinyres.kernels.cpu import buffers

    def empty(self, owner_of_size, shape, dtype):
        free = self.free.setdefault(owner_of_size.size, [])
        if not free or len(self.memory) < 12:
            free.append(buffers._take(owner_of_size, shape))
            self.memory.append((owner_of_size, free[-1]))
        owner = owner_of_size.from_buffer(free[-1])
        owner.memory, owner.free, owner.arena = free[-1], [], self  # still in the list
        return self.kind(shape, dtype, buffer=owner)

    monkeypatch.setattr(buffers.Arena, "empty", empty)
    assert caught()


def test_a_stale_address_is_caught(monkeypatch):
    from tinyres import captured

    monkeypatch.setattr(captured._Recording, "fits", lambda self: True)
    with pytest.raises(AssertionError):
        test_what_a_recording_relies_upon_is_looked_at_each_time("array")


def test_a_rate_that_is_not_refreshed_is_caught(monkeypatch):
    monkeypatch.setattr(recording.Notes, "before_replay", lambda self, refresh: None)
    with pytest.raises(AssertionError):
        test_fifty_steps_with_a_schedule_have_the_same_bits()


def test_a_recording_that_is_dropped_gives_its_memory_back_while_gradients_live_on():
    from tinyres.kernels.cpu import buffers

    run = Run()
    for i in range(5):
        run.step(*batch(i, n=16, size=32))
    kept, before = [p.grad.copy() for p in run.model.parameters()], buffers.statistics()["in_use"]
    taken = run.step.graph.bytes
    run.step = None
    assert buffers.statistics()["in_use"] < before - 0.9 * taken
    with tr.no_grad():
        run.model(batch(9, n=16, size=32)[0])
    same([p.grad for p in run.model.parameters()], kept)
