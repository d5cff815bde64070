"""``tinyres exercise``: the exercises of the course, and what an answer got wrong."""

import argparse
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyres.cli.options import check_file, number
from tinyres.errors import UsageError
from tinyres.files import printable, write_atomically

if TYPE_CHECKING:
    from tinyres.course.diagnose import Verdict
    from tinyres.course.exercise import Exercise

DESCRIPTION = """\
The exercises of the course, three per chapter: a gap to fill, a number to predict, a bug to find.

  tinyres exercise list
  tinyres exercise start 3.1           writes exercises/e3_1.py, with the question
  tinyres exercise check 3.1           says whether it is right, or what the mistake is
  tinyres exercise hint 3.1            a hint; again: the next one, of three
  tinyres exercise solution 3.1
  tinyres exercise check --all class --csv marks.csv     a class: a folder per learner

check runs the file in a process of its own, with your rights: check what you trust. Its exit status is 0 for a right
answer, 1 for another one."""
MARKS = {"passed": "+", "wrong": "-", "error": "!", "missing": "."}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "exercise", help="exercises that say what went wrong", description=DESCRIPTION, allow_abbrev=False
    )
    parts = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    one = parts.add_parser("list", help="all exercises, and which of them were passed", allow_abbrev=False)
    add_folder(one)
    one.set_defaults(run=show_list)
    for name, run, words in (
        ("start", start, "write the file to begin with"),
        ("hint", hint, "the next of three hints"),
        ("solution", solution, "the right answer, and why"),
    ):
        one = parts.add_parser(name, help=words, allow_abbrev=False)
        one.add_argument("number", metavar="N", help="1.1 to 8.3")
        add_folder(one)
        one.set_defaults(run=run)
    one = parts.add_parser("check", help="is an answer right, and if not, what is the mistake?", allow_abbrev=False)
    one.add_argument("number", metavar="N", nargs="?", help="1.1 to 8.3")
    one.add_argument("file", metavar="FILE", nargs="?", help="the answer (default: that which start writes)")
    one.add_argument("--all", metavar="CLASS", help="check all files of a class: a folder with a folder per learner")
    one.add_argument(
        "--time-limit", type=number(0, excluded=True), default=10.0, metavar="S", help="seconds for each file (default: 10)"
    )
    one.add_argument("--json", metavar="OUT", help="also write what was found as JSON")
    one.add_argument("--csv", metavar="OUT", help="of a class: also write a row per learner and exercise")
    add_folder(one)
    one.set_defaults(run=check)


def add_folder(parser: Any) -> None:
    parser.add_argument("--folder", default="exercises", metavar="DIR", help="of the files (default: exercises)")


def show_list(arguments: argparse.Namespace) -> None:
    from tinyres.course.desk import known
    from tinyres.course.exercise import exercises

    folder = Path(arguments.folder)
    for exercise in exercises().values():
        if exercise.number.endswith(".1"):
            print()
        state = "passed" if known(folder, exercise.number, "passed", False) else ""
        state = state or ("started" if (folder / exercise.file_name).exists() else "")
        print(f"{exercise.number}  {exercise.title:<34}{exercise.kind:<16}{state}".rstrip())
    print("\ntinyres exercise start 1.1 begins the first")


def start(arguments: argparse.Namespace) -> None:
    from tinyres.course import desk
    from tinyres.course.exercise import find

    exercise = find(arguments.number)
    path = desk.start(exercise, Path(arguments.folder))
    print(path.read_text("utf-8"))
    print(f"written: {printable(str(path))}: edit it, then: tinyres exercise check {exercise.number}{option(arguments)}")


def option(arguments: argparse.Namespace) -> str:
    return "" if arguments.folder == "exercises" else f" --folder {printable(arguments.folder)}"


def hint(arguments: argparse.Namespace) -> None:
    from tinyres.course.desk import known, note
    from tinyres.course.exercise import find

    exercise, folder = find(arguments.number), Path(arguments.folder)
    shown = min(max(known(folder, exercise.number, "hints", 0), 0) + 1, len(exercise.hints))
    print(f"{exercise.number} {exercise.title}")
    for k, words in enumerate(exercise.hints[:shown], 1):
        say(f"{k}. {words}", "   ")
    last = shown == len(exercise.hints)
    print("\n" + (f"there are no more; tinyres exercise solution {exercise.number}" if last else "again: the next one"))
    note(folder, exercise.number, hints=shown)


def solution(arguments: argparse.Namespace) -> None:
    from tinyres.course.exercise import find

    exercise = find(arguments.number)
    print(f"# {exercise.number} {exercise.title}\n\n{exercise.solution()}")
    say(exercise.passed, "")


def check(arguments: argparse.Namespace) -> int:
    for name, endings in (("--json", (".json",)), ("--csv", (".csv",))):
        check_file(name, getattr(arguments, name[2:]), endings)
    if arguments.all:
        if arguments.number:
            raise UsageError("check takes an exercise or --all CLASS, not both")
        return grade(arguments)
    if not arguments.number:
        raise UsageError("check which exercise? 1.1 to 8.3 (see tinyres exercise list), or --all CLASS")
    if arguments.csv:
        raise UsageError("--csv is for a class: check --all CLASS --csv OUT")
    from tinyres.course import checking, desk
    from tinyres.course.diagnose import PASSED
    from tinyres.course.exercise import find

    exercise, folder = find(arguments.number), Path(arguments.folder)
    path = Path(arguments.file) if arguments.file else folder / exercise.file_name
    if not path.exists():
        raise UsageError(f"{path} does not exist; tinyres exercise start {exercise.number} writes it")
    found = checking.check(exercise, path, arguments.time_limit)
    show(exercise, found, option(arguments))
    if not arguments.file and found.status == PASSED:
        desk.note(folder, exercise.number, passed=True)
    if arguments.json:
        one = {"exercise": exercise.number, "status": found.status, "mistake": found.mistake, "message": found.message}
        write_atomically(arguments.json, json.dumps(one, indent=1).encode())
    return 0 if found.status == PASSED else 1


def show(exercise: "Exercise", found: "Verdict", folder: str) -> None:
    """A verdict, on the terminal; ``folder`` is the option for that of the learner, if it needs one."""
    passed = found.status == "passed"
    print(f"{exercise.number} {exercise.title}: {'passed' if passed else 'not yet'}\n")
    say(printable(found.message), "  ")
    if found.printed:
        print("\n  Your file printed:")
        lines = printable(found.printed).splitlines()
        for line in lines[:20]:
            print(f"  | {line[:100]}")
        if len(lines) > 20:
            print("  | ...")
    if not passed:
        print(f"\n  a hint: tinyres exercise hint {exercise.number}{folder}")


def say(words: str, indent: str) -> None:
    first = "" if indent == "   " else indent  # numbered ones hang
    print(textwrap.fill(words, 80, initial_indent=first, subsequent_indent=indent))


def grade(arguments: argparse.Namespace) -> int:
    """A class: a line per learner."""
    from tinyres.course import desk

    folder = Path(arguments.all)
    files, done = desk.files_of(folder), 0

    def step() -> None:
        nonlocal done
        done += 1
        if done % 24 == 0 or done == files:
            print(f"checked {done} of {files} files", flush=True)

    graded = desk.grade(folder, arguments.time_limit, step)
    width = min(max([7, *(len(printable(name)) for name, _ in graded)]), 30)
    print(f"\n{'learner':<{width}}  1    2    3    4    5    6    7    8     passed")
    for name, verdicts in graded:
        marks = "".join(MARKS[verdict.status] for verdict in verdicts.values())
        groups = "  ".join(marks[i : i + 3] for i in range(0, len(marks), 3))
        print(f"{printable(name)[:width]:<{width}}  {groups}  {marks.count('+'):>3} of {len(marks)}")
    print("\n+ passed   - wrong   ! does not run   . no file")
    for path, content in ((arguments.csv, desk.as_csv), (arguments.json, desk.as_json)):
        if path:
            write_atomically(path, content(graded))
            print(f"written: {printable(path)}")
    return 0
