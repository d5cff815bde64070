"""`Tensor`: an array, its gradient, its place in the graph, and the operators. Names and meanings are PyTorch's. What can be
computed from one tensor, such as ``x.exp()`` or ``x.sum()``, is in `tinyres.tensor_methods`.
"""

import numbers
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from tinyres import autograd, guards, locks, ops
from tinyres.device import device_of, move, place, to_dtype
from tinyres.errors import GraphError, ShapeError, UsageError
from tinyres.hooks import HookHandle, Hooks
from tinyres.kernels.arrays import array_module, convert, is_floating, native
from tinyres.tensor_methods import TensorMethods

Array: TypeAlias = np.ndarray  # or CuPy's. (That of tinyres.kernels no type checker finds in a checkout.)
Number = float | int  # (within the class, `float` is a method)


def _operator(
    op: type[autograd.Function],
) -> tuple[Callable[["Tensor", Any], "Tensor"], Callable[["Tensor", Any], "Tensor"]]:
    """The methods for an operator: with the tensor on its left, and on its right."""

    def left(self: "Tensor", other: Any) -> "Tensor":
        return op.apply(self, as_tensor(other, self))

    def right(self: "Tensor", other: Any) -> "Tensor":
        return op.apply(as_tensor(other, self), self)

    return left, right


def _comparison(ufunc: str) -> Callable[["Tensor", Any], "Tensor"]:
    def compare(self: "Tensor", other: Any) -> "Tensor":
        if other is None or isinstance(other, str):
            return NotImplemented
        return Tensor(self._array_result(ufunc, other))

    return compare


class Tensor(TensorMethods):
    """An array that operations can be recorded on.

    ``data`` is the array (NumPy or CuPy), ``grad`` the derivative of the last loss by it (an array of the same shape and
    dtype, or None). With ``requires_grad`` operations on it are recorded. ``Tensor(array)`` shares the array, unless its
    byte order is another than the machine's; `tensor` copies. While a graph needs the array for its backward pass, it is
    read-only. Raises `ShapeError` if it requires a gradient and holds no floats, `GraphError` for a graph that is not there.
    """

    __array_priority__ = 1000  # an array on the left of an operator leaves the work to the tensor
    __array_ufunc__ = None
    hooks: Hooks | None = None  # of a leaf, called when its gradient is complete; those of another tensor are its node's

    def __init__(self, data: Array, requires_grad: bool = False) -> None:
        data = np.asarray(data) if isinstance(data, np.generic) else data  # what NumPy gives in the place of an array ()
        self.data: Array = data if data.dtype.isnative else native(data)
        self.grad: Array | None = None
        self.node: autograd.Node | None = None
        self.requires_grad = requires_grad
        if requires_grad and not is_floating(data.dtype):
            raise ShapeError(f"only a floating-point tensor can require a gradient, and this one holds {data.dtype}.")

    def wrap(self, data: Array) -> "Tensor":
        """A tensor of another array. So an operation makes its result, knowing nothing of this class."""
        return Tensor(data)

    # --- what it is ---

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    @property
    def device(self) -> str:
        """Where the array lives: "cpu", or "cuda:0" and so on."""
        return device_of(self.data)

    @property
    def is_leaf(self) -> bool:
        """Whether it was made by the user, not by an operation."""
        return self.node is None

    def dim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the length of the axis ``dim``."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """The number of elements."""
        return self.data.size

    def item(self) -> Number:
        """The value of a tensor of one element."""
        if self.data.size != 1:
            raise ShapeError(f"only a tensor of one element is a number, and this one has shape {self.shape}.")
        return self.data.reshape(()).item()

    def tolist(self) -> Any:
        """The values as nested lists of numbers; one number, of a tensor without axes."""
        return self.data.tolist()

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array; shared, unless it lies on a GPU."""
        return self.data if isinstance(self.data, np.ndarray) else self.data.get()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __format__(self, spec: str) -> str:
        """That of the number, for a tensor without axes: ``f"{loss:.3f}"``."""
        if self.ndim and spec:
            raise TypeError(
                f"the format {spec!r} is for one number, and this tensor has shape {self.shape}; print it without one."
            )
        return str(self) if self.ndim else format(self.item(), spec)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """What NumPy's functions read. Raises `GraphError` where what they compute would be missing from a graph."""
        if self.requires_grad and guards.is_grad_enabled():
            raise GraphError(
                "NumPy would compute with a tensor that requires a gradient, and nothing of that would be recorded. "
                "Give it x.data, or x.detach(), or compute under `with tinyres.no_grad():`."
            )
        return np.array(self.numpy(), dtype, copy=copy)

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("a tensor without axes has no length, and cannot be iterated over; x.item() is its value.")
        return len(self.data)

    def __iter__(self) -> "Iterator[Tensor]":
        return (self[i] for i in range(len(self)))

    def __contains__(self, element: Any) -> bool:
        """Whether an element is equal to this number."""
        if not isinstance(element, Tensor | numbers.Number | np.generic):
            raise UsageError(f"`x in tensor` asks for a number, not for {type(element).__name__}.")
        return bool((self == element).any().item())

    def __bool__(self) -> bool:
        if self.data.size != 1:
            raise ShapeError(
                f"a tensor of shape {self.shape} is neither true nor false; x.any() and x.all() are. Whether a list holds a "
                "tensor is asked by `any(x is t for t in tensors)`."
            )
        return bool(self.item())

    def __repr__(self) -> str:
        body = np.array2string(self.numpy(), separator=", ", prefix="tensor(")
        dtype = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        made_by = f", grad_fn={self.node.function.__name__}" if self.node else ""
        leaf = ", requires_grad=True" if self.requires_grad and not self.node else ""
        device = "" if self.device == "cpu" else f", device='{self.device}'"
        return f"tensor({body}{device}{dtype}{made_by}{leaf})"

    # --- the graph ---

    def backward(self, gradient: Any = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Adds the derivative of this tensor by each leaf to the leaf's ``grad``: see `autograd.backward`."""
        if create_graph:
            raise GraphError(
                "create_graph=True is not supported: the backward pass is plain arithmetic on arrays and "
                "is not recorded, so a gradient cannot be differentiated again."
            )
        autograd.backward(self, gradient, retain_graph)

    @property
    def grad_fn(self) -> autograd.Node | None:
        """The operation that made it, None for a leaf. ``grad_fn.name()`` is its name, and ``grad_fn.next_functions`` those
        that made its inputs: so one walks the graph.
        """
        return self.node

    def register_hook(self, hook: Callable[[Array], Any]) -> HookHandle:
        """Calls ``hook(grad)`` in each backward pass, when the gradient by this tensor is complete, before it goes on to
        the tensor's inputs or, of a leaf, to ``.grad``.

        ``grad`` is an array that cannot be written to; what the hook returns, unless None, takes its place. Hooks are called
        in the order in which they were registered. The handle's ``remove()`` removes the hook.
        """
        if not self.requires_grad:
            raise GraphError("register_hook() on a tensor that does not require a gradient: it would never be called.")
        place = self.node or self
        if isinstance(place, autograd.Node):
            guards.check_not_freed(place)
        place.hooks = {} if place.hooks is None else place.hooks
        return HookHandle(place.hooks, hook)

    def detach(self) -> "Tensor":
        """The same array, cut from the graph."""
        return Tensor(self.data)

    def retain_grad(self) -> None:
        """Asks backward to fill ``grad`` of a tensor that is not a leaf."""
        if not self.requires_grad:
            raise GraphError("retain_grad() on a tensor that does not require a gradient.")
        if self.node:
            self.node.retained = weakref.ref(self)

    # --- operators ---

    __add__, __radd__ = _operator(ops.Add)
    __sub__, __rsub__ = _operator(ops.Sub)
    __mul__, __rmul__ = _operator(ops.Mul)
    __truediv__, __rtruediv__ = _operator(ops.Div)
    __matmul__, __rmatmul__ = _operator(ops.MatMul)
    _power, __rpow__ = _operator(ops.Power)

    def __pow__(self, exponent: Any) -> "Tensor":
        return ops.Pow.apply(self, exponent=exponent) if isinstance(exponent, numbers.Real) else self._power(exponent)

    def __neg__(self) -> "Tensor":
        return ops.Neg.apply(self)

    # --- comparisons: elementwise, a tensor of bool ---

    __eq__ = _comparison("equal")  # type: ignore[assignment]
    __ne__ = _comparison("not_equal")  # type: ignore[assignment]
    __lt__, __le__ = _comparison("less"), _comparison("less_equal")
    __gt__, __ge__ = _comparison("greater"), _comparison("greater_equal")
    __hash__ = object.__hash__  # a tensor is a key by what it is, not by what it holds

    # --- in place, for updates by hand under no_grad; what is recorded is never changed in place ---

    def __iadd__(self, other: Any) -> "Tensor":
        return self._in_place("add", other)

    def __isub__(self, other: Any) -> "Tensor":
        return self._in_place("subtract", other)

    def __imul__(self, other: Any) -> "Tensor":
        return self._in_place("multiply", other)

    def __itruediv__(self, other: Any) -> "Tensor":
        return self._in_place("true_divide", other)

    def __ipow__(self, other: Any) -> "Tensor":  # type: ignore[misc]
        return self._in_place("power", other)

    def _in_place(self, ufunc: str, other: Any) -> "Tensor":
        if guards.is_grad_enabled() and (self.requires_grad or getattr(other, "requires_grad", False)):
            if self.is_leaf and self.requires_grad:
                raise GraphError(
                    "a leaf that requires a gradient cannot be changed in place while operations are recorded; "
                    "update it within `with tinyres.no_grad():`."
                )
            return NotImplemented  # then Python computes x + y, which is recorded
        locks.unshare([self])
        self._array_result(ufunc, other, out=self.data)
        return self

    def _array_result(self, ufunc: str, other: Any, **options: Any) -> Array:
        """One of NumPy's operations on the data of two operands, unrecorded."""
        value = as_tensor(other, self).data
        guards.check_same_device(ufunc, left=self.data, right=value)
        try:
            return getattr(array_module(self.data), ufunc)(self.data, value, **options)
        except (ValueError, TypeError) as error:
            raise ShapeError(
                f"{ufunc}: {self.dtype}{list(self.shape)} and {value.dtype}{list(value.shape)}: {error}"
            ) from None

    def __getitem__(self, index: Any) -> "Tensor":
        """What ``index`` reads, as in NumPy: see `ops.Index`. A list, an array or a tensor names elements."""
        xp, parts = array_module(self.data), index if isinstance(index, tuple) else (index,)
        parts = tuple(i.data if isinstance(i, Tensor) else i for i in parts)
        parts = tuple(xp.array(i) if isinstance(i, list) or hasattr(i, "dtype") else i for i in parts)
        return ops.Index.apply(self, index=parts)

    # --- devices and dtypes: gradients pass through, as through any operation ---

    def to(self, target: Any) -> "Tensor":
        """On another device ("cpu", "cuda", "cuda:1") or in another dtype (np.float16, "bfloat16"); itself if it is so.

        Raises `DeviceError` if the device, or what it needs, is not there.
        """
        device, dtype = place(target)
        if device:
            moved = move(self.data, device)
            return self if moved is self.data else ops.Move.apply(self, device=device)
        if dtype == self.dtype:
            return self
        if is_floating(dtype) and is_floating(self.dtype):
            return ops.Cast.apply(self, dtype=dtype)
        return Tensor(convert(self.data, dtype))

    def cpu(self) -> "Tensor":
        """In host memory."""
        return self.to("cpu")

    def cuda(self) -> "Tensor":
        """On the GPU in use."""
        return self.to("cuda")

    def half(self) -> "Tensor":
        """In float16."""
        return self.to(np.float16)

    def bfloat16(self) -> "Tensor":
        """In bfloat16, which needs the package ml_dtypes."""
        return self.to("bfloat16")

    def float(self) -> "Tensor":
        """In float32."""
        return self.to(np.float32)


def tensor(data: Any, *, dtype: Any = None, requires_grad: bool = False, device: str | None = None) -> Tensor:
    """A new leaf that holds a copy of ``data`` (a number, a list, an array or a tensor), on ``device`` or where it is.

    A list or number of floats becomes float32; an array keeps its dtype if that is float32, float64, an integer or bool;
    float16, bfloat16 and other kinds of float become float32 unless ``dtype`` asks for them. Raises `ShapeError` for rows
    of unequal lengths, and for what holds no numbers.
    """
    array = data.data if isinstance(data, Tensor) else data
    if not hasattr(array, "dtype"):
        try:
            array = np.asarray(array)
        except ValueError as error:
            raise ShapeError(f"tensor(): the rows of a nested list must have one length; {error}") from None
        if array.dtype.kind == "f" and dtype is None:
            array = array.astype(np.float32)
    array = array_module(array).asarray(array)
    if not (is_floating(array.dtype) or array.dtype.kind in "iub"):
        raise ShapeError(f"tensor(): numbers were expected, got {array.dtype}.")
    if dtype is None:
        dtype = np.float32 if is_floating(array.dtype) and array.dtype.itemsize not in (4, 8) else native(array).dtype
    array = convert(array, to_dtype(dtype))
    return Tensor(array if device is None else move(array, device), requires_grad)


def as_tensor(value: Any, like: Tensor) -> Tensor:
    """``value`` as an operand beside ``like``: a tensor as it is, an array shared. A number, NumPy's included, takes the
    dtype of ``like``, except that a float beside integers is float32. What is neither array nor tensor goes to ``like``'s
    device.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, int | float | np.generic):
        xp, number = array_module(like.data), value.item() if isinstance(value, np.generic) else value
        if is_floating(like.dtype):
            return Tensor(xp.asarray(number, like.dtype))
        if isinstance(number, float):
            return Tensor(xp.asarray(number, np.float32))
        fits = like.dtype.kind in "iu" and np.iinfo(like.dtype).min <= number <= np.iinfo(like.dtype).max
        return Tensor(xp.asarray(number, like.dtype if fits else None))
    return Tensor(value) if hasattr(value, "dtype") else tensor(value, device=like.device)


TensorLike: TypeAlias = Tensor | Array  # an array may stand for a tensor


def tensor_of(x: TensorLike) -> Tensor:
    """x itself, or a tensor that shares the array x; what is neither, such as a list, is copied."""
    return x if isinstance(x, Tensor) else Tensor(x) if hasattr(x, "dtype") else tensor(x)


def array_of(x: TensorLike) -> Array:
    """The array of a tensor, or x itself."""
    return x.data if isinstance(x, Tensor) else x
