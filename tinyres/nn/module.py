"""Module: a tree of layers that knows its parameters, its buffers and its children.

Registration is nothing but attribute assignment. A module's parameters are its attributes of type `Parameter`, its
children those of type `Module`, in the order of assignment; there is no second list that could disagree. Buffers
(running statistics) are ordinary tensors, so `register_buffer` notes their names.

Names and meanings are PyTorch's, except that `state_dict` returns copies, as NumPy arrays.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tinyres.device import move, place
from tinyres.errors import CheckpointError, UsageError
from tinyres.files import shown
from tinyres.guards import is_grad_enabled
from tinyres.hooks import HookHandle, Hooks
from tinyres.kernels import recording
from tinyres.kernels.arrays import array_module, is_floating
from tinyres.locks import unshare
from tinyres.nn import hooks
from tinyres.tensor import Tensor

Self = TypeVar("Self", bound="Module")


class Parameter(Tensor):
    """A tensor that a module learns: it always requires a gradient and owns its array.

    ``data`` is copied, and stays on its device. Floats that are not float64 and integers become float32.
    """

    def __init__(self, data: Any) -> None:
        array = data.data if isinstance(data, Tensor) else data
        array = array_module(array).array(array)
        super().__init__(array if array.dtype == np.float64 else array.astype(np.float32), requires_grad=True)


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Inside, ``model`` and all modules below it are in evaluation mode; afterwards each is in its own mode again, so that
    one that was frozen by ``eval()`` stays so.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class LoadResult(NamedTuple):
    """The names that ``load_state_dict(strict=False)`` skipped."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """Base of every layer and network: define ``__init__`` (call ``super().__init__()`` first) and ``forward``.

    >>> class Two(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)
    ...     def forward(self, x):
    ...         return self.fc2(F.relu(self.fc1(x)))

    Raises `UsageError` for an ``__init__`` without that call, when called without a ``forward``, and for buffers under names
    that are taken; AttributeError, with the closest name, for an attribute that is not there.
    """

    training: bool
    description: dict[str, Any] | None = None  # of a network of `tinyres.models`: its name and options
    normalisation: tuple[Any, Any] | None = None  # of a network from a file: mean and scale of the images that it was fed

    def __init__(self) -> None:
        self.training = True
        self._buffer_names: set[str] = set()
        self._forward_hooks: Hooks = {}
        self._forward_pre_hooks: Hooks = {}
        self._backward_hooks: Hooks = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; each kind of module defines its own."""
        raise UsageError(f"{type(self).__name__} defines no forward(); write one that returns the module's output")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pre-hooks, ``forward`` and the forward hooks."""
        if (notes := recording.active()) is not None:
            notes.modules[self] = self.training
            if self._forward_pre_hooks or self._forward_hooks or self._backward_hooks:
                notes.refuse("a module has hooks")
        for handle, hook in tuple(self._forward_pre_hooks.items()):
            args, kwargs = hooks.before(hook, handle.with_kwargs, self, args, kwargs)
        passing = hooks.Passing(self, self._backward_hooks) if self._backward_hooks and is_grad_enabled() else None
        args = passing.inputs(args) if passing else args
        output = self.forward(*args, **kwargs)
        for handle, hook in tuple(self._forward_hooks.items()):
            replaced = hook(self, args, kwargs, output) if handle.with_kwargs else hook(self, args, output)
            output = output if replaced is None else replaced
        return passing.outputs(output) if passing else output

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> HookHandle:
        """Call ``hook(module, args)`` before each forward; what it returns, unless None, replaces the positional arguments.

        ``with_kwargs`` makes that ``hook(module, args, kwargs)``, which returns None or (args, kwargs). The hook comes after
        those that there are, or with ``prepend`` before them.
        """
        return HookHandle(self._forward_pre_hooks, hook, prepend, with_kwargs)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> HookHandle:
        """Call ``hook(module, args, output)`` after each forward; what it returns, unless None, replaces the output.

        ``args`` are the positional arguments, in a tuple; ``with_kwargs`` makes that ``hook(module, args, kwargs, output)``.
        The hook comes after those that there are, or with ``prepend`` before them.
        """
        return HookHandle(self._forward_hooks, hook, prepend, with_kwargs)

    def register_full_backward_hook(self, hook: Callable[..., Any], prepend: bool = False) -> HookHandle:
        """Call ``hook(module, grad_input, grad_output)`` in each backward pass, when the gradients by the module's inputs
        are complete; what it returns, unless None, replaces grad_input.

        Both are tuples of arrays that cannot be written to, one for each positional argument and each output, with None for
        what is no tensor, needs no gradient or got none. Where no input needs one, the hook is called when grad_output is
        complete. Only passes of backward() call it, not those that `tinyres.explain` makes of its own.
        """
        return HookHandle(self._backward_hooks, hook, prepend)

    def register_buffer(self, name: str, tensor: Tensor) -> None:
        """Keep ``tensor`` as attribute ``name``: saved with the parameters, never trained."""
        if not name.isidentifier() or hasattr(self, name):
            raise UsageError(f"register_buffer: {name!r} is no free attribute name of {type(self).__name__}")
        if not isinstance(tensor, Tensor) or tensor.requires_grad:
            raise UsageError(f"register_buffer: {name!r} must be a Tensor that requires no gradient, got {tensor!r}")
        self._buffer_names.add(name)
        setattr(self, name, tensor)

    def __getattr__(self, name: str) -> Any:
        """Called only when normal look-up has failed: says why."""
        kind = type(self).__name__
        if name in ("training", "_buffer_names", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            raise UsageError(f"{kind}.__init__ did not call super().__init__(); call it on the first line of __init__")
        close = difflib.get_close_matches(name, [key for key in dir(self) if not key.startswith("_")], n=1)
        children = ", ".join(key for key, value in vars(self).items() if isinstance(value, Tensor | Module))
        hint = f"did you mean {close[0]!r}?" if close else f"its tensors and modules: {children or 'none'}"
        raise AttributeError(f"{kind} has no attribute {name!r}; {hint}", name=name, obj=self)

    # --- the tree -----------------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules assigned to this one, in order of assignment."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """The modules of `named_children`."""
        return (child for _, child in self.named_children())

    def _walk(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, a module reachable by two names under both."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child._walk(f"{prefix}.{name}" if prefix else name)

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """This module (named "") and all below it, depth first, each once."""
        return _once(self._walk())

    def modules(self) -> Iterator[Module]:
        """The modules of `named_modules`."""
        return (module for _, module in self.named_modules())

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and buffer under every name it has: what `state_dict` saves."""
        for prefix, module in self._walk():
            attributes = vars(module).items()
            parameters = [(name, value) for name, value in attributes if isinstance(value, Parameter)]
            buffers = [(name, vars(module)[name]) for name, _ in attributes if name in module._buffer_names]
            for name, tensor in parameters + buffers:
                yield (f"{prefix}.{name}" if prefix else name), tensor

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Names like "layer1.0.conv1.weight" with their parameters; one shared between two places is listed once."""
        return _once((name, tensor) for name, tensor in self._tensors() if isinstance(tensor, Parameter))

    def parameters(self) -> Iterator[Parameter]:
        """The parameters of `named_parameters`: what an optimizer takes."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Names with buffers (the running statistics of batch norm), each once."""
        return _once((name, tensor) for name, tensor in self._tensors() if not isinstance(tensor, Parameter))

    def buffers(self) -> Iterator[Tensor]:
        """The buffers of `named_buffers`."""
        return (buffer for _, buffer in self.named_buffers())

    # --- for the whole tree -----------------------------------------------------------------------------------------

    def apply(self: Self, fn: Callable[[Module], Any]) -> Self:
        """Call ``fn`` on every module below and then on this one; returns self."""
        for module in reversed(list(self.modules())):
            fn(module)
        return self

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode (batch norm uses the batch's statistics, dropout drops); returns self."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: Self) -> Self:
        """Set evaluation mode; returns self."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters: their ``.grad`` becomes None."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self: Self, target: Any) -> Self:
        """Move parameters, buffers and gradients to a device ("cpu", "cuda", "cuda:1"), or cast parameters and buffers to
        float32 or float64 and drop the gradients; returns self.

        In mixed precision the parameters stay float32 and the input has 16 bits: ``model(x.half())``. Raises `DeviceError`
        if there is no such device, `UsageError` for another dtype.
        """
        device, dtype = place(target)
        if device is None:
            return self._cast(dtype)
        for _, tensor in self._tensors():
            tensor.data = move(tensor.data, device)
            tensor.grad = None if tensor.grad is None else move(tensor.grad, device)
        return self

    def cpu(self: Self) -> Self:
        """Move to the CPU's memory; returns self."""
        return self.to("cpu")

    def cuda(self: Self) -> Self:
        """Move to the GPU in use; returns self."""
        return self.to("cuda")

    def float(self: Self) -> Self:
        """Cast parameters and buffers to float32 and drop the gradients; returns self."""
        return self.to(np.float32)

    def double(self: Self) -> Self:
        """Cast parameters and buffers to float64 and drop the gradients; returns self."""
        return self.to(np.float64)

    def _cast(self: Self, dtype: Any) -> Self:
        if dtype not in (np.float32, np.float64):
            raise UsageError(f"parameters are float32 or float64, not {dtype}; for mixed precision cast the input: x.to()")
        for _, tensor in self._tensors():
            tensor.data = tensor.data.astype(dtype)
            tensor.grad = None
        return self

    # --- saving and loading -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Parameters and buffers by name, copied: a later training step does not change them."""
        return {name: np.array(tensor.numpy(), order="C") for name, tensor in self._tensors()}

    def load_state_dict(self, arrays: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy ``arrays`` (NumPy arrays or tensors by name) into the parameters and buffers, which keep their dtype.

        If something does not fit, raises one `CheckpointError` that lists everything, and changes nothing: missing and
        unexpected names (if ``strict``), arrays of another shape, arrays that hold no numbers. Returns the names it skipped.
        """
        own = dict(self._tensors())
        missing = [name for name in own if name not in arrays]
        unexpected = [name for name in arrays if name not in own]
        values = {name: _to_array(arrays[name]) for name in own if name in arrays}
        problems = [f"missing: {name} {own[name].shape}" for name in missing if strict]
        problems += [f"unexpected: {shown(name)}" for name in unexpected if strict]
        for name, value in values.items():
            if not (is_floating(value.dtype) or value.dtype.kind in "iub"):
                problems.append(f"not numbers: {name} has dtype {value.dtype}")
            elif value.shape != own[name].shape:
                problems.append(f"mis-shaped: {name} is {value.shape}, the model has {own[name].shape}")
        if problems:
            lines = "\n  ".join(problems)
            raise CheckpointError(f"the arrays do not fit {type(self).__name__}, nothing was loaded:\n  {lines}")
        unshare(own[name] for name in values)
        for name, value in values.items():
            own[name].data[...] = array_module(own[name].data).asarray(value)
        return LoadResult(missing, unexpected)

    # --- printing -----------------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands in the parentheses of a layer's repr, such as "16, 32, kernel_size=3"."""
        return ""

    def __repr__(self) -> str:
        lines = [self.extra_repr()] if self.extra_repr() else []
        children = [f"({name}): {child!r}" for name, child in self.named_children()]
        if not children:
            return f"{type(self).__name__}({''.join(lines)})"
        body = "\n".join(lines + children).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {body}\n)"


Item = TypeVar("Item")


def _once(named: Iterator[tuple[str, Item]]) -> Iterator[tuple[str, Item]]:
    """Drop the pairs whose object came before."""
    seen: set[int] = set()
    for name, item in named:
        if id(item) not in seen:
            seen.add(id(item))
            yield name, item


def _to_array(value: Any) -> np.ndarray:
    if not isinstance(value, Tensor):
        value = Tensor(array_module(value).asarray(value))
    return value.numpy()
