"""Names for the nodes of a graph: which module made them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from tinyres.autograd import Node
from tinyres.nn import Module
from tinyres.nn.module import HookHandle
from tinyres.tensor import Tensor


class Seen:
    """What `watch` saw of ``model``: ``nodes`` has the name of the layer that made a node, ``leaves`` the names of
    parameters, and ``blocks`` the modules with children as (name, module, input tensor's node or itself, output node), inner
    ones first.
    """

    def __init__(self, model: Module | None = None) -> None:
        self.nodes: dict[Node, str] = {}
        self.leaves: dict[int, str] = {} if model is None else {id(p): name for name, p in model.named_parameters()}
        self.blocks: list[tuple[str, Module, Any, Node]] = []

    def add(self, names: Mapping[str, Tensor]) -> None:
        """Gives names to tensors: to leaves themselves, of others to the operation that made them."""
        for name, tensor in names.items():
            if tensor.node is None:
                self.leaves[id(tensor)] = name
            else:
                self.nodes[tensor.node] = name

    def name(self, place: Any) -> str:
        """Of a node, the layer that made it, else its operation; of a leaf, the parameter's name."""
        if isinstance(place, Node):
            return self.nodes.get(place) or place.function.__name__
        return self.leaves.get(id(place)) or f"leaf {tuple(place.shape)}"

    def block(self, join: Node) -> str:
        """The name of the block that a join ends: the innermost such module's, else its layer's, else its operation's."""
        for name, _, _, output in self.blocks:
            if output is join and name:
                return name
        layer = self.nodes.get(join, "")
        return layer.rpartition(".")[0] or layer or f"{join.function.__name__} at rank {join.rank}"

    def note(self, name: str, module: Module, args: tuple, output: Any) -> None:
        """The forward hook of the module called ``name``."""
        if not isinstance(output, Tensor) or output.node is None:
            return
        if any(module.children()):
            source = args[0] if args and isinstance(args[0], Tensor) and args[0].requires_grad else None
            self.blocks.append((name, module, source if source is None else source.node or source, output.node))
        elif name:
            self.nodes.setdefault(output.node, name)  # (an identity passes on what another module made)


@contextlib.contextmanager
def watch(model: Module) -> Iterator[Seen]:
    """``with tr.watch(model) as seen:`` notes which layer makes which node of the graph, in all forward passes inside.

    It puts a forward hook on every module, which changes nothing, and takes them away afterwards.
    """
    seen, handles = Seen(model), list[HookHandle]()
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(functools.partial(seen.note, name)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()
