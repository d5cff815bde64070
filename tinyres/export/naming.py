"""The state dict of a network under the names that PyTorch's repositories give to its layers.

    tinyres        fc          layer2.0.shortcut.0, .1
    cifar          linear      layer2.0.shortcut.0, .1        akamaster/pytorch_resnet_cifar10 and those that follow it
    torchvision    fc          layer2.0.downsample.0, .1      torchvision, and chenyaofo/pytorch-cifar-models

The blocks are the same in all: ``conv1``, ``bn1`` and so on. So the state dict of a ResNet loads strictly into the classes
of these repositories, where those have such a network.
"""

from __future__ import annotations

import re

import numpy as np

from tinyres.errors import UsageError
from tinyres.models.cifar import BasicBlock, Bottleneck, CifarResNet, PlainBlock, StochasticBlock
from tinyres.models.imagenet import ImageNetResNet
from tinyres.models.mobilenet import InvertedResidual, MobileNetV2
from tinyres.nn import Module

NAMINGS = {
    "tinyres": [],
    "cifar": [(re.compile(r"^fc\."), "linear.")],
    "torchvision": [(re.compile(r"^(layer\d+\.\d+)\.shortcut\."), r"\1.downsample.")],
}


def named_state(model: Module, naming: str = "tinyres") -> dict[str, np.ndarray]:
    """The parameters and buffers of ``model`` under the names of ``naming``, one of `NAMINGS`.

    The namings of other repositories have PyTorch's counters of batches as well, which are 0. A `StochasticBlock`
    counts its branch as it does in evaluation, through the weights of its last batch norm. Raises `UsageError` for a naming
    that does not exist, and for a network that it has no names for.
    """
    if naming not in NAMINGS:
        raise UsageError(f"no naming is called {naming!r}; there are: {', '.join(NAMINGS)}")
    arrays = model.state_dict()
    if naming == "tinyres":
        return arrays
    reason = _unnamed(model, naming)
    if reason:
        raise UsageError(f"the naming {naming!r} has no names for this network: {reason}; take naming 'tinyres'")
    for name, module in model.named_modules():
        if isinstance(module, StochasticBlock):
            for part in ("weight", "bias"):
                arrays[f"{name}.bn2.{part}"] *= np.float32(module.survival)
    renamed: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        for pattern, theirs in NAMINGS[naming]:
            name = pattern.sub(theirs, name)
        renamed[name] = array
        if name.endswith(".running_var"):
            renamed[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return renamed


def _unnamed(model: Module, naming: str) -> str:
    """Why these names would be wrong for the network; "" if they are right."""
    if type(model) is MobileNetV2 and naming == "torchvision":
        linear = all(block.linear for block in model.modules() if isinstance(block, InvertedResidual))
        return "" if linear else "its bottlenecks are not linear, and torchvision's are"
    if type(model) not in (CifarResNet, ImageNetResNet):
        return f"it is a {type(model).__name__}, and not a residual or plain net as in He et al. 2015"
    right = {PlainBlock, BasicBlock, Bottleneck, StochasticBlock}
    blocks = {type(block) for name, block in model.named_modules() if re.fullmatch(r"layer\d+\.\d+", name)}
    other = [block.__name__ for block in blocks - right]
    return f"it has blocks of the kind {other[0]}" if other else ""
