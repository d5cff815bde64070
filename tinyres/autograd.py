"""The tape: what a forward pass remembers, and the walk that turns it into gradients.

Every operation is a `Function` with ``forward`` and ``backward`` side by side, on plain arrays. Applying one to tensors
leaves a `Node` that knows its inputs. `backward` visits the nodes from the loss to the leaves, in order of rank (the
longest way down to a leaf), so that a tensor that was used twice, such as the input of a residual block, is visited after
both of its cotangents have arrived.

In this package a *cotangent* of an array ``a`` is the derivative of the loss by ``a``: same shape, written ``da``.
"""

import functools
import heapq
import itertools
import threading
import traceback
import weakref
from typing import Any

import numpy as np

from tinyres.device import check_same_device
from tinyres.errors import GraphError, NonFiniteError, ShapeError
from tinyres.kernels import dispatch
from tinyres.kernels.arrays import array_module, convert, is_floating

_state = threading.local()


def is_grad_enabled() -> bool:
    """Whether operations are being recorded in this thread."""
    return getattr(_state, "grad", True)


class _Setting:
    """A context manager and decorator that gives one flag of this thread another value for a while."""

    def __init__(self, flag: str, value: bool) -> None:
        self.flag, self.value, self.before = flag, value, list[Any]()

    def __enter__(self) -> None:
        self.before.append(getattr(_state, self.flag, None))
        setattr(_state, self.flag, self.value)

    def __exit__(self, *error: object) -> None:
        before = self.before.pop()
        if before is None:
            delattr(_state, self.flag)
        else:
            setattr(_state, self.flag, before)

    def __call__(self, function: Any) -> Any:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with _Setting(self.flag, self.value):
                return function(*args, **kwargs)

        return wrapped


def no_grad() -> _Setting:
    """``with no_grad():`` or ``@no_grad()``: operations inside are not recorded, and keep nothing for a backward pass."""
    return _Setting("grad", False)


def detect_anomaly() -> _Setting:
    """``with detect_anomaly():`` checks every result, forward and backward, and raises `NonFiniteError` at the first NaN
    or infinity; the error names the operation and where it was called. About half the speed.
    """
    return _Setting("anomaly", True)


# --- arrays that a graph still needs ---------------------------------------------------------------------------------

_locked: dict[int, "_Lock"] = {}  # by id of the array
_lock_guard = threading.RLock()
_to_unlock: list[np.ndarray] = []
_busy = False  # whether the thread that holds the guard is changing the table


class _Lock:
    """How many nodes hold an array, and the views of it that can become writable only after it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.holders, self.waiting = array, 0, list[np.ndarray]()
        array.flags.writeable = False


def _lock(arrays: tuple[Any, ...]) -> list[np.ndarray]:
    """Makes arrays, and those that they are views of, read-only until `_unlock`: a write between forward and backward
    fails instead of giving wrong gradients. Returns what was locked. Two things escape: CuPy arrays, which have no such
    protection, and a view that somebody took before the array was locked.
    """
    global _busy
    taken = []
    with _lock_guard:
        _busy = True
        try:
            for array in arrays:
                while isinstance(array, np.ndarray):
                    lock = _locked.get(id(array))
                    if lock is None and array.flags.writeable and _may_become_writable(array):
                        lock = _locked[id(array)] = _Lock(array)
                    if lock is not None:
                        lock.holders += 1
                        taken.append(array)
                    array = array.base
        finally:
            _busy = False
        _unlock([])  # what came meanwhile
    return taken


def _may_become_writable(array: np.ndarray) -> bool:
    """Whether NumPy would make it writable again: at the bottom is an array, or something that allows it."""
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    try:
        return isinstance(owner, np.ndarray) or not memoryview(owner).readonly
    except TypeError:
        return False


def _unlock(taken: list[np.ndarray]) -> None:
    """Undoes `_lock`. The garbage collector may call this in the midst of `_lock` or of itself, in the same thread: then
    the work is left to the call that was interrupted.
    """
    global _busy
    with _lock_guard:
        _to_unlock.extend(reversed(taken))
        if _busy:
            return
        _busy = True
        try:
            while _to_unlock:
                _let_go(_to_unlock.pop(0))
        finally:
            _busy = False


def _let_go(array: np.ndarray) -> None:
    lock = _locked[id(array)]
    lock.holders -= 1
    if lock.holders == 0:
        del _locked[id(array)]
        for free in (array, *lock.waiting):
            if id(free.base) in _locked:
                _locked[id(free.base)].waiting.append(free)
            else:
                free.flags.writeable = True


def check_writable(array: Any, name: str = "this array") -> None:
    """Raises `GraphError` if a graph whose backward pass is still to come needs ``array`` as it is."""
    if id(array) in _locked:
        raise GraphError(
            f"{name} may not be changed now: it was used in a forward pass whose backward pass is still to come. "
            "Call backward() first, let go of the loss, or compute under tinyres.no_grad()."
        )


# --- the tape --------------------------------------------------------------------------------------------------------


class Node:
    """One applied operation: the ``ctx`` of its forward and backward, and its place in the graph."""

    def __init__(self, function: "type[Function]", needs: tuple[bool, ...], record: bool) -> None:
        self._taken: list[np.ndarray] = []
        self.function = function
        self.kernels: Any = dispatch.current()
        self.needs_input_grad = needs
        self.saved: tuple[Any, ...] = ()
        self.rank = 0
        self.edges: tuple[Any, ...] | None = None  # per input: a Node, a leaf tensor, or None; None once freed
        self.retained: weakref.ref | None = None  # the tensor that asked for its gradient by retain_grad()
        self.output: tuple[Any, Any] = (None, None)  # shape and dtype
        self.arrived: tuple[Any, ...] = (None,) * len(needs)  # per input, in a backward pass: see `Function`
        self.where = _caller() if getattr(_state, "anomaly", False) else ""
        self.recording = record  # whether there may be a backward pass

    def save(self, *arrays: Any) -> Any:
        """Keeps arrays for the backward pass (``ctx.saved``) and returns them, a single one as itself."""
        if self.recording:
            self._taken += _lock(arrays)
            self.saved += arrays
        return arrays[0] if len(arrays) == 1 else arrays

    def free(self) -> None:
        """Lets go of everything that the backward pass needed."""
        taken, self._taken, self.saved, self.edges = self._taken, [], (), None
        _unlock(taken)

    def __del__(self) -> None:
        if self._taken:
            self.free()


class Function:
    """An operation: ``forward(ctx, *arrays, **attributes)`` returns an array, ``backward(ctx, dy)`` the cotangents of the
    inputs (one array, or a tuple with None where none is needed).

    An operation whose backward returns only arrays that it has just made says so with ``fresh``: then what else arrives
    at an input may be added to them in place.

    Both are static. ``ctx.save(...)`` keeps what backward needs, ``ctx.saved`` gives it back, ``ctx.needs_input_grad``
    says for which inputs a cotangent is wanted, ``ctx.kernels`` is the backend. A cotangent may be lent to several
    inputs at once, so neither ``backward`` nor anyone else writes into one that it was given.

    Where the graph forks, ``ctx.arrived[i]`` is the cotangent of input i that has come from elsewhere, if it may be written
    into (else None). A backward that adds its own to that in place returns it, and nothing is left to add.
    """

    fresh = False

    @staticmethod
    def forward(ctx: Any, *arrays: Any, **attributes: Any) -> Any:
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def apply(cls, *inputs: Any, **attributes: Any) -> Any:
        """Runs ``forward`` on tensors and records it when an input requires a gradient."""
        from tinyres.tensor import Tensor

        if not all(type(t.data) is np.ndarray for t in inputs):
            check_same_device(cls.__name__, **{f"input {i}": t.data for i, t in enumerate(inputs)})
        needs = tuple(t.requires_grad for t in inputs)
        record = is_grad_enabled() and any(needs)
        node = Node(cls, needs, record)
        data = cls.forward(node, *(t.data for t in inputs), **attributes)
        if getattr(_state, "anomaly", False):
            _check_finite(data, cls, "forward pass", node.where)
        result = Tensor(np.asarray(data) if isinstance(data, np.generic) else data)  # (NumPy makes a scalar of a sum)
        if record:
            node.edges = tuple((t.node or t) if t.requires_grad else None for t in inputs)
            node.rank = 1 + max(t.node.rank if t.node else 0 for t in inputs)
            node.output = (result.shape, result.dtype)
            result.node, result.requires_grad = node, True
        return result


def backward(tensor: Any, gradient: Any = None, retain_graph: bool = False) -> None:
    """Adds the derivative of ``tensor`` by every leaf that requires a gradient to that leaf's ``.grad``.

    ``gradient`` is the cotangent to start from, of the tensor's shape; a tensor of one element needs none. The graph is
    freed on the way, unless ``retain_graph``. Raises `GraphError` for a graph that is freed or was never recorded.
    """
    gradient = _starting_cotangent(tensor, gradient)
    if tensor.node is None:
        _accumulate(tensor, gradient)
    else:
        with no_grad():
            _walk(tensor.node, gradient, retain_graph)


def _walk(last: Node, gradient: Any, retain_graph: bool) -> None:
    """From the node ``last``, whose cotangent is ``gradient``, to the leaves.

    The table of cotangents holds (array, owned). One that arrives at a node is borrowed: an addition lends the same
    array to both of its inputs. Only the result of an operation that is ``fresh`` is owned. Two that are borrowed make
    a new array, which is owned; to one that is owned, others are added in place. An engine that always added in place
    would be wrong on the smallest diamond, ``x + x``.
    """
    table: dict[Node, tuple[Any, bool]] = {last: (gradient, False)}
    order = itertools.count()  # breaks ties in the heap by order of arrival
    heap = [(-last.rank, next(order), last)]
    while heap:
        node = heapq.heappop(heap)[2]
        dy, _ = table.pop(node)
        retained = node.retained and node.retained()
        if retained is not None:
            _accumulate(retained, dy)
        owned = (table.get(edge, (None, False)) if isinstance(edge, Node) else (None, False) for edge in node.edges or ())
        node.arrived = tuple(array if may_write else None for array, may_write in owned)
        for edge, dx, arrived in zip(node.edges or (), _cotangents(node, dy), node.arrived, strict=True):
            if edge is None or (arrived is not None and dx is arrived):
                continue
            if not isinstance(edge, Node):
                _accumulate(edge, dx, node.function.fresh)
            elif edge not in table:
                table[edge] = (dx, node.function.fresh)
                heapq.heappush(heap, (-edge.rank, next(order), edge))
            else:
                table[edge] = (_sum(table[edge], (dx, node.function.fresh), node.kernels), True)
        node.arrived = ()  # a graph that is retained keeps no cotangents
        if not retain_graph:
            node.free()


def _sum(first: tuple[Any, bool], second: tuple[Any, bool], kernels: Any) -> Any:
    """The sum of two cotangents, in the place of one that is owned if there is one."""
    (total, owned), (other, _) = (first, second) if first[1] else (second, first)
    if not owned:
        return array_module(total).asarray(total + other)
    kernels.accumulate(total, other)
    return total


def _starting_cotangent(tensor: Any, gradient: Any) -> Any:
    if not tensor.requires_grad:
        raise GraphError(
            "backward() on a tensor that does not require a gradient: none of its inputs has requires_grad=True, "
            "or it was computed under no_grad() or detached."
        )
    if gradient is None:
        if tensor.data.size != 1:
            raise GraphError(
                f"backward() without a gradient needs a tensor of one element, and this one has shape {tensor.shape}. "
                "Reduce it first, for example by .sum() or .mean(), or pass the cotangent: backward(gradient)."
            )
        return array_module(tensor.data).ones_like(tensor.data)
    gradient = gradient.data if isinstance(gradient, type(tensor)) else gradient
    if hasattr(gradient, "strides"):  # an array, where a list or a number has no device
        check_same_device("backward", tensor=tensor.data, gradient=gradient)
    gradient = array_module(tensor.data).asarray(gradient)
    if gradient.shape != tensor.shape:
        raise ShapeError(f"backward: the gradient has shape {gradient.shape}, the tensor {tensor.shape}; they must agree.")
    return gradient if gradient.dtype == tensor.dtype else convert(gradient, tensor.dtype)


def _cotangents(node: Node, dy: Any) -> tuple[Any, ...]:
    """Runs one backward pass and checks what it returned."""
    name = node.function.__name__
    if node.edges is None:
        raise GraphError(
            f"backward through {name} a second time: the first backward() freed the graph. Run the forward pass again, "
            "or call the first one with retain_graph=True."
        )
    result = node.function.backward(node, dy)
    result = result if isinstance(result, tuple) else (result,)
    if len(result) != len(node.edges):
        raise GraphError(f"{name}.backward returned {len(result)} cotangents for {len(node.edges)} inputs.")
    for edge, dx in zip(node.edges, result, strict=True):
        if edge is None:
            continue
        shape, dtype = edge.output if isinstance(edge, Node) else (edge.shape, edge.dtype)
        if dx is None or dx.shape != shape or dx.dtype != dtype:
            got = "None" if dx is None else f"{dx.dtype} {dx.shape}"
            raise GraphError(f"{name}.backward returned {got} as the cotangent of an input of {dtype} {shape}.")
        if getattr(_state, "anomaly", False):
            _check_finite(dx, node.function, "backward pass", node.where)
    return result


def _accumulate(tensor: Any, gradient: Any, owned: bool = False) -> None:
    """Adds to ``tensor.grad``. The first one is copied if it may be lent to others."""
    if tensor.grad is None:
        tensor.grad = gradient if owned else array_module(gradient).array(gradient)
    else:
        tensor.grad += gradient


# --- finding a NaN ---------------------------------------------------------------------------------------------------


def _caller() -> str:
    """The innermost line outside the engine that led to the operation now running, as ``file:line, in function``."""
    for frame in reversed(traceback.extract_stack()):
        module = frame.filename.replace("\\", "/")
        if not any(part in module for part in ("tinyres/autograd", "tinyres/ops", "tinyres/functional", "tinyres/tensor")):
            return f"{frame.filename}:{frame.lineno}, in {frame.name}"
    return "an unknown place"


def _check_finite(array: Any, function: type[Function], phase: str, where: str) -> None:
    xp = array_module(array)
    if not is_floating(array.dtype) or bool(xp.isfinite(array).all()):
        return
    what = "NaN" if bool(xp.isnan(array).any()) else "infinity"
    raise NonFiniteError(
        f"{function.__name__} made a {what} in its {phase} (shape {array.shape}), called at {where or 'an unknown place'}.",
        op=function.__name__,
    )
