"""How sure a figure is: quartiles, and 95 % intervals of medians and of ratios that assume no distribution of the times.

They assume that the rounds are independent draws. They know what differs from round to round, not what differs from run to
run (where memory lies, what the neighbours do); ``--processes N`` makes each draw a process of its own.
"""

from collections.abc import Sequence
from math import comb, sqrt
from statistics import quantiles

CONFIDENCE = 0.95
LEAST = 6  # rounds that `of_median` needs at this confidence
LEAST_OF_TWO = 7  # and `of_ratio`
Interval = tuple[float, float]


def quartiles(values: Sequence[float]) -> Interval:
    """The first and the third, as NumPy interpolates them."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def of_median(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """From the k-th smallest value to the k-th largest, with the largest k at which that surely enough holds the median of
    all values that could have been drawn. It misses that median if fewer than k of the n values lie on one side of it:
    with probability 2 P(B < k) or less, where B counts heads in n throws of a coin. None if even k = 1 misses too often.

    H. A. David and H. N. Nagaraja, Order Statistics, 3rd edition (2003), section 7.1.
    """
    n, ordered, k, missed = len(values), sorted(values), 0, 2 * 0.5 ** len(values)
    while k < n // 2 and missed <= 1 - confidence:
        k += 1
        missed += 2 * comb(n, k) * 0.5**n
    return (ordered[k - 1], ordered[n - k]) if k else None


def of_paired_ratio(peer: Sequence[float], ours: Sequence[float]) -> Interval | None:
    """Of the median of peer / ours, where both have a time in each round."""
    return of_median([p / o for p, o in zip(peer, ours, strict=True)])


def of_ratio(before: Sequence[float], after: Sequence[float]) -> Interval | None:
    """Of median(before) / median(after), two runs that have no rounds in common. Both medians lie in their intervals at
    sqrt(95 %) = 97.5 % each with probability 95 % or more, and then their ratio lies between the ratios of the ends.
    """
    a, b = of_median(before, sqrt(CONFIDENCE)), of_median(after, sqrt(CONFIDENCE))
    return (a[0] / b[1], a[1] / b[0]) if a and b else None
