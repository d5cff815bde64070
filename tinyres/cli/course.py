"""``tinyres course``: the chapters, to read, as notebooks and as slides."""

import argparse
import sys
from pathlib import Path
from typing import Any

from tinyres.cli.options import check_file
from tinyres.errors import UsageError
from tinyres.files import printable, write_atomically

DESCRIPTION = """\
A course on residual learning in eight chapters of half an hour. Every block of code in them runs.

  tinyres course                       the chapters
  tinyres course 3                     read one here
  tinyres course 3 --notebook          write it as a notebook, course-3.ipynb
  tinyres course 3 --slides            write it as slides for a lecture, course-3.html
  tinyres exercise start 3.1           its exercises: tinyres exercise --help"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "course", help="the course: read it, or write notebooks and slides", description=DESCRIPTION, allow_abbrev=False
    )
    parser.add_argument("number", metavar="N", nargs="?", help="a chapter, 1 to 8")
    for name, words in (("notebook", "a Jupyter notebook"), ("slides", "slides, one HTML file")):
        parser.add_argument(f"--{name}", metavar="FILE", nargs="?", const="", help=f"write the chapter as {words}")
    parser.add_argument(
        "--rewrite", action="store_true", help="for authors, in a checkout: run a chapter, and write anew what it prints"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from tinyres.course import chapter
    from tinyres.course.exercise import CHAPTERS

    wanted = {"--notebook": arguments.notebook, "--slides": arguments.slides}
    if arguments.number is None:
        if arguments.rewrite or any(file is not None for file in wanted.values()):
            raise UsageError("which chapter? 1 to 8")
        for number in CHAPTERS:
            print(chapter.title(chapter.path_of(number).read_text("utf-8")))
        print("\ntinyres course 1 shows the first")
        return
    path = chapter.path_of(arguments.number)
    text = path.read_text("utf-8")
    for option, ending, file in (("--notebook", ".ipynb", arguments.notebook), ("--slides", ".html", arguments.slides)):
        if file is not None:
            write(option, file or f"course-{arguments.number}{ending}", ending, text, path.parent)
    if arguments.rewrite:
        rewrite(path, text)
    elif all(file is None for file in wanted.values()):
        read(text)


def read(text: str) -> None:
    """Shows a chapter. In a terminal it waits before what is to be predicted."""
    from rich.console import Console
    from rich.markdown import Markdown

    from tinyres.course.chapter import OPENED

    console = Console(width=min(Console().width, 100))
    for i, part in enumerate(text.split(f"{OPENED}\n\n")):
        if i and sys.stdin.isatty() and sys.stdout.isatty():
            console.input("[dim]press Enter to see what it prints[/dim] ")
        console.print(Markdown(part))


def write(option: str, file: str, ending: str, text: str, folder: Path) -> None:
    """Writes a chapter in another form, to a file that is not there yet: it may hold a learner's work."""
    check_file(option, file, (ending,))
    if Path(file).exists():
        raise UsageError(f"{file} is there already, and may hold your work; name another file: {option} FILE")
    if ending == ".ipynb":
        from tinyres.course.notebook import notebook

        made = notebook(text)
    else:
        from tinyres.course.slides import slides

        made = slides(text, folder)
    write_atomically(file, made.encode())
    print(f"written: {printable(file)}")


def rewrite(path: Path, text: str) -> None:
    """Runs a chapter, and writes its outputs, quotes and figures."""
    from tinyres.course import chapter

    if not (chapter.ROOT / "docs" / "course").is_dir():
        raise UsageError("--rewrite is for a checkout of tinyres, with docs/course in it")
    new, figures = chapter.rewrite(text, path.name)
    for name, svg in figures.items():
        write_atomically(path.parent / name, svg.encode())
    write_atomically(path, new.encode())
    print(f"written: {path.name}{''.join(f', {name}' for name in figures)}")
