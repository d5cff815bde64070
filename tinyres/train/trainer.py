"""`Trainer`: trains a network by a recipe, shows its progress, and may be killed at any moment.

A run that is killed and resumed gives the same bits as one that was not: everything that a step depends on (weights,
momentum, position in the data, random state, the sums of the epoch so far) is in one checkpoint, and that is written whole
or not at all.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from tinyres import functional as F
from tinyres import models, profiler
from tinyres.data import Dataset, Loader
from tinyres.errors import CheckpointError, NonFiniteError, UsageError
from tinyres.guards import detect_anomaly
from tinyres.kernels import dispatch
from tinyres.kernels.arrays import array_module
from tinyres.nn import Module
from tinyres.optim import SGD, GradScaler
from tinyres.random import default_generator, manual_seed
from tinyres.tensor import Tensor
from tinyres.train import checkpoint, progress
from tinyres.train.evaluation import Evaluation, count_wrong, evaluate
from tinyres.train.folder import RunFolder
from tinyres.train.interrupt import Interrupt
from tinyres.train.recipes import BATCH_SIZE, MOMENTUM, RECIPES, WEIGHT_DECAY, depth_of
from tinyres.train.resident import LOOK, ResidentEvaluation, ResidentStep, Sums
from tinyres.train.state import State, check_same, parse_state

AMP = {"fp16": "float16", "bf16": "bfloat16"}


class Trainer:
    """Trains ``model`` on ``dataset``: ``Trainer("resnet20", tr.data.load("cifar10"), out="runs/first").fit()``.

    model: a network, or the name of one, or {"name": "resnet20", "shortcut": "B"}. Named networks are built here, after
        ``manual_seed(seed)``. ``tinyres eval`` can use the files of all networks of `tinyres.models`. A network from
        `load_network` keeps the normalisation of its images.
    recipe: a name in `RECIPES`.
    epochs, lr: by default the recipe's, with lr in proportion to the batch size.
    batch_size: by default 128, or all images if there are fewer.
    seed: for the initial weights (of a named network), the order of the images, and the augmentation.
    augment: whether to crop and mirror.
    validation: how many training images to hold out and use in place of the test set.
    out: the folder for checkpoints, metrics and curves; without one, nothing is saved.
    save_every: seconds between checkpoints within an epoch.
    options: what a command wants to find again in the checkpoint.
    display: see `progress`; by default a bar on a terminal and lines elsewhere.
    profile: whether to measure the kernels of each step, in the attribute ``profile`` (see `tinyres.profiler`).
    amp: "fp16" or "bf16" for activations of 16 bits (mixed precision). Weights stay float32; with fp16 the loss is scaled.
    graph: whether a backend of CUDA kernels may capture its step and its test as graphs.

    Raises `UsageError` for settings out of range.
    """

    def __init__(
        self,
        model: Module | str | dict[str, Any],
        dataset: Dataset,
        recipe: str = "onecycle",
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        seed: int = 0,
        augment: bool = True,
        validation: int = 0,
        out: str | os.PathLike[str] | None = None,
        save_every: float = 60.0,
        options: Sequence[str] = (),
        display: progress.Silent | None = None,
        profile: bool = False,
        amp: str | None = None,
        graph: bool = True,
    ) -> None:
        if recipe not in RECIPES:
            raise UsageError(f"no recipe is called {recipe!r}; there are {', '.join(RECIPES)}")
        self.recipe = RECIPES[recipe]
        self.held_out = "validation" if validation else "test"
        self.dataset = dataset.split_validation(validation) if validation else dataset
        available = len(self.dataset.train_labels)
        batch_size = min(BATCH_SIZE, available) if batch_size is None else batch_size
        _check("batch_size", batch_size, 1 <= batch_size <= available, f"from 1 to the {available} training images")
        self.lr = self.recipe.lr * batch_size / BATCH_SIZE if lr is None else lr
        _check("lr", self.lr, 0 < self.lr < math.inf, "a number above 0")
        _check("seed", seed, seed >= 0, "a whole number, 0 or more")
        _check("save_every", save_every, save_every >= 0, "seconds, 0 or more")
        _check("amp", amp, amp in (None, *AMP), "fp16 or bf16")
        known = model.normalisation if isinstance(model, Module) else None  # that of the weights that it comes with
        how_fed: tuple[np.ndarray, np.ndarray] = known or self.recipe.normalisation(self.dataset.train_images)
        self.mean, self.scale = how_fed
        self.seed, self.save_every, self.options = seed, save_every, list(options)
        images, labels, crop_flip = self.dataset.train_images, self.dataset.train_labels, dispatch.current().crop_flip
        how = dict[str, Any](augment=augment, mean=self.mean, scale=self.scale, seed=seed, crop_flip=crop_flip)
        self.loader = Loader(images, labels, batch_size, drop_last=True, **how)
        self.steps = len(self.loader)
        self.epochs = self.recipe.default_epochs(dataset.name, self.steps) if epochs is None else epochs
        _check("epochs", self.epochs, self.epochs >= 1, "1 or more")

        if isinstance(model, Module):
            self.model, self.network = model, models.describe(model, len(dataset.classes))
        else:
            named = {"name": model} if isinstance(model, str) else model
            self.network = described = {**named, "num_classes": len(dataset.classes)}
            manual_seed(seed)
            self.model = models.build(**described)
        self.device = dispatch.current().device
        self.model.to(self.device)
        self.dtype = AMP[amp] if amp else "float32"
        self.profile = profiler.profile(self.model) if profile else None
        self.optimizer = SGD(self.model.parameters(), self.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        total, depth = self.epochs * self.steps, depth_of(self.model)
        self.schedule = self.recipe.make_schedule(self.optimizer, self.lr, total, depth)
        self.folder = None if out is None else RunFolder(out)
        self.display = progress.for_terminal() if display is None else display
        self.state = State()
        self.settings = {
            "network": self.network or type(self.model).__name__,
            "data": dataset.name,
            "training images": available,
            f"{self.held_out} images": len(self.dataset.test_labels),
            "data crc32": self.dataset.crc32(),
            "recipe": recipe,
            "epochs": self.epochs,
            "batch size": batch_size,
            "lr": self.lr,
            "seed": seed,
            "augment": augment,
            "backend": dispatch.get_backend(),
        }
        self.settings |= ({"amp": amp} if amp else {}) | ({"source": dataset.source} if dataset.source else {})
        self.scaler = GradScaler(enabled=amp == "fp16")
        self.resident: ResidentStep | None = None
        self.resident_test: ResidentEvaluation | None = None
        if dispatch.current().graph and not profile:
            data, how = self.dataset, dict[str, Any](mean=self.mean, scale=self.scale, capture=graph)
            step = how | {"augment": augment, "seed": seed, "dtype": self.dtype, "scaler": self.scaler}
            images, labels = data.train_images, data.train_labels
            self.resident = ResidentStep(self.model, self.optimizer, images, labels, batch_size, **step)
            self.resident_test = ResidentEvaluation(self.model, data.test_images, data.test_labels, **how)
        self._interrupt, self._said, self._saved, self._test_seconds = Interrupt(), set[str](), 0.0, 0.0

    # --- the run ------------------------------------------------------------------------------------------------------

    def fit(self, resume: bool = False) -> list[dict[str, Any]]:
        """Trains to the end, with ``resume`` starting from the last checkpoint in ``out``; returns the lines of
        ``metrics.jsonl``.

        Ctrl-C saves after the current step and raises KeyboardInterrupt. At the first NaN or infinity, raises
        `NonFiniteError` and leaves the last checkpoint as it was. Raises `CheckpointError` for a checkpoint that cannot be
        used, `UsageError` for a folder that holds another run, and for settings that differ from those of the resumed run.
        """
        folder = self.folder.claimed(resume) if self.folder else nullcontext()
        with folder, self._interrupt, self.display, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's about overflow: here it is an error with a name
            self._open(resume)
            if not self.model.training:  # (a part of it that is frozen by eval() stays so)
                self.model.train()
            while self.state.epoch < self.epochs:
                if self.state.step < self.steps:
                    self._train_epoch()
                self._finish_epoch()
            self._draw(now=True)
        return self.state.lines

    def evaluate(self) -> Evaluation:
        """Loss and error on the held-out images."""
        data, test = self.dataset, self.resident_test
        if test and dispatch.current().graph and next(self.model.parameters()).device == self.device:
            return test.run(self._tested)
        return evaluate(self.model, data.test_images, data.test_labels, self.mean, self.scale, on_batch=self._tested)

    def best(self) -> dict[str, Any] | None:
        """The line of the epoch with the lowest error on the held-out images, the first of equals."""
        return min(self.state.lines, key=lambda line: line[f"{self.held_out}_error"], default=None)

    def _train_resident_epoch(self, resident: ResidentStep) -> None:
        """Runs the epoch on the device. The host reads its sums after 1, 2, 4, ... steps, at most a fraction of a second
        apart.
        """
        state, first = self.state, self.state.epoch * self.steps
        lrs = [self.schedule.lr_at(first + step) for step in range(self.steps)]
        resident.start(state.epoch, Sums(state.step, state.wrong, state.loss, False), lrs, self.loader.order(state.epoch))
        steps = 1
        while state.step < self.steps:
            began = time.perf_counter()
            resident.run(min(steps, self.steps - state.step))
            state.step, state.wrong, state.loss, bad = resident.sums()
            seconds = time.perf_counter() - began - self.display.compiled()
            steps, state.seconds = 2 * steps if seconds < LOOK else steps, state.seconds + seconds
            state.images = state.step * self.loader.batch_size
            if bad:
                self._name_the_culprit(resident.passes)
            self.display.step(self._where(), state.step, self.steps, self.state.numbers(), self._seconds_left())
            self._stop_or_save()

    def _train_epoch(self) -> None:
        if self.resident:
            self._train_resident_epoch(self.resident)
            return
        state = self.state
        self.loader.load_state_dict({"seed": self.seed, "epoch": state.epoch, "batch": state.step})
        began = time.perf_counter()
        for images, labels in self.loader:
            with self.profile or nullcontext():
                self._train_step(images, labels)
            now = time.perf_counter()
            state.seconds, began = state.seconds + now - began - self.display.compiled(), now
            self.display.step(self._where(), state.step, self.steps, self.state.numbers(), self._seconds_left())
            self._stop_or_save()

    def _train_step(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Forward, backward, update. There is no update if the loss or a gradient is not finite."""
        state, random = self.state, default_generator().bit_generator.state
        self.schedule.set_step(state.epoch * self.steps + state.step)
        x, y = Tensor(images).to(self.device).to(self.dtype), Tensor(labels).to(self.device)
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        self.optimizer.zero_grad()
        self.scaler.backward(loss)
        self.scaler.unscale_(self.optimizer)
        gradients = (p.grad for p in self.model.parameters() if p.grad is not None)
        if not (math.isfinite(loss.item()) and (self.scaler.enabled or all(map(_finite, gradients)))):
            default_generator().bit_generator.state = random
            self._name_the_culprit(lambda: F.cross_entropy(self.model(x), y).backward())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < 1:  # not for its size: no gradient was finite at any scale
            self._name_the_culprit(lambda: self.scaler.backward(F.cross_entropy(self.model(x), y)))
        state.step += 1
        state.images += len(labels)
        state.wrong += count_wrong(logits, labels)
        state.loss += loss.item() * len(labels)

    def _finish_epoch(self) -> None:
        """Tests, and writes the results of the epoch: first the best network, then the checkpoint that refers to it."""
        self._check_weights()
        state, began = self.state, time.perf_counter()
        try:
            held_out = self.evaluate()
        except NonFiniteError as error:
            raise NonFiniteError(self._advice(f"testing failed: {error}"), error.op) from error
        self._test_seconds = time.perf_counter() - began
        for what, resident in (("step", self.resident), ("test", self.resident_test)):
            if resident and resident.reason and resident.reason not in self._said:
                self._said.add(resident.reason)
                self.display.message(f"the {what} is not captured as a CUDA graph: {resident.reason}")
        lr = self.schedule.lr_at((state.epoch + 1) * self.steps - 1)  # the last step's
        line = state.line(self.held_out, held_out.loss, held_out.error, lr)
        state = self.state = State(epoch=state.epoch + 1, lines=[*state.lines, line])
        if self.folder:
            if self.best() is line:
                result = {k: v for k, v in self.settings.items() if k in ("data", "source")}
                result |= {k: v for k, v in line.items() if "second" not in k}
                how = self.mean, self.scale, result, self.dataset.classes
                checkpoint.save_network(self.folder.best, self.model, self.network, *how)
            self._save()
            self.folder.write_metrics(state.lines)
            self._draw(now=False)
        self.display.message(
            f"{self._where(state.epoch)}  loss {line['train_loss']:.4f}  error {line['train_error']:.2f} %  "
            f"{self.held_out} loss {held_out.loss:.4f}  error {held_out.error:.2f} %  lr {line['lr']:.4g}  "
            f"{line['images_per_second']:.0f} images/s  {progress.duration(line['seconds'])}"
        )

    # --- saving and resuming ------------------------------------------------------------------------------------------

    def _open(self, resume: bool) -> None:
        if not self.folder:
            if resume:
                raise UsageError("to resume, a run needs its folder: out=...")
            if self.state.epoch >= self.epochs:
                raise UsageError(f"all {self.epochs} epochs are done; to go on with the model, give it to a new Trainer")
            return
        if resume and self.folder.last.exists():
            self._restore()
            difference = self.folder.other_process()
            if difference:
                self.display.message(
                    f"{difference}: the numbers may differ from those of an unbroken run in their last bits"
                )
            here = f"continuing in {self._where()} after step {self.state.step} of {self.steps}"
            done = "all epochs are done"
            self.display.message(f"{self.folder.path}: {here if self.state.epoch < self.epochs else done}")
            self.folder.write_metrics(self.state.lines)
            self._saved = time.monotonic()
        else:
            if resume:
                self.display.message(f"{self.folder.path}: no checkpoint yet, so the run starts from the beginning")
            self._save()
        self.folder.write_config(self.settings)

    def _save(self) -> None:
        """Writes the checkpoint, unless a weight is not finite: then the last good checkpoint stays."""
        if not self.folder:
            return
        self._check_weights()
        state = self.optimizer.state_dict()["state"]
        names = [name for name, _ in self.model.named_parameters()]
        momentum = {names[i]: one["momentum_buffer"] for i, one in state.items()}
        self.state.generator = default_generator().bit_generator.state  # type: ignore[assignment]
        self.state.scaler = self.scaler.state_dict()
        run = {"settings": self.settings, "options": self.options, "state": self.state.text()}
        normalisation = checkpoint.normalisation_text(self.mean, self.scale)
        texts = {"network": self.network, "normalisation": normalisation, "run": run, "classes": self.dataset.classes}
        checkpoint.write(self.folder.last, self.model.state_dict(), momentum, texts)
        self._saved = time.monotonic()

    def _restore(self) -> None:
        assert self.folder
        path = self.folder.last
        arrays, momentum, texts = checkpoint.read(path)
        run = texts.get("run")
        if not isinstance(run, dict):
            raise CheckpointError(f"{path} is not the checkpoint of a run: it holds a network alone")
        check_same(run.get("settings"), self.settings, self.folder.path)
        if texts.get("normalisation") != checkpoint.normalisation_text(self.mean, self.scale):
            raise UsageError(
                f"{path}: its run normalises images in another way; give the trainer the network that it began with"
            )
        positions = {name: i for i, (name, _) in enumerate(self.model.named_parameters())}
        try:
            state = parse_state(run.get("state"), self.epochs, self.steps, set(State().line(self.held_out, 0, 0, 0)))
            buffers = {positions[name]: {"momentum_buffer": array} for name, array in momentum.items()}
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": buffers})
            self.model.load_state_dict(arrays)
            default_generator().bit_generator.state = state.generator
            if state.scaler:
                self.scaler.load_state_dict(state.scaler)
        except (CheckpointError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{path} does not fit this run, or it is damaged: {error}") from error
        self.state = state

    def _draw(self, now: bool) -> None:
        if self.folder:
            network = self.network["name"] if self.network else type(self.model).__name__
            title = f"{network} on {self.dataset.name}, {self.recipe.name}, {self.epochs} epochs"
            self.folder.draw(title, self.state.lines, self.held_out, self.display.message, now)

    # --- stopping -----------------------------------------------------------------------------------------------------

    def _stop_or_save(self) -> None:
        if self._interrupt.asked or time.monotonic() - self._saved >= self.save_every:
            self._save()
        if self._interrupt.asked:
            self._draw(now=True)
            raise KeyboardInterrupt

    def _tested(self, done: int, total: int) -> None:
        """Called after one or more test batches: nothing has changed since the last step, so the run can stop here."""
        self.display.step(f"{self._where()}, {self.held_out}", done, total, "", None)
        if self._interrupt.asked:
            self._stop_or_save()

    # --- what went wrong ----------------------------------------------------------------------------------------------

    def _name_the_culprit(self, passes: Callable[[], object]) -> None:
        """Runs the passes of a step again, with every result checked."""
        try:
            with detect_anomaly():
                passes()
        except NonFiniteError as error:
            raise NonFiniteError(self._advice(str(error)), error.op) from error
        raise NonFiniteError(self._advice("the loss or a gradient is not finite"), "CrossEntropy")

    def _check_weights(self) -> None:
        for name, array in self.model.state_dict().items():
            if not _finite(array):
                raise NonFiniteError(self._advice(f"the update made a NaN or an infinity in {name}"), "SGD")

    def _advice(self, what: str) -> str:
        kept = f"; {self.folder.last} is the last good checkpoint" if self.folder else ""
        where = f"{self._where()}, step {self.state.step + 1}"
        return f"{where}: {what.rstrip('.')}. Try a lower learning rate than {self.lr:g}{kept}"

    # --- what is shown ------------------------------------------------------------------------------------------------

    def _where(self, epoch: int | None = None) -> str:
        return f"epoch {self.state.epoch + 1 if epoch is None else epoch:{len(str(self.epochs))}}/{self.epochs}"

    def _seconds_left(self) -> float:
        return self.state.seconds_left(self.epochs, self.steps, self._test_seconds)


def _check(name: str, value: Any, good: bool, expected: str) -> None:
    if not good:
        raise UsageError(f"{name} is {value!r}; expected {expected}")


def _finite(array: Any) -> bool:
    return bool(array_module(array).isfinite(array).all())
