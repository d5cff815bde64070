"""Checks a learner's file: runs it in a process of its own, and judges what comes back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tinyres.course.diagnose import ERROR, WRONG, Verdict, judge
from tinyres.course.exercise import Exercise
from tinyres.files import open_file

SECONDS, MORE = 10.0, 60.0  # for the learner's code; and for the process around it
MOST_BYTES = 1 << 20
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL")} | {"TINYRES_THREADS": "1"}


class Strange:
    """Something that has no place in an answer."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Raised(Exception):
    """An exception in the learner's process: ``kind`` is its class, ``line`` that of the file, 0 if it was not there."""

    def __init__(self, kind: str, message: str, line: int) -> None:
        super().__init__(message)
        self.kind, self.line = kind, line


def check(exercise: Exercise, path: str | os.PathLike[str], seconds: float = SECONDS) -> Verdict:
    """The verdict on a file. It runs with the rights of this process, for ``seconds`` at most.

    Raises OSError if the file cannot be read.
    """
    with open_file(path) as file:
        if len(file.read(MOST_BYTES + 1)) > MOST_BYTES:
            return Verdict(ERROR, f"The file has more than {MOST_BYTES:,} bytes; an answer needs a few lines.")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        paths = list(map(os.path.abspath, sys.path))
        begin = f"import sys; sys.path[:] = {paths!r}; from tinyres.course.child import main; main()"
        arguments = exercise.number, str(Path(path).resolve()), str(result), str(seconds)
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", begin, *arguments],
                cwd=folder,
                env={**os.environ, **ONE_THREAD},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=seconds + MORE,
            )
        except subprocess.TimeoutExpired:
            return Verdict(ERROR, f"The file did not end within {seconds + MORE:g} seconds, and was stopped.")
        if not result.exists():
            stack = Path(f"{result}.stack")
            return stopped(done.returncode, stack.read_text("utf-8") if stack.exists() else "", path, seconds, done.stderr)
        return verdict(exercise, json.loads(result.read_text("utf-8")))


def stopped(status: int, stack: str, path: Any, seconds: float, said: bytes) -> Verdict:
    """Of a process that left no result: it ran too long, or it ended by itself."""
    if stack:
        lines = re.findall(rf'{re.escape(Path(path).name)}", line (\d+)', stack)
        where = f" It was in line {lines[0]}." if lines else ""
        return Verdict(ERROR, f"Stopped after {seconds:g} seconds: does a loop never end?{where}")
    if said.strip():  # the child itself failed
        return Verdict(ERROR, said.decode("utf-8", "replace").strip().splitlines()[-1])
    return Verdict(ERROR, f"The file ended the process (status {status}); it should define the answer, and no more.")


def verdict(exercise: Exercise, found: dict[str, Any]) -> Verdict:
    """The verdict on what the process has written."""
    printed = found["printed"]
    if "error" in found:
        return Verdict(ERROR, found["error"], printed=printed)
    given = []
    for answer in map(decode, found["answers"]):
        given.append(answer if isinstance(answer, Exception) or answer is ... else exercise.taken(answer))
    judged = judge(exercise, given)
    if found.get("changed"):
        words = (
            f"{exercise.name} writes into its argument {found['changed']}. Others may hold that array too: work on a copy, "
            "or make a new array (x = x + y, not x += y)."
        )
        return Verdict(WRONG, words, ("writes into an argument",), printed)
    return Verdict(judged.status, judged.message, judged.mistake, printed)


def decode(found: dict[str, Any]) -> Any:
    """What `child.encode` made JSON of."""
    if "kind" in found:
        return Raised(found["kind"], found["message"], found["line"])
    if "array" in found:
        return np.array(found["array"], found["dtype"]).reshape(found["shape"])
    if "value" in found:
        return found["value"]
    if "strange" in found:
        return Strange(found["strange"])
    for name, kind in (("tuple", tuple), ("list", list), ("set", set)):
        if name in found:
            items = map(decode, found[name])
            return kind(str(item) if kind is set else item for item in items)
    return ...
