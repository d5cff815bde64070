"""``tinyres summary``: shows a network layer by layer."""

import argparse
from typing import Any

from tinyres.cli.options import add_shortcut, network, whole


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "summary",
        help="show a network layer by layer",
        allow_abbrev=False,
        description="Shapes, parameters and multiply-adds of each layer for one image. For CIFAR there are resnetD, plainD, "
        "preresnetD and fixup_resnetD for any depth D = 6n + 2, resnet164, preresnet164 and preresnet1001 of bottleneck "
        "blocks, wrn16_8 to wrn40_4 and mobilenet_v2_cifar; for ImageNet resnet18, 34, 50, 101 and 152, plain18, plain34 "
        "and mobilenet_v2.",
    )
    parser.add_argument("model", metavar="MODEL", help="resnet20, plain56, ...")
    add_shortcut(parser)
    parser.add_argument("--classes", type=whole(1), metavar="N", help="(default: 10, of ImageNet's networks 1000)")
    parser.add_argument("--image-size", type=whole(1), metavar="N", help="(default: 32, of ImageNet's networks 224)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from tinyres import models, nn

    large = arguments.model in models.IMAGENET
    classes, size = arguments.classes or (1000 if large else 10), arguments.image_size or (224 if large else 32)
    print(nn.summary(models.build(**network(arguments.model, arguments.shortcut), num_classes=classes), (3, size, size)))
