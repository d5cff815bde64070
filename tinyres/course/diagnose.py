"""From an answer to words: is it right, is it a mistake that is known, and if not, how does it differ?"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres.course.exercise import Exercise, Wrong

PASSED, WRONG, ERROR, MISSING = "passed", "wrong", "error", "missing"
TOLERANCE = 1e-5  # of the largest number: an answer in float32 is right too


@dataclass(frozen=True)
class Verdict:
    """What is said of an answer. ``mistake`` names the wrong answers that it agrees with, if it is a known one."""

    status: str
    message: str
    mistake: tuple[str, ...] = ()
    printed: str = ""


def judge(exercise: Exercise, given: list[Any]) -> Verdict:
    """The verdict on what an answer gave in each case. A mistake is known only if it agrees in all of them."""
    right = exercise.answers(exercise.right)
    if all(map(same, given, right)):
        return Verdict(PASSED, f"{exercise.why} {exercise.passed}".strip())
    given = [expanded(g, r) for g, r in zip(given, right, strict=True)]
    found = [(wrong, exercise.answers(wrong.answer)) for wrong in exercise.wrong]
    known = [wrong for wrong, answers in found if all(map(same, given, answers))]
    if known:
        return Verdict(WRONG, praise(exercise, given, right) + known[0].says, tuple(wrong.name for wrong in known))
    if several := by_parts(exercise, given, right, found):
        return several
    if any(answer is ... for answer in given):
        return Verdict(WRONG, f"Nothing is filled in yet: {exercise.name} is still at its '...'.")
    if exercise.diagnose:
        return Verdict(WRONG, exercise.diagnose(given))
    k = next(k for k in range(len(given)) if not same(given[k], right[k]))
    if isinstance(given[k], Exception):
        return Verdict(ERROR, f"{place(exercise, k)}{failure(given[k])}")
    return Verdict(WRONG, place(exercise, k) + parts(exercise, given, right, k))


def expanded(given: Any, right: Any) -> Any:
    """A single number where an array of equal ones is meant (1 for ones)."""
    if fits(given, right):
        return tuple(map(expanded, given, right))
    single = isinstance(given, int | float) or (isinstance(given, np.ndarray) and given.ndim == 0)
    return np.full(right.shape, given) if single and isinstance(right, np.ndarray) else given


def good_parts(exercise: Exercise, given: list[Any], right: list[Any]) -> list[int]:
    """Which parts of a tuple are right in all cases that gave a tuple."""
    pairs = [(g, r) for g, r in zip(given, right, strict=True) if fits(g, r)]
    return [i for i in range(len(exercise.returns)) if pairs and all(same(g[i], r[i]) for g, r in pairs)]


def praise(exercise: Exercise, given: list[Any], right: list[Any]) -> str:
    names = [exercise.returns[i] for i in good_parts(exercise, given, right)]
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} right. " if names else ""


def by_parts(exercise: Exercise, given: list[Any], right: list[Any], found: list[tuple[Wrong, list[Any]]]) -> Verdict | None:
    """The verdict on a tuple in which every wrong part has a mistake of its own that is known."""
    bad = [i for i in range(len(exercise.returns)) if i not in good_parts(exercise, given, right)]
    if not bad or not any(fits(g, r) for g, r in zip(given, right, strict=True)):
        return None
    told = []
    for i in bad:
        known = [
            wrong
            for wrong, answers in found
            if all(same_part(g, a, i) for g, a in zip(given, answers, strict=True))
            and not all(same_part(r, a, i) for r, a in zip(right, answers, strict=True))
        ]
        if not known:
            return None
        told.append(known[0])
    words = " ".join(dict.fromkeys(f"{exercise.returns[i]}: {wrong.says}" for i, wrong in zip(bad, told, strict=True)))
    return Verdict(WRONG, praise(exercise, given, right) + words, tuple(dict.fromkeys(wrong.name for wrong in told)))


def same_part(given: Any, answer: Any, i: int) -> bool:
    """Part i of two answers; exceptions hide parts, and count as the same."""
    if not isinstance(given, tuple) or not isinstance(answer, tuple):
        return isinstance(given, Exception) or isinstance(answer, Exception)
    return same(given[i], answer[i])


def place(exercise: Exercise, k: int) -> str:
    """Where: in which of several cases."""
    cases = exercise.cases()
    if len(cases) == 1:
        return ""
    names = list(inspect.signature(exercise.right).parameters)
    if len(names) != len(cases[k]):  # it is called in another way
        return f"In case {k + 1} of {len(cases)}: "
    shapes = ", ".join(f"{name} {described(value)}" for name, value in zip(names, cases[k], strict=True))
    return f"In case {k + 1} of {len(cases)} ({shapes}): "


def described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return " x ".join(map(str, value.shape)) or "a number"
    return repr(value) if isinstance(value, int | float | tuple | str) else type(value).__name__


def failure(error: Exception) -> str:
    """An exception in one line."""
    return str(error) if hasattr(error, "kind") else f"{type(error).__name__}: {error}"


def same(a: Any, b: Any) -> bool:
    """Whether two answers are the same, up to rounding."""
    if isinstance(a, Exception) or isinstance(b, Exception):
        return kind(a) == kind(b)
    if isinstance(b, tuple) or isinstance(a, tuple):
        return fits(a, b) and all(map(same, a, b))
    if isinstance(a, str | list | set) or isinstance(b, str | list | set):
        return type(a) is type(b) and a == b
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or not numbers(a) or not numbers(b):
        return False
    a, b = a.astype(float), b.astype(float)
    with np.errstate(invalid="ignore"):
        return bool((np.abs(a - b) <= TOLERANCE * max(float(np.abs(b).max(initial=0.0)), 1e-6)).all())


def kind(value: Any) -> str:
    return getattr(value, "kind", type(value).__name__) if isinstance(value, Exception) else ""


def numbers(a: np.ndarray) -> bool:
    return a.dtype.kind in "biuf"


def parts(exercise: Exercise, given: list[Any], right: list[Any], k: int) -> str:
    """The difference in case k: which part of a tuple is wrong, and how."""
    if given[k] is None:
        return f"{exercise.name} gave None: is a return missing?" if callable(exercise.right) else "answer is None."
    if not isinstance(right[k], tuple):
        return stop(f"Your answer is {difference(given[k], right[k], inputs(exercise, k))}")
    names = exercise.returns
    if not fits(given[k], right[k]):
        got = f"{len(given[k])} values" if isinstance(given[k], tuple) else "a single value"
        return f"{exercise.name} must return {len(names)} arrays, ({', '.join(names)}); it returned {got}."
    bad = next(i for i in range(len(names)) if not same(given[k][i], right[k][i]))
    return stop(
        f"{praise(exercise, given, right)}{names[bad]} is {difference(given[k][bad], right[k][bad], inputs(exercise, k))}"
    )


def stop(sentence: str) -> str:
    return sentence if sentence.endswith("?") else f"{sentence}."


def fits(given: Any, right: Any) -> bool:
    """Whether both are tuples of as many parts."""
    return isinstance(given, tuple) and isinstance(right, tuple) and len(given) == len(right)


def inputs(exercise: Exercise, k: int) -> list[np.ndarray]:
    return [value for value in exercise.cases()[k] if isinstance(value, np.ndarray)]


def difference(given: Any, right: Any, arguments: Sequence[np.ndarray] = ()) -> str:
    """How two arrays differ, in the order in which a mistake is most likely understood."""
    try:
        got = np.asarray(given)
    except ValueError:
        return "no array: its rows have different lengths"
    want = np.asarray(right)
    if not numbers(got):
        return (
            f"{given!r:.60}, where {'a number' if want.ndim == 0 else 'a list or an array'} is expected"
            if got.ndim == 0
            else "no array of numbers"
        )
    if got.shape != want.shape:
        return shape_difference(got.shape, want.shape)
    got, want = got.astype(float), want.astype(float)
    if not np.isfinite(got).all():
        return f"not finite at {np.isnan(got).sum()} places with NaN and {np.isinf(got).sum()} with infinity"
    if got.ndim == 0:
        return f"{float(got):g}, which is {'too small' if got < want else 'too large'}"
    if not got.any():
        return "zero everywhere"
    if near(got, factor := float((got * want).sum() / (want * want).sum()), want):
        return f"{factor:.4g} times the right one everywhere{reason(factor, arguments)}"
    if want.ndim >= 2:
        for axes, words in (
            ((-1,), "along the last axis"),
            ((-2,), "along the second last axis"),
            ((-2, -1), "by 180 degrees"),
        ):
            if near(got, 1.0, np.flip(want, axes)):
                return f"{'turned' if len(axes) == 2 else 'mirrored'} {words}"
        if near(got, 1.0, np.swapaxes(want, -1, -2)):
            return "transposed in its last two axes"
    good = np.abs(got - want) <= TOLERANCE * np.abs(want).max()
    if good.mean() > 0.05:
        first = tuple(int(i) for i in np.argwhere(~good)[0])
        return (
            f"right at {good.mean():.0%} of the places; the first wrong one is at {list(first)}{where(good)}: "
            f"{got[first]:.4g}, and it should be {'larger' if got[first] < want[first] else 'smaller'}"
        )
    cosine = float((got * want).sum() / np.linalg.norm(got) / np.linalg.norm(want))
    return f"another direction: the cosine with the right one is {cosine:.2f}, and 1 would be right"


def near(a: np.ndarray, factor: float, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((np.abs(a - factor * b) <= 10 * TOLERANCE * np.abs(a).max()).all())


def shape_difference(got: tuple[int, ...], want: tuple[int, ...]) -> str:
    words = f"of shape {got}, where {want} is expected"
    if got != want and got == want[::-1]:
        return f"{words}: transposed?"
    if len(got) == len(want) + 1:
        extra = [axis for axis in range(len(got)) if got[:axis] + got[axis + 1 :] == want]
        if extra and got[extra[0]] == 1:
            return f"{words}: axis {extra[0]}, of length 1, is one too many"
        return f"{words}: axis {extra[0]} is one too many; is it to be summed?" if extra else words
    if len(got) == len(want) - 1:
        return f"{words}: an axis is missing; was one summed too many?"
    return words


def reason(factor: float, arguments: Sequence[np.ndarray]) -> str:
    """What a constant factor may come from: a length among the arguments."""
    if abs(factor + 1) < 1e-4:
        return ": the sign"
    for size in sorted({length for array in arguments for length in array.shape} - {0, 1}):
        if abs(factor * size - 1) < 1e-4:
            return f": a mean where a sum belongs? {size} is a length of the arguments"
        if abs(factor / size - 1) < 1e-4:
            return f": a sum where a mean belongs? {size} is a length of the arguments"
    return ""


def where(good: np.ndarray) -> str:
    """Whether the wrong places are all at the border, or all in some of the first axis."""
    if good.ndim < 2:
        return ""
    inner = (slice(None),) * (good.ndim - 2) + (slice(1, -1), slice(1, -1))
    if good[inner].size and good[inner].all():
        return ", and all lie at the border"
    rows = [i for i in range(len(good)) if not good[i].all()]
    return f", and all lie in {'row' if good.ndim == 2 else 'channel'} {rows[0]}" if len(rows) == 1 and len(good) > 2 else ""
