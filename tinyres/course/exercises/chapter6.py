"""Exercises of chapter 6: shortcuts where the shape changes."""

import numpy as np

from tinyres.course.exercise import GAP, NUMBER, Exercise, Wrong, as_array


def shortcut_dx(dy, shape, stride):
    """The cotangent of x, of shape (C, H, W). dy is (C', ceil(H / stride), ceil(W / stride)), with C' at least C.

    y has every stride-th row and column of x, in the channels from (C' - C) // 2 on; its other channels are 0.
    """
    front = (dy.shape[0] - shape[0]) // 2
    found = np.zeros(shape)
    found[:, ::stride, ::stride] = dy[front : front + shape[0]]
    return found


def kept(dy, shape):
    front = (dy.shape[0] - shape[0]) // 2
    return dy[front : front + shape[0]]


def channels_first(dy, shape, stride):
    found = np.zeros(shape)
    found[:, ::stride, ::stride] = dy[: shape[0]]
    return found


def repeated(dy, shape, stride):
    return kept(dy, shape).repeat(stride, 1).repeat(stride, 2)[:, : shape[1], : shape[2]]


def spread(dy, shape, stride):
    return repeated(dy, shape, stride) / stride**2


def odd_pixels(dy, shape, stride):
    found = np.zeros((shape[0], shape[1] + stride, shape[2] + stride))
    found[:, 1 : shape[1] + 1 : stride, 1 : shape[2] + 1 : stride] = kept(dy, shape)
    return found[:, : shape[1], : shape[2]]


def channels_folded(dy, shape, stride):
    found = np.zeros(shape)
    for first in range(0, len(dy), shape[0]):
        part = dy[first : first + shape[0]]
        found[: len(part), ::stride, ::stride] += part
    return found


def times_the_window(dy, shape, stride):
    return shortcut_dx(dy, shape, stride) * stride**2


def cases_1():
    rng = np.random.default_rng(61)
    return [(rng.standard_normal((8, 3, 3)), (4, 6, 6), 2), (rng.standard_normal((7, 3, 4)), (4, 5, 7), 2)]


OPTION_A = Exercise(
    "6.1",
    "What option A lets back",
    GAP,
    """
    The shortcut without parameters: y has every stride-th row and column of x in its middle channels, and zeros in the
    others. Before the channels of x stand (C' - C) // 2 channels of zeros. Give the cotangent of x.
    """,
    shortcut_dx,
    (
        Wrong(
            "channels at the front",
            "The right pixels in the wrong channels: these are the first C of dy. In which channels of y does x stand?",
            channels_first,
        ),
        Wrong(
            "repeated",
            "Every pixel got something. Subsampling picked one pixel of each square and never saw the others.",
            repeated,
        ),
        Wrong(
            "spread",
            "Every pixel got its share, as if the squares had been averaged. Subsampling picked one pixel; it did not "
            "average.",
            spread,
        ),
        Wrong("odd pixels", "One row and one column too far: which pixel of each square does ::stride pick?", odd_pixels),
        Wrong(
            "channels folded",
            "All channels of dy were added up. Those of zeros never saw x, so nothing comes back through them.",
            channels_folded,
        ),
        Wrong(
            "times stride^2",
            "The right places, stride^2 times too large. Each picked pixel was picked once.",
            times_the_window,
        ),
    ),
    (
        "Follow one pixel of x forward: where in y does it end up, if anywhere?",
        "What reaches the loss from a pixel that was not picked? And what reaches x from a channel of zeros?",
        "Begin with zeros of the shape of x, and write the middle channels of dy to its ::stride, ::stride.",
    ),
    "subsample_pad_backward in kernels/naive/join.py. Three pixels of four get nothing through this shortcut.",
    cases_1,
)


PARAMETERS = Exercise(
    "6.2",
    "What option B costs",
    NUMBER,
    """
    A ResNet-20 for CIFAR has three stages of three blocks, with 16, 32 and 64 channels. Where the shape changes, between
    stages, option A subsamples and pads with zeros; option B takes a 1 x 1 convolution without bias and a batch norm in
    its place. How many parameters has the net with B more than with A? Write the number.
    """,
    2752,
    (
        Wrong("without the batch norms", "2,560 are the two convolutions. A batch norm follows each of them.", 2560),
        Wrong(
            "weights of the batch norms alone",
            "Each batch norm has two numbers per channel; here one of them is missing.",
            2656,
        ),
        Wrong("3 x 3", "23,232 is what 3 x 3 filters would cost. A projection is 1 x 1.", 9 * 2560 + 192),
        Wrong(
            "with biases",
            "Each convolution was given a bias. It has none: the bias of the batch norm would do the same.",
            2848,
        ),
        Wrong(
            "option C", "14,240 projects in every block; that is option C. B projects only where the shape changes.", 14240
        ),
        Wrong(
            "one projection", "There are two places where the shape changes: 16 to 32 channels, and 32 to 64.", 16 * 32 + 64
        ),
    ),
    (
        "Where does the shape change? Count those blocks.",
        "How many weights has a 1 x 1 convolution from 16 to 32 channels, and what does its batch norm add?",
        "For each of the two places: inputs times outputs, plus two numbers per output channel.",
    ),
    "tinyres summary resnet20 --shortcut B counts them: 272,474 parameters, and 269,722 with A.",
    read=as_array,
    why="16 x 32 + 32 x 64 = 2,560 weights of the convolutions, and 2 x 32 + 2 x 64 = 192 of the batch norms.",
)


def through_shortcuts(dz, gates):
    """What of dz arrives at the input of a stack of blocks through the shortcuts alone.

    Every block ends in a ReLU behind its addition. gates lists where these ReLUs are open, 1 or 0 in arrays
    like dz, from the first block to the last.
    """
    for gate in reversed(gates):
        dz = dz * gate
    return dz


def cases_3():
    rng = np.random.default_rng(63)
    return [(rng.standard_normal((3, 4)), [(rng.random((3, 4)) > 0.4).astype(float) for _ in range(n)]) for n in (3, 4)]


GATES = Exercise(
    "6.3",
    "Is the shortcut really free?",
    GAP,
    """
    In the ResNet of 2015 a ReLU follows every addition. dz is the cotangent behind the last of these ReLUs. How much of it
    arrives at the input of the stack through the shortcuts alone, past all branches?
    """,
    through_shortcuts,
    (
        Wrong(
            "no gate",
            "All of dz: true of pre-activation nets, where nothing stands on the shortcut's way. Here a ReLU follows every "
            "join.",
            lambda dz, gates: dz.copy(),
        ),
        Wrong(
            "last gate only",
            "Only the last ReLU was passed. There is one behind every addition.",
            lambda dz, gates: dz * gates[-1],
        ),
        Wrong(
            "first gate only",
            "Only the first ReLU was passed. There is one behind every addition.",
            lambda dz, gates: dz * gates[0],
        ),
        Wrong(
            "gates added",
            "The gates were added. What is stopped by one of them does not get through the next.",
            lambda dz, gates: dz * sum(gates),
        ),
        Wrong(
            "any gate open",
            "Places are passed where any gate is open. They lie one behind the other: all must be.",
            lambda dz, gates: dz * np.max(gates, axis=0),
        ),
        Wrong(
            "gates averaged",
            "The gates were averaged. A gate that is closed is not half open.",
            lambda dz, gates: dz * np.mean(gates, axis=0),
        ),
    ),
    (
        "Take one block: z = relu(F(x) + x). What comes to x through the shortcut?",
        "Where z = 0, what comes through? Then the block before that: what is left of it there?",
        "A product: dz times every gate.",
    ),
    "This is why He et al. moved the ReLU onto the branch in 2016: tinyres/models/preact.py.",
    cases_3,
)

EXERCISES = (OPTION_A, PARAMETERS, GATES)
