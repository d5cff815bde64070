"""Networks for other programs: ONNX, and state dicts of PyTorch in the names of other repositories."""

from __future__ import annotations

from collections.abc import Sequence

from tinyres.export.about import about
from tinyres.export.naming import NAMINGS, named_state
from tinyres.export.onnx_file import Check, to_onnx
from tinyres.export.translations import translates
from tinyres.files import StrPath
from tinyres.nn import Module
from tinyres.weights import save_safetensors, save_torch

__all__ = ["NAMINGS", "Check", "named_state", "to_onnx", "to_safetensors", "to_torch", "translates"]


def to_torch(model: Module, path: StrPath, naming: str = "cifar") -> None:
    """Write the state dict of ``model`` as ``torch.save`` does; PyTorch is not needed. For the names see `named_state`.

    Raises `UsageError` if the naming has no names for the network, `CheckpointError` if the file cannot be written.
    """
    save_torch(path, named_state(model, naming))


def to_safetensors(model: Module, path: StrPath, naming: str = "cifar", classes: Sequence[str] = ()) -> None:
    """Write the state dict of ``model`` as safetensors, with its normalisation and ``classes`` in the metadata.

    For the names see `named_state`. Raises as `to_torch` does.
    """
    save_safetensors(path, named_state(model, naming), {"format": "pt"} | about(model, classes))


def __dir__() -> list[str]:
    return __all__
