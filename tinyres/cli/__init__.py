"""The command ``tinyres``. Each of its commands is a module: ``add`` declares the options, ``run`` does the work.

An error that a user can cause (a missing file, a name that does not exist, a full disk) ends with one line on standard error
and status 2; Ctrl-C ends with 130; anything else is a bug of ours and shows its traceback.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import tinyres
from tinyres.cli import bench, data, evaluate, explain, importing, info, summary, train, where
from tinyres.errors import TinyresError, UsageError
from tinyres.files import printable
from tinyres.kernels.arrays import threads
from tinyres.kernels.dispatch import BackendError

COMMANDS = (train, evaluate, explain, info, data, importing, summary, where, bench)


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line like every other error."""

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
    try:
        arguments = parser().parse_args(argv)
        check_environment()
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
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
    """Refuses a wrong TINYRES_THREADS before a job begins; the other variables are checked where they are used."""
    try:
        threads()
    except ValueError as error:
        raise UsageError(str(error)) from error


def _fail(message: str) -> int:
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip()).replace(":; ", ": ")
    print(f"tinyres: error: {printable(line)}", file=sys.stderr)
    return 2
