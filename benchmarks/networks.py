"""The networks of the benchmarks: as tinyres builds them, and as a walk over the operations of another library, with the
same weights under the same names.
"""

from typing import Any

import tinyres as tr


def ours(name: str) -> Any:
    """Option A, but projections in the bottleneck net."""
    return tr.models.build(name, **({"shortcut": "B"} if name == "resnet164" else {}))


def walk(of: Any, weights: dict[str, Any], x: Any, plain: bool) -> Any:
    """The logits for ``x``. ``of`` has the methods conv(x, name, stride), norm(x, name), relu(x), add(x, y),
    subsample_pad(x, channels, stride), pool(x) and linear(x, name); ``weights`` is a ``state_dict`` of `ours`.
    """
    x = of.relu(of.norm(of.conv(x, "conv1", 1), "bn1"))
    blocks = (f"layer{stage}.{k}" for stage in (1, 2, 3) for k in range(len(weights)))  # more than there are, in their order
    for block in (block for block in blocks if f"{block}.conv1.weight" in weights):
        convs = [k for k in (1, 2, 3) if f"{block}.conv{k}.weight" in weights]
        halved = block in ("layer2.0", "layer3.0")
        y = x
        for k in convs:
            stride = 2 if halved and k == len(convs) - 1 else 1  # the 3x3 convolution, the first one of two
            y = of.norm(of.conv(y, f"{block}.conv{k}", stride), f"{block}.bn{k}")
            y = of.relu(y) if k < len(convs) else y
        if f"{block}.shortcut.0.weight" in weights:
            x = of.norm(of.conv(x, f"{block}.shortcut.0", 1 + halved), f"{block}.shortcut.1")
        elif halved and not plain:
            x = of.subsample_pad(x, len(weights[f"{block}.bn2.weight"]), 2)
        x = of.relu(y if plain else of.add(y, x))
    return of.linear(of.pool(x), "fc")
