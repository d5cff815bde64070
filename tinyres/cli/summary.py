"""``tinyres summary``: shows a network layer by layer."""

import argparse
from typing import Any

from tinyres.cli.options import add_shortcut, network, whole


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "summary",
        help="show a network layer by layer",
        allow_abbrev=False,
        description="Shapes, parameters and multiply-adds of each layer for one 32x32 image. There are resnetD and "
        "plainD for any depth D = 6n + 2, and resnet164 of bottleneck blocks.",
    )
    parser.add_argument("model", metavar="MODEL", help="resnet20, plain56, ...")
    add_shortcut(parser)
    parser.add_argument("--classes", type=whole(1), default=10, metavar="N", help="(default: 10)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from tinyres import models, nn

    print(nn.summary(models.build(**network(arguments.model, arguments.shortcut), num_classes=arguments.classes)))
