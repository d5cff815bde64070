"""``tinyres lab``: the claims of papers, each as an experiment with a verdict."""

import argparse
import textwrap
from pathlib import Path
from typing import Any

from tinyres.cli.options import add_backend, check_file, use, whole
from tinyres.cli.tables import print_table, print_wrapped
from tinyres.errors import UsageError
from tinyres.files import write_atomically

DESCRIPTION = """\
Makes an experiment of a paper's claim, and writes result.json (the settings, the numbers with their spread, the verdict),
figure.png, figure.svg and page.md (the claim, the method, what was seen) to its folder.

  tinyres lab list
  tinyres lab identity
  tinyres lab degradation --seeds 5 --set images=1280
  tinyres lab all --html report.html

A lab that was stopped goes on where it was: type the same command again. The runs of a lab, one per setting and seed, are
independent: they are spread over processes, or over a dask cluster (pip install distributed, then dask scheduler and
dask worker), and give the same numbers there."""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "lab", help="test a paper's claim by an experiment", description=DESCRIPTION, allow_abbrev=False
    )
    parser.add_argument("name", metavar="NAME", help="a lab, or list, or all")
    parser.add_argument(
        "--scale",
        choices=("quick", "full", "tiny"),
        default="quick",
        help="quick: ten minutes at most on two cores; full: as near to the paper as it gets; tiny: to see that it runs",
    )
    parser.add_argument("--seeds", type=whole(1), metavar="N", help="(default: the lab's, three or more)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of the scale; may be given again"
    )
    add_backend(parser)
    parser.add_argument("--jobs", type=whole(1), metavar="J", help="processes (default: one per core; one on a GPU)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a dask scheduler, such as tcp://127.0.0.1:8786")
    parser.add_argument("--out", metavar="DIR", help="(default: labs/NAME; of all: labs, with a folder for each)")
    parser.add_argument("--html", metavar="FILE", help="also write one page with everything, to open in a browser")
    parser.add_argument("--markdown", metavar="FILE", help="the same as Markdown, which shows the figures of the folders")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from tinyres.lab import NAMES, find

    if arguments.name == "list":
        show_list()
        return
    if arguments.scheduler and arguments.jobs:
        raise UsageError("--jobs is for processes of this machine, and --scheduler for those of a cluster; give one of them")
    changes = dict(map(setting, arguments.set))
    names = NAMES if arguments.name == "all" else (arguments.name,)
    labs = [find(name) for name in names]
    if changes and len(labs) > 1:
        raise UsageError("--set is for a single lab")
    check_file("--html", arguments.html, (".html", ".htm"))
    check_file("--markdown", arguments.markdown, (".md",))
    use(arguments.backend)
    root = Path(arguments.out or "labs")
    own = arguments.out and len(labs) == 1  # the folder is that of the lab
    folders = {name: root if own else root / name for name in names}
    results = [one(lab.name, folders[lab.name], changes, arguments) for lab in labs]
    found = list(zip(labs, results, strict=True))
    if arguments.html:
        from tinyres.lab.report import html_report

        page = html_report([(lab, result, (folders[lab.name] / "figure.svg").read_bytes()) for lab, result in found])
        write_atomically(arguments.html, page.encode())
    if arguments.markdown:
        from tinyres.lab.report import markdown_report

        target = Path(arguments.markdown)
        write_atomically(target, markdown_report(found, folders, target).encode())
    for written in (arguments.html, arguments.markdown):
        if written:
            print(f"written: {written}")


def setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"--set: expected NAME=VALUE, got {text!r}")
    return name.strip(), value.strip()


def one(name: str, folder: Path, changes: dict[str, str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs a lab and shows what it found."""
    from tinyres.lab.study import study
    from tinyres.train import progress

    how = {"seeds": arguments.seeds, "changes": changes, "jobs": arguments.jobs, "scheduler": arguments.scheduler}
    try:
        with progress.for_terminal() as display:
            result = study(name, folder, arguments.scale, **how, display=display)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; what is finished is in {folder}: the same command goes on from there") from None
    show(name, result)
    print(f"\nwritten: {folder}: result.json, figure.svg, figure.png, page.md")
    return result


def show_list() -> None:
    from tinyres.lab import NAMES, find

    for lab in map(find, NAMES):
        print(textwrap.fill(f"{lab.name:<15}{lab.title}", 80, subsequent_indent=" " * 15))


def show(name: str, result: dict[str, Any]) -> None:
    """The numbers and the verdicts, on the terminal."""
    from tinyres.lab.report import HEADS, MARKS, cells

    rows = [[label, *cells(number)] for label, number in result["numbers"].items()]
    print_table(f"{name}, {result['scale']} scale, seeds: {result['seeds']}", ("", *HEADS), rows)
    for claim in result["claims"]:
        print_wrapped(f"\n{claim['claim']} ({claim['source']})")
        for check in claim["checks"]:
            print(f"  {check['text']}: {MARKS[check['sign']]}")
        print(f"  {claim['verdict']}")
