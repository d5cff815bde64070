"""What an exercise is: a question, a file to start from, the right answer, and the wrong ones that are recognised."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres.errors import UsageError

CHAPTERS = range(1, 9)
GAP, NUMBER, BUG = "fill the gap", "predict", "find the bug"


def as_array(answer: Any) -> Any:
    """Numbers, and lists of them, as an array; anything else as it is."""
    if isinstance(answer, int | float | list | tuple | np.ndarray):
        try:
            return np.array(answer, float)
        except (TypeError, ValueError):
            pass
    return answer


@dataclass(frozen=True)
class Wrong:
    """A typical wrong answer. ``answer`` is a function like the right one, or a value. ``says`` tells what the mistake looks
    like, never how it is mended. Two answers with the same result have the same words.
    """

    name: str
    says: str
    answer: Any


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    ``right`` is the function asked for, under the name that the learner's has; to be predicted, it is a value, and the
    learner's file assigns ``answer``. ``cases`` gives the arguments of every call (float64 arrays from a fixed seed).
    ``call(function, *case)`` calls it in another way; ``read`` turns an answer into what is compared. ``returns`` names the
    parts of a tuple. ``diagnose(answers)`` has words for answers that no rule recognises, in place of the general ones.
    """

    number: str
    title: str
    kind: str
    question: str
    right: Any
    wrong: tuple[Wrong, ...]
    hints: tuple[str, str, str]  # where to look; the question to ask oneself; the line
    passed: str  # what it means, with the file of the engine
    cases: Callable[[], list[tuple]] = lambda: [()]
    returns: tuple[str, ...] = ()
    call: Callable[..., Any] = lambda function, *case: function(*case)
    read: Callable[[Any], Any] = lambda answer: answer
    diagnose: Callable[[list], str] | None = None
    given: str = ""  # the wrong answer that the learner's file starts with, where a bug is to be found
    why: str = ""  # why a predicted value is right
    choices: str = ""  # the comment behind ``answer = ...``

    @property
    def name(self) -> str:
        """What the learner's file must define."""
        return self.right.__name__ if callable(self.right) else "answer"

    @property
    def file_name(self) -> str:
        return f"e{self.number.replace('.', '_')}.py"

    def asked(self) -> str:
        """The question, in lines of 88 characters; code and tables stay as they are."""
        paragraphs = textwrap.dedent(self.question).strip().split("\n\n")
        return "\n\n".join(
            textwrap.fill(p, 88) if max(map(len, p.split("\n"))) > 60 and "   " not in p else p for p in paragraphs
        )

    def start(self) -> str:
        """The file that a learner begins with."""
        head = f'"""Exercise {self.number}. {self.title} ({self.kind})\n\n{self.asked()}\n\n'
        head += f'tinyres exercise check {self.number}\n"""\n\n'
        if not callable(self.right):
            return f"{head}answer = ...{self.choices and f'  # {self.choices}'}\n"
        if self.given:
            body = re.sub(r"\bdef \w+", f"def {self.name}", source(self.mistake(self.given).answer), count=1)
        else:
            body = gap(source(self.right))
        uses = [line for name, line in IMPORTS.items() if re.search(rf"\b{name}\.", body) or name == "np"]
        return f"{head}{chr(10).join(uses)}\n\n\n{body}"

    def solution(self) -> str:
        """The right answer, as text."""
        if callable(self.right):
            return source(self.right)
        return f"answer = {self.right!r}\n\n" + "\n".join(f"# {line}" for line in textwrap.wrap(self.why, 78)) + "\n"

    def mistake(self, name: str) -> Wrong:
        """The wrong answer of that name."""
        return next(wrong for wrong in self.wrong if wrong.name == name)

    def taken(self, answer: Any) -> Any:
        """An answer as it is compared: a list of parts is as good as a tuple."""
        return tuple(answer) if self.returns and isinstance(answer, list) else self.read(answer)

    def answers(self, answer: Any) -> list[Any]:
        """What an answer gives in each case. If it is a wrong one, an exception is what a case gives, too."""
        if not callable(self.right):
            return [self.taken(answer)]
        found: list[Any] = []
        for case in self.cases():
            try:
                found.append(self.taken(self.call(answer, *case)))
            except Exception as error:
                if answer is self.right:
                    raise
                found.append(error)
        return found


IMPORTS = {"np": "import numpy as np", "tr": "import tinyres as tr", "F": "import tinyres.functional as F"}


def source(function: Callable) -> str:
    return textwrap.dedent(inspect.getsource(function))


def gap(text: str) -> str:
    """A function without its body: signature and docstring stay."""
    end = text.index('"""', text.index('"""') + 3) + 3
    return f"{text[:end]}\n    return ...\n"


def exercises() -> dict[str, Exercise]:
    """All exercises by their numbers, in order."""
    chapters = [importlib.import_module(f"tinyres.course.exercises.chapter{n}") for n in CHAPTERS]
    return {one.number: one for chapter in chapters for one in chapter.EXERCISES}


def find(number: str) -> Exercise:
    """The exercise of that number. Raises `UsageError` for one that does not exist."""
    known = exercises()
    if number not in known:
        close = difflib.get_close_matches(number, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"there is no exercise {number!r}{hint} (1.1 to 8.3; see tinyres exercise list)")
    return known[number]
