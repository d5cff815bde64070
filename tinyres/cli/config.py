"""The options of a training run: as words, in a file (``--config``), and in the checkpoint that remembers them."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyres.errors import CheckpointError, UsageError
from tinyres.files import open_file, parse_json, shown

MOST_BYTES = 1 << 20
NOT_KEPT = ("command", "run", "out", "resume", "profile", "config", "seeds")  # of a command, by the runs that it makes

Declare = Callable[[Any], None]


def words_of(given: dict[str, Any]) -> list[str]:
    """Options as they would be typed."""
    words = []
    for key, value in given.items():
        if key not in NOT_KEPT:
            words += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return words


def parse_words(words: Any, declare: Declare) -> dict[str, Any]:
    """The options behind these words; ``declare`` adds them to a parser. Raises `UsageError` for what they are not."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    declare(parser)
    try:
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UsageError("it has no list of options")
        found, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from error
    if unknown:
        raise UsageError(f"there is no {shown(unknown[0])}")
    return {key: value for key, value in vars(found).items() if value is not None}


def remembered(checkpoint: Path, declare: Declare) -> dict[str, Any]:
    """The options of the run that wrote this checkpoint; none if there is no checkpoint yet."""
    from tinyres.train.checkpoint import read

    if not checkpoint.exists():
        return {}
    run = read(checkpoint).texts.get("run")
    try:
        return parse_words(run.get("options") if isinstance(run, dict) else None, declare)
    except UsageError as error:
        raise CheckpointError(f"{checkpoint} does not tell the options of its run: {error}") from error


def from_file(path: str, declare: Declare) -> dict[str, Any]:
    """The options in a TOML or YAML file, named as on the command line (``batch-size = 64`` or ``batch_size = 64``), or in
    the ``config.json`` of a run. Raises `UsageError` for a file that cannot be read or has an option that is none.
    """
    content = _read(path)
    if not isinstance(content, dict):
        raise UsageError(f"--config: {path} holds no names with values, such as: epochs = 20")
    if "settings" in content and "processes" in content:  # a run's own
        if not content.get("options"):
            raise UsageError(f"--config: the run of {path} was not started by this command, so it has no options to take")
        words = content["options"]
    else:
        words = [word for key, value in content.items() for word in _as_typed(path, key, value, declare)]
    try:
        return parse_words(words, declare)
    except UsageError as error:
        raise UsageError(f"--config: {path}: {error}") from error


def _read(path: str) -> Any:
    ending = Path(path).suffix.lower()
    if ending not in (".toml", ".yaml", ".yml", ".json"):
        raise UsageError(f"--config takes a .toml or .yaml file, or the config.json of a run; got {path!r}")
    with open_file(path) as file:
        data = file.read(MOST_BYTES + 1)
    try:
        if len(data) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        text = data.decode("utf-8")
        if ending == ".json":
            return parse_json(text)
        if ending == ".toml":
            return _toml(text)
    except ValueError as error:
        raise UsageError(f"--config: {path} cannot be read: {shown(error)}") from error
    try:
        import yaml
    except ImportError:
        raise UsageError("--config: PyYAML reads .yaml files: pip install pyyaml (or write a .toml file)") from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"--config: {path} cannot be read: {shown(error)}") from error


def _toml(text: str) -> Any:
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads(text)


def _as_typed(path: str, key: Any, value: Any, declare: Declare) -> list[str]:
    """One entry of a file, as words."""
    parser = argparse.ArgumentParser(add_help=False)
    declare(parser)
    flags = {action.dest: action.nargs == 0 for action in parser._actions}
    name = str(key).replace("-", "_")
    if name not in flags:
        close = difflib.get_close_matches(name, flags, 1)
        hint = f"; did you mean {close[0]}?" if close else " (see tinyres train --help)"
        raise UsageError(f"--config: {path}: there is no option {shown(key)}{hint}")
    option = f"--{name.replace('_', '-')}"
    if flags[name]:
        if not isinstance(value, bool):
            raise UsageError(f"--config: {path}: {shown(key)} is true or false, got {shown(value)}")
        return [option] if value else []
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"--config: {path}: {shown(key)} has the value {shown(value)}; expected one number or text")
    return [f"{option}={value}"]
