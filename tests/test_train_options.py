"""Options of a training run: each does what it says, and a run with all of them is resumed bit for bit."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_train_trainer import outcome

import tinyres as tr
import tinyres.functional as F
from tinyres.data import Loader
from tinyres.data.mixing import mixup, one_hot, random_erasing
from tinyres.errors import CheckpointError, NonFiniteError, UsageError
from tinyres.files import write_atomically
from tinyres.train import Callback, TensorBoard, Trainer, load_network
from tinyres.train.checkpoint import read
from tinyres.train.progress import Silent

DATA = tr.data.shapes(n_train=48, n_test=16)
ALL: dict[str, Any] = {
    "optimizer": "adamw",
    "momentum": 0.8,
    "weight_decay": 0.1,
    "label_smoothing": 0.1,
    "mixup": 0.4,
    "random_erasing": 0.5,
    "clip": 0.5,
    "ema": 0.7,
    "early_stop": 9,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tinyres.train.folder.write_curves", lambda path, *rest: write_atomically(path, b"a picture"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with tr.use_backend("numpy"):
        yield


class Stopping(Silent):
    """Raises KeyboardInterrupt after so many steps, as a kill would; keeps the messages."""

    def __init__(self, after: int = 10**9) -> None:
        self.left, self.said = after, list[str]()

    def step(self, where: str, done: int, steps: int, numbers: str, left: float | None) -> None:
        self.left -= "test" not in where
        if self.left == 0:
            raise KeyboardInterrupt

    def message(self, text: str) -> None:
        self.said.append(text)


def trainer(out: Path | None = None, **options: Any) -> Trainer:
    how = {"epochs": 3, "batch_size": 16, "lr": 0.01, "save_every": 0, "display": Silent(), **options}
    return Trainer("resnet8", DATA, out=out, **how)


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_run_with_all_options_goes_on_bit_for_bit(after: int, tmp_path: Path) -> None:
    trainer(tmp_path / "whole", **ALL).fit()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "cut", **ALL, display=Stopping(after)).fit()
    trainer(tmp_path / "cut", **ALL).fit(resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    kept = read(tmp_path / "whole" / "last.safetensors").state
    assert set(kept) == {"step", "exp_avg", "exp_avg_sq", "ema"} and kept["step"]["fc.bias"] == 9


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("momentum", "early_stop")])
def test_each_option_changes_what_is_trained_and_is_part_of_the_settings(name: str, tmp_path: Path) -> None:
    plain, other = trainer(tmp_path, epochs=1), trainer(epochs=1, **{name: ALL[name]})
    for one in (plain, other):
        one.fit()
    weights = [(one.ema.state_dict() if one.ema else one.model.state_dict())["fc.weight"] for one in (plain, other)]
    assert (weights[0] != weights[1]).any()
    with pytest.raises(UsageError, match=rf"{name.replace('_', ' ')} was None and is {ALL[name]!r} now"):
        trainer(tmp_path, epochs=1, **{name: ALL[name]}).fit(resume=True)


def test_the_first_step_is_the_one_written_by_hand() -> None:
    run = trainer(epochs=1, batch_size=48, augment=False, label_smoothing=0.2, clip=0.01, momentum=0.0, weight_decay=0.5)
    run.schedule.lr_at = lambda step, group=0: 0.25  # type: ignore[method-assign]
    tr.manual_seed(0)
    model = tr.models.build("resnet8")
    order = run.loader.order(0)
    x = (DATA.train_images[order].astype("f4") / 255 - run.mean) * run.scale
    y = one_hot(DATA.train_labels[order], 10) * 0.8 + 0.02
    loss = -(F.log_softmax(model(tr.tensor(x))) * tr.tensor(y)).sum() / 48
    loss.backward()
    norm = np.sqrt(sum((p.grad.astype("f8") ** 2).sum() for p in model.parameters()))
    assert norm > 0.01
    run.fit()
    assert run.state.lines[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for p, q in zip(model.parameters(), run.model.parameters(), strict=True):
        np.testing.assert_allclose(q.data, p.data - 0.25 * (p.grad * 0.01 / norm + 0.5 * p.data), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"optimizer": "lion"}, "expected sgd or adamw"),
        ({"momentum": 1.0}, "from 0 to below 1"),
        ({"weight_decay": -1}, "0 or more"),
        ({"label_smoothing": 1.5}, "from 0 to 1"),
        ({"mixup": -0.1}, "0 or more"),
        ({"random_erasing": 2}, "a probability"),
        ({"clip": 0}, "above 0"),
        ({"ema": 1}, "from 0 to below 1"),
        ({"early_stop": 0}, "1 or more"),
        ({"callbacks": [Callback]}, "has a Callback; it takes objects"),
        ({"callbacks": ["x"]}, "has a str"),
    ],
)
def test_options_out_of_range_are_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=rf"{next(iter(wrong))}.*{says}"):
        trainer(**wrong)


# --- mixup and random erasing ----------------------------------------------------------------------------------------


def test_mixup_blends_images_and_labels_in_one_proportion() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((6, 2, 3, 3)).astype("f4"), one_hot(np.arange(6), 6)
    shares = set()
    for seed in range(5):
        blended, labels = mixup(x, y, 0.8, np.random.default_rng(seed))
        assert blended.dtype == labels.dtype == np.float32
        np.testing.assert_allclose(blended, np.einsum("nk,kchw->nchw", labels, x), rtol=0, atol=1e-6)
        np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
        shares.add(float(labels.max(axis=1).min()))
    assert len(shares) == 5


def test_erased_rectangles_are_of_the_paper_s_sizes() -> None:
    random, ones = np.random.default_rng(0), np.ones((400, 3, 32, 24), np.float32)
    erased = random_erasing(ones.copy(), 0.5, random) == 0
    assert (erased == erased[:, :1]).all()  # all channels
    some = erased[:, 0][erased.any(axis=(1, 2, 3))]
    assert 150 < len(some) < 250
    areas, aspects = [], []
    for image in some:
        rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert image.sum() == height * width  # a full rectangle
        areas.append(height * width / image.size)
        aspects.append(height / width)
    assert 0.01 < min(areas) < 0.06 and 0.33 < max(areas) < 0.45
    assert 0.2 < min(aspects) < 0.5 and 2 < max(aspects) < 4.5
    assert not (random_erasing(ones.copy(), 0.0, random) == 0).any()
    assert all((image == 0).any() for image in random_erasing(ones.copy(), 1.0, random))


def test_a_loader_s_batch_depends_on_its_position_alone() -> None:
    def batches(first: int) -> list[Any]:
        loader = Loader(DATA.train_images, DATA.train_labels, 16, mixup=0.3, random_erasing=0.5, seed=1, classes=10)
        loader.load_state_dict({"seed": 1, "epoch": 2, "batch": first})
        return list(loader)

    whole, rest = batches(0), batches(1)
    assert len(whole) == 3 and whole[0][1].shape == (16, 10)
    for (x, y), (again, same) in zip(whole[1:], rest, strict=True):
        assert x.tobytes() == again.tobytes() and y.tobytes() == same.tobytes()
    with pytest.raises(UsageError, match="mixup=-1"):
        Loader(DATA.train_images, DATA.train_labels, 16, mixup=-1)


# --- averaged weights, early stop ------------------------------------------------------------------------------------


def test_averaged_weights_are_tested_and_kept(tmp_path: Path) -> None:
    after: list[Any] = []

    class Watch(Callback):
        def on_step_end(self, trainer: Trainer) -> None:
            after.append(trainer.model.state_dict())

    run = trainer(tmp_path, epochs=1, ema=0.5, callbacks=[Watch()])
    average = {name: array.copy() for name, array in run.model.state_dict().items()}
    line = run.fit()[0]
    for state in after:
        for name, array in state.items():
            average[name] = 0.5 * average[name] + 0.5 * array if not name.startswith("running") else array
    for file in ("best.safetensors", "last.safetensors"):
        loaded = load_network(tmp_path / file)
        assert np.allclose(loaded.model.state_dict()["fc.weight"], average["fc.weight"], atol=1e-6)
        found = tr.train.evaluate(loaded.model, DATA.test_images, DATA.test_labels, loaded.mean, loaded.scale)
        assert found.loss == line["test_loss"]
    np.testing.assert_array_equal(
        run.model.state_dict()["fc.weight"], after[-1]["fc.weight"]
    )  # training goes on with its own


def test_a_run_ends_early_and_stays_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([50.0, 40.0, 41.0, 40.0, 42.0, 43.0, 44.0])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: tr.train.Evaluation(1.0, next(errors), 16))
    said = Stopping()
    lines = trainer(tmp_path, epochs=9, early_stop=3, display=said).fit()
    assert [line["test_error"] for line in lines] == [50, 40, 41, 40, 42]
    assert said.said[-1] == "stopped early: 3 epochs without a lower test error"
    assert len(trainer(tmp_path, epochs=9, early_stop=3).fit(resume=True)) == 5
    assert len(trainer(tmp_path, epochs=9, early_stop=5).fit(resume=True, change=["early_stop"])) == 7


# --- changes on resuming ---------------------------------------------------------------------------------------------


def test_epochs_and_lr_change_by_name_and_are_on_record(tmp_path: Path) -> None:
    trainer(tmp_path, epochs=2).fit()
    with pytest.raises(UsageError, match=r"epochs was 2 and is 4 now; lr was 0\.01 and is 0\.5 now"):
        trainer(tmp_path, epochs=4, lr=0.5).fit(resume=True)
    with pytest.raises(UsageError, match=r": lr was 0.01 and is 0.5 now\."):
        trainer(tmp_path, epochs=4, lr=0.5).fit(resume=True, change=["epochs"])
    with pytest.raises(UsageError, match="batch_size cannot be changed when a run goes on; epochs, lr, early_stop can"):
        trainer(tmp_path).fit(resume=True, change=["batch_size"])
    with pytest.raises(UsageError, match="has begun 2 epochs, so epochs=1 is too few"):
        trainer(tmp_path, epochs=1).fit(resume=True, change=["epochs"])
    said = Stopping()
    longer = trainer(tmp_path, epochs=4, lr=0.5, display=said)
    assert len(longer.fit(resume=True, change=["epochs", "lr"])) == 4
    assert longer.state.lines[2]["lr"] == longer.schedule.lr_at(3 * 3 - 1) != 0
    assert longer.optimizer.param_groups[0]["lr"] == longer.schedule.lr_at(11)
    assert [line.split(": ", 1)[1] for line in said.said[:2]] == [
        "epochs 4 from here on, instead of 2",
        "lr 0.5 from here on, instead of 0.01",
    ]
    record = [{"epoch": 2, "step": 0, "epochs": [2, 4], "lr": [0.01, 0.5]}]
    assert read(tmp_path / "last.safetensors").texts["run"]["state"]["changes"] == record
    assert json.loads((tmp_path / "config.json").read_text())["changes"] == record
    assert len(trainer(tmp_path, epochs=4, lr=0.5).fit(resume=True)) == 4  # these are its settings now


def test_a_checkpoint_without_sensible_epochs_is_damaged(tmp_path: Path) -> None:
    from tinyres.train import checkpoint

    trainer(tmp_path, epochs=1).fit()
    arrays, state, texts = read(tmp_path / "last.safetensors")
    texts["run"]["settings"]["epochs"] = "many"
    checkpoint.write(tmp_path / "last.safetensors", arrays, state, texts)
    with pytest.raises(CheckpointError, match="does not fit this run, or it is damaged"):
        trainer(tmp_path, epochs=2).fit(resume=True, change=["epochs"])


# --- callbacks -------------------------------------------------------------------------------------------------------


class Order(Callback):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        self.calls.append("start")

    def on_step_end(self, trainer: Trainer) -> None:
        self.calls.append(trainer.state.step)

    def on_epoch_end(self, trainer: Trainer, line: dict[str, Any]) -> None:
        assert trainer.state.lines[-1] is line
        self.calls.append(f"epoch {line['epoch']}")

    def on_fit_end(self, trainer: Trainer) -> None:
        self.calls.append("end")


def test_callbacks_are_called_in_order_and_may_stop_the_run(tmp_path: Path) -> None:
    order = Order()

    def after_two(trainer: Trainer, line: dict[str, Any]) -> None:
        if line["epoch"] == 2:
            trainer.stop()

    assert len(trainer(tmp_path, epochs=5, callbacks=[order, after_two]).fit()) == 2
    assert order.calls == ["start", 1, 2, 3, "epoch 1", 1, 2, 3, "epoch 2", "end"]
    assert len(trainer(tmp_path, epochs=5).fit(resume=True)) == 5


def test_what_a_callback_raises_leaves_the_epoch_saved(tmp_path: Path) -> None:
    def fail(trainer: Trainer, line: dict[str, Any]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, callbacks=[fail]).fit()
    assert len(trainer(tmp_path).fit(resume=True)) == 3


def test_an_infinite_gradient_of_adamw_is_named() -> None:
    run = trainer(optimizer="adamw", lr=1e30)
    with pytest.raises(NonFiniteError, match="Try a lower learning rate than 1e"):
        run.fit()


def events(folder: Path) -> list[tuple[str, int, float]]:
    """The scalars in the event files of a folder: TFRecords of a length, its checksum, the event, and its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="tensorboardX is not installed")
    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + size :]
    return found


def test_tensorboard_has_each_line_once_also_after_resuming(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    trainer(tmp_path, epochs=1, callbacks=[TensorBoard()]).fit()
    (first,) = (tmp_path / "tensorboard").iterdir()
    first.rename(first.with_name("events.out.tfevents.1.host.tinyres"))  # as of another second
    lines = trainer(tmp_path, epochs=3, callbacks=[TensorBoard()]).fit(resume=True, change=["epochs"])
    found = events(tmp_path / "tensorboard")
    assert len(found) == len(set(found)) == 3 * 7
    for line in lines:
        for tag, key in (("train/loss", "train_loss"), ("test/error", "test_error"), ("lr", "lr")):
            assert (tag, line["epoch"], np.float32(line[key])) in found
    with pytest.raises(UsageError, match="TensorBoard needs a folder"):
        trainer(callbacks=[TensorBoard()]).fit()


def test_a_figure_shows_the_lines_of_the_run() -> None:
    run = trainer(epochs=2)
    with pytest.raises(UsageError, match="nothing to plot before the end of the first epoch"):
        run.plot()
    assert repr(run) == "Trainer(resnet8 on shapes, onecycle, 2 epochs: 0 done)"
    lines = run.fit()
    assert "2 done" in repr(run)
    left, right = run.plot().axes
    assert [list(curve.get_ydata()) for curve in left.lines[:2]] == [
        [line[key] for line in lines] for key in ("train_loss", "test_loss")
    ]
    assert list(right.lines[1].get_ydata()) == [line["test_error"] for line in lines]
