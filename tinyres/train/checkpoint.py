"""Files of weights and checkpoints: safetensors files with arrays, and with JSON texts that describe them.

    network         {"name": "resnet20", "shortcut": "A", "num_classes": 10}, or null for a network of your own
    normalisation   {"mean": ..., "scale": ...}: the network was fed (images / 255 - mean) * scale
    classes         the names of the classes
    run             in a checkpoint: everything else that a resumed run needs
    crc32           over all of this, since the format itself does not notice a flipped bit

The momentum of the parameter NAME is the array momentum/NAME, and so with the other names in `STATE`; the other arrays are
the network's own.
"""

import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyres import models
from tinyres.errors import CheckpointError, UsageError
from tinyres.files import parse_json, shown
from tinyres.models.description import OPTIONS
from tinyres.nn import Module
from tinyres.weights import load_file, save_safetensors

# What there is beside a network's own arrays: what an optimizer keeps for a parameter, and averaged weights.
STATE = ("momentum", "step", "exp_avg", "exp_avg_sq", "ema")
WEIGHTS_PER_LAYER = 5_000  # no network has fewer: ResNet-8 has 9,700, and deeper ones have more


class Contents(NamedTuple):
    """What a file of ours holds."""

    arrays: dict[str, np.ndarray]
    state: dict[str, dict[str, np.ndarray]]  # by a name in `STATE`, then by that of the parameter
    texts: dict[str, Any]


def write(path: Path, arrays: dict[str, np.ndarray], state: dict[str, dict[str, np.ndarray]], texts: dict[str, Any]) -> None:
    """Writes all or nothing. If that fails, raises `CheckpointError` and leaves the old file as it was."""
    extra = {f"{kind}/{name}": array for kind, named in state.items() for name, array in named.items()}
    everything = arrays | extra
    metadata = {key: json.dumps(value, allow_nan=False) for key, value in texts.items()}
    save_safetensors(path, everything, metadata | {"crc32": _crc32(everything, metadata)})


def read(path: Path) -> Contents:
    """Reads what `write` wrote. Raises `CheckpointError` for a file that is missing, damaged or from another program."""
    arrays, metadata = load_file(path)
    crc32 = metadata.pop("crc32", None)
    if crc32 is None:
        raise CheckpointError(f"{path} was not written by tinyres; `tinyres import-weights` reads such files")
    if crc32 != _crc32(arrays, metadata):
        raise CheckpointError(f"{path} is damaged: its checksum is not the one that it was written with")
    try:
        texts = {key: parse_json(text) for key, text in metadata.items()}
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    state: dict[str, dict[str, np.ndarray]] = {}
    for full in list(arrays):
        kind, slash, name = full.partition("/")
        if slash and kind in STATE:
            state.setdefault(kind, {})[name] = arrays.pop(full)
    return Contents(arrays, state, texts)


def _crc32(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    value = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        value = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), value)
        value = zlib.crc32(array.data, value)
    return f"{value:08x}"


# --- networks --------------------------------------------------------------------------------------------------------


def save_network(
    path: Path,
    model: Module,
    network: dict[str, Any] | None,
    mean: np.ndarray,
    scale: np.ndarray,
    result: dict[str, Any] | None = None,
    classes: Sequence[str] = (),
) -> None:
    """Writes a network's weights and what is needed to use them: its name and options, its normalisation and the names of
    its classes.

    ``result`` is for whoever reads the file: what was reached, and on which data. Raises `CheckpointError` if the file
    cannot be written.
    """
    texts = {
        "network": network,
        "normalisation": normalisation_text(mean, scale),
        "result": result,
        "classes": list(classes),
    }
    write(path, model.state_dict(), {}, texts)


def normalisation_text(mean: np.ndarray, scale: np.ndarray) -> dict[str, Any]:
    return {"mean": np.asarray(mean).tolist(), "scale": np.asarray(scale).tolist()}


class Loaded(NamedTuple):
    """A network from a file, its mean and scale; and if they are known, the data set on which it was trained, how to load
    that again (see `Dataset`), and the names of its classes.
    """

    model: Module
    mean: np.ndarray
    scale: np.ndarray
    network: dict[str, Any]
    data: str | None
    source: dict[str, Any]
    classes: tuple[str, ...]


def load_network(path: Path, model: Module | None = None) -> Loaded:
    """The network in a checkpoint, in ``best.safetensors`` or in a file from ``tinyres import-weights``; with the averaged
    weights, if the run keeps such (EMA).

    A file with a network of your own does not say how to build it: give ``model``, and it gets the weights. Raises
    `CheckpointError` for a file that cannot be read, does not say which network it holds, or does not fit ``model``.
    """
    arrays, state, texts = read(path)
    arrays |= state.get("ema", {})  # the averaged weights are what the run's errors are of
    network = texts.get("network")
    if model is not None:
        return _loaded(path, lambda: model, {"name": type(model).__name__}, arrays, texts)
    if network is None:
        raise CheckpointError(
            f"{path} does not say which network it holds, since it is none of tinyres'; in Python: "
            "tr.train.load_network(path, model=MyNet())"
        )
    # A file may only ask for a network of its own size: every layer has an array, and some thousand weights on the average.
    name = str(network.get("name")) if isinstance(network, dict) else ""
    depth = re.search(r"\d+$", name)
    has = sum(array.size for array in arrays.values())
    sized = name in models.SIZES and has >= models.SIZES[name]
    deep = depth and len(depth[0]) <= 6 and len(arrays) >= int(depth[0]) and has >= int(depth[0]) * WEIGHTS_PER_LAYER
    head = arrays.get("classifier.1.weight", arrays.get("fc.weight", np.empty(0)))
    if (
        not (sized or (deep and name not in models.SIZES))
        or not set(network) <= OPTIONS
        or head.ndim != 2
        or head.shape[1] < 16
        or network.get("num_classes") != len(head)
        or network.get("in_channels", 3) not in (1, 3)
    ):
        raise CheckpointError(f"{path} holds {len(arrays)} arrays, which are not those of the network that it names")
    return _loaded(path, lambda: models.build(**network), network, arrays, texts)


def _loaded(
    path: Path, build: Callable[[], Module], network: dict[str, Any], arrays: dict[str, np.ndarray], texts: dict[str, Any]
) -> Loaded:
    try:
        model = build()
        with np.errstate(over="raise"):
            model.load_state_dict(arrays)
            mean, scale = (_normaliser(texts["normalisation"][key]) for key in ("mean", "scale"))
        model.normalisation = mean, scale
        result = texts.get("result") or texts.get("run", {}).get("settings") or {}
        data, classes = result.get("data"), texts.get("classes")
        names = tuple(map(str, classes)) if isinstance(classes, list) else ()
        return Loaded(
            model,
            mean,
            scale,
            network,
            data if isinstance(data, str) else None,
            _source(result.get("source")),
            names if len(names) == network.get("num_classes", len(names)) else (),
        )
    except (CheckpointError, UsageError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except FloatingPointError as error:
        raise CheckpointError(f"{path} holds numbers that do not fit into float32") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path} lacks the normalisation of its network, or it is damaged ({shown(error)})") from error


def _source(value: Any) -> dict[str, Any]:
    """What `data.load` takes, if that is what it is."""
    types = {"path": str, "size": int, "split": float, "seed": int}
    right = isinstance(value, dict) and {key: type(one) for key, one in value.items()} == types
    return value if right else {}


def _normaliser(value: Any) -> np.ndarray:
    array = np.asarray(value, np.float32)
    if array.ndim not in (0, 3) or not np.isfinite(array).all():
        raise ValueError(f"an array of shape {array.shape}, or not finite")
    return array
