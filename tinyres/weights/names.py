"""The names that other CIFAR ResNets give their parameters, mapped to ours.

Ours: ``conv1``, ``bn1``, ``layer{1,2,3}.{block}.conv{1,2}``, ``.bn{1,2}`` (and ``conv3``, ``bn3`` in a bottleneck),
``.shortcut.0`` (the convolution of a projection), ``.shortcut.1`` (its batch norm), ``fc``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping

import numpy as np

from tinyres.errors import CheckpointError
from tinyres.files import shown

# What DataParallel, torch.compile and wrapping modules put in front of a name, or of a part of it, any number of times.
_WRAPPERS = re.compile(r"^(?:model\.)+|(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What PyTorch counts beside the weights: the steps of a batch norm, the models in an average (`AveragedModel`).
_COUNTERS = ("num_batches_tracked", "n_averaged")
_RULES = [
    (re.compile(pattern), ours)
    for pattern, ours in [
        (r"^(?:conv|stem\.0|stem\.conv)\.", "conv1."),
        (r"^(?:bn|stem\.1|stem\.bn)\.", "bn1."),
        (r"^(layer\d+\.\d+)\.(?:downsample|shortcut)\.(?:0|conv)\.", r"\1.shortcut.0."),
        (r"^(layer\d+\.\d+)\.(?:downsample|shortcut)\.(?:1|bn)\.", r"\1.shortcut.1."),
        (r"^(?:linear|classifier|output)\.", "fc."),
    ]
]
_BLOCK = re.compile(r"^layer\d+\.\d+\.")
_LISTED, _DEEPEST = 8, 8


def map_names(arrays: Mapping[str, np.ndarray], target: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays under our names, in the order of ``target``, which holds the expected names and shapes.

    A prefix that all names have in common is taken away: ``net.``, ``module.model.`` and the like. PyTorch's counters
    (``num_batches_tracked``, ``n_averaged``) are dropped where the target has none.
    Raises `CheckpointError` if two arrays map to one name, and for names that are missing, unexpected or of another shape.
    """
    sources: dict[str, str] = {}
    prefix = _prefix(arrays, target)
    for name in arrays:
        ours = _our_name(name.removeprefix(prefix), target)
        if ours not in target and ours.rpartition(".")[2] in _COUNTERS:
            continue
        if ours in sources:
            raise CheckpointError(f"{shown(sources[ours])!r} and {shown(name)!r} both map to {shown(ours)!r}")
        sources[ours] = name

    missing = [name for name in target if name not in sources]
    unexpected = [sources[ours] for ours in sources if ours not in target]
    misshaped = [
        f"{name} is {arrays[sources[name]].shape}, expected {tuple(shape)}"
        for name, shape in target.items()
        if name in sources and arrays[sources[name]].shape != tuple(shape)
    ]
    if missing or unexpected or misshaped:
        raise CheckpointError(
            f"the weights do not fit the model: {len(missing)} missing, {len(unexpected)} unexpected, "
            f"{len(misshaped)} of another shape"
            + _listed("missing", missing)
            + _listed("unexpected", [shown(name) for name in unexpected])
            + _listed("of another shape", misshaped)
            + _hint(sources, target)
        )
    return {name: arrays[sources[name]] for name in target}


def _prefix(names: Iterable[str], target: Mapping[str, object]) -> str:
    """What stands in front of all names, such as "net.", as far as it has to be taken away for most of them to be known."""
    weights = sorted(name for name in names if name.rpartition(".")[2] not in _COUNTERS)
    ends = [name.split(".")[:-1] for name in (weights[:1] + weights[-1:])]  # what these two share, all share
    common = [part for part, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))][:_DEEPEST]
    prefixes = ["", *("".join(f"{part}." for part in common[: k + 1]) for k in range(len(common)))]
    return max(prefixes, key=lambda prefix: sum(_our_name(name.removeprefix(prefix), target) in target for name in weights))


def _our_name(name: str, target: Mapping[str, object]) -> str:
    """A name that the target has stays as it is; the rules are for all others."""
    if name in target:
        return name
    while (inner := _WRAPPERS.sub("", name)) != name:
        name = inner
    if name in target:
        return name
    for pattern, ours in _RULES:
        name = pattern.sub(ours, name)
    return name


def _listed(title: str, names: list[str]) -> str:
    if not names:
        return ""
    rest = [f"... and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return f"\n  {title}: " + ", ".join(names[:_LISTED] + rest)


def _hint(ours: Iterable[str], target: Iterable[str]) -> str:
    """What the file seems to be, if its network is not the target's."""
    file_net, target_net = _describe(ours), _describe(target)
    if file_net == target_net:
        return ""
    return f"\n  the file looks like {file_net}; the model is like {target_net}"


def _describe(names: Iterable[str]) -> str:
    """The ResNet that has these names. Its depth counts the convolutions of the blocks, the stem and the head."""
    layers = [name for name in names if _BLOCK.match(name)]
    if not layers:
        return "no ResNet"
    blocks = {tuple(name.split(".")[:2]) for name in layers}
    stages = len({stage for stage, _ in blocks})
    convolutions = 3 if any(".conv3." in name for name in layers) else 2
    projections = "with" if any(".shortcut." in name for name in layers) else "without"
    return (
        f"resnet{len(blocks) * convolutions + 2} ({len(blocks)} blocks in {stages} stages of {convolutions} "
        f"convolutions, {projections} projection shortcuts)"
    )
