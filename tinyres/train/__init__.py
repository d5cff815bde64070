"""Training: recipes, the `Trainer`, checkpoints that resume bit for bit, and evaluation."""

from tinyres.train.checkpoint import load_network, save_network
from tinyres.train.evaluation import Evaluation, evaluate, predict
from tinyres.train.recipes import RECIPES, Recipe
from tinyres.train.trainer import Trainer

__all__ = ["RECIPES", "Evaluation", "Recipe", "Trainer", "evaluate", "load_network", "predict", "save_network"]


def __dir__() -> list[str]:
    return __all__
