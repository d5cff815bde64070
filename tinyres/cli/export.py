"""``tinyres export``: a network for other programs."""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from tinyres.cli.options import add_backend, check_file, use, whole
from tinyres.cli.predict import class_names, image_size
from tinyres.cli.subjects import weights_in
from tinyres.errors import UsageError
from tinyres.files import printable

NAMES = ("cifar", "torchvision", "tinyres")
ENDINGS = {"onnx": (".onnx",), "torch": (".pth", ".pt", ".th", ".bin"), "safetensors": (".safetensors",)}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write a network for other programs: ONNX, PyTorch",
        allow_abbrev=False,
        description="Writes a network as ONNX, or its weights as PyTorch's state dict. A file of ONNX takes batches of any "
        "length; it is written only if ONNX Runtime gives the same logits for random images. The names of a state dict are "
        "those of one of these:\n"
        "  cifar        akamaster/pytorch_resnet_cifar10 and those that follow it: linear, layer2.0.shortcut.0\n"
        "  torchvision  torchvision, chenyaofo/pytorch-cifar-models: fc, layer2.0.downsample.0\n"
        "  tinyres      our own: fc, layer2.0.shortcut.0",
    )
    parser.add_argument("weights", metavar="RUN|FILE", help="a run's folder, or a file of weights")
    parser.add_argument("--format", required=True, choices=tuple(ENDINGS), help="of the file that is written")
    parser.add_argument("--naming", choices=NAMES, help="of a state dict (default: cifar)")
    parser.add_argument("--out", metavar="FILE", help="default: beside the weights, with the format's ending")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    parser.add_argument(
        "--normalise", action="store_true", help="ONNX takes images in 0..1, and begins with the network's own normalisation"
    )
    parser.add_argument("--size", type=whole(4), metavar="N", help="of ONNX's images, in pixels (default: as in training)")
    add_backend(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    form, naming = arguments.format, arguments.naming or "cifar"
    refuse_others(arguments)
    weights = weights_in(arguments.weights, "best", "last")
    out = arguments.out or str(weights.with_name(weights.stem + ("" if form == "onnx" else f"-{naming}") + ENDINGS[form][0]))
    check_file("--out", out, ENDINGS[form])
    if os.path.exists(out) and os.path.exists(weights) and os.path.samefile(out, weights):
        raise UsageError(f"--out {out} is the file of weights itself; choose another")
    if os.path.exists(out) and not arguments.force:
        raise UsageError(f"{out} exists already, and nothing was changed; choose another --out, or say --force")
    use(arguments.backend)

    from tinyres import export
    from tinyres.train import load_network

    loaded = load_network(weights)
    count = loaded.network.get("num_classes", len(loaded.classes))
    classes = class_names(loaded, count) if loaded.classes or loaded.data else ()
    what = f"{printable(out)}: {printable(loaded.network['name'])}"
    if form == "onnx":
        size = arguments.size or image_size(loaded)
        shape = (loaded.network.get("in_channels", 3), size, size)
        check = export.to_onnx(loaded.model, out, shape, normalise=arguments.normalise, classes=classes)
        images = "in 0..1" if arguments.normalise else "normalised as in training"
        print(f"{what}, input (batch, {', '.join(map(str, shape))}), images {images}; logits (batch, {count})")
        same = "the same logits for random images" if check.exact is None else "logits that differ by rounding"
        print(f"{check.runtime} gives {same}: the largest difference is {check.difference:.1e}")
        if check.exact is not None:
            print(f"  the network magnifies errors of rounding; in float64 the largest difference is {check.exact:.1e}")
        return
    if form == "torch":
        export.to_torch(loaded.model, out, naming)
    else:
        export.to_safetensors(loaded.model, out, naming, classes)
    with np.errstate(divide="ignore"):
        mean, std = (of_channels(value) for value in (loaded.mean, 1 / loaded.scale))
    print(f"{what}, a state dict in the naming {naming}, for images with mean {mean} and deviation {std}")


def refuse_others(arguments: argparse.Namespace) -> None:
    """Options of another format would be left out silently."""
    onnx = arguments.format == "onnx"
    for option, of_onnx in (("naming", False), ("normalise", True), ("size", True)):
        if getattr(arguments, option) and of_onnx != onnx:
            raise UsageError(
                f"--{option} is for {'ONNX' if of_onnx else 'state dicts'}, not for --format {arguments.format}"
            )
    place = Path(arguments.weights)
    if not place.exists():
        raise UsageError(f"{place} does not exist; expected a run's folder, or a file of weights")


def of_channels(value: Any) -> str:
    """A mean or a deviation for a line of text: one number, or one per channel."""
    if value.size > 3:
        return "per pixel (as the file of weights has it)"
    return ",".join(f"{number:.4g}" for number in value.ravel())
