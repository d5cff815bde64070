"""Exercises of chapter 5: convolution, backward. One channel, one image."""

import numpy as np

from tinyres.course.exercise import BUG, GAP, Exercise, Wrong, as_array


def dx(dy, w, shape, stride, padding):
    """The cotangent of x, of that shape. y[i, j] = sum over a, b of w[a, b] padded[i stride + a, j stride + b]."""
    k = len(w)
    padded = np.zeros((shape[0] + 2 * padding, shape[1] + 2 * padding))
    for i in range(dy.shape[0]):
        for j in range(dy.shape[1]):
            padded[i * stride : i * stride + k, j * stride : j * stride + k] += w * dy[i, j]
    return padded[padding : padding + shape[0], padding : padding + shape[1]]


def stamped(dy, w, shape, stride, padding, step=None, add=True):
    """The stamps on the padded image, with a fault at most."""
    step = stride if step is None else step
    padded = np.zeros((shape[0] + 2 * padding, shape[1] + 2 * padding))
    for i in range(dy.shape[0]):
        for j in range(dy.shape[1]):
            window = padded[i * step : i * step + w.shape[0], j * step : j * step + w.shape[1]]
            window[...] = w * dy[i, j] + (window if add else 0)
    return padded


def cut(padded, shape, padding):
    return padded[padding : padding + shape[0], padding : padding + shape[1]]


def flipped(dy, w, shape, stride, padding):
    return dx(dy, w[::-1, ::-1], shape, stride, padding)


def stride_ignored(dy, w, shape, stride, padding):
    return cut(stamped(dy, w, shape, stride, padding, step=1), shape, padding)


def assigned(dy, w, shape, stride, padding):
    return cut(stamped(dy, w, shape, stride, padding, add=False), shape, padding)


def padding_not_cut(dy, w, shape, stride, padding):
    return stamped(dy, w, shape, stride, padding)


def cut_at_the_end(dy, w, shape, stride, padding):
    return stamped(dy, w, shape, stride, padding)[: shape[0], : shape[1]]


def transposed_filter(dy, w, shape, stride, padding):
    return dx(dy, w.T, shape, stride, padding)


def averaged_over_windows(dy, w, shape, stride, padding):
    count = stamped(np.ones_like(dy), np.ones_like(w), shape, stride, padding)
    return cut(stamped(dy, w, shape, stride, padding) / np.maximum(count, 1), shape, padding)


def cases_1():
    rng = np.random.default_rng(51)
    return [
        (rng.standard_normal((5, 5)), rng.standard_normal((3, 3)), (5, 5), 1, 1),
        (rng.standard_normal((3, 4)), rng.standard_normal((3, 3)), (6, 7), 2, 1),
    ]


STAMP = Exercise(
    "5.1",
    "Stamping",
    GAP,
    """
    One image x, one k x k filter w, a stride and zeros around: y[i, j] = sum over a, b of w[a, b] padded[i stride + a,
    j stride + b]. Give the cotangent of x from dy, w and the shape of x. Plain loops are welcome.
    """,
    dx,
    (
        Wrong(
            "filter turned",
            "The filter came out turned by 180 degrees. Let one pixel of dy be hot: what must stand in dx, and which way "
            "up?",
            flipped,
        ),
        Wrong(
            "stride ignored",
            "Right for stride 1 only. With stride 2, output (1, 1) has read the window that begins at row 2, column 2.",
            stride_ignored,
        ),
        Wrong(
            "assigned",
            "Where windows overlap, only the last one is left. A pixel that three windows read is used three times.",
            assigned,
        ),
        Wrong(
            "padding not cut",
            "This is the gradient of the padded image. The zeros around it are not part of x.",
            padding_not_cut,
        ),
        Wrong(
            "cut at the end",
            "The right size, but moved: the margin was cut off behind only. Where in the padded image does x begin?",
            cut_at_the_end,
        ),
        Wrong("filter transposed", "Rows and columns of the filter are exchanged.", transposed_filter),
        Wrong(
            "averaged over windows",
            "Each pixel was divided by the number of windows that read it. Uses add; they are not averaged.",
            averaged_over_windows,
        ),
    ),
    (
        "Think of one hot pixel, dy[i, j] = 1 and 0 elsewhere. Which pixels of x did y[i, j] read, and with which weights?",
        "Two hot pixels whose windows overlap: what does the pixel get that both have read?",
        "For each (i, j), add w dy[i, j] to the window that y[i, j] has read. At the end cut the margin off, on all four "
        "sides.",
    ),
    "kernels/naive/conv.py has these loops for all channels, groups and dilations; every faster kernel is compared with it.",
    cases_1,
)


def dw(x, dy, k, stride, padding):
    """The cotangent of the k x k filter."""
    padded = np.pad(x, padding)
    found = np.zeros((k, k))
    for i in range(dy.shape[0]):
        for j in range(dy.shape[1]):
            found += dy[i, j] * padded[i * stride : i * stride + k, j * stride : j * stride + k]
    return found


def padding_behind(x, dy, k, stride, padding):
    """The cotangent of the k x k filter."""
    padded = np.pad(x, (0, 2 * padding))
    found = np.zeros((k, k))
    for i in range(dy.shape[0]):
        for j in range(dy.shape[1]):
            found += dy[i, j] * padded[i * stride : i * stride + k, j * stride : j * stride + k]
    return found


def dw_assigned(x, dy, k, stride, padding):
    i, j = dy.shape[0] - 1, dy.shape[1] - 1
    return dy[i, j] * np.pad(x, padding)[i * stride : i * stride + k, j * stride : j * stride + k]


def dw_stride_forgotten(x, dy, k, stride, padding):
    return dw(x, dy, k, 1, padding)


def cases_2():
    rng = np.random.default_rng(52)
    return [
        (rng.standard_normal((6, 6)), rng.standard_normal((3, 3)), 3, 2, 1),
        (rng.standard_normal((5, 5)), rng.standard_normal((5, 5)), 3, 1, 1),
        (rng.standard_normal((5, 5)), rng.standard_normal((3, 3)), 3, 1, 0),
    ]


FILTER = Exercise(
    "5.2",
    "The filter's own gradient",
    BUG,
    """
    The cotangent of the filter: every y[i, j] used it once, so the windows that forward read are added up, each weighted
    by its dy[i, j]. This code passes all tests without padding. Find the bug.
    """,
    dw,
    (
        Wrong(
            "padding behind",
            "Right without padding. With it, every window reads one row and one column too far down and right.",
            padding_behind,
        ),
        Wrong(
            "turned",
            "The result is turned by 180 degrees. The filter is used as it stands; nothing is to be flipped.",
            lambda *case: dw(*case)[::-1, ::-1],
        ),
        Wrong(
            "stride forgotten",
            "Right for stride 1 only. Window (1, 1) begins at row 'stride' of the padded image, not at row 1.",
            dw_stride_forgotten,
        ),
        Wrong(
            "averaged over windows",
            "Divided by the number of windows. The filter was used once per window, and uses add.",
            lambda *case: dw(*case) / case[1].size,
        ),
        Wrong("transposed", "Rows and columns of the filter are exchanged.", lambda *case: dw(*case).T),
        Wrong("assigned", "Only the last window is left: = where += belongs.", dw_assigned),
    ),
    (
        "The loops are right. Look at what they read.",
        "With padding 1, which pixel of x stands at padded[1, 1]? Which one here?",
        "np.pad(x, (before, behind)) takes two numbers. How many zeros stand before x?",
    ),
    "The same loops in kernels/naive/conv.py. On a GPU this sum over all images and pixels is what split-K is for.",
    cases_2,
    given="padding behind",
)


def unread_rows(height, k, stride, padding):
    """How many rows of an image no window of a convolution reads: their gradient is 0."""
    windows = (height + 2 * padding - k) // stride + 1
    read = {i * stride + a - padding for i in range(windows) for a in range(k)}
    return sum(row not in read for row in range(height))


def cases_3():
    return [(32, 3, 2, 1), (33, 3, 2, 0), (32, 1, 2, 0), (10, 3, 3, 0), (11, 2, 4, 0), (12, 3, 2, 0)]


UNREAD = Exercise(
    "5.3",
    "Rows that nobody reads",
    GAP,
    """
    Some rows of an image are in no window of a convolution, and their gradient is 0. How many, for an image of that
    height, a k x k filter, a stride, and padding on both sides? Mind that rows can be left over at the end, and between
    windows.
    """,
    unread_rows,
    (
        Wrong(
            "the remainder",
            "The division's remainder counts rows of the padded image. Are the last of those rows of x?",
            lambda height, k, stride, padding: (height + 2 * padding - k) % stride,
        ),
        Wrong(
            "the remainder, less padding",
            "Right where windows touch or overlap. Try a 1 x 1 filter with stride 2.",
            lambda height, k, stride, padding: max(0, (height + 2 * padding - k) % stride - padding),
        ),
        Wrong(
            "height mod stride",
            "The filter's size and the padding must matter, and here they do not.",
            lambda height, k, stride, padding: height % stride,
        ),
        Wrong(
            "none",
            "Always 0? Then a 1 x 1 filter with stride 2 would read all rows, with half as many windows as there are rows.",
            lambda height, k, stride, padding: 0,
        ),
        Wrong(
            "height less outputs",
            "This counts the rows that are not the first of a window. A window reads k rows.",
            lambda height, k, stride, padding: height - ((height + 2 * padding - k) // stride + 1),
        ),
    ),
    (
        "Window i reads the padded rows i stride to i stride + k - 1. How many windows are there?",
        "Which rows of x are these? Padding shifts them.",
        "Collect the rows that are read in a set, and count the rows of x that are not in it. No formula is needed.",
    ),
    "A 1 x 1 shortcut with stride 2 (option B) reads one pixel of four. The others get their gradient through the branch "
    "alone.",
    cases_3,
    read=as_array,
)

EXERCISES = (STAMP, FILTER, UNREAD)
