"""What updates the weights: SGD, learning-rate schedules, gradient clipping and weight averaging."""

from tinyres.optim.ema import EMA
from tinyres.optim.gradients import clip_grad_norm_, clip_grad_value_
from tinyres.optim.scaler import GradScaler
from tinyres.optim.schedules import CosineAnnealingLR, LinearLR, MultiStepLR, OneCycleLR, Schedule, Warmup
from tinyres.optim.sgd import SGD, weight_decay_groups

__all__ = [
    "EMA",
    "SGD",
    "CosineAnnealingLR",
    "GradScaler",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "Schedule",
    "Warmup",
    "clip_grad_norm_",
    "clip_grad_value_",
    "weight_decay_groups",
]
