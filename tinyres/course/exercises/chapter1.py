"""Exercises of chapter 1: local derivatives, a linear layer, the loss."""

import numpy as np

from tinyres.course.exercise import GAP, Exercise, Wrong


def gradients(a, b, c):
    """dL/da, dL/db and dL/dc of L = (a b + c)^2. Arrays of one shape, element by element."""
    du = 2 * (a * b + c)
    return du * b, du * a, du


def cases_1():
    rng = np.random.default_rng(11)
    return [tuple(rng.standard_normal((3, 4))), tuple(rng.standard_normal((3, 2, 3)))]


HALF = (
    "Exactly half of the right answer. Two ideas lead there: the square's 2 is missing, or the addition divided what it was "
    "given between its two inputs."
)

TAPE = Exercise(
    "1.1",
    "Three derivatives of one line",
    GAP,
    """
    L = (a b + c)^2. Give the derivatives of L by a, b and c, without the tape: one local question per operation, starting at
    the loss. a, b and c are arrays of one shape, and everything happens element by element.
    """,
    gradients,
    (
        Wrong(
            "upstream forgotten",
            "b, a and 1 say how the sum a b + c changes. Nobody has asked yet how L changes with that sum.",
            lambda a, b, c: (b.copy(), a.copy(), np.ones_like(c)),
        ),
        Wrong(
            "factors not exchanged",
            "a and b have each other's. If a moves by a hair, does a b move by a hairs or by b hairs?",
            lambda a, b, c: (2 * (a * b + c) * a, 2 * (a * b + c) * b, 2 * (a * b + c)),
        ),
        Wrong(
            "addition gives 1",
            "dL/dc is 1 everywhere. 1 is how the sum moves with c, not how L does.",
            lambda a, b, c: (2 * (a * b + c) * b, 2 * (a * b + c) * a, np.ones_like(c)),
        ),
        Wrong("2 forgotten", HALF, lambda a, b, c: ((a * b + c) * b, (a * b + c) * a, a * b + c)),
        Wrong("shared out at the addition", HALF, lambda a, b, c: tuple(g / 2 for g in gradients(a, b, c))),
        Wrong(
            "value for derivative",
            "Each is (a b + c) / 2 times the right one: the value of the square was handed on where its slope belongs.",
            lambda a, b, c: ((a * b + c) ** 2 * b, (a * b + c) ** 2 * a, (a * b + c) ** 2),
        ),
    ),
    (
        "Name the value before the square: u = a b + c. There are three operations: *, + and the square.",
        "How much does L move when u moves by a hair? And how much of that hair does each of a, b and c cause?",
        "Start with du, the derivative of the square. The addition hands du to both of its inputs, whole.",
    ),
    "This is what tinyres/ops/arithmetic.py does: Pow, Add and Mul each answer for themselves, and nobody knows the "
    "formula.",
    cases_1,
    ("dL/da", "dL/db", "dL/dc"),
)


def linear_backward(x, w, dy):
    """dx, dw and db of y = x w^T + b: x is (N, I), w is (O, I), dy is (N, O), and b is (O,)."""
    return dy @ w, dy.T @ x, dy.sum(axis=0)


def cases_2():
    rng = np.random.default_rng(12)
    return [
        (rng.standard_normal((4, 3)), rng.standard_normal((3, 3)), rng.standard_normal((4, 3))),
        (rng.standard_normal((5, 4)), rng.standard_normal((3, 4)), rng.standard_normal((5, 3))),
    ]


LINEAR = Exercise(
    "1.2",
    "Which transpose?",
    GAP,
    """
    A linear layer computes y = x w^T + b for N rows at once. dy is the cotangent of y: the derivative of the loss by
    each number of y. Give the cotangents of x, w and b. Each has the shape of what it belongs to. One of the cases has a
    square w, where a wrong transpose goes unnoticed by shapes; the other has not.
    """,
    linear_backward,
    (
        Wrong(
            "w not turned back",
            "dx has the right shape only where w is square; with 4 inputs and 3 outputs it does not even fit.",
            lambda x, w, dy: (dy @ w.T, dy.T @ x, dy.sum(0)),
        ),
        Wrong(
            "dw transposed",
            "dw is transposed: its row i belongs to output i, and its column j to input j.",
            lambda x, w, dy: (dy @ w, x.T @ dy, dy.sum(0)),
        ),
        Wrong(
            "db per row",
            "db has a row per example, but there is one b, and every one of the N rows used it.",
            lambda x, w, dy: (dy @ w, dy.T @ x, dy.copy()),
        ),
        Wrong(
            "db averaged",
            "db is N times too small. b was used N times, and the loss feels every use.",
            lambda x, w, dy: (dy @ w, dy.T @ x, dy.mean(0)),
        ),
        Wrong(
            "dw averaged",
            "dw is N times too small: a mean over the batch is the loss's business, and dy has it already.",
            lambda x, w, dy: (dy @ w, dy.T @ x / len(x), dy.sum(0)),
        ),
        Wrong(
            "dw from the weights",
            "dw is made of w. How much y moves when a weight moves depends on what it is multiplied with.",
            lambda x, w, dy: (dy @ w, np.outer(dy.sum(0), w.sum(0)), dy.sum(0)),
        ),
    ),
    (
        "Write one number of y as a sum: y[n, o] = sum over i of x[n, i] w[o, i], plus b[o].",
        "In which numbers of y does x[n, i] appear, and with which factor? And w[o, i]? And b[o]? Sum over all of them.",
        "dx[n, i] sums over the outputs o, dw[o, i] over the rows n, and so does db[o]. Shapes leave one way to write each.",
    ),
    "The class Linear in tinyres/ops/linear.py says it in one line; sums over n are what 'used N times' means.",
    cases_2,
    ("dx", "dw", "db"),
)


def dlogits(logits, labels):
    """The cotangent of the logits (N, K) of the mean cross-entropy; labels are N integers."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(labels)), labels] -= 1
    return p / len(labels)


def softmax(z, axis=1):
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def one_hot(labels, z):
    return np.eye(z.shape[1])[labels]


def cases_3():
    rng = np.random.default_rng(13)
    return [
        (rng.standard_normal((4, 5)), np.array([0, 3, 1, 4])),
        (3 * rng.standard_normal((3, 6)) + 1, np.array([2, 2, 5])),
    ]


LOSS = Exercise(
    "1.3",
    "Where the gradient begins",
    GAP,
    """
    The loss is the mean over N rows of -log p[n, label], with p = softmax(logits) in each row. Give its derivative by the
    logits. With p in hand it is one line.
    """,
    dlogits,
    (
        Wrong(
            "not divided by N",
            "N times too large. The loss is a mean over the rows, so each row moves it by one N-th only.",
            lambda z, t: softmax(z) - one_hot(t, z),
        ),
        Wrong(
            "label forgotten",
            "Right for the wrong classes, and too large at the true ones. This says every logit should fall, the true one "
            "too.",
            lambda z, t: softmax(z) / len(z),
        ),
        Wrong(
            "sign",
            "The sign is wrong everywhere. Raise the true logit by a hair: does the loss rise or fall?",
            lambda z, t: (one_hot(t, z) - softmax(z)) / len(z),
        ),
        Wrong(
            "softmax down the batch",
            "The softmax ran over the examples. Which sums must be 1: those of a row, or those of a column?",
            lambda z, t: (softmax(z, 0) - one_hot(t, z)) / len(z),
        ),
        Wrong(
            "true class only",
            "Right at the true classes and 0 elsewhere. Raising a wrong logit takes probability from the true one as well.",
            lambda z, t: one_hot(t, z) * (softmax(z) - 1) / len(z),
        ),
        Wrong(
            "divided by N K",
            "K times too small. There are N terms in the mean, one per row, not one per logit.",
            lambda z, t: (softmax(z) - one_hot(t, z)) / z.size,
        ),
    ),
    (
        "Write the loss of one row as log(sum of exp(z)) - z[label]: two terms, two derivatives.",
        "What is the derivative of log(sum of exp(z)) by one z? You have a name for it already.",
        "Each row: the softmax, less 1 at the true class. Then the mean's own factor.",
    ),
    "CrossEntropy in tinyres/ops/loss.py; each row of the result sums to 0: probability is only moved about.",
    cases_3,
)

EXERCISES = (TAPE, LINEAR, LOSS)
