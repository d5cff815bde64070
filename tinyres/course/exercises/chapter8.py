"""Exercises of chapter 8: what training makes of it."""

import numpy as np

import tinyres as tr
import tinyres.functional as F
from tinyres.course.exercise import BUG, NUMBER, Exercise, Wrong


def lesion(model, block, images, labels):
    """The mean cross-entropy of the model in evaluation, without the branch of ``block``. The model is left as it was."""
    was_training, kept = model.training, {name: value.copy() for name, value in block.bn2.state_dict().items()}
    block.bn2.weight.data[...] = 0
    block.bn2.bias.data[...] = 0
    model.eval()
    with tr.no_grad():
        loss = F.cross_entropy(model(tr.tensor(images)), labels).item()
    block.bn2.load_state_dict(kept)
    model.train(was_training)
    return loss


def bias_left(model, block, images, labels):
    """The mean cross-entropy of the model in evaluation, without the branch of ``block``. The model is left as it was."""
    was_training, kept = model.training, {name: value.copy() for name, value in block.bn2.state_dict().items()}
    block.bn2.weight.data[...] = 0
    model.eval()
    with tr.no_grad():
        loss = F.cross_entropy(model(tr.tensor(images)), labels).item()
    block.bn2.load_state_dict(kept)
    model.train(was_training)
    return loss


def cut(model, images, labels, arrays, evaluate=True, restore=True):
    """The loss with some arrays set to 0, in one of the wrong ways."""
    was_training = model.training
    kept = {name: value.copy() for name, value in model.state_dict().items()}
    for array in arrays:
        array[...] = 0
    model.train(not evaluate)
    with tr.no_grad():
        loss = F.cross_entropy(model(tr.tensor(images)), labels).item()
    if restore:
        model.load_state_dict(kept)
    model.train(was_training)
    return loss


def convolution_only(model, block, images, labels):
    return cut(model, images, labels, [block.conv2.weight.data])


def shortcut_cut(model, block, images, labels):
    hook = block.shortcut.register_forward_hook(lambda module, args, output: output * 0.0)
    loss = cut(model, images, labels, [])
    hook.remove()
    return loss


def not_restored(model, block, images, labels):
    return cut(model, images, labels, [block.bn2.weight.data, block.bn2.bias.data], restore=False)


def in_training_mode(model, block, images, labels):
    return cut(model, images, labels, [block.bn2.weight.data, block.bn2.bias.data], evaluate=False)


def mode_not_restored(model, block, images, labels):
    loss = lesion(model, block, images, labels)
    model.eval()
    return loss


def nothing_cut(model, block, images, labels):
    return cut(model, images, labels, [])


def on_a_net(function, index):
    """The loss that a lesion gives, and whether the net is as it was, with its mode."""
    rng = np.random.default_rng(81)
    tr.manual_seed(81)
    model = tr.models.resnet(8)
    for module in model.modules():
        if isinstance(module, tr.nn.BatchNorm2d):
            for name, middle in (("weight", 1), ("running_var", 1), ("bias", 0), ("running_mean", 0)):
                tensor = getattr(module, name)
                tensor.data[...] = rng.uniform(middle - 0.5, middle + 0.5, tensor.shape)
    images, labels = rng.standard_normal((6, 3, 8, 8)).astype(np.float32), rng.integers(0, 10, 6)
    block = (model.layer1, model.layer2, model.layer3)[index][0]
    before = {name: value.copy() for name, value in model.state_dict().items()}
    loss = function(model, block, images, labels)
    changed = [name for name, value in model.state_dict().items() if not np.array_equal(value, before[name])]
    return loss if loss is ... else (loss, len(changed), model.training)


LESION = Exercise(
    "8.1",
    "Cut a branch out",
    BUG,
    """
    lesion sets a block's last batch norm to zero, so that its branch gives nothing; it returns the loss in evaluation,
    and leaves the model as it was. So it says, but some branches seem to matter that should not. Find the bug.
    """,
    lesion,
    (
        Wrong("bias left", "The loss is nearly that of a lesion. Does the branch really give zero now?", bias_left),
        Wrong(
            "convolution only",
            "With conv2 at zero the branch is not silent: what does a batch norm in evaluation make of an input of zeros?",
            convolution_only,
        ),
        Wrong("shortcut cut", "This is the loss without the shortcut. It is the branch that should go.", shortcut_cut),
        Wrong("not restored", "The net has lost its branch for good.", not_restored),
        Wrong(
            "in training mode",
            "The net computed in training mode: the statistics of this very batch decided.",
            in_training_mode,
        ),
        Wrong("mode not restored", "The net was training, and is not any more.", mode_not_restored),
        Wrong("nothing cut", "This is the loss of the whole net: nothing was cut.", nothing_cut),
    ),
    (
        "Write down what bn2 gives: weight xhat + bias.",
        "Which of these is still there?",
        "Both parameters of bn2 must be zero, and both must come back.",
    ),
    "tinyres lab lesion does this with every branch and every shortcut of trained nets.",
    lambda: [(0,), (2,)],
    ("loss", "the state", "the mode"),
    call=on_a_net,
    given="bias left",
)

NAMES = ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias")


def as_names(answer):
    """Names in any order, as a sorted list."""
    return sorted(map(str, answer)) if isinstance(answer, set | frozenset | list | tuple) else answer


def about_names(given):
    """Names that do not exist, or how many of the six are on the right side."""
    if not isinstance(given[0], list):
        return f"Write a set of names; got {given[0]!r:.60}"
    unknown = [name for name in given[0] if name not in NAMES]
    if unknown:
        return f"{unknown[0]!r:.40} is none of the six names."
    right = sum((name in given[0]) == (name in NAMES[:4]) for name in NAMES)
    return f"{right} of the six names are on the right side. Follow dz from bn2 down, one parameter after the other."


ZERO_GAMMA = Exercise(
    "8.2",
    "A block that begins as nothing",
    NUMBER,
    """
    In some nets the weight of each block's last batch norm, bn2.weight, begins as 0. The branch gives 0 then (bn2.bias
    is 0, too), and the block is its shortcut. Which of the block's parameters have a gradient of exactly 0 in the first
    step? Write a set of names from: conv1.weight, bn1.weight, bn1.bias, conv2.weight, bn2.weight, bn2.bias.
    """,
    frozenset(NAMES[:4]),
    (
        Wrong(
            "none",
            "None? Then something must pass bn2 on its way back to conv2. With what is it multiplied there?",
            frozenset(),
        ),
        Wrong(
            "all",
            "bn2's own gradients are not 0: that of its weight is the sum of dz xhat, whatever the weight is.",
            frozenset(NAMES),
        ),
        Wrong("bn2 alone", "The other way round: bn2's own gradients are the ones that are not 0.", frozenset(NAMES[4:])),
        Wrong(
            "conv2 alone",
            "conv2 is right. What reaches bn1 and conv1 has passed through conv2's output first.",
            frozenset({"conv2.weight"}),
        ),
        Wrong(
            "the convolutions",
            "Both convolutions are right. bn1 sits between them: what could reach it?",
            frozenset({"conv1.weight", "conv2.weight"}),
        ),
        Wrong(
            "all but the bias",
            "bn2.weight's own gradient is the sum of dz xhat. Is that multiplied by bn2.weight?",
            frozenset(NAMES[:5]),
        ),
    ),
    (
        "What reaches the branch below bn2 is dxhat = weight dz. The weight is 0.",
        "Which parameters lie below bn2? And what are the gradients of bn2's own parameters made of?",
        "Everything whose gradient is computed from what came back through bn2 gets 0.",
    ),
    "From the second step on none of them is 0: bn2.weight has moved. See zero_last_norms in tinyres/models/cifar.py.",
    read=as_names,
    diagnose=about_names,
    why="Nothing passes a weight of 0 on its way back, so conv2, bn1 and conv1 get 0; bn2 itself learns from dz and xhat.",
    choices='a set such as {"bn1.bias"}; an empty one is set()',
)

TABLES = ("overfitting", "degradation", "too short", "noise", "explosion")
SLIPS = {  # (table, the word for it): what such a reader has overlooked
    "1: "
    "degradation": "The deep net is better on the training images, and worse on new ones. Degradation is a training error.",
    "2: overfitting": "Look at the training error of table 2. Who overfits has a low one.",
    "2: too short": "In table 2 the residual net of the same depth had as many steps, and they were enough for it.",
    "3: "
    "degradation": "Is the residual net of that depth behind as well in table 3? Then depth alone was given too few steps.",
    "4: degradation": "Compare the difference in table 4 with that between two seeds of the same net.",
    "5: degradation": "A loss that is nan says nothing about depth: look at table 5 again.",
    "5: too short": "More steps will not bring back a loss that is not a number any more: table 5.",
}


def about_tables(given):
    """The first slip in the five choices."""
    choices = given[0]
    if not isinstance(choices, list) or len(choices) != len(TABLES):
        return f"Write a list of five words, one per table; got {choices!r:.80}"
    unknown = [word for word in choices if word not in TABLES]
    if unknown:
        return f"{unknown[0]!r:.40} is none of {', '.join(TABLES)}."
    wrong = [k for k, word in enumerate(choices) if word != TABLES[k]]
    known = [SLIPS[slip] for slip in (f"{k + 1}: {choices[k]}" for k in wrong) if slip in SLIPS]
    first = f"{5 - len(wrong)} of five are right. In table {wrong[0] + 1}, whose error is high, and on which images?"
    return known[0] if known else first


def with_slip(slip):
    table, _, word = slip.partition(": ")
    return [word if k == int(table) else right for k, right in enumerate(TABLES, 1)]


READING = Exercise(
    "8.3",
    "Reading tables",
    NUMBER,
    """
    Five tables of errors in per cent (train / test). For each say what it shows; every word is used once:
    "overfitting", "degradation", "too short", "noise", "explosion".

    1   plain-20     4.1 / 9.0      plain-56     0.3 / 12.5
    2   plain-20    36 / 39         plain-56    81 / 83       resnet-20  3 / 7     resnet-56  4 / 8
    3   plain-20    47 / 49         plain-56    89 / 90       resnet-20 15 / 18    resnet-56 52 / 54   (100 steps)
    4   plain-20     6.2 / 8.9      plain-56     6.6 / 9.1    plain-20, another seed  6.9 / 9.4
    5   plain-20     5.0 / 8.8      plain-56    90 / 90       (loss of plain-56: nan, from step 12 on)
    """,
    list(TABLES),
    tuple(Wrong(slip, words, with_slip(slip)) for slip, words in SLIPS.items()),
    (
        "For each table ask first: whose *training* error is high?",
        "Is there a residual net of the same depth beside it? Are there two seeds? How many steps?",
        "Degradation is a high training error of the deep plain net, where a residual net of its depth trains well.",
    ),
    "The lab degradation has the rule in code: two gaps, their spread over seeds, and 'too short' if the residual net is "
    "not there yet.",
    read=lambda answer: list(answer) if isinstance(answer, list | tuple) else answer,
    diagnose=about_tables,
    why="1: low training error, high test error. 2: the plain net alone is behind. 3: so is the residual one. 4: seeds "
    "differ as much.",
    choices="a list of five words",
)

EXERCISES = (LESION, ZERO_GAMMA, READING)
