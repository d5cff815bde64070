"""What the options of a `Trainer` may be."""

import math
from typing import Any

from tinyres.errors import UsageError
from tinyres.train.recipes import OPTIMIZERS

AMP = {"fp16": "float16", "bf16": "bfloat16"}

# name -> whether a value is right, and what is expected
RULES = {
    "lr": (lambda v: 0 < v < math.inf, "a number above 0"),
    "seed": (lambda v: v >= 0, "a whole number, 0 or more"),
    "save_every": (lambda v: v >= 0, "seconds, 0 or more"),
    "amp": (lambda v: v in AMP, " or ".join(AMP)),
    "optimizer": (lambda v: v in OPTIMIZERS, " or ".join(OPTIMIZERS)),
    "momentum": (lambda v: 0 <= v < 1, "a number from 0 to below 1"),
    "weight_decay": (lambda v: 0 <= v < math.inf, "a number, 0 or more"),
    "label_smoothing": (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "mixup": (lambda v: 0 <= v < math.inf, "a number, 0 or more"),
    "random_erasing": (lambda v: 0 <= v <= 1, "a probability, from 0 to 1"),
    "clip": (lambda v: 0 < v < math.inf, "a number above 0"),
    "ema": (lambda v: 0 <= v < 1, "a decay from 0 to below 1"),
    "early_stop": (lambda v: v >= 1, "epochs, 1 or more"),
    "epochs": (lambda v: v >= 1, "1 or more"),
}


def check(name: str, value: Any, good: bool, expected: str) -> None:
    if not good:
        raise UsageError(f"{name} is {value!r}; expected {expected}")


def check_options(**options: Any) -> None:
    """Raises `UsageError` for the first value out of range; None stands for one that was not given."""
    for name, value in options.items():
        right, expected = RULES[name]
        check(name, value, value is None or right(value), expected)
