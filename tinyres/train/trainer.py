"""`Trainer`: trains a network by a recipe, shows its progress, and may be killed at any moment.

A run that is killed and resumed gives the same bits as one that was not: everything that a step depends on (weights,
momentum, position in the data, random state, the sums of the epoch so far) is in one checkpoint, and that is written whole
or not at all.
"""

import os
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from tinyres import models, profiler
from tinyres.captured import NOT_ASKED
from tinyres.data import Dataset, Loader
from tinyres.errors import NonFiniteError, UsageError
from tinyres.kernels import dispatch
from tinyres.nn import Module
from tinyres.optim import EMA, GradScaler
from tinyres.random import manual_seed
from tinyres.train import curves, progress, saving
from tinyres.train.callbacks import Callback, as_callback
from tinyres.train.checkpoint import save_network
from tinyres.train.evaluation import Evaluation, evaluate
from tinyres.train.folder import RunFolder
from tinyres.train.interrupt import Interrupt
from tinyres.train.options import AMP, check, check_options
from tinyres.train.recipes import BATCH_SIZE, OPTIMIZERS, RECIPES, depth_of
from tinyres.train.resident import LOOK, ResidentEvaluation, ResidentStep, Sums
from tinyres.train.state import State
from tinyres.train.step import Step, StepFailed, culprit, finite


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
    optimizer: "sgd" or "adamw"; momentum (of AdamW, the first beta) and weight_decay: by default the recipe's.
    label_smoothing: the part of a label that is spread over all classes, from 0 to 1.
    mixup, random_erasing: the alpha of blending images, the probability of erasing a part (see `tinyres.data.mixing`).
    clip: the norm to which larger gradients are scaled down.
    ema: the decay of an average of the weights (such as 0.999), which is tested and kept as the best network.
    early_stop: the run ends when so many epochs in a row have not lowered the error on the held-out images.
    callbacks: what is called while it trains: see `Callback`.
    save_every: seconds between checkpoints within an epoch.
    options: what a command wants to find again in the checkpoint.
    display: see `progress`; by default a bar on a terminal and lines elsewhere.
    profile: whether to measure the kernels of each step, in the attribute ``profile`` (see `tinyres.profiler`).
    amp: "fp16" or "bf16" for activations of 16 bits (mixed precision). Weights stay float32; with fp16 the loss is scaled.
    capture: whether the step, and on a GPU the test, may be captured and replayed (see `tinyres.capture`).

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
        optimizer: str = "sgd",
        momentum: float | None = None,
        weight_decay: float | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        random_erasing: float = 0.0,
        clip: float | None = None,
        ema: float | None = None,
        early_stop: int | None = None,
        callbacks: Sequence[Callback | Callable[["Trainer", dict[str, Any]], object]] = (),
        out: str | os.PathLike[str] | None = None,
        save_every: float = 60.0,
        options: Sequence[str] = (),
        display: progress.Silent | None = None,
        profile: bool = False,
        amp: str | None = None,
        capture: bool = True,
    ) -> None:
        if recipe not in RECIPES:
            raise UsageError(f"no recipe is called {recipe!r}; there are {', '.join(RECIPES)}")
        self.recipe = RECIPES[recipe]
        self.held_out = "validation" if validation else "test"
        self.dataset = dataset.split_validation(validation) if validation else dataset
        available = len(self.dataset.train_labels)
        batch_size = min(BATCH_SIZE, available) if batch_size is None else batch_size
        check("batch_size", batch_size, 1 <= batch_size <= available, f"from 1 to the {available} training images")
        further: dict[str, Any] = {"momentum": momentum, "weight_decay": weight_decay, "clip": clip, "ema": ema}
        further |= {"label_smoothing": label_smoothing or None, "early_stop": early_stop}
        further |= {"mixup": mixup or None, "random_erasing": random_erasing or None}
        check_options(optimizer=optimizer, lr=lr, seed=seed, save_every=save_every, amp=amp, epochs=epochs, **further)
        self.lr = OPTIMIZERS[optimizer].lr(self.recipe, batch_size) if lr is None else lr
        self.early_stop, self.callbacks = early_stop, list(map(as_callback, callbacks))
        known = model.normalisation if isinstance(model, Module) else None  # that of the weights that it comes with
        how_fed: tuple[np.ndarray, np.ndarray] = known or self.recipe.normalisation(self.dataset.train_images)
        self.mean, self.scale = how_fed
        self.seed, self.save_every, self.options = seed, save_every, list(options)
        images, labels, crop_flip = self.dataset.train_images, self.dataset.train_labels, dispatch.current().crop_flip
        how = dict[str, Any](augment=augment, mean=self.mean, scale=self.scale, seed=seed, crop_flip=crop_flip)
        how |= {"mixup": mixup, "random_erasing": random_erasing, "classes": len(dataset.classes)}
        self.loader = Loader(images, labels, batch_size, drop_last=True, **how)
        self.steps = len(self.loader)
        self.epochs = self.recipe.default_epochs(dataset.name, self.steps) if epochs is None else epochs

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
        self.optimizer = OPTIMIZERS[optimizer].make(self.model, self.lr, momentum, weight_decay)
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
        further |= {"amp": amp, "source": dataset.source or None, "optimizer": None if optimizer == "sgd" else optimizer}
        self.settings |= {name.replace("_", " "): value for name, value in further.items() if value is not None}
        self.scaler = GradScaler(enabled=amp == "fp16")
        self.ema = None if ema is None else EMA(self.model, ema)
        how = {"device": self.device, "dtype": self.dtype, "label_smoothing": label_smoothing}
        how["capture"] = capture and not profile
        self.step = Step(self.model, self.optimizer, self.scaler, clip=clip, ema=self.ema, **how)
        self.resident: ResidentStep | None = None
        self.resident_test: ResidentEvaluation | None = None
        if (recorder := dispatch.current().graph) and not (recorder.runs or profile):  # a GPU can do without the host
            data, how = self.dataset, dict[str, Any](mean=self.mean, scale=self.scale, capture=capture)
            self.resident_test = ResidentEvaluation(self.model, data.test_images, data.test_labels, **how)
            each_step = [c for c in self.callbacks if type(c).on_step_end is not Callback.on_step_end]
            other = "mixup" if mixup else "random erasing" if random_erasing else "a callback" if each_step else ""
            if not (self.step.plain or other):
                how |= {"augment": augment, "seed": seed, "dtype": self.dtype, "scaler": self.scaler}
                how["label_smoothing"] = label_smoothing
                images, labels = data.train_images, data.train_labels
                self.resident = ResidentStep(self.model, self.optimizer, images, labels, batch_size, **how)
        self._interrupt, self._said, self._saved, self._test_seconds = Interrupt(), set[str](), 0.0, 0.0

    # --- the run ------------------------------------------------------------------------------------------------------

    def fit(self, resume: bool = False, change: Collection[str] = ()) -> list[dict[str, Any]]:
        """Trains to the end, with ``resume`` starting from the last checkpoint in ``out``; returns the lines of
        ``metrics.jsonl``.

        A resumed run has the settings that it began with, but for those of "epochs", "lr" and "early_stop" that ``change``
        names: from there on, the run is one that had these from the start, and its checkpoint has the change on record.

        Ctrl-C saves after the current step and raises KeyboardInterrupt. At the first NaN or infinity, raises
        `NonFiniteError` and leaves the last checkpoint as it was. Raises `CheckpointError` for a checkpoint that cannot be
        used, `UsageError` for a folder that holds another run, and for settings that differ from those of the resumed run.
        """
        folder = self.folder.claimed(resume) if self.folder else nullcontext()
        with folder, self._interrupt, self.display, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's about overflow: here it is an error with a name
            self._open(resume, change)
            if not self.model.training:  # (a part of it that is frozen by eval() stays so)
                self.model.train()
            self._stopped = False
            self._call("on_fit_start")
            while self.state.epoch < self.epochs and not self._ended():
                if self.state.step < self.steps:
                    self._train_epoch()
                self._finish_epoch()
                self._call("on_epoch_end", self.state.lines[-1])
            self._draw(now=True)
            self._call("on_fit_end")
        return self.state.lines

    def stop(self) -> None:
        """Ends the run after the current epoch; for callbacks."""
        self._stopped = True

    def _ended(self) -> bool:
        """Whether the run is to end before its last epoch."""
        best, epoch = self.best(), self.state.epoch
        if best and self.early_stop and epoch - best["epoch"] >= self.early_stop:
            self.display.message(f"stopped early: {self.early_stop} epochs without a lower {self.held_out} error")
            return True
        return self._stopped

    def _call(self, what: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, what)(self, *arguments)

    def plot(self) -> Any:
        """The curves of the run so far, as a matplotlib figure: a notebook shows it; ``figure.savefig("curves.svg")``."""
        if not self.state.lines:
            raise UsageError("there is nothing to plot before the end of the first epoch; call fit() first")
        return curves.draw_run(self._title(), curves.Curve("", self.state.lines, self.held_out))

    def evaluate(self) -> Evaluation:
        """Loss and error on the held-out images; with ``ema``, of the averaged weights."""
        with self.ema.applied() if self.ema else nullcontext():
            return self._evaluate()

    def _evaluate(self) -> Evaluation:
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
                raise self._advised(culprit(resident.passes))
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
            try:
                with self.profile or nullcontext():
                    self.schedule.set_step(state.epoch * self.steps + state.step)
                    loss, wrong = self.step.run(images, labels)
            except StepFailed as failed:
                raise self._advised(culprit(failed.passes)) from None
            state.step, state.images = state.step + 1, state.images + len(labels)
            state.wrong, state.loss = state.wrong + wrong, state.loss + loss * len(labels)
            now = time.perf_counter()
            state.seconds, began = state.seconds + now - began - self.display.compiled(), now
            self._call("on_step_end")
            self.display.step(self._where(), state.step, self.steps, self.state.numbers(), self._seconds_left())
            self._stop_or_save()

    def _finish_epoch(self) -> None:
        """Tests, and writes the results of the epoch: first the best network, then the checkpoint that refers to it."""
        self._check_weights()
        state, began = self.state, time.perf_counter()
        try:
            held_out = self.evaluate()
        except NonFiniteError as error:
            raise self._advised(error, "testing failed: ") from error
        self._test_seconds = time.perf_counter() - began
        if dispatch.current().graph:
            for what, captured in (("step", self.resident or self.step.captured), ("test", self.resident_test)):
                if captured and captured.reason and captured.reason not in (*self._said, NOT_ASKED):
                    self._said.add(captured.reason)
                    self.display.message(f"note: the {what} is not captured: {captured.reason}")
        lr = self.schedule.lr_at((state.epoch + 1) * self.steps - 1)  # the last step's
        line = state.line(self.held_out, held_out.loss, held_out.error, lr)
        state = self.state = State(epoch=state.epoch + 1, lines=[*state.lines, line], changes=state.changes)
        if self.folder:
            if self.best() is line:
                result = {k: v for k, v in self.settings.items() if k in ("data", "source")}
                result |= {k: v for k, v in line.items() if "second" not in k}
                how = self.mean, self.scale, result, self.dataset.classes
                with self.ema.applied() if self.ema else nullcontext():
                    save_network(self.folder.best, self.model, self.network, *how)
            self._save()
            self.folder.write_metrics(state.lines)
            self._draw(now=False)
        self.display.message(
            f"{self._where(state.epoch)}  loss {line['train_loss']:.4f}  error {line['train_error']:.2f} %  "
            f"{self.held_out} loss {held_out.loss:.4f}  error {held_out.error:.2f} %  lr {line['lr']:.4g}  "
            f"{line['images_per_second']:.0f} images/s  {progress.duration(line['seconds'])}"
        )

    # --- saving and resuming ------------------------------------------------------------------------------------------

    def _open(self, resume: bool, change: Collection[str]) -> None:
        if not self.folder:
            if resume:
                raise UsageError("to resume, a run needs its folder: out=...")
            if self.state.epoch >= self.epochs:
                raise UsageError(f"all {self.epochs} epochs are done; to go on with the model, give it to a new Trainer")
            return
        if resume and self.folder.last.exists():
            changes = saving.restore(self, change)
            for name, (before, now) in changes.items():
                self.display.message(f"{self.folder.path}: {name} {now} from here on, instead of {before}")
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
        self.folder.write_config(self.settings, self.options, self.state.changes)

    def _save(self) -> None:
        """Writes the checkpoint, unless a weight is not finite: then the last good checkpoint stays."""
        if not self.folder:
            return
        self._check_weights()
        saving.save(self)
        self._saved = time.monotonic()

    def __repr__(self) -> str:
        where = f", {self.folder.path}" if self.folder else ""
        return f"Trainer({self._title()}: {self.state.epoch} done{where})"

    def _title(self) -> str:
        network = self.network["name"] if self.network else type(self.model).__name__
        return f"{network} on {self.dataset.name}, {self.recipe.name}, {self.epochs} epochs"

    def _draw(self, now: bool) -> None:
        if self.folder:
            self.folder.draw(self._title(), self.state.lines, self.held_out, self.display.message, now)

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

    def _check_weights(self) -> None:
        for name, array in self.model.state_dict().items():
            if not finite(array):
                rule = type(self.optimizer).__name__
                raise self._advised(NonFiniteError(f"the update made a NaN or an infinity in {name}", rule))

    def _advised(self, error: NonFiniteError, what: str = "") -> NonFiniteError:
        kept = f"; {self.folder.last} is the last good checkpoint" if self.folder else ""
        where, said = f"{self._where()}, step {self.state.step + 1}", f"{what}{error}".rstrip(".")
        return NonFiniteError(f"{where}: {said}. Try a lower learning rate than {self.lr:g}{kept}", error.op)

    # --- what is shown ------------------------------------------------------------------------------------------------

    def _where(self, epoch: int | None = None) -> str:
        return f"epoch {self.state.epoch + 1 if epoch is None else epoch:{len(str(self.epochs))}}/{self.epochs}"

    def _seconds_left(self) -> float:
        return self.state.seconds_left(self.epochs, self.steps, self._test_seconds)
