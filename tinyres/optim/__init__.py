"""What updates the weights: SGD, learning-rate schedules, gradient clipping and weight averaging."""

from tinyres.optim.ema import EMA
from tinyres.optim.gradients import clip_grad_norm_, clip_grad_value_
from tinyres.optim.scaler import GradScaler
from tinyres.optim.schedules import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    Schedule,
    SequentialLR,
    StepLR,
    Warmup,
)
from tinyres.optim.sgd import SGD, weight_decay_groups

__all__ = [
    "EMA",
    "SGD",
    "CosineAnnealingLR",
    "ExponentialLR",
    "GradScaler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "Schedule",
    "SequentialLR",
    "StepLR",
    "Warmup",
    "clip_grad_norm_",
    "clip_grad_value_",
    "weight_decay_groups",
]


def __dir__() -> list[str]:
    return __all__
