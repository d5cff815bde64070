"""Sequential and ModuleList: modules that hold numbered modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tinyres.errors import UsageError
from tinyres.nn.module import Module


class ModuleList(Module):
    """A list that registers its ``modules``, which a plain Python list does not. Their names are "0", "1", ...

    Raises `UsageError` for what is no module.
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> None:
        """Put a module at the end."""
        self._assign(len(self), module)

    def _assign(self, index: int, module: Module) -> None:
        if not isinstance(module, Module):
            raise UsageError(f"{type(self).__name__} holds modules, got {type(module).__name__} at position {index}")
        setattr(self, str(index), module)

    def __len__(self) -> int:
        return len(list(self.children()))

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: int | slice) -> Any:
        """One module by number (from the end if negative), or a container of the same kind for a slice."""
        found = list(self)[index]
        if not isinstance(found, list):
            return found
        part = type(self)()
        for module in found:
            part.append(module)
        return part

    def __setitem__(self, index: int, module: Module) -> None:
        self._assign(range(len(self))[index], module)


class Sequential(ModuleList):
    """``modules`` that run one after the other: Sequential(first, second)(x) = second(first(x))."""

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x
