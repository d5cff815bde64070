"""When a difference between runs counts: if Student's 95 % confidence interval for it, over the seeds, does not hold zero.

With three seeds on each side that is 2.3 times the standard deviation between seeds, with five 1.5 times, with ten 0.9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# the 97.5 % quantile of Student's t for 1, 2, 3, ... degrees of freedom; above 30 the normal distribution's is close
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Check(NamedTuple):
    """One part of a rule. ``sign``: +1 if the numbers are for the claim, -1 if they are against it, 0 if they do not say."""

    text: str
    sign: int


def mean(values: Sequence[float]) -> float:
    """NaN for no values."""
    return math.nan if not values else math.fsum(values) / len(values)


def spread(values: Sequence[float]) -> float:
    """The standard deviation between seeds, divided by n - 1; NaN for a single one."""
    if len(values) < 2:
        return math.nan
    middle = mean(values)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1))


def quantile(freedom: int) -> float:
    """Of Student's t, for an interval of 95 %."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean; without bounds for a single value."""
    if len(values) < 2:
        return -math.inf, math.inf  # says nothing
    half = quantile(len(values) - 1) * spread(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of mean(a) - mean(b), for independent samples of one variance."""
    freedom = len(a) + len(b) - 2
    if min(len(a), len(b)) < 2:
        return -math.inf, math.inf
    middle = mean(a) - mean(b)
    pooled = ((len(a) - 1) * spread(a) ** 2 + (len(b) - 1) * spread(b) ** 2) / freedom
    half = quantile(freedom) * math.sqrt(pooled * (1 / len(a) + 1 / len(b)))
    return middle - half, middle + half


def sign(low_high: tuple[float, float]) -> int:
    """+1 or -1 if the interval lies above or below zero, 0 if it holds zero, or is none."""
    low, high = low_high
    return 1 if low > 0 else -1 if high < 0 else 0


def above(text: str, a: Sequence[float], b: Sequence[float] | float) -> Check:
    """The check that ``a`` is larger than ``b``, a number or the values of other runs."""
    return _compared(text, a, ">", b, 1)


def below(text: str, a: Sequence[float], b: Sequence[float] | float) -> Check:
    """The check that ``a`` is smaller than ``b``, a number or the values of other runs."""
    return _compared(text, a, "<", b, -1)


def _compared(text: str, a: Sequence[float], relation: str, b: Sequence[float] | float, wanted: int) -> Check:
    if isinstance(b, int | float):
        low, high = interval(a)
        return Check(f"{text}: {shown(a)} {relation} {b:g}", wanted * sign((low - b, high - b)))
    return Check(f"{text}: {shown(a)} {relation} {shown(b)}", wanted * sign(difference(a, b)))


def holds(text: str, a: Sequence[float], theory: float) -> Check:
    """The check that the confidence interval of ``a`` holds the theory's value. An interval wider than half of that value
    does not decide.
    """
    low, high = interval(a)
    inside = -1 if theory < low or theory > high else 1 if high - low <= abs(theory) / 2 else 0
    return Check(f"{text}: {digits(theory)} lies within {digits(low)} to {digits(high)}", inside)


def digits(value: float) -> str:
    """To three significant digits, without an exponent where that is readable."""
    if math.isnan(value):
        return "not finite"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
    return f"{value:.1e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


def shown(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return "not run"
    return digits(mean(values)) if len(values) < 2 else f"{digits(mean(values))} ± {digits(spread(values))}"
