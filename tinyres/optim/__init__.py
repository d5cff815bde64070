"""What updates the weights: SGD and AdamW, learning-rate schedules, gradient clipping and weight averaging."""

from tinyres.optim.adamw import AdamW
from tinyres.optim.ema import EMA
from tinyres.optim.gradients import clip_grad_norm_, clip_grad_value_
from tinyres.optim.optimizer import Optimizer, weight_decay_groups
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
from tinyres.optim.sgd import SGD

__all__ = [
    "EMA",
    "SGD",
    "AdamW",
    "CosineAnnealingLR",
    "ExponentialLR",
    "GradScaler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
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
