"""Completion in bash, zsh and fish, by the package argcomplete: at a TAB the shell runs the command with ``_ARGCOMPLETE``
set, and reads what could come next.
"""

import argparse
from collections.abc import Iterable
from typing import Any


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers the shell and ends the process. Without argcomplete, nothing is offered."""
    try:
        import argcomplete
    except ImportError:
        raise SystemExit(1) from None
    # (argcomplete asks for a class of its own by its types, and calls it)
    argcomplete.autocomplete(parser, default_completer=words, always_complete_options="long")  # type: ignore[arg-type]


def words(prefix: str, action: argparse.Action, parsed_args: argparse.Namespace, **others: Any) -> Iterable[str]:
    """What an argument may be, beyond the choices that argparse knows: names of ours, else files."""
    import argcomplete

    from tinyres import data, lab, models, ops
    from tinyres.kernels.contract import NAMES as KERNELS
    from tinyres.kernels.dispatch import BACKENDS

    files = argcomplete.FilesCompleter()(prefix)
    chapters = range(1, 9)
    named = {
        "model": models.NAMES,
        "models": models.NAMES,
        "compare": (*models.NAMES, *files),
        "backend": BACKENDS,
        "data": (*data.NAMES, *files),
        "lab name": ("list", "all", *lab.NAMES),
        "where name": (*ops.__all__, *KERNELS),
        "course number": [*map(str, chapters)],
        "exercise number": [f"{chapter}.{part}" for chapter in chapters for part in (1, 2, 3)],
    }
    return named.get(f"{parsed_args.command} {action.dest}") or named.get(action.dest, files)
