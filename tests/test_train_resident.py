"""The training step that lives on the device: captured, resumed, mixed, and equal to the reference's. Emulated here."""

import json

import numpy as np
import pytest
from backends import BACKENDS

import tinyres as tr
import tinyres.functional as F
from tinyres.captured import WARM_UP
from tinyres.data import Dataset
from tinyres.errors import NonFiniteError
from tinyres.kernels import dispatch
from tinyres.kernels.cuda import variants
from tinyres.kernels.cuda.launch import Kernel
from tinyres.train import Trainer, evaluate
from tinyres.train.evaluation import Evaluation
from tinyres.train.progress import Silent
from tinyres.train.resident import ResidentEvaluation, ResidentStep, Sums

BACKEND = "cuda-emulated"
__test__ = BACKEND in BACKENDS  # else none of these tests is collected


@pytest.fixture(autouse=True)
def emulated():
    with tr.use_backend(BACKEND), tr.strict():
        yield


def data(n=24, size=8):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 3, size, size), np.uint8), rng.integers(0, 10, n)


def make(images, labels, batch=4, **options):
    tr.manual_seed(0)
    model = tr.models.resnet(8)
    optimizer = tr.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    return ResidentStep(model, optimizer, images, labels, batch, mean=0.4, scale=3.0, **options)


def run(step, steps, epoch=0, sums=Sums(0, 0, 0.0, False)):  # noqa: B008
    order = np.random.default_rng(epoch).permutation(len(step.batches.images))
    step.start(epoch, sums, list(np.linspace(0.05, 0.01, len(order) // len(step.batches.y))), order)
    step.run(steps)
    return step.sums()


def weights(step):
    return np.concatenate([array.ravel() for array in step.model.state_dict().values()])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_captured_step_does_what_the_step_does(dtype):
    images, labels = data()
    captured, eager = make(images, labels, dtype=dtype), make(images, labels, capture=False, dtype=dtype)
    for epoch in (0, 1):
        assert run(captured, 6, epoch) == run(eager, 6, epoch)
    assert captured.reason == "" and len(captured.captured.graph.launches) > 50
    kernels = {entry.args[0] for entry in captured.captured.graph.launches if isinstance(entry.args[0], Kernel)}
    assert {kernel.file for kernel in kernels} >= {"augment", "norm", "loss", "update", "step"}
    for kernel in kernels:
        variants.check(kernel.file, kernel.macros)  # a test compiles it for GPUs
    assert eager.captured.graph is None and eager.reason == "not asked for"
    np.testing.assert_array_equal(weights(captured), weights(eager))


def test_a_captured_step_trains_the_arrays_that_the_model_has_then():
    """A graph that somebody holds makes who updates the weights replace them."""
    images, labels = data()
    captured, eager = make(images, labels), make(images, labels, capture=False)
    for step in (captured, eager):
        run(step, 4)
        held = step.model(tr.tensor(np.ones((1, 3, 8, 8), np.float32)))
        step.model.load_state_dict({name: 0.5 * a for name, a in step.model.state_dict().items()})
        assert held.requires_grad
        run(step, 6, epoch=1)
    assert captured.captured.graph and captured.reason == ""
    np.testing.assert_array_equal(weights(captured), weights(eager))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_steps_equal_those_of_the_reference(smoothing):
    images, labels = data()
    step = make(images, labels, batch=6, label_smoothing=smoothing)
    tr.manual_seed(0)
    twin = tr.models.resnet(8)
    optimizer = tr.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    order, lrs, losses = np.arange(24), [0.02, 0.05, 0.03, 0.01], []
    step.start(3, Sums(0, 0, 0.0, False), lrs, order)
    for lr in lrs:
        step.run(1)
        x = tr.tensor(step.batches.x.copy())  # what the step was fed
        with tr.use_backend("numpy"):
            optimizer.param_groups[0]["lr"] = lr
            y = labels[:6] if lr == lrs[0] else step.batches.y.copy()
            loss = F.cross_entropy(twin(x), y, label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(step.sums().loss, 6 * sum(losses), rtol=1e-4)
    for name, array in twin.state_dict().items():
        np.testing.assert_allclose(step.model.state_dict()[name], array, rtol=0, atol=2e-4 * max(1, np.abs(array).max()))


def test_it_is_fed_each_image_once_cropped_mirrored_and_normalised():
    images, labels = data(8, size=6)
    step = make(images, labels, batch=4, augment=False, capture=False)
    order = np.random.default_rng(5).permutation(8)
    step.start(0, Sums(0, 0, 0.0, False), [0.0, 0.0], order)
    for part in (order[:4], order[4:]):
        step.run(1)
        np.testing.assert_allclose(step.batches.x, (images[part] / 255 - 0.4) * 3, atol=1e-5)
        np.testing.assert_array_equal(step.batches.y, labels[part])
    augmented = make(images, labels, batch=4, capture=False)
    seen = []
    for epoch in (0, 1):
        augmented.start(epoch, Sums(0, 0, 0.0, False), [0.0, 0.0], order)
        augmented.run(1)
        seen.append(augmented.batches.x.copy())
    assert not np.array_equal(*seen)  # another epoch, other crops


def test_sums_count_losses_and_errors():
    images, labels = data()
    step = make(images, labels, capture=False)
    order = np.arange(24)
    step.start(0, Sums(0, 5, 2.5, False), [0.0] * 6, order)  # at a learning rate of 0 only the statistics move
    step.run(1)
    with tr.no_grad():
        logits = step.model(tr.Tensor(step.batches.x))
        loss = F.cross_entropy(logits, step.batches.y).item()
    wrong = int((logits.numpy().argmax(1) != step.batches.y).sum())
    sums = step.sums()
    assert (sums.step, sums.wrong, sums.bad) == (1, 5 + wrong, False)
    assert sums.loss == pytest.approx(2.5 + 4 * loss, rel=1e-6)


def test_after_a_gradient_that_is_not_finite_nothing_changes():
    images, labels = data()
    step = make(images, labels)
    run(step, 4)
    before = weights(step)
    parameter = step.parameters[0]
    good = parameter.data.copy()
    parameter.data[0, 0, 0, 0] = np.inf
    broken = weights(step)
    sums = run(step, 3, sums=Sums(4, 0, 0.0, False))
    assert sums.bad and sums.step == 4
    state = step.model.state_dict()
    kept = np.concatenate([a.ravel() for n, a in state.items() if "running" not in n])
    assert not np.isfinite(kept).all() and np.isfinite(kept).sum() == len(kept) - 1
    assert np.isfinite(before).all() and not np.array_equal(broken, before) and good.shape == parameter.shape


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_learns_and_keeps_weights_in_float32(dtype):
    images, labels = data()
    scaler = tr.optim.GradScaler(init_scale=2.0**10, enabled=dtype == "float16")
    step = make(images, labels, dtype=dtype, scaler=scaler, augment=False)
    losses = [run(step, 6, epoch).loss / 24 for epoch in range(3)]
    assert step.batches.x.dtype.name == dtype and step.captured.graph is not None
    assert losses[2] < 0.8 * losses[0]
    assert {p.dtype.name for p in step.parameters} == {"float32"} and np.isfinite(weights(step)).all()


def test_an_overflow_leaves_the_update_out_and_halves_the_scale_also_when_captured():
    images, labels = data()
    scaler = tr.optim.GradScaler(init_scale=2.0**14)
    step = make(images, labels, dtype="float16", scaler=scaler)
    run(step, WARM_UP + 1)
    scale = scaler.get_scale()
    scaler._scale[...] = 2.0**40
    before = [p.data.copy() for p in step.parameters]
    assert run(step, 1, sums=Sums(3, 0, 0.0, False)).step == 4
    assert all(np.array_equal(a, p.data) for a, p in zip(before, step.parameters, strict=True))
    assert scaler.get_scale() == 2.0**39 and scale <= 2.0**14


def test_dropout_is_the_reason_why_a_step_is_not_captured():
    images, labels = data(8)
    model = tr.nn.Sequential(tr.nn.Conv2d(3, 4, 3), tr.nn.GlobalAvgPool2d(), tr.nn.Dropout(0.5), tr.nn.Linear(4, 10))
    optimizer = tr.optim.SGD(model.parameters(), lr=0.1)
    step = ResidentStep(model, optimizer, images, labels, 4, mean=0, scale=1)
    run(step, 2)
    assert "dropout" in step.reason and step.captured.graph is None


def test_what_numpy_does_within_a_step_is_the_reason_why_it_is_not_captured_in_the_emulation():
    images, labels = data()
    steps = []
    for capture in (True, False):
        tr.manual_seed(0)
        model = tr.nn.Sequential(tr.nn.Flatten(), tr.nn.Linear(192, 10))  # x lies channels-last: a copy
        optimizer = tr.optim.SGD(model.parameters(), lr=0.1)
        steps.append(ResidentStep(model, optimizer, images, labels, 4, mean=0.4, scale=3.0, capture=capture))
    assert run(steps[0], 6) == run(steps[1], 6)
    assert "that NumPy made" in steps[0].reason


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("numpy", "the backend numpy records no graphs"),
        *[("numba", "NumPy does what no kernel of numba does: begin_step")] * ("numba" in BACKENDS),
    ],
)
def test_where_it_cannot_be_captured_the_step_runs_as_it_is(backend, reason):
    images, labels = data()
    here = make(images, labels)
    want = run(here, 6)
    with tr.use_backend(backend):
        step = make(images, labels)
        got = run(step, 6)
    assert step.reason == reason
    assert got.step == want.step == 6 and got.loss == pytest.approx(want.loss, rel=1e-3)
    np.testing.assert_allclose(weights(step), weights(here), atol=0.02)


# --- evaluation ------------------------------------------------------------------------------------------------------


def evaluation(model, images, labels, **options):
    return ResidentEvaluation(model, images, labels, mean=0.4, scale=3.0, batch_size=4, **options)


def test_an_evaluation_equals_the_other_with_weights_and_statistics_as_they_are_then():
    images, labels = data(22)
    step = make(images, labels)
    tests = [evaluation(step.model, images, labels, capture=capture) for capture in (True, False)]
    seen = set()
    for epoch in range(WARM_UP + 2):
        want = evaluate(step.model, images, labels, 0.4, 3.0, batch_size=4)
        for test in tests:
            got = test.run()
            assert got[1:] == want[1:] and got.loss == pytest.approx(want.loss, rel=1e-6)
        assert step.model.training and got == tests[0].run()
        seen.add(want.loss)
        run(step, 1, epoch)
        assert step.model.training
    assert len(seen) == WARM_UP + 2
    assert all(captured.graph for _, _, captured in tests[0].parts) and tests[0].reason == ""
    assert [(many, len(batches.y)) for many, batches, _ in tests[0].parts] == [(5, 4), (1, 2)]
    assert not any(captured.graph for _, _, captured in tests[1].parts) and tests[1].reason == "not asked for"


def test_an_evaluation_sees_arrays_that_have_been_replaced():
    images, labels = data(12)
    model = make(images, labels).model
    test = evaluation(model, images[:, :, ::-1], labels[::-1])  # (they may lie as they like)
    before = test.run()
    assert before == evaluation(model, images[:, :, ::-1].copy(), labels[::-1].copy()).run()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data + np.float32(0.1)
    after = test.run()
    assert after != before and after == evaluate(model, images[:, :, ::-1], labels[::-1], 0.4, 3.0, batch_size=4)


def test_an_evaluation_says_how_far_it_is_and_may_be_stopped_there():
    images, labels = data(22)
    model = make(images, labels).model
    test = evaluation(model, images, labels)
    calls = []
    whole = test.run(lambda *call: calls.append(call))
    assert calls[-1] == (6, 6) and calls == sorted(calls) and {of for _, of in calls} == {6} and len(calls) > 1

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        test.run(stop)
    assert model.training and test.run() == whole  # from the beginning


@pytest.mark.parametrize("first", [0, 5])  # runs before it: as it is, and captured
def test_an_evaluation_names_the_operation_that_made_a_nan(first):
    images, labels = data(10)
    model = make(images, labels).model
    test = evaluation(model, images, labels)
    for _ in range(first):
        good = test.run()
    weight = next(model.parameters()).data
    kept, weight[0, 0, 0, 0] = weight[0, 0, 0, 0], np.nan
    with pytest.raises(NonFiniteError, match=r"Conv2d made a NaN in its forward pass"):
        test.run()
    assert model.training
    weight[0, 0, 0, 0] = kept
    if first:
        assert test.run() == good


# --- in the Trainer --------------------------------------------------------------------------------------------------


def dataset():
    images, labels = data(16, size=8)
    return Dataset("tiny", images, labels, images[:8], labels[:8], tuple("abcdefghij"))


def trainer(out, **options):
    options = {"batch_size": 4, "epochs": 2, "save_every": 0, "display": Silent(), **options}
    return Trainer("resnet8", dataset(), out=out, **options)


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path):
    lines = trainer(tmp_path / "whole").fit()
    half = trainer(tmp_path / "half")

    def stop(*_):
        half._interrupt.asked = half.state.epoch == 1 and half.state.step == 1

    half.display.step = stop
    with pytest.raises(KeyboardInterrupt):
        half.fit()
    again = trainer(tmp_path / "half")
    resumed = again.fit(resume=True)
    timing = ("seconds", "images_per_second")
    assert [{k: v for k, v in line.items() if k not in timing} for line in resumed] == [
        {k: v for k, v in line.items() if k not in timing} for line in lines
    ]
    one, two = (tr.train.load_network(tmp_path / name / "last.safetensors").model for name in ("whole", "half"))
    for name, array in one.state_dict().items():
        np.testing.assert_array_equal(two.state_dict()[name], array)


def test_the_trainer_uses_it_and_names_the_operation_that_made_a_nan(tmp_path):
    broken = trainer(None)
    assert isinstance(broken.resident, ResidentStep)
    next(broken.model.parameters()).data[0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"Conv2d made a NaN in its forward pass.*lower learning rate"):
        broken.fit()


def test_the_trainer_tests_with_it_on_the_backend_and_device_of_the_training():
    run = trainer(None, epochs=1)
    calls = []
    run.resident_test.run = lambda on_batch: calls.append(on_batch) or Evaluation(1.0, 2.0, 8)
    assert run.evaluate() == (1.0, 2.0, 8) and calls == [run._tested]
    with tr.use_backend("numpy"):
        assert run.evaluate().images == 8 and len(calls) == 1
    assert trainer(None, profile=True).resident_test is None


def test_what_was_not_asked_for_is_not_explained():
    said = []
    run = trainer(None, capture=False)
    run.display.message = said.append
    run.fit()
    assert not [line for line in said if "captured" in line]


def test_mixed_precision_is_part_of_a_runs_settings(tmp_path):
    run = trainer(tmp_path / "run", amp="fp16", epochs=1)
    run.fit()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["amp"] == "fp16"
    assert run.state.scaler["scale"] > 0 and run.resident.batches.x.dtype == np.float16
    with pytest.raises(tr.errors.UsageError, match="amp was 'fp16' and is None now"):
        trainer(tmp_path / "run", epochs=1).fit(resume=True)
    with pytest.raises(tr.errors.UsageError, match="amp is 'fp8'; expected fp16 or bf16"):
        trainer(None, amp="fp8")
    assert dispatch.get_backend() == BACKEND


@pytest.mark.parametrize(
    "options, has",  # whether the data must come from the host
    [
        ({"optimizer": "adamw"}, True),
        ({"clip": 1.0}, True),
        ({"ema": 0.9}, True),
        ({"mixup": 0.2}, True),
        ({"random_erasing": 0.5}, True),
        ({"label_smoothing": 0.1}, False),
    ],
)
def test_what_only_the_plain_step_has_is_done(options, has):
    said = []

    class Display(Silent):
        def message(self, text):
            said.append(text)

    run = trainer(None, display=Display(), **options)
    assert (run.resident is None) == has
    with tr.use_backend("numpy"):
        twin = trainer(None, display=Silent(), **options)
        twin.fit()
    run.fit()
    if has:  # (the resident step draws its crops in another way)
        np.testing.assert_allclose(run.state.lines[0]["train_loss"], twin.state.lines[0]["train_loss"], rtol=1e-4)
