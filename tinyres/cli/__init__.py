"""The command ``tinyres``. Each of its commands is a module: ``add`` declares the options, ``run`` does the work.

An error that a user can cause (a missing file, a name that does not exist, a full disk) ends with one line on standard error
and status 2; Ctrl-C ends with 130; anything else is a bug of ours and shows its traceback.
"""

import argparse
import difflib
import io
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

import tinyres
from tinyres.cli import (
    bench,
    completion,
    course,
    data,
    evaluate,
    exercise,
    explain,
    export,
    importing,
    info,
    lab,
    plot,
    predict,
    summary,
    train,
    where,
)
from tinyres.cli.options import COMMAND_LINE
from tinyres.errors import TinyresError, UsageError
from tinyres.files import printable
from tinyres.kernels import dispatch
from tinyres.kernels.arrays import threads
from tinyres.kernels.dispatch import BackendError

VARIABLES = (
    *("TINYRES_BACKEND", "TINYRES_CIFAR_MIRROR", "TINYRES_DATA", "TINYRES_TF32", "TINYRES_THREADS"),
    *("TINYRES_CONV", "TINYRES_LANES"),
    *("TINYRES_EMULATOR", "TINYRES_EMULATOR_OPTIONS", "TINYRES_EMULATOR_ORDER"),  # of the CUDA emulation
    *("TINYRES_EXACT", "TINYRES_PRETRAINED"),  # of the lab lesion, and of the tests
    "TINYRES_CHROMIUM",  # of the tests
)
MAX_LINE = 3000  # characters; a file can hold any number of names that do not fit
COMMANDS = (
    train,
    plot,
    evaluate,
    predict,
    explain,
    lab,
    course,
    exercise,
    info,
    data,
    importing,
    export,
    summary,
    where,
    bench,
)


class Help(argparse.HelpFormatter):
    """Fits the terminal. A description's paragraphs are filled; lines that are indented, as lists are, stay apart."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts: list[str] = []
        for line in text.splitlines():
            apart = not line.strip() or line.startswith(" ")
            if apart or not parts or not parts[-1].strip() or parts[-1].startswith(" ") or parts[-1].endswith(":"):
                parts.append(line)
            else:
                parts[-1] += f" {line}"
        return "\n".join(_wrapped(part, width) for part in parts)


def _wrapped(line: str, width: int) -> str:
    found = re.match(r" *(?:\S+(?: \S+)*? {2,})?", line)  # an indented line goes on below its text, behind the name
    hanging = " " * len(found[0]) if found and line.startswith(" ") else ""
    return textwrap.fill(line, width, subsequent_indent=hanging, drop_whitespace=True) if line.strip() else ""


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line like every other error."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "formatter_class": Help})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    """All commands and their options."""
    top = Parser(
        prog="tinyres",
        description="Train, test and look into residual networks, from scratch.",
        epilog="First steps, without a download: tinyres train --data shapes",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"tinyres {tinyres.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (by default this process's) and returns its exit status."""
    prepare_streams()
    if "_ARGCOMPLETE" in os.environ:
        completion.complete(parser())
    try:
        arguments, unknown = parser().parse_known_args(argv)
        if unknown:
            command = " ".join(["tinyres", arguments.command, *([arguments.what] if "what" in arguments else [])])
            raise UsageError(f"unrecognized arguments: {' '.join(unknown)} (see {command} --help)")
        COMMAND_LINE[:] = "tinyres", *(sys.argv[1:] if argv is None else argv)
        check_environment()
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status or 0
    except (TinyresError, BackendError) as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader of our output is gone: what is still in the buffer is dropped, at exit too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except MemoryError as error:
        return _fail(f"not enough memory ({str(error) or 'no more is known'}); try a smaller --batch-size or network")
    except KeyboardInterrupt as error:
        print(f"\ntinyres: {error}" if str(error) else "\ntinyres: interrupted", file=sys.stderr)
        return 130


def prepare_streams() -> None:
    """Output that is closed goes nowhere. A character that the encoding of a terminal or a file lacks is shown escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def check_environment() -> None:
    """Refuses wrong values before a job begins, and says which variables mean nothing: a typing error would pass unseen."""
    try:
        threads()
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        dispatch.check_name(os.environ.get("TINYRES_BACKEND") or "numpy")
    except BackendError as error:
        raise UsageError(f"TINYRES_BACKEND: {error}") from error
    for name in sorted(os.environ):
        if name.startswith("TINYRES_") and name not in VARIABLES:
            close = difflib.get_close_matches(name, VARIABLES, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            print(f"note: the variable {printable(name)} means nothing to tinyres{hint}", file=sys.stderr)


def _fail(message: str) -> int:
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip()).replace(":; ", ": ")
    rest = f" ... and {len(line) - MAX_LINE:,} characters more" if len(line) > MAX_LINE else ""
    print(f"tinyres: error: {printable(line[:MAX_LINE])}{rest}", file=sys.stderr)
    return 2
