"""Exercises of chapter 4: batch norm, and checks that can fail."""

import numpy as np

from tinyres.course.exercise import GAP, Exercise, Wrong

EPS = 1e-5


def dx(x, weight, dy, eps):
    """The cotangent of x, (m, C), of y = weight xhat + bias with xhat = (x - mean) / sqrt(var + eps).

    mean and var are those of each column of x, over its m rows; var is the mean of (x - mean)^2.
    """
    rstd = 1 / np.sqrt(x.var(axis=0) + eps)
    xhat = (x - x.mean(axis=0)) * rstd
    return weight * rstd * (dy - dy.mean(axis=0) - xhat * (dy * xhat).mean(axis=0))


def normalised(x, eps):
    rstd = 1 / np.sqrt(x.var(axis=0) + eps)
    return (x - x.mean(axis=0)) * rstd, rstd, len(x)


def statistics_constant(x, weight, dy, eps):
    _, rstd, _ = normalised(x, eps)
    return weight * rstd * dy


def no_xhat_term(x, weight, dy, eps):
    _, rstd, _ = normalised(x, eps)
    return weight * rstd * (dy - dy.mean(0))


def no_mean_term(x, weight, dy, eps):
    xhat, rstd, _ = normalised(x, eps)
    return weight * rstd * (dy - xhat * (dy * xhat).mean(0))


def weight_forgotten(x, weight, dy, eps):
    return dx(x, 1.0, dy, eps)


def divided_by_the_variance(x, weight, dy, eps):
    return dx(x, weight, dy, eps) * normalised(x, eps)[1]


def sums_for_means(x, weight, dy, eps):
    xhat, rstd, _ = normalised(x, eps)
    return weight * rstd * (dy - dy.sum(0) - xhat * (dy * xhat).sum(0))


def one_less(x, weight, dy, eps):
    xhat, rstd, m = normalised(x, eps)
    return weight * rstd * (dy - dy.mean(0) - xhat * (dy * xhat).sum(0) / (m - 1))


def plus(x, weight, dy, eps):
    xhat, rstd, _ = normalised(x, eps)
    return weight * rstd * (dy + dy.mean(0) + xhat * (dy * xhat).mean(0))


def sign(x, weight, dy, eps):
    return -dx(x, weight, dy, eps)


def zeros(x, weight, dy, eps):
    return np.zeros_like(x)


def cases_1():
    rng = np.random.default_rng(41)
    return [
        (rng.standard_normal((m, c)) * 3 + 1, rng.uniform(0.5, 2, c), rng.standard_normal((m, c)), EPS)
        for m, c in ((6, 4), (5, 3))
    ]


BATCH_NORM = Exercise(
    "4.1",
    "Batch norm, backward",
    GAP,
    """
    Batch norm of x, m rows and C columns: xhat = (x - mean) / sqrt(var + eps) and y = weight xhat + bias, where mean and
    var are those of each column. Give the cotangent of x. It is the best exercise in forks there is: one x is used three
    times, by itself, by the mean, and by the variance.
    """,
    dx,
    (
        Wrong(
            "statistics constant",
            "This holds mean and variance fixed. Move one x by a hair: they move with it, and so do all y of its column.",
            statistics_constant,
        ),
        Wrong(
            "no xhat term",
            "The mean has been taken into account, the deviation has not. It, too, moves with x.",
            no_xhat_term,
        ),
        Wrong(
            "no mean term",
            "The deviation has been taken into account, the mean has not. It, too, moves with x.",
            no_mean_term,
        ),
        Wrong(
            "weight forgotten",
            "Each column is off by its own factor, and the factors are the weights, upside down.",
            weight_forgotten,
        ),
        Wrong(
            "divided by the variance",
            "Each column is off by its own factor: one root of the variance too many.",
            divided_by_the_variance,
        ),
        Wrong("sums for means", "What is taken away is m times too large. One x is one m-th of the mean.", sums_for_means),
        Wrong(
            "m - 1",
            "Nearly right: the term of the deviation is divided by m - 1. Batch norm divides by the biased variance.",
            one_less,
        ),
        Wrong("plus", "Both corrections have the wrong sign: they are taken away, as parts along 1 and along xhat.", plus),
        Wrong("sign", "The sign is wrong everywhere: this is the right answer times -1.", sign),
        Wrong(
            "zeros",
            "Zero everywhere. A column that moves as a whole changes nothing, but one number that moves does.",
            zeros,
        ),
    ),
    (
        "Work with xhat. Write rstd = 1 / sqrt(var + eps), so that xhat = (x - mean) rstd, and start with dxhat = weight "
        "dy.",
        "What happens to y if all of a column moves by the same amount? If it is stretched about its mean? What must dx be "
        "then?",
        "Of dxhat take away its mean, and xhat times the mean of dxhat xhat. Then multiply by rstd.",
    ),
    "tinyres/ops/norm.py has this formula, and kernels/cpu/norm.py computes it in two passes over memory.",
    cases_1,
)


def dweight_dbias(x, dy, eps):
    """The cotangents of weight and bias, (C,) each. x and dy are (N, C, H, W); statistics are per channel."""
    mean = x.mean(axis=(0, 2, 3), keepdims=True)
    rstd = 1 / np.sqrt(x.var(axis=(0, 2, 3), keepdims=True) + eps)
    return (dy * (x - mean) * rstd).sum(axis=(0, 2, 3)), dy.sum(axis=(0, 2, 3))


def xhat_of(x, eps, axes=(0, 2, 3), power=0.5):
    return (x - x.mean(axes, keepdims=True)) / (x.var(axes, keepdims=True) + eps) ** power


ALL = (0, 2, 3)


def cases_2():
    rng = np.random.default_rng(42)
    return [(rng.standard_normal((3, 2, 4, 4)) * 2 + 1, rng.standard_normal((3, 2, 4, 4)), EPS)]


WEIGHT = Exercise(
    "4.2",
    "One weight, used N H W times",
    GAP,
    """
    The same batch norm on images: x and y are (N, C, H, W), and there is one weight and one bias per channel. Give their
    cotangents.
    """,
    dweight_dbias,
    (
        Wrong(
            "summed over N only",
            "A number per pixel is left. One weight serves all pixels of its channel, in all images.",
            lambda x, dy, eps: ((dy * xhat_of(x, eps)).sum(0), dy.sum(0)),
        ),
        Wrong(
            "averaged",
            "Both are N H W times too small. Uses add; nobody divides by their number.",
            lambda x, dy, eps: ((dy * xhat_of(x, eps)).mean(ALL), dy.mean(ALL)),
        ),
        Wrong(
            "x for xhat",
            "In dweight stands x itself. What is the weight multiplied with?",
            lambda x, dy, eps: ((dy * x).sum(ALL), dy.sum(ALL)),
        ),
        Wrong(
            "centred only",
            "dweight lacks the division: x - mean is not yet xhat.",
            lambda x, dy, eps: ((dy * (x - x.mean(ALL, keepdims=True))).sum(ALL), dy.sum(ALL)),
        ),
        Wrong(
            "divided by the variance",
            "In dweight x - mean was divided by the variance, not by its root.",
            lambda x, dy, eps: ((dy * xhat_of(x, eps, power=1.0)).sum(ALL), dy.sum(ALL)),
        ),
        Wrong(
            "statistics of one image",
            "dweight has the statistics of each image: that is instance norm. Which axes does batch norm average?",
            lambda x, dy, eps: ((dy * xhat_of(x, eps, (2, 3))).sum(ALL), dy.sum(ALL)),
        ),
    ),
    (
        "y = weight xhat + bias, for every pixel of every image of the channel.",
        "By how much does one y move when the weight moves? Over which axes must that be summed?",
        "Sum dy xhat, and dy, over axes 0, 2 and 3.",
    ),
    "The kernels compute both sums anyway: dx needs them. See the docstring of BatchNorm in tinyres/ops/norm.py.",
    cases_2,
    ("dweight", "dbias"),
)


def forward(x, weight, bias):
    """Batch norm of (m, C), with eps = 1e-5."""
    return weight * normalised(x, EPS)[0] + bias


def check(forward, backward):
    """Whether backward(x, weight, dy) is the cotangent of x of y = forward(x, weight, bias). x is (m, C)."""
    rng = np.random.default_rng(0)
    x, weight, bias, dy = (
        rng.standard_normal((6, 4)),
        rng.uniform(0.5, 2, 4),
        rng.standard_normal(4),
        rng.standard_normal((6, 4)),
    )
    found, step = backward(x, weight, dy), 1e-5
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        slope = ((forward(up, weight, bias) - forward(down, weight, bias)) * dy).sum() / (2 * step)
        if abs(found[place] - slope) > 1e-6:
            return False
    return True


def by_differences(forward, backward, loss, dloss, same, plain=False):
    """A check with a loss of y, its derivative, and a way to compare."""
    rng = np.random.default_rng(1)
    x, weight, bias = rng.standard_normal((6, 4)), rng.uniform(0.5, 2, 4), rng.standard_normal(4)
    if plain:
        weight, bias = np.ones(4), np.zeros(4)
    found, slopes = backward(x, weight, dloss(forward(x, weight, bias))), np.zeros_like(x)
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += 1e-5
        down[place] -= 1e-5
        slopes[place] = (loss(forward(up, weight, bias)) - loss(forward(down, weight, bias))) / 2e-5
    return bool(same(found, slopes))


def close(a, b):
    return np.abs(a - b).max() < 1e-3


RANDOM = np.random.default_rng(2).standard_normal((6, 4))


def mixed(y):
    return (y * RANDOM).sum()


def candidates():
    """The right backward pass, and nine wrong ones: each a case."""
    names = [wrong.name for wrong in BATCH_NORM.wrong if wrong.name != "plus"]
    return [("the right one",), *((name,) for name in names)]


def offer(check, name):
    """Calls a learner's check with the backward pass of that name."""
    backward = dx if name == "the right one" else BATCH_NORM.mistake(name).answer
    return check(forward, lambda x, weight, dy: backward(x, weight, dy, EPS))


def verdict_on_checks(given):
    """Which backward passes were judged wrongly."""
    names = [name for (name,) in candidates()]
    for name, found in zip(names, given, strict=True):
        if isinstance(found, Exception):
            return f"With '{name}': {getattr(found, 'kind', type(found).__name__)}: {found}"
        if not isinstance(found, bool | np.bool_):
            return f"With '{name}' check returned {found!r:.60}; it must return True or False."
    passing = [name for name, found in zip(names[1:], given[1:], strict=True) if found]
    refused = "" if given[0] else "The right backward pass is refused. "
    return refused + (f"These wrong ones pass: {', '.join(passing)}." if passing else "No wrong one passes.")


CHECK = Exercise(
    "4.3",
    "A check that can fail",
    GAP,
    """
    Write check(forward, backward). forward(x, weight, bias) is batch norm and gives y; backward(x, weight, dy) claims to
    give the cotangent of x. Return True if it does, else False. You choose x (m, C), weight, bias and dy. Your check is
    run on the right backward pass, which must pass, and on nine wrong ones, none of which may.
    """,
    check,
    (
        Wrong(
            "a cotangent of ones",
            "Six wrong ones pass, even 'zeros': the loss was the sum of y. Per column that is m times the bias, whatever x "
            "is.",
            lambda forward, backward: by_differences(forward, backward, np.sum, np.ones_like, close),
        ),
        Wrong(
            "the sum of squares",
            "Three wrong ones pass, even 'zeros': the loss was the sum of y^2, which for given weight and bias is all but "
            "constant.",
            lambda forward, backward: by_differences(forward, backward, lambda y: (y**2).sum(), lambda y: 2 * y, close),
        ),
        Wrong(
            "the sum of squares, weight 1",
            "Five wrong ones pass. With weight 1 and bias 0 the sum of y^2 is m whatever x is, and a forgotten weight "
            "cannot show.",
            lambda forward, backward: by_differences(
                forward, backward, lambda y: (y**2).sum(), lambda y: 2 * y, close, plain=True
            ),
        ),
        Wrong(
            "shapes only",
            "All nine wrong ones pass. A right shape is the least that a wrong answer has.",
            lambda forward, backward: backward(RANDOM, np.ones(4), RANDOM).shape == RANDOM.shape,
        ),
        Wrong(
            "lengths only",
            "The wrong sign passes: only norms, squares or absolute values were compared.",
            lambda forward, backward: by_differences(
                forward, backward, mixed, lambda y: RANDOM, lambda a, b: abs(np.linalg.norm(a) - np.linalg.norm(b)) < 1e-3
            ),
        ),
        Wrong(
            "too strict",
            "Nothing passes, not even the right one. A difference quotient is not exact: how far off may it be?",
            lambda forward, backward: by_differences(forward, backward, mixed, lambda y: RANDOM, np.array_equal),
        ),
    ),
    (
        "A check compares with central differences of a loss L(y). All depends on the choice of L, that is, of dy = dL/dy.",
        "For which dy is the right answer 0 or tiny? Then 'zeros' is right. What must dy not be a multiple of?",
        "Take L = sum of y r, with r random: then dy = r. And compare every place, with a tolerance that the right one "
        "meets.",
    ),
    "tr.gradcheck does it so, and the tests of every operation here: a random cotangent. tests/mutants.py keeps wrong "
    "versions to "
    "prove that the checks can fail.",
    candidates,
    call=offer,
    diagnose=verdict_on_checks,
)

EXERCISES = (BATCH_NORM, WEIGHT, CHECK)
