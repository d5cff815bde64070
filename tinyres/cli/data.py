"""``tinyres data``: lists and downloads data sets."""

import argparse
from typing import Any

import tinyres
from tinyres.cli.options import add_data_dir


def add(commands: Any) -> None:
    parser = commands.add_parser("data", help="list and download data sets", allow_abbrev=False)
    what = parser.add_subparsers(dest="what", metavar="list|get", required=True)
    listing = what.add_parser("list", help="the data sets, and where they are", allow_abbrev=False)
    add_data_dir(listing)
    listing.set_defaults(run=show)
    getting = what.add_parser("get", help="download one; an interrupted download continues", allow_abbrev=False)
    getting.add_argument("name", choices=("cifar10", "cifar100"))
    add_data_dir(getting)
    getting.set_defaults(run=get)


def show(arguments: argparse.Namespace) -> None:
    for entry in tinyres.data.available(arguments.data_dir):
        print(f"{entry.name:10}{entry.description}\n{'':10}{'' if entry.present else 'not here; '}{entry.where}")


def get(arguments: argparse.Namespace) -> None:
    print(f"{arguments.name} is in {tinyres.data.get(arguments.name, arguments.data_dir)}")
