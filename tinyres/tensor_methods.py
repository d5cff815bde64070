"""What can be computed from one tensor: functions of each element, reductions, and other shapes of the same elements. Each
method calls an operation of `tinyres.ops`; names and meanings are PyTorch's, and where NumPy's functions call a method
(``np.sum(x, axis=1)``), it takes their words.
"""

import math
from typing import Any, NamedTuple, TypeVar

from tinyres import ops
from tinyres.errors import ShapeError, UsageError
from tinyres.kernels.arrays import Array, array_module
from tinyres.ops.reduce import extreme_axes
from tinyres.ops.shape import axes_of

Axes = int | tuple[int, ...] | None
Self = TypeVar("Self", bound="TensorMethods")


class ValuesAndIndices(NamedTuple):
    """The extremes along an axis, and where they are: two tensors of one shape."""

    values: Any
    indices: Any


class TensorMethods:
    """The methods that `tinyres.Tensor` has from here."""

    data: Array

    def wrap(self: Self, data: Array) -> Self:
        """A tensor of another array. So an operation makes its result, knowing nothing of the class."""
        raise NotImplementedError

    def to(self: Self, target: Any) -> Self:
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    # --- functions of each element ---

    def exp(self: Self) -> Self:
        """e to the power of x."""
        return ops.Exp.apply(self)

    def log(self: Self) -> Self:
        """The natural logarithm: minus infinity at 0, NaN below."""
        return ops.Log.apply(self)

    def sqrt(self: Self) -> Self:
        """The square root; its slope at 0 is infinite."""
        return ops.Sqrt.apply(self)

    def abs(self: Self) -> Self:
        """|x|; its slope at 0 is 0."""
        return ops.Abs.apply(self)

    __abs__ = abs

    def tanh(self: Self) -> Self:
        """The hyperbolic tangent."""
        return ops.Tanh.apply(self)

    def sigmoid(self: Self) -> Self:
        """1 / (1 + exp(-x))."""
        return ops.Sigmoid.apply(self)

    def relu(self: Self) -> Self:
        """max(x, 0)."""
        return ops.ReLU.apply(self)

    def softmax(self: Self, dim: int, *, dtype: Any = None) -> Self:
        """exp(x) / sum of exp(x) along ``dim``, of x in ``dtype`` if that is given."""
        return self._along(ops.Softmax, dim, dtype)

    def log_softmax(self: Self, dim: int, *, dtype: Any = None) -> Self:
        """The logarithm of `softmax`, which overflows nowhere."""
        return self._along(ops.LogSoftmax, dim, dtype)

    def _along(self: Self, op: Any, dim: int, dtype: Any) -> Self:
        x = self if dtype is None else self.to(dtype)
        return op.apply(x, dim=dim) if x.data.ndim else op.apply(x.reshape(1), dim=dim).reshape(())

    def clone(self: Self) -> Self:
        """A copy, which passes its gradient on. ``x.detach().clone()`` is one that has nothing to do with the graph."""
        return ops.Clone.apply(self)

    # --- reductions ---

    def sum(
        self: Self, dim: Axes = None, keepdim: bool = False, *, axis: Axes = None, dtype: Any = None, out: None = None
    ) -> Self:
        """The sum over the axes ``dim`` (all of them when None). ``axis``, ``dtype``, ``out``: so `numpy.sum` asks."""
        return ops.Sum.apply(self._asked_by_numpy(dtype, out), dim=axis if dim is None else dim, keepdim=keepdim)

    def mean(
        self: Self, dim: Axes = None, keepdim: bool = False, *, axis: Axes = None, dtype: Any = None, out: None = None
    ) -> Self:
        """The mean over the axes ``dim`` (all of them when None). ``axis``, ``dtype``, ``out``: so `numpy.mean` asks."""
        return ops.Mean.apply(self._asked_by_numpy(dtype, out), dim=axis if dim is None else dim, keepdim=keepdim)

    def std(
        self: Self,
        dim: Axes = None,
        *,
        correction: float | None = 1,
        keepdim: bool = False,
        unbiased: bool | None = None,
        axis: Axes = None,
        dtype: Any = None,
        out: None = None,
        ddof: float | None = None,
    ) -> Self:
        """The standard deviation over the axes ``dim`` (all of them when None): see `ops.Std`.

        The sum of squares is divided by n - ``correction``, where 1 stands for ``unbiased``. `numpy.std`, which asks by
        ``axis`` and ``ddof``, divides by n unless told otherwise.
        """
        if isinstance(dim, bool):  # PyTorch's x.std(False)
            dim, unbiased = None, dim
        given = [ddof, None if unbiased is None else int(unbiased), correction, 1]
        return ops.Std.apply(
            self._asked_by_numpy(dtype, out),
            dim=axis if dim is None else dim,
            keepdim=keepdim,
            correction=next(c for c in given if c is not None),
        )

    def max(self: Self, dim: int | None = None, keepdim: bool = False, *, axis: Axes = None, out: None = None) -> Any:
        """The largest element; with ``dim``, the largest ones along that axis, with the places of the first of each.

        The gradient of ``x.max()`` is shared evenly by elements that are equal; that of ``x.max(dim).values`` goes to the
        one at ``x.max(dim).indices``. A NaN counts as the largest. `numpy.max` asks by ``axis``, for the values: see `amax`.
        """
        return self._extreme(True, dim, keepdim, axis, out)

    def min(self: Self, dim: int | None = None, keepdim: bool = False, *, axis: Axes = None, out: None = None) -> Any:
        """The smallest element, as `max` is the largest. A NaN counts as the smallest here."""
        return self._extreme(False, dim, keepdim, axis, out)

    def amax(self: Self, dim: Axes = None, keepdim: bool = False) -> Self:
        """The largest elements over one axis or several (all when None), whose gradient equal ones share evenly."""
        return ops.Max.apply(self, dim=dim, keepdim=keepdim)

    def amin(self: Self, dim: Axes = None, keepdim: bool = False) -> Self:
        """The smallest elements, as `amax`."""
        return ops.Min.apply(self, dim=dim, keepdim=keepdim)

    def argmax(
        self: Self, dim: int | None = None, keepdim: bool = False, *, axis: int | None = None, out: None = None
    ) -> Self:
        """The place of the largest element along ``dim``, the first of equal ones, without a gradient; in the tensor as if
        it were flat when None.
        """
        self._asked_by_numpy(None, out)
        dim = axis if dim is None else dim
        x = self if dim is not None else self.reshape(-1)
        indices = x._places("argmax", 0 if dim is None else dim, True)
        return indices if keepdim and dim is not None and self.ndim else indices.squeeze(0 if dim is None else dim)

    def all(self: Self, dim: Axes = None, keepdim: bool = False, *, axis: Axes = None, out: None = None) -> Self:
        """Whether all elements are true, or all along ``dim``."""
        return self._logical("all", axis if dim is None else dim, keepdim, out)

    def any(self: Self, dim: Axes = None, keepdim: bool = False, *, axis: Axes = None, out: None = None) -> Self:
        """Whether one element is true, or one along ``dim``."""
        return self._logical("any", axis if dim is None else dim, keepdim, out)

    def _extreme(self: Self, largest: bool, dim: int | None, keepdim: bool, axis: Axes, out: None) -> Any:
        self._asked_by_numpy(None, out)
        if isinstance(dim, TensorMethods):
            name, instead = ("max", "F.relu(x - other) + other") if largest else ("min", "x - F.relu(x - other)")
            raise UsageError(f"{name}: with other, the {name} of two tensors is not supported; {instead} is it.")
        if dim is None:
            return (ops.Max if largest else ops.Min).apply(self, dim=axis, keepdim=keepdim)
        if not self.ndim:
            return self.reshape(1)._extreme(largest, dim, False, None, None)
        indices = self._places("max" if largest else "min", dim, largest)
        values = ops.AlongAxis.apply(self, indices=indices.data, dim=axes_of("max", self.data, dim)[0])
        found = ValuesAndIndices(values, indices)
        return found if keepdim else ValuesAndIndices(*(t.squeeze(dim) for t in found))

    def _places(self: Self, op: str, dim: int, largest: bool) -> Self:
        """The indices of the extremes along ``dim``, which is kept."""
        axes = extreme_axes(op, self.data, dim) or (0,)
        xp, x = array_module(self.data), self.data if self.ndim else self.data.reshape(1)
        if len(axes) != 1:
            raise ShapeError(f"{op}: dim={dim!r} must be one axis; amax and amin take several.")
        return self.wrap(xp.expand_dims((xp.argmax if largest else xp.argmin)(x, axis=axes[0]), axes[0]))

    def _logical(self: Self, op: str, dim: Axes, keepdim: bool, out: None) -> Self:
        self._asked_by_numpy(None, out)
        xp, axes = array_module(self.data), axes_of(op, self.data, dim)
        return self.wrap(xp.asarray(getattr(xp, op)(self.data, axis=axes, keepdims=keepdim)))

    def _asked_by_numpy(self: Self, dtype: Any, out: Any) -> Self:
        if out is not None:
            raise ShapeError("a reduction of a tensor takes no out=: it makes a new tensor.")
        return self if dtype is None else self.to(dtype)

    # --- shapes: of the same elements ---

    def reshape(self: Self, *shape: Any) -> Self:
        """The same elements in another shape; one length may be -1."""
        return ops.Reshape.apply(self, shape=shape[0] if len(shape) == 1 else shape)

    def view(self: Self, *shape: Any) -> Self:
        """`reshape`, under its other name. Where the order in memory allows no view it copies, while PyTorch's refuses:
        activations lie channels-last in memory here, so that ``x.view(len(x), -1)`` would hardly ever work.
        """
        return self.reshape(*shape)

    def squeeze(self: Self, dim: Axes = None) -> Self:
        """Without axes of length 1: without all of them, or those of ``dim`` that are so."""
        axes = axes_of("squeeze", self.data, dim)
        return self.reshape([n for i, n in enumerate(self.shape) if n != 1 or i not in axes])

    def unsqueeze(self: Self, dim: int) -> Self:
        """With a new axis of length 1, which becomes the axis ``dim``."""
        shape = list(self.shape)
        if not -self.ndim - 1 <= dim <= self.ndim:
            raise ShapeError(
                f"unsqueeze: dim={dim} must lie within {-self.ndim - 1} .. {self.ndim}, for shape {self.shape}."
            )
        shape.insert(dim + self.ndim + 1 if dim < 0 else dim, 1)
        return self.reshape(shape)

    def flatten(self: Self, start_dim: int = 0, end_dim: int = -1) -> Self:
        """The axes from ``start_dim`` to ``end_dim``, both included, become one."""
        first, last = (d + self.ndim if d < 0 else d for d in (start_dim, end_dim))
        if self.ndim == 0 and {first, last} <= {0, -1}:
            return self.reshape(1)
        if not 0 <= first <= last < self.ndim:
            raise ShapeError(
                f"flatten: {start_dim} and {end_dim} must be axes of the tensor, of shape {self.shape}, in order."
            )
        return self.reshape(*self.shape[:first], math.prod(self.shape[first : last + 1]), *self.shape[last + 1 :])

    def permute(self: Self, *dims: Any) -> Self:
        """The axes in the order ``dims``."""
        return ops.Transpose.apply(self, dims=dims[0] if len(dims) == 1 else dims)

    def transpose(self: Self, dim0: int, dim1: int) -> Self:
        """Two axes exchanged."""
        dims = list(range(max(self.ndim, 1)))
        try:
            dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
        except IndexError:
            raise ShapeError(f"transpose: {dim0} and {dim1} must be axes of the tensor, of shape {self.shape}.") from None
        return self.permute(*dims)

    @property
    def T(self: Self) -> Self:
        """The axes in reverse order."""
        return self.permute(*reversed(range(self.ndim)))
