"""A learner's folder of exercises: files, what was passed, hints that were shown; and a class of such folders."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tinyres.course.checking import SECONDS, check
from tinyres.course.diagnose import ERROR, MISSING, PASSED, Verdict
from tinyres.course.exercise import Exercise, exercises
from tinyres.errors import UsageError
from tinyres.files import as_cell, read_json, write_atomically
from tinyres.kernels.arrays import cores

PROGRESS = "progress.json"


def progress(folder: Path) -> dict[str, Any]:
    """What the folder knows: number -> {"passed": bool, "hints": how many were shown}."""
    path = folder / PROGRESS
    if not path.exists():
        return {}
    try:
        found = read_json(path)
    except ValueError as error:
        raise UsageError(f"{path}: {error}; it keeps what was passed: mend it, or delete it") from error
    return found if isinstance(found, dict) else {}


def note(folder: Path, number: str, **known: Any) -> None:
    """Keeps what is known of an exercise."""
    folder.mkdir(parents=True, exist_ok=True)
    found = progress(folder)
    old = found.get(number)
    found[number] = {**(old if isinstance(old, dict) else {}), **known}
    write_atomically(folder / PROGRESS, json.dumps(found, indent=1).encode())


def known(folder: Path, number: str, name: str, default: Any) -> Any:
    found = progress(folder).get(number)
    value = found.get(name, default) if isinstance(found, dict) else default
    return value if isinstance(value, type(default)) else default


def start(exercise: Exercise, folder: Path) -> Path:
    """Writes the file to begin with, and returns its path. Raises `UsageError` if there is one: it may hold work."""
    path = folder / exercise.file_name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(exercise.start())
    except FileExistsError:
        raise UsageError(f"{path} is there already, and may hold your work; move it away to begin anew") from None
    return path


def students(folder: Path) -> list[tuple[str, Path]]:
    """The names and folders of a class: a folder for each, which holds e1_1.py and so on, or holds a folder ``exercises``
    that does. Raises `UsageError` if there is none.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder")
    found = []
    for place in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        inside = next((p for p in (place, place / "exercises") if any(p.glob("e?_?.py"))), None)
        if inside and not (place == folder and inside != folder):
            found.append((place.resolve().name, inside))
    if not found:
        raise UsageError(f"{folder} holds no answers: expected a folder per learner, with files such as e3_1.py in it")
    return found


def grade(
    folder: Path, seconds: float = SECONDS, step: Callable[[], object] = lambda: None
) -> list[tuple[str, dict[str, Verdict]]]:
    """The verdicts on all files of a class: [(name, {number: verdict})]. ``step`` is called after each file."""
    wanted = exercises()

    def one(job: tuple[Exercise, Path]) -> Verdict:
        exercise, path = job
        if not path.exists():
            return Verdict(MISSING, "")
        try:
            found = check(exercise, path, seconds)
        except OSError as error:
            found = Verdict(ERROR, f"The file cannot be read: {error.strerror}")
        step()
        return found

    who = students(folder)
    jobs = [(exercise, place / exercise.file_name) for _, place in who for exercise in wanted.values()]
    with ThreadPoolExecutor(cores()) as pool:
        found = list(pool.map(one, jobs))
    size = len(wanted)
    return [(name, dict(zip(wanted, found[i * size : (i + 1) * size], strict=True))) for i, (name, _) in enumerate(who)]


def files_of(folder: Path) -> int:
    """How many files there are to check."""
    names = {exercise.file_name for exercise in exercises().values()}
    return sum((place / name).exists() for _, place in students(folder) for name in names)


def rows(graded: list[tuple[str, dict[str, Verdict]]]) -> Iterator[dict[str, Any]]:
    """A row per learner and exercise."""
    for name, verdicts in graded:
        for number, verdict in verdicts.items():
            yield {
                "learner": name,
                "exercise": number,
                "status": verdict.status,
                "mistake": " | ".join(verdict.mistake),
                "message": "" if verdict.status == PASSED else verdict.message,
            }


def as_csv(graded: list[tuple[str, dict[str, Verdict]]]) -> bytes:
    """The rows as CSV, for a spreadsheet."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ("learner", "exercise", "status", "mistake", "message"), lineterminator="\n")
    writer.writeheader()
    for row in rows(graded):
        writer.writerow({key: as_cell(value) for key, value in row.items()})
    return text.getvalue().encode()


def as_json(graded: list[tuple[str, dict[str, Verdict]]]) -> bytes:
    """The rows as JSON, with how many each learner has passed."""
    passed = {name: sum(v.status == PASSED for v in verdicts.values()) for name, verdicts in graded}
    return json.dumps({"passed": passed, "of": len(exercises()), "answers": list(rows(graded))}, indent=1).encode()
