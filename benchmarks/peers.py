"""The peers, and of these PyTorch: the same networks as its users would write them, in each of its configurations on a CPU.

Every peer gets as many threads as ours (TINYRES_THREADS) and computes in float32.
"""

import importlib
import re
from collections.abc import Callable
from typing import Any

from tinyres import models

CONFIGURATIONS = ("torch nchw", "torch channels_last", "torch compile", "torch compile channels_last")
PACKAGES = {"torch": ["torch"], "jax": ["jax"], "onnxruntime": ["onnxruntime", "onnx"], "openvino": ["openvino", "onnx"]}
ROWS = {"torch": list(CONFIGURATIONS), "jax": ["jax jit"], "onnxruntime": ["onnxruntime"], "openvino": ["openvino"]}
FOR_TRAINING = ("torch", "jax")


def missing(library: str) -> str:
    """Why a library of `PACKAGES` cannot be measured here; empty if it can."""
    for package in PACKAGES[library]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            return f"{error} (pip install {' '.join(PACKAGES[library])})"
    return ""


def installed() -> bool:
    """Whether PyTorch is."""
    return not missing("torch")


def is_peer(row: str) -> bool:
    """Whether a row is a peer's, not one of our backends."""
    return row.split()[0] in ROWS


def compiles(row: str) -> bool:
    """Whether a row compiles anew for each batch size, which takes long."""
    return "compile" in row or row == "jax jit"


def compiled(function: Any) -> Any:
    """``torch.compile`` of a function or network."""
    import torch
    import torch._inductor.config

    torch._dynamo.reset()  # else the ninth in a process would silently run uncompiled
    torch._inductor.config.compile_threads = 1  # a pool of compilers would start while others are being timed
    return torch.compile(function, dynamic=False)


def has(name: str) -> bool:
    """Whether `network` builds the network of this name."""
    return bool(re.fullmatch(r"(resnet|plain)\d+", name)) and name not in models.IMAGENET


def network(name: str) -> Any:
    """A torch module of ``resnetN`` (basic blocks, option A; ``resnet164``: bottlenecks with projections) or ``plainN``."""
    import torch.nn.functional as F
    from torch import nn

    plain, depth = name.startswith("plain"), int(name.removeprefix("resnet").removeprefix("plain"))
    bottleneck = name == "resnet164"

    def conv(i: int, o: int, k: int, stride: int = 1) -> Any:
        return nn.Conv2d(i, o, k, stride, k // 2, bias=False)

    class Pad(nn.Module):
        def __init__(self, missing: int, stride: int) -> None:
            super().__init__()
            self.margin, self.stride = (missing // 2, missing - missing // 2), stride

        def forward(self, x: Any) -> Any:
            return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.margin))

    class Block(nn.Module):
        def __init__(self, i: int, c: int, stride: int) -> None:
            super().__init__()
            o = 4 * c if bottleneck else c
            shapes = [(i, c, 1, 1), (c, c, 3, stride), (c, o, 1, 1)] if bottleneck else [(i, c, 3, stride), (c, c, 3, 1)]
            self.convs = nn.ModuleList(conv(*s) for s in shapes)
            self.norms = nn.ModuleList(nn.BatchNorm2d(s[1]) for s in shapes)
            self.shortcut: Any = nn.Identity()
            if (i != o or stride > 1) and not plain:
                projection = nn.Sequential(conv(i, o, 1, stride), nn.BatchNorm2d(o))
                self.shortcut = projection if bottleneck else Pad(o - i, stride)

        def forward(self, x: Any) -> Any:
            y = x
            for k, (c, n) in enumerate(zip(self.convs, self.norms, strict=True)):
                y = n(c(y))
                if k < len(self.convs) - 1:
                    y = F.relu(y)
            return F.relu(y if plain else y + self.shortcut(x))

    blocks, width, e = [], 16, 4 if bottleneck else 1
    for c in (16, 32, 64):
        for k in range((depth - 2) // (9 if bottleneck else 6)):
            blocks.append(Block(width, c, 2 if c > 16 and k == 0 else 1))
            width = e * c
    stem = [conv(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def step(name: str, row: str, images: Any, labels: Any, training: bool = True) -> Callable[[], object]:
    """One training step (or inference) of a peer as a function; its first call compiles. ``images`` and ``labels`` are NumPy
    arrays.
    """
    from tinyres.benchmarks import peer_jax, peer_onnx

    if row.startswith("torch"):
        return torch_step(name, row, images, labels, training)
    return peer_jax.step(name, images, labels, training) if row == "jax jit" else peer_onnx.step(name, row, images)


def torch_step(name: str, configuration: str, images: Any, labels: Any, training: bool) -> Callable[[], object]:
    """A step in one of `CONFIGURATIONS`."""
    import torch
    import torch.nn.functional as F

    from tinyres.kernels.arrays import threads

    torch.set_num_threads(threads())
    torch.manual_seed(0)
    model, x, y = network(name).train(training), torch.from_numpy(images), torch.from_numpy(labels)
    if "channels_last" in configuration:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    run = compiled(model) if "compile" in configuration else model

    def train() -> object:
        optimizer.zero_grad()
        loss = F.cross_entropy(run(x), y)
        loss.backward()
        optimizer.step()
        return loss

    def infer() -> object:
        with torch.no_grad():
            return run(x)

    return train if training else infer
