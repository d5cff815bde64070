"""``tinyres import-weights``: turns weights from elsewhere into a file for ``tinyres eval``."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from tinyres.cli.options import add_shortcut, check_file, network, three_numbers
from tinyres.errors import UsageError

# The common repositories (akamaster/pytorch_resnet_cifar10 among them) train their CIFAR ResNets with these, although they
# are ImageNet's.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "import-weights",
        help="import weights from PyTorch, safetensors or .npz",
        allow_abbrev=False,
        description="Reads weights written by safetensors, torch.save or np.savez (without PyTorch, and without executing "
        "anything in the file), gives them our names, and writes them with what tinyres eval needs. A file of torch.save "
        "may hold a state dict or a whole model, and a prefix of all names, such as net., does not matter. The default "
        "normalisation is ImageNet's, which the common CIFAR repositories (akamaster/pytorch_resnet_cifar10) use.",
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--model", required=True, help="the network that the weights are for, such as resnet20")
    add_shortcut(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="a new file, such as resnet20.safetensors")
    for name, default in (("mean", MEAN), ("std", STD)):
        parser.add_argument(
            f"--{name}",
            type=three_numbers,
            default=default,
            metavar="R,G,B",
            help=f"of the images in 0..1 (default: {','.join(map(str, default))})",
        )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from tinyres import models
    from tinyres.train import save_network
    from tinyres.weights import import_weights, load_file

    out = Path(arguments.out)
    if out.exists():
        raise UsageError(f"{out} exists already, and nothing was changed; choose another --out")
    check_file("--out", arguments.out, ())
    if min(arguments.std) <= 0:
        raise UsageError(f"--std is {arguments.std}: standard deviations must be above 0")
    # 64 features or more reach the classes of our nets; a head with next to none could ask for any number of classes
    heads = [array for array in load_file(arguments.file)[0].values() if array.ndim == 2 and array.shape[1] >= 16]
    classes = len(heads[0]) if len(heads) == 1 else 10
    described = network(arguments.model, arguments.shortcut) | {"num_classes": classes}
    model = models.build(**described)
    model.load_state_dict(import_weights(arguments.file, {k: v.shape for k, v in model.state_dict().items()}))
    mean = np.array(arguments.mean, np.float32).reshape(3, 1, 1)
    scale = (1 / np.array(arguments.std)).astype(np.float32).reshape(3, 1, 1)
    save_network(out, model, described, mean, scale)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{out}: {arguments.model}, {parameters:,} parameters, {classes} classes, for images with mean "
        f"{arguments.mean} and deviation {arguments.std}"
    )
