"""A training run does what its recipe says, and nothing that interrupts it changes a bit of what comes out."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyres as tr
from tinyres import functional as F
from tinyres import nn
from tinyres.data import Dataset, Loader
from tinyres.errors import CheckpointError, UsageError
from tinyres.files import write_atomically
from tinyres.optim import SGD
from tinyres.train import Trainer, evaluate, load_network
from tinyres.train.checkpoint import read
from tinyres.train.progress import Silent

FILES = ["best.safetensors", "config.json", "curves.png", "last.safetensors", "metrics.jsonl"]
TIMING = ("seconds", "images_per_second")


@pytest.fixture(autouse=True)
def numpy_kernels() -> Iterator[None]:
    with tr.use_backend("numpy"):
        yield


@pytest.fixture(autouse=True)
def quick_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyres.train.folder.write_curves", lambda path, *rest: write_atomically(path, b"a picture"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power cut is tested here


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """Also in tests that run in the background, where shells let it be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Tiny(nn.Module):
    """All that a checkpoint must hold: parameters, running statistics, and a dropout that draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: tr.Tensor) -> tr.Tensor:
        return self.fc(self.dropout(F.global_avg_pool2d(self.bn(self.conv(x), relu=True))))


def colours(n_train: int = 42, n_test: int = 10) -> Dataset:
    """Images of 6x6 pixels in three classes: the channel that is brightest."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, n_train + n_test)
    images = random.integers(0, 200, (n_train + n_test, 3, 6, 6)).astype(np.uint8)
    images[np.arange(len(labels)), labels] += 55
    return Dataset("colours", images[:n_train], labels[:n_train], images[n_train:], labels[n_train:], ("r", "g", "b"))


def tiny_trainer(out: Path | None = None, **changes: Any) -> Trainer:
    tr.manual_seed(7)
    settings = {"epochs": 3, "batch_size": 8, "lr": 0.1, "seed": 3, "save_every": 1e9, "display": Silent(), **changes}
    return Trainer(Tiny(), settings.pop("dataset", None) or colours(), out=out, **settings)


def without_timing(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in TIMING}


def outcome(folder: Path) -> Any:
    """All that a run leaves, apart from its speed, in a form that compares by bits."""
    arrays, kept, texts = read(folder / "last.safetensors")
    state = texts["run"]["state"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert state["lines"] == lines
    state = {**state, "seconds": 0, "lines": [without_timing(line) for line in lines]}
    best, _, about = read(folder / "best.safetensors")
    return bits(arrays), {kind: bits(named) for kind, named in kept.items()}, state, bits(best), about


def bits(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.fixture
def unbroken(tmp_path: Path) -> Any:
    tiny_trainer(tmp_path / "unbroken").fit()
    return outcome(tmp_path / "unbroken")


class CallBack(Silent):
    """Calls something after each step that is shown, with the number of steps shown so far."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self.call, self.shown, self.messages = call, 0, list[str]()

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step(self, *_: object) -> None:
        self.shown += 1
        self.call(self.shown)


# --- what a run does ------------------------------------------------------------------------------------------------


def test_a_run_takes_the_very_steps_of_a_loop_written_out_by_hand() -> None:
    data = colours()
    trainer = tiny_trainer()
    lines = trainer.fit()

    tr.manual_seed(7)
    model = Tiny()
    mean = data.train_images.mean((0, 2, 3), keepdims=True, dtype=np.float64)[0] / 255
    std = data.train_images.std((0, 2, 3), keepdims=True, dtype=np.float64)[0] / 255
    loader = Loader(data.train_images, data.train_labels, 8, mean=trainer.mean, scale=trainer.scale, seed=3, drop_last=True)
    np.testing.assert_allclose(trainer.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(trainer.scale, 1 / std, rtol=1e-5)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = tr.optim.OneCycleLR(optimizer, max_lr=0.1, total_steps=15, cycle_momentum=False)
    for epoch in range(3):
        losses, wrong, seen = 0.0, 0, 0
        for x, y in loader:
            lr = optimizer.param_groups[0]["lr"]
            logits = model(tr.Tensor(x))
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses, wrong, seen = losses + len(y) * loss.item(), wrong + (logits.numpy().argmax(1) != y).sum(), seen + len(y)
        model.eval()
        with tr.no_grad():
            logits = model(tr.Tensor((data.test_images / np.float32(255) - trainer.mean) * trainer.scale))
            test_loss = F.cross_entropy(logits, data.test_labels).item()
        model.train()
        assert without_timing(lines[epoch]) == pytest.approx(
            {
                "epoch": epoch + 1,
                "train_loss": losses / seen,
                "train_error": 100 * wrong / seen,
                "test_loss": test_loss,
                "test_error": 10.0 * (logits.numpy().argmax(1) != data.test_labels).sum(),
                "lr": lr,
            },
            rel=1e-6,
        )
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, trainer.model.state_dict()[name], err_msg=name)


def test_a_run_learns() -> None:
    trainer = tiny_trainer(dataset=colours(120, 60), epochs=12, augment=False)
    assert trainer.fit()[-1]["test_error"] < 5


def test_a_run_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_trainer().fit()
    assert not list(tmp_path.iterdir())


def test_a_run_leaves_five_files_and_no_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".last.safetensors.0a1b.tmp").write_text("left by a process that was killed")
    trainer = tiny_trainer(tmp_path / "run")
    lines = trainer.fit()
    assert sorted(os.listdir(tmp_path / "run")) == FILES
    assert [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == lines
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"] == trainer.settings
    assert {"command", "backend", "threads", "numpy", "python", "tinyres"} <= set(config["processes"][0])


def test_best_is_the_first_epoch_with_the_lowest_error(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path / "run", epochs=6)
    errors = [line["test_error"] for line in trainer.fit()]
    best = errors.index(min(errors)) + 1
    assert trainer.best() == trainer.state.lines[best - 1]
    assert read(tmp_path / "run" / "best.safetensors").texts["result"]["epoch"] == best


def test_with_validation_the_test_images_have_no_part() -> None:
    data = colours()
    data.test_images[:] = 0
    trainer = tiny_trainer(dataset=data, validation=12, batch_size=6)
    line = trainer.fit()[-1]
    assert line["validation_error"] == trainer.evaluate().error
    assert "test_error" not in line
    assert (trainer.steps, len(trainer.dataset.test_labels)) == (5, 12)


def test_a_named_network_is_the_same_for_the_same_seed_and_its_file_can_be_used(tmp_path: Path) -> None:
    data = tr.data.shapes(n_train=16, n_test=4)
    for seed, name in ((2, "other"), (1, "b"), (1, "a")):
        trainer = Trainer("resnet8", data, epochs=1, batch_size=8, seed=seed, out=tmp_path / name, display=Silent())
        trainer.fit()
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b") != outcome(tmp_path / "other")
    for name in ("last", "best"):
        loaded = load_network(tmp_path / "a" / f"{name}.safetensors")
        assert loaded.data == "shapes"
        result = evaluate(loaded.model, data.test_images, data.test_labels, loaded.mean, loaded.scale)
        assert result == trainer.evaluate()


def test_evaluate_does_not_depend_on_the_batch_and_keeps_the_mode() -> None:
    data, model = colours(), Tiny()
    model.train()
    whole = evaluate(model, data.train_images, data.train_labels, batch_size=42)
    parts = evaluate(model, data.train_images, data.train_labels, batch_size=5)
    assert (parts.error, parts.images) == (whole.error, 42)
    assert parts.loss == pytest.approx(whole.loss)
    assert model.training


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"recipe": "magic"}, "no recipe is called 'magic'; there are onecycle, he2015"),
        ({"epochs": 0}, "epochs is 0; expected 1 or more"),
        ({"batch_size": 43}, "batch_size is 43; expected from 1 to the 42 training images"),
        ({"lr": float("nan")}, "lr is nan; expected a number above 0"),
        ({"seed": -1}, "seed is -1"),
        ({"save_every": -1.0}, "save_every is -1.0"),
        ({"validation": 42}, "validation"),
    ],
)
def test_settings_without_meaning_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        tiny_trainer(**changes)


def test_the_learning_rate_goes_in_proportion_to_the_batch_unless_it_is_given() -> None:
    assert tiny_trainer(lr=None, batch_size=32).lr == pytest.approx(0.1)
    assert tiny_trainer(lr=None, batch_size=None).loader.batch_size == 42  # all images, where there are fewer than 128
    assert tiny_trainer(lr=0.3, batch_size=32).lr == 0.3


# --- nothing that interrupts a run changes it --------------------------------------------------------------------------


def test_saving_after_every_step_changes_nothing(tmp_path: Path, unbroken: Any) -> None:
    tiny_trainer(tmp_path / "run", save_every=0).fit()
    assert outcome(tmp_path / "run") == unbroken


class Crash(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_around_any_write_is_made_good_by_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Every file takes its name by os.replace: die just before and just after each one in turn."""
    settings = {"epochs": 2, "batch_size": 14, "save_every": 0}
    tiny_trainer(tmp_path / "unbroken", **settings).fit()
    unbroken = outcome(tmp_path / "unbroken")
    replace, left = os.replace, 0

    def dying(source: Any, target: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0 and moment == "before":
            raise Crash
        replace(source, target)
        if left == 0:
            raise Crash

    monkeypatch.setattr(os, "replace", dying)
    written = set()
    for number in range(1, 100):
        left, folder = number, tmp_path / str(number)
        try:
            tiny_trainer(folder, **settings).fit()
        except Crash:
            tr.default_generator().random(5)  # the process that resumes knows nothing of this one
            tiny_trainer(folder, **settings).fit(resume=True)
            assert outcome(folder) == unbroken, f"write {number}"
            written |= set(os.listdir(folder))
        else:
            break
    assert number == 16  # 2 writes at the start, 3 + 2 an epoch, best once, curves twice; with the 16th nothing died
    assert sorted(name for name in written if not name.startswith(".")) == FILES


@pytest.mark.parametrize("step", [1, 4, 5, 6, 7, 12, 15, 17])  # 5 steps per epoch, then 1 batch of the test
def test_ctrl_c_saves_and_resuming_gives_the_same_bits(tmp_path: Path, unbroken: Any, step: int) -> None:
    def press(shown: int) -> None:
        if shown == step:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path / "run", display=CallBack(press)).fit()
    assert signal.getsignal(signal.SIGINT) is handler
    state = read(tmp_path / "run" / "last.safetensors").texts["run"]["state"]
    assert state["epoch"] * 6 + state["step"] == (step if step % 6 else step - 1)
    tiny_trainer(tmp_path / "run").fit(resume=True)
    assert outcome(tmp_path / "run") == unbroken


def test_a_run_that_is_done_can_be_resumed_and_stays_as_it_is(tmp_path: Path, unbroken: Any) -> None:
    again = tiny_trainer(tmp_path / "unbroken", display=CallBack(lambda shown: pytest.fail("it went on training")))
    assert len(again.fit(resume=True)) == 3
    assert outcome(tmp_path / "unbroken") == unbroken
    assert "all epochs are done" in again.display.messages[0]  # type: ignore[attr-defined]


def test_resuming_where_nothing_was_saved_starts_from_the_beginning_and_says_so(tmp_path: Path, unbroken: Any) -> None:
    """A process that was killed before its first checkpoint leaves an empty folder."""
    (tmp_path / "run").mkdir()
    trainer = tiny_trainer(tmp_path / "run", display=CallBack(lambda shown: None))
    trainer.fit(resume=True)
    assert "no checkpoint yet, so the run starts from the beginning" in trainer.display.messages[0]  # type: ignore[attr-defined]
    assert outcome(tmp_path / "run") == unbroken


def test_another_run_in_the_folder_is_not_overwritten(tmp_path: Path, unbroken: Any) -> None:
    with pytest.raises(UsageError, match=r"already holds a run \(last.safetensors.*--resume.*--out"):
        tiny_trainer(tmp_path / "unbroken").fit()
    assert outcome(tmp_path / "unbroken") == unbroken


def test_a_run_cannot_be_resumed_with_other_settings_and_hears_which_differ(tmp_path: Path, unbroken: Any) -> None:
    changed = tiny_trainer(tmp_path / "unbroken", epochs=4, lr=0.2, dataset=colours(41))
    with pytest.raises(UsageError) as error:
        changed.fit(resume=True)
    for part in ("training images was 42 and is 41 now", "epochs was 3 and is 4 now", "lr was 0.1 and is 0.2 now", "crc32"):
        assert part in str(error.value)
    assert "seed" not in str(error.value)
    assert outcome(tmp_path / "unbroken") == unbroken


def test_a_network_alone_cannot_be_resumed(tmp_path: Path, unbroken: Any) -> None:
    folder = tmp_path / "unbroken"
    (folder / "last.safetensors").write_bytes((folder / "best.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="holds a network alone"):
        tiny_trainer(folder).fit(resume=True)
