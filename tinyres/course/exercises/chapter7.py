"""Exercises of chapter 7: depth."""

import math

import numpy as np

from tinyres.course.exercise import GAP, NUMBER, Exercise, Wrong, as_array


def order(answer):
    """The order of magnitude that was meant, as a power of ten; 10^3 to 10^5 count as 10^4."""
    if not isinstance(answer, int | float) or not answer > 0:
        return answer
    power = math.log10(answer)
    for low, high, name in ((-99, -1.8, -4), (-1.8, -0.4, -1), (-0.4, 0.6, 0), (0.6, 2, 1), (3, 5.01, 4), (6, 99, 8)):
        if low <= power < high:
            return np.array(float(name))
    return np.array(float(round(power)))


def about_order(given):
    """Too small or too large, for an order of magnitude that no wrong answer has."""
    if not isinstance(given[0], np.ndarray):
        return f"Write a positive number; got {given[0]!r:.60}"
    size = "small" if given[0] < 4 else "large"
    return f"About 10^{given[0]:.0f} is too {size}. Measure it: tinyres explain --norms plain56."


WHICH_WAY = Exercise(
    "7.1",
    "Which way does it go wrong?",
    NUMBER,
    """
    A plain net of 56 layers with batch norm, before the first step of training: 27 blocks, no shortcuts. Take the norm
    of the gradient at the input of the first block, and divide it by that at the input of the last one. What is the
    ratio, to an order of magnitude? Write a number such as 1e-3, 1.0 or 1e6.
    """,
    1e4,
    (
        Wrong("vanishes", "That is the usual story: gradients vanish. Measure it: tinyres explain --norms plain56.", 1e-4),
        Wrong("shrinks", "Smaller at the input? Measure it: tinyres explain --norms plain20.", 1e-1),
        Wrong(
            "level", "Batch norm keeps the signal level on its way forward. Whose norm does it keep on the way back?", 1.0
        ),
        Wrong("a little", "That is plain-20, with 9 blocks. A factor per block, and now there are 27.", 1e1),
        Wrong("far too much", "That is plain-110, with 54 blocks.", 1e8),
    ),
    (
        "A plain net is a product: one factor per block.",
        "plain-20, with 9 blocks, gives about 20. What is the factor per block, and what do 27 blocks make of it?",
        "About 1.4 per block, from the first block's input to the last one's: 26 factors.",
    ),
    "1.42 per block: seeds 0 to 2 give 8,518, 15,621 and 4,470. docs/labs.md has the experiment, which-way.",
    read=order,
    diagnose=about_order,
    why="It explodes: 1.42 per block, and 1.42^26 is 9,000. Batch norm itself does it (Yang et al. 2019, arXiv 1902.08129).",
    choices="such as 1e-3, 1.0 or 1e6",
)


def shares(ratios):
    """The share of the squared gradient that came by k branches, for k = 0 to the number of blocks.

    ratios[i] is |J_F^T ds| / |ds| of block i. In every block the two parts are orthogonal, and what one block makes of the
    parts does not depend on which way they came.
    """
    found = np.ones(1)
    for r in ratios:
        found = np.convolve(found, [1, r**2]) / (1 + r**2)
    return found


def polynomial(values):
    found = np.ones(1)
    for value in values:
        found = np.convolve(found, [1, value])
    return found


def cases_2():
    rng = np.random.default_rng(72)
    return [(np.abs(rng.standard_normal(n)) + 0.3,) for n in (3, 5)]


PATHS = Exercise(
    "7.2",
    "By how many branches?",
    GAP,
    """
    Every block sends back ds through its shortcut and J_F^T ds through its branch, r times as long and at a right angle
    to it. After all blocks the gradient is a sum over all ways, past each branch or through it. Which share of its
    squared length came through 0 branches, through 1, ... through all? Return an array with len(ratios) + 1 numbers,
    whose sum is 1.
    """,
    shares,
    (
        Wrong(
            "all ways alike",
            "This counts ways. A way through a branch with r = 0.1 carries less than one through a branch with r = 2.",
            lambda ratios: polynomial(np.ones(len(ratios))) / 2 ** len(ratios),
        ),
        Wrong(
            "r for r^2",
            "Lengths were added. Of orthogonal vectors the squares of the lengths add up.",
            lambda ratios: polynomial(ratios) / np.prod(1 + ratios),
        ),
        Wrong(
            "not normalised",
            "The right proportions, but the sum is not 1: it is the growth of the squared gradient.",
            lambda ratios: polynomial(ratios**2),
        ),
        Wrong(
            "cumulative",
            "These are sums up to k. Asked is the share of exactly k.",
            lambda ratios: np.cumsum(shares(ratios)),
        ),
        Wrong(
            "from the long end",
            "The right numbers in reverse. Which belongs to k = 0, past all branches?",
            lambda ratios: shares(ratios)[::-1],
        ),
        Wrong(
            "one branch for all",
            "This takes every block for the average one. Ratios differ: multiply the blocks one by one.",
            lambda ratios: polynomial(np.full(len(ratios), (ratios**2).mean())) / (1 + (ratios**2).mean()) ** len(ratios),
        ),
    ),
    (
        "One block: which shares do 0 and 1 branches have, if the squares are 1 and r^2?",
        "A second block behind it: which ways give k = 1?",
        "Multiply out the polynomials (1 + r^2 t) / (1 + r^2); the coefficient of t^k is the share. np.convolve multiplies.",
    ),
    "tr.gradient_ledger(...).paths() measures the shares exactly; these, by ratios alone, come close while the parts are "
    "orthogonal.",
    cases_2,
)


def autocorrelation(g, lag):
    """The correlation of g, (P,), with itself ``lag`` places later: how alike the gradients of two neighbours are."""
    h = g - g.mean()
    return (h[:-lag] * h[lag:]).mean() / (h**2).mean()


def centred(g):
    return g - g.mean()


def cases_3():
    rng = np.random.default_rng(73)
    return [(rng.standard_normal(64).cumsum() + 3, 4), (rng.standard_normal(50) + 1, 2)]


SHATTERED = Exercise(
    "7.3",
    "Brown noise or white?",
    GAP,
    """
    g holds the gradient at P points along a line. Are neighbours alike? Give its autocorrelation at a lag: the mean of
    the products of centred numbers that are lag apart, over the mean of their squares.
    """,
    autocorrelation,
    (
        Wrong(
            "not centred",
            "The mean was not taken away. A constant, too, would be perfectly correlated with itself.",
            lambda g, lag: (g[:-lag] * g[lag:]).mean() / (g**2).mean(),
        ),
        Wrong(
            "circular",
            "The end was taken for a neighbour of the beginning. The points lie on a line, not on a circle.",
            lambda g, lag: (centred(g) * np.roll(centred(g), lag)).mean() / (centred(g) ** 2).mean(),
        ),
        Wrong(
            "sums for means",
            "Too small by (P - lag) / P: there are fewer products than squares. Then even a perfect correlation shrinks "
            "with the lag.",
            lambda g, lag: (centred(g)[:-lag] * centred(g)[lag:]).sum() / (centred(g) ** 2).sum(),
        ),
        Wrong(
            "not normalised",
            "This is a covariance. Twice the gradient would give four times as much.",
            lambda g, lag: (centred(g)[:-lag] * centred(g)[lag:]).mean(),
        ),
        Wrong(
            "lag off by one",
            "Right for the lag one smaller. Which two numbers are lag apart?",
            lambda g, lag: autocorrelation(g, lag - 1),
        ),
        Wrong(
            "absolute values",
            "Signs were lost. Neighbours of opposite sign are unlike, however large they are.",
            lambda g, lag: np.abs(centred(g)[:-lag] * centred(g)[lag:]).mean() / (centred(g) ** 2).mean(),
        ),
    ),
    (
        "Take the mean away first. Then there are P - lag pairs.",
        "What must come out for lag 0? And for a gradient that is multiplied by 2?",
        "h[:-lag] and h[lag:] are the pairs.",
    ),
    "The lab shattered computes it along a line of inputs: 0.97 for one layer, about 0 for 24 plain ones.",
    cases_3,
    read=as_array,
)

EXERCISES = (WHICH_WAY, PATHS, SHATTERED)
