"""Training: recipes, the `Trainer`, callbacks, checkpoints that resume bit for bit, and evaluation."""

from tinyres.train.callbacks import Callback, TensorBoard
from tinyres.train.checkpoint import load_network, save_network
from tinyres.train.evaluation import Evaluation, evaluate, predict
from tinyres.train.recipes import RECIPES, Recipe
from tinyres.train.trainer import Trainer

__all__ = [
    "RECIPES",
    "Callback",
    "Evaluation",
    "Recipe",
    "TensorBoard",
    "Trainer",
    "evaluate",
    "load_network",
    "predict",
    "save_network",
]


def __dir__() -> list[str]:
    return __all__
