"""What a file says about its network, beside the weights."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from tinyres.nn import Module


def about(model: Module, classes: Sequence[str], **more: bool) -> dict[str, str]:
    """Texts in JSON: ``network``, its name and options; ``classes``; ``normalisation``, of the images that it was fed,
    (images in 0..1 - mean) * scale, and with it what is ``more`` to say. What is not known is null.
    """
    mean, scale = (None if value is None else np.asarray(value).tolist() for value in model.normalisation or (None, None))
    normalisation = {"mean": mean, "scale": scale, **more}
    texts = {"network": model.description, "classes": list(classes), "normalisation": normalisation}
    return {key: json.dumps(value, default=str) for key, value in texts.items()}
