"""Exercises of chapter 3: the join."""

import numpy as np

from tinyres.course.exercise import GAP, NUMBER, Exercise, Wrong, as_array


def dx(J, ds):
    """The cotangent of x, where y = F(x) + x. J is the Jacobian of F: J[i, j] = dF_i / dx_j. ds is the cotangent of y."""
    return ds + J.T @ ds


def cases_1():
    rng = np.random.default_rng(31)
    return [(rng.standard_normal((5, 5)), rng.standard_normal(5)) for _ in range(2)]


HALF = (
    "Exactly half. Two ideas lead there: the addition shared ds out, or the two arrivals at x were averaged. Nudge x: how "
    "much "
    "does y move through each wire?"
)

TWO_WIRES = Exercise(
    "3.1",
    "Two wires",
    GAP,
    """
    A block computes y = F(x) + x. The cotangent ds of y is known, and so is the Jacobian J of the branch at x. Give the
    cotangent of x.
    """,
    dx,
    (
        Wrong("averaged at the fork", HALF, lambda J, ds: (ds + J.T @ ds) / 2),
        Wrong("halved at the addition", HALF, lambda J, ds: 0.5 * ds + J.T @ (0.5 * ds)),
        Wrong(
            "branch only",
            "This is what came back through the branch. x was used a second time, and that wire has no weights.",
            lambda J, ds: J.T @ ds,
        ),
        Wrong(
            "shortcut only",
            "This is what came back through the shortcut. The loss feels x through F as well.",
            lambda J, ds: ds.copy(),
        ),
        Wrong(
            "J not transposed",
            "Both terms are there, but J was applied as it is forward. ds lives at the output; J maps from the input.",
            lambda J, ds: ds + J @ ds,
        ),
        Wrong(
            "multiplied",
            "The two arrivals were multiplied. Two uses of x have two effects on the loss, side by side.",
            lambda J, ds: ds * (J.T @ ds),
        ),
    ),
    (
        "x is used twice: once by F and once by the shortcut. What comes back through each?",
        "An addition hands its cotangent to both inputs. What does the branch make of it on its way back to x?",
        "Through the shortcut ds comes back as it is, through the branch J^T ds. Where wires part, cotangents add.",
    ),
    "dx = ds + J_F^T ds: the formula at the top of tinyres/ops/join.py. The first term has passed through no weight.",
    cases_1,
)


def da(a, b, dz):
    """The cotangent of a, where z = relu(a + b), and dz is the cotangent of z. At a + b = 0 the ReLU is closed."""
    return dz * (a + b > 0)


def cases_2():
    rng = np.random.default_rng(32)
    a, b, dz = rng.standard_normal((3, 3, 4))
    a[0, 0] = -b[0, 0]  # a tie
    a[2, 1], b[2, 1] = 2.0, -2.0
    return [(a, b, dz)]


MASK = Exercise(
    "3.2",
    "The gate behind the join",
    GAP,
    """
    In a ResNet a ReLU follows the addition: z = relu(a + b), with a from the branch and b from the shortcut. Give the
    cotangent of a. (That of b is the same array.) Mind a + b = 0.
    """,
    da,
    (
        Wrong("mask of a", "The gate was taken from a alone. What did the ReLU see?", lambda a, b, dz: dz * (a > 0)),
        Wrong(
            "mask of dz",
            "Where dz is negative, nothing came through. The gate was set on the way forward; the cotangent's sign decides "
            "nothing.",
            lambda a, b, dz: dz * (dz > 0),
        ),
        Wrong(
            "open at a tie",
            "Right but for the places where a + b is exactly 0. There z is 0, and tinyres and PyTorch say: closed.",
            lambda a, b, dz: dz * (a + b >= 0),
        ),
        Wrong(
            "no mask",
            "This is dz as it came: the addition alone. Where z is 0, no change of a could have reached the loss.",
            lambda a, b, dz: dz.copy(),
        ),
        Wrong(
            "either open",
            "Open wherever a or b is positive. The ReLU did not see them one by one.",
            lambda a, b, dz: dz * ((a > 0) | (b > 0)),
        ),
        Wrong(
            "halved",
            "The mask is right, and everything is halved. An addition lends its cotangent to both sides, whole.",
            lambda a, b, dz: 0.5 * dz * (a + b > 0),
        ),
    ),
    (
        "There are two operations: the addition s = a + b, and z = relu(s). Take the later one first.",
        "For which numbers does z move when s moves?",
        "ds = dz where s > 0, else 0. The addition hands it on.",
    ),
    "AddReLU in tinyres/ops/join.py keeps z alone: z > 0 tells the same, so neither a nor b need be kept.",
    cases_2,
)


CANCEL = Exercise(
    "3.3",
    "Can it vanish?",
    NUMBER,
    """
    Many pages say that with a shortcut the gradient can never vanish. y = F(x) + x, with four numbers in x. Is there a
    branch whose Jacobian makes dx = 0 for every ds? If so, write the Jacobian as a list of four rows; if not, write
    "impossible".
    """,
    [[-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [0.0, 0.0, 0.0, -1.0]],
    (
        Wrong(
            "zero",
            "With J = 0 the branch sends nothing back, and dx = ds: the case in which the shortcut saves it.",
            np.zeros((4, 4)),
        ),
        Wrong("identity", "With this J, dx = 2 ds: it doubles.", np.eye(4)),
        Wrong("half", "With this J, dx = ds / 2: smaller, but not 0.", -np.eye(4) / 2),
        Wrong(
            "minus one everywhere", "With this J, each dx loses the sum of all ds. Try ds = [1, -1, 0, 0].", -np.ones((4, 4))
        ),
        Wrong(
            "mirrored", "With this J, dx = ds - ds read backward. It is 0 for some ds, not for every one.", -np.eye(4)[::-1]
        ),
        Wrong(
            "impossible",
            "dx = ds + J^T ds is a linear equation. Solve it for dx = 0 before you believe the pages.",
            "impossible",
        ),
    ),
    (
        "Write dx = 0 with the formula of 3.1.",
        "Which matrix M satisfies M ds = -ds for every ds?",
        "Take for ds the four unit vectors, one after the other: each gives a row of J.",
    ),
    "So 'it never vanishes' is a statement about small branches. In a published ResNet-56 the cosines of the two lie "
    "between -0.2 and 0.7.",
    read=lambda answer: "impossible" if isinstance(answer, str) else as_array(answer),  # "no" says the same
    why="ds + J^T ds = 0 for every ds means J^T = -I: the branch takes away exactly what the shortcut passes on, F(x) = -x.",
    choices='four rows of four numbers, or "impossible"',
)

EXERCISES = (TWO_WIRES, MASK, CANCEL)
