"""The process in which a learner's file runs: see `tinyres.course.checking`.

It writes to a file what the answer gives in each case, as JSON, and judges nothing. Whatever the learner's file does, an
endless loop, an exception, a flood of output, ends here.
"""

import faulthandler
import inspect
import io
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

import tinyres
from tinyres.course.exercise import Exercise, find

MOST_PRINTED, MOST_NUMBERS = 2000, 100_000  # characters; numbers in an answer
MEMORY = 2 << 30  # bytes


class Printed(io.StringIO):
    """Keeps the beginning of what is printed."""

    def write(self, text: str) -> int:
        super().write(text[: max(0, MOST_PRINTED - self.tell())])
        return len(text)


def main() -> None:
    """Takes the exercise's number, the file, where the result goes, and the seconds that the file may take."""
    number, path, result, seconds = sys.argv[1:]
    exercise = find(number)
    limit_memory()
    sys.stdout = sys.stderr = printed = Printed()
    with open(f"{result}.stack", "w") as stack:
        faulthandler.dump_traceback_later(float(seconds), exit=True, file=stack)
        found = run(exercise, path)
        faulthandler.cancel_dump_traceback_later()
    Path(result).write_text(json.dumps({**found, "printed": printed.getvalue()}), "utf-8")
    os._exit(0)  # at once, even if the file has started threads


def limit_memory() -> None:
    """So that an answer that fills the memory ends, and not the machine."""
    try:
        import resource
    except ImportError:  # Windows
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))


def run(exercise: Exercise, path: str) -> dict[str, Any]:
    """What a file gives: ``answers``, or ``error`` if there is nothing to call."""
    try:
        code = compile(Path(path).read_bytes(), path, "exec")
    except (SyntaxError, ValueError) as error:
        return {"error": f"The file is not Python yet: {error}"}
    names: dict[str, Any] = {"__name__": "exercise", "__file__": path}
    with tinyres.use_backend("numpy"):
        try:
            exec(code, names)
        except BaseException as error:
            return {"error": f"The file does not run. {said(error, path)}"}
        if exercise.name not in names:
            hint = f"tinyres exercise start {exercise.number} writes a file that begins it"
            return {"error": f"The file defines no {exercise.name!r}; {hint}."}
        answer = names[exercise.name]
        if not callable(exercise.right):
            return {"answers": [encode(answer)]}
        if not callable(answer):
            return {"error": f"{exercise.name!r} is no function any more; it is {type(answer).__name__}."}
        return calls(exercise, answer, path)


def calls(exercise: Exercise, answer: Any, path: str) -> dict[str, Any]:
    """What a function gives in each case; its arguments are copies, and are looked at afterwards."""
    answers, changed = [], ""
    for case, fresh in zip(exercise.cases(), exercise.cases(), strict=True):
        try:
            answers.append(encode(exercise.call(answer, *case)))
        except BaseException as error:
            answers.append({"kind": type(error).__name__, "message": said(error, path), "line": line_of(error, path)})
        if not changed and not unchanged(case, fresh):
            pairs = zip(inspect.signature(exercise.right).parameters, case, fresh, strict=False)
            changed = next(name for name, a, b in pairs if not unchanged(a, b))
    return {"answers": answers, "changed": changed}


def unchanged(a: Any, b: Any) -> bool:
    """Whether two arguments are still equal."""
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(unchanged, a, b))
    return bool(a == b)


def said(error: BaseException, path: str) -> str:
    """An exception in a line: its kind, where in the learner's file, its message."""
    line = line_of(error, path)
    return f"{type(error).__name__}{f' in line {line}' if line else ''}: {str(error) or 'it says no more'}"


def line_of(error: BaseException, path: str) -> int:
    lines = [frame.lineno or 0 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] if lines else 0


def encode(value: Any) -> Any:
    """A value as JSON; what has no place in an answer as its text."""
    if value is ...:
        return {"gap": True}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biuf" or value.size > MOST_NUMBERS:
            return {"strange": f"an array of {value.size:,} {value.dtype}"}
        return {"array": value.ravel().tolist(), "shape": list(value.shape), "dtype": value.dtype.str}
    for name, kind in (("tuple", tuple), ("list", list), ("set", set | frozenset)):
        if isinstance(value, kind) and len(value) <= MOST_NUMBERS:
            return {name: list(map(encode, value))}
    if isinstance(value, tinyres.Tensor):
        return {"strange": f"a Tensor of shape {value.shape} (its array is .data)"}
    return {"strange": f"a {type(value).__name__}"}
