"""``tinyres train``: trains a network and keeps everything in one folder."""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tinyres
from tinyres.cli import config, seeds
from tinyres.cli.options import add_backend, add_data, add_data_dir, add_shortcut, load_data, network, number, use, whole
from tinyres.cli.subjects import weights_in
from tinyres.data import Dataset
from tinyres.errors import UsageError
from tinyres.files import printable
from tinyres.nn import Module

FEW_STEPS = 100  # on shapes, 48 steps at the recipe's learning rate end at 75 % error, at a quarter of it at 41 %

DESCRIPTION = """\
Trains a network and writes to its folder: config.json, metrics.jsonl (one line per epoch), curves.png, last.safetensors
(the checkpoint) and best.safetensors (the network after the epoch with the lowest error).

You may stop the run with Ctrl-C or kill it at any moment: the same command with --resume continues it, and ends with the
same bits as a run that was never interrupted.

recipes:
  onecycle  one cycle of the learning rate, up to 0.4 at batch 128 (in proportion to the batch) and down to 0; 10 epochs
  he2015    He et al. 2015: lr 0.1, a tenth of it at 1/2 and 3/4; 64,000 steps, which on CIFAR are 164 epochs
  For --data shapes both take a few epochs, about two minutes."""


def add(commands: Any) -> None:
    parser = commands.add_parser("train", help="train a network", description=DESCRIPTION, allow_abbrev=False)
    options(parser)
    parser.add_argument("--out", metavar="DIR", help="the run's folder (default: runs/DATA-MODEL)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in its folder, with its own options; --save-every and --data-dir may change, and --epochs, "
        "--lr and --early-stop too, which is put on record",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="options from a .toml or .yaml file (epochs = 20, ...) or a run's config.json; those given here go first",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="measure the steps, and show at the end where their time went: by kernel, and by layer forward and backward",
    )
    parser.set_defaults(run=run)


def options(parser: Any) -> None:
    """The options that a checkpoint remembers. None stands for one that was not given."""
    parser.add_argument("--model", help="resnet20, plain56, ...: see tinyres summary (default: resnet20)")
    add_shortcut(parser)
    parser.add_argument(
        "--weights",
        metavar="RUN|FILE",
        help="start from the network in a run's folder or a file, with its normalisation; with a new classifier if the data "
        "have other classes",
    )
    add_data(parser, "cifar10")
    add_data_dir(parser)
    parser.add_argument("--recipe", choices=("onecycle", "he2015"), help="how to train (default: onecycle)")
    parser.add_argument(
        "--epochs", type=whole(1), metavar="N", help="(default: the recipe's; its schedule stretches to fit)"
    )
    parser.add_argument("--batch-size", type=whole(1), metavar="N", help="(default: 128, or all images if fewer)")
    parser.add_argument("--lr", type=number(0, excluded=True), metavar="X", help="the recipe's highest learning rate")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), help="(default: sgd; adamw has a fortieth of its lr)")
    parser.add_argument("--momentum", type=number(0), metavar="X", help="(default: 0.9; of AdamW, the first of its betas)")
    parser.add_argument("--weight-decay", type=number(0), metavar="X", help="(default: 1e-4; of AdamW 0.05)")
    parser.add_argument("--label-smoothing", type=number(0), metavar="X", help="the part of a label that all classes share")
    parser.add_argument("--clip", type=number(0, excluded=True), metavar="X", help="the largest norm of the gradients")
    parser.add_argument(
        "--ema", type=number(0), metavar="X", help="test and keep an average of the weights, with this decay: 0.999"
    )
    parser.add_argument("--mixup", type=number(0), metavar="X", help="blend images and labels: the alpha, such as 0.2")
    parser.add_argument("--random-erasing", type=number(0), metavar="X", help="erase a part of an image: how often, 0 to 1")
    parser.add_argument("--early-stop", type=whole(1), metavar="N", help="end after N epochs without a lower error")
    parser.add_argument("--seed", type=whole(0), metavar="N", help="for weights, order and augmentation (default: 0)")
    parser.add_argument(
        "--seeds", type=whole(1), metavar="N", help="train with N seeds, each in a folder; show mean and deviation"
    )
    parser.add_argument("--log", choices=("tensorboard",), help="write events for TensorBoard, beside metrics.jsonl")
    parser.add_argument("--no-augment", action="store_true", default=None, help="neither crop nor mirror the images")
    parser.add_argument(
        "--validation",
        type=whole(1),
        metavar="N",
        help="test on N held-out training images (He et al.: 5000), so that the test set plays no part in any choice",
    )
    parser.add_argument("--limit-train", type=whole(1), metavar="N", help="train on the first N images")
    parser.add_argument("--limit-test", type=whole(1), metavar="N", help="test on the first N images")
    add_backend(parser)
    parser.add_argument("--amp", choices=("fp16", "bf16"), help="mixed precision: activations of 16 bits, weights of 32")
    parser.add_argument(
        "--no-capture",
        "--no-graph",  # its name until capturing came to the CPU
        action="store_true",
        default=None,
        help="run each step through Python; by default its kernels are recorded once and replayed",
    )
    parser.add_argument(
        "--save-every", type=number(0), metavar="SECONDS", help="between checkpoints within an epoch (default: 60)"
    )


def run(arguments: argparse.Namespace) -> None:
    given = {key: value for key, value in vars(arguments).items() if value is not None}
    if "config" in given:
        given = {**config.from_file(given.pop("config"), options), **given}
    if given.get("data", "cifar10") not in tinyres.data.NAMES:
        absolute(given, "data")  # --resume finds it from anywhere
    absolute(given, "weights")
    data = Path(given.get("data", "cifar10")).stem
    net = f"from-{Path(given['weights']).stem}" if given.get("weights") else given.get("model", "resnet20")
    out = Path(given.get("out") or f"runs/{data}-{net}")
    if arguments.resume:
        given = {**seeds.remembered(out, options), **given}
    if "seeds" in given:
        with resumable(out):
            seeds.train_all(given, out, train)
    else:
        train(given, out)


@contextlib.contextmanager
def resumable(out: Path) -> Iterator[None]:
    """What Ctrl-C ends is continued by a command, which is shown."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; everything so far is in {out}. Continue with:\n{resume_command(out)}") from None


def absolute(given: dict[str, Any], name: str) -> None:
    """Makes a path that was given, and that is there, one that is found from anywhere."""
    if name in given and os.path.exists(given[name]):
        given[name] = os.path.abspath(given[name])


def train(given: dict[str, Any], out: Path) -> Any:
    """Trains one network, or continues its run. Returns the Trainer."""
    change = []
    if given["resume"]:
        before = config.remembered(out / "last.safetensors", options)
        change = [name for name in ("epochs", "lr", "early_stop") if name in given]
        given = {**before, **given}
    trainer = make_trainer(given, out)
    with resumable(out):
        trainer.fit(resume=given["resume"], change=change)
    if trainer.profile:
        print(f"{trainer.profile.table('kernel')}\n\n{trainer.profile.table('layer', 'pass')}\n")
    best = trainer.best()
    assert best
    print(
        f"best {trainer.held_out} error: {best[f'{trainer.held_out}_error']:.2f} % after epoch {best['epoch']}, in "
        f"{trainer.folder.best if trainer.folder else out}"
    )
    if trainer.held_out == "test" and len(trainer.state.lines) > 1:
        print(
            f"note: that epoch was chosen by its test error, which flatters it; the last one has "
            f"{trainer.state.lines[-1]['test_error']:.2f} %.\nWith --validation N the test set plays no part in the choice"
        )
    return trainer


def make_trainer(given: dict[str, Any], out: Path) -> Any:
    """The Trainer that these options describe. Prints what it will do."""
    from tinyres.train import TensorBoard, Trainer

    use(given.get("backend"))
    dataset = load_data(given, "cifar10")
    names: tuple[str, ...] = ("recipe", "epochs", "batch_size", "lr", "seed", "validation", "save_every", "amp")
    names += ("early_stop", "optimizer", "momentum", "weight_decay", "label_smoothing", "clip")
    names += ("ema", "mixup", "random_erasing")
    described = network(given.get("model", "resnet20"), given.get("shortcut"))
    model = started(given, out, dataset) if given.get("weights") else described
    trainer = Trainer(
        model,
        dataset.limit(given.get("limit_train"), given.get("limit_test")),
        augment="no_augment" not in given,
        capture="no_capture" not in given,
        out=out,
        profile=given.get("profile", False),
        callbacks=[TensorBoard()] if given.get("log") else [],
        options=config.words_of({**given, "backend": tinyres.get_backend()}),
        **{name: given[name] for name in names if name in given},
    )
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    data, batch_size = trainer.dataset, trainer.loader.batch_size
    for note in data.notes:
        print(f"note: {printable(note)}")
    print(
        f"{trainer.network['name'] if trainer.network else 'a network'}, {parameters:,} parameters, on {data.name}: "
        f"{len(data.train_labels):,} training and {len(data.test_labels):,} {trainer.held_out} images\n"
        f"{trainer.recipe.name}: {trainer.epochs} epochs of {trainer.steps} steps, batch {batch_size}, "
        f"lr {trainer.lr:g}; kernels: {tinyres.get_backend()}; folder: {out}",
        flush=True,
    )
    if trainer.epochs * trainer.steps < FEW_STEPS and "lr" not in given and trainer.recipe.name == "onecycle":
        steps, lr = trainer.epochs * trainer.steps, trainer.lr
        print(
            f"note: {steps} steps are few for a learning rate of {lr:g}, and the run may end at chance; "
            f"more --epochs, a smaller --batch-size or --lr {lr / 4:g} help",
            flush=True,
        )
    return trainer


def started(given: dict[str, Any], out: Path, data: Dataset) -> Module:
    """The network of ``--weights``; of a run that goes on, its own. Says what is kept."""
    from tinyres import models
    from tinyres.train import load_network

    if "model" in given or "shortcut" in given:
        raise UsageError("--weights has a network of its own; leave --model and --shortcut out")
    last = out / "last.safetensors"
    file = last if given.get("resume") and last.exists() else weights_in(given["weights"], "best", "last")
    loaded = load_network(file)
    if file == last:
        return loaded.model
    print(f"note: starting from {loaded.network['name']} in {file}; images are normalised as there")
    same_count = loaded.network["num_classes"] == len(data.classes)
    if loaded.classes == data.classes or (same_count and not loaded.classes):
        return loaded.model
    tinyres.manual_seed(given.get("seed", 0))
    print(f"note: a new classifier for the {len(data.classes)} classes of {data.name}")
    return models.with_classes(loaded.model, len(data.classes))


def resume_command(out: Path) -> str:
    """The command that continues the run, from the same folder."""
    name = os.path.basename(sys.argv[0])
    program = ["tinyres"] if name == "tinyres" else [os.path.basename(sys.executable), "-m", "tinyres"]
    return "  " + shlex.join([*program, "train", "--resume", "--out", str(out)])
