"""An argument by position means what it means in PyTorch, or must be given by name."""

import inspect

import pytest

import tinyres as tr
import tinyres.functional as F
from tinyres import nn, optim

pytestmark = pytest.mark.torch

NAMES = {"x": {"input", "self"}, "logits": {"input"}, "labels": {"target"}, "arrays": {"state_dict"}}  # ours -> PyTorch's
# functions of PyTorch's that tell no signature: their schema
SCHEMAS = {name: name for name in ("conv2d", "linear", "avg_pool2d", "gelu")}
METHODS = {name: name for name in ("exp", "log", "sqrt", "abs", "tanh", "sigmoid", "argmax", "amax", "amin")}
METHODS |= {"max": "max.dim", "min": "min.dim", "std": "std.correction", "softmax": "softmax.int"}
METHODS |= {"log_softmax": "log_softmax.int", "all": "all.dim", "any": "any.dim", "clone": "clone", "relu": "relu"}
METHODS |= {"sum": "sum.dim_IntList", "mean": "mean.dim", "squeeze": "squeeze.dim", "unsqueeze": "unsqueeze"}
METHODS |= {"flatten": "flatten.using_ints", "transpose": "transpose.int", "size": "size.int"}
HOOKS = ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook")


def positions(function):
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, p in inspect.signature(function).parameters.items() if p.kind in kinds]


def schema(name):
    import torch

    operation, _, overload = name.partition(".")
    arguments = getattr(getattr(torch.ops.aten, operation), overload or "default")._schema.arguments
    return [a.name for a in arguments if not a.kwarg_only]


def pairs():
    """(name, positions of ours, positions of PyTorch's)"""
    import torch

    functional, scheduler = torch.nn.functional, torch.optim.lr_scheduler
    for name, mine in vars(F).items():
        if inspect.isfunction(mine) and name in F.__all__ and hasattr(functional, name):
            theirs = functional.max_pool2d_with_indices if name == "max_pool2d" else getattr(functional, name)
            yield name, positions(mine), schema(SCHEMAS[name]) if name in SCHEMAS else positions(theirs)
    for name in set(nn.__all__) - {"Module", "Parameter", "Sequential", "ModuleList"}:
        if inspect.isclass(getattr(nn, name)) and hasattr(torch.nn, name):
            mine, theirs = getattr(nn, name), getattr(torch.nn, name)
            yield name, positions(mine), positions(theirs)
            yield f"{name}.forward", positions(mine.forward), positions(theirs.forward)
    for name in ("load_state_dict", "named_parameters", "parameters", "register_buffer", "train", *HOOKS):
        yield name, positions(getattr(nn.Module, name)), positions(getattr(torch.nn.Module, name))
    for name in [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]:
        yield name, positions(getattr(nn.init, name)), positions(getattr(torch.nn.init, name))
    for name in optim.__all__:
        for room in (torch.optim, scheduler, torch.nn.utils, torch.amp):
            if hasattr(room, name):
                yield name, positions(getattr(optim, name)), positions(getattr(room, name))
    for name, overload in METHODS.items():
        yield f"Tensor.{name}", positions(getattr(tr.Tensor, name)), schema(overload)
    yield "Tensor.register_hook", positions(tr.Tensor.register_hook), positions(torch.Tensor.register_hook)
    yield "Tensor.backward", positions(tr.Tensor.backward), positions(torch.Tensor.backward)
    yield "tensor", positions(tr.tensor), ["data"]


def test_positions_are_pytorch_s():
    compared = set()
    for name, mine, theirs in pairs():
        compared.add(name)
        for place, argument in enumerate(mine):
            wanted = NAMES.get(argument, set()) | {argument}
            assert place < len(theirs) and theirs[place] in wanted, f"{name}: {argument} stands where PyTorch has {theirs}"
    assert len(compared) > 50 and {"max_pool2d", "Conv2d.forward", "SGD", "Tensor.sum"} <= compared
