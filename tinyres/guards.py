"""Modes and checks around the tape: whether operations are recorded, whether every result is searched for a NaN, and
whether what a user or an operation hands to the backward walk makes sense.
"""

import functools
import inspect
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from tinyres.device import check_same_device
from tinyres.errors import GraphError, NonFiniteError, ShapeError
from tinyres.kernels.arrays import Array, array_module, convert, is_floating

# --- modes: flags of each thread -------------------------------------------------------------------------------------


class _Flags(threading.local):
    grad, anomaly = True, False
    calls: list[Any] | None = None  # the operations that were applied, with their arrays, for who asks (`tinyres.export`)


flags = _Flags()


class _Mode:
    """A context manager and decorator that gives one flag of this thread another value for a while."""

    def __init__(self, flag: str, value: bool) -> None:
        self.flag, self.value, self.before = flag, value, list[bool]()

    def __enter__(self) -> None:
        before = getattr(flags, self.flag)
        try:
            self.before.append(before)
            setattr(flags, self.flag, self.value)
        except BaseException:  # Ctrl-C, after which nobody would call `__exit__`
            setattr(flags, self.flag, before)
            raise

    def __exit__(self, *error: object) -> None:
        setattr(flags, self.flag, self.before[-1])
        self.before.pop()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isgeneratorfunction(function):
            return self._generator(function)

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with _Mode(self.flag, self.value):
                return function(*args, **kwargs)

        return wrapped

    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A generator whose body runs in this mode, while who consumes it stays in their own."""

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            generator = function(*args, **kwargs)
            resume: Callable[[], Any] = functools.partial(next, generator)
            try:
                while True:
                    with _Mode(self.flag, self.value):
                        try:
                            value = resume()
                        except StopIteration as stop:
                            return stop.value
                    try:
                        sent = yield value
                    except GeneratorExit:
                        raise
                    except BaseException as error:
                        resume = functools.partial(generator.throw, error)
                    else:
                        resume = functools.partial(generator.send, sent)
            finally:
                with _Mode(self.flag, self.value):
                    generator.close()

        return wrapped


def no_grad() -> _Mode:
    """``with no_grad():`` or ``@no_grad()``: operations inside are not recorded, and keep nothing for a backward pass."""
    return _Mode("grad", False)


def enable_grad() -> _Mode:
    """``with enable_grad():`` or ``@enable_grad()``: operations inside are recorded, within `no_grad` too."""
    return _Mode("grad", True)


def is_grad_enabled() -> bool:
    """Whether operations are being recorded in this thread."""
    return flags.grad


def detect_anomaly() -> _Mode:
    """``with detect_anomaly():`` checks every result, forward and backward, and raises `NonFiniteError` at the first NaN
    or infinity; the error names the operation and where it was called. About half the speed.
    """
    return _Mode("anomaly", True)


def is_anomaly_enabled() -> bool:
    """Whether results are being checked in this thread: see `detect_anomaly`."""
    return flags.anomaly


# --- the graph as an object ------------------------------------------------------------------------------------------


def refuse_copy(node: Any) -> NoReturn:
    """Raises `GraphError`: a node belongs to one graph, and so cannot be copied or pickled."""
    raise GraphError(
        f"the result of a recorded {node.function.__name__} cannot be deep-copied or pickled, and neither can a module that "
        "keeps one as an attribute: it belongs to a graph. Keep result.detach() instead, or compute under tinyres.no_grad()."
    )


# --- checks of one operation -----------------------------------------------------------------------------------------


def check_devices(op: str, inputs: tuple[Any, ...]) -> None:
    """Raises `DeviceError` unless the arrays of all inputs live on one device."""
    if not all(type(t.data) is np.ndarray for t in inputs):
        check_same_device(op, **{f"input {i}": t.data for i, t in enumerate(inputs)})


def check_not_freed(node: Any) -> None:
    """Raises `GraphError` if an earlier walk has let go of what the node needs."""
    if node.edges is None:
        raise GraphError(
            f"backward through {node.function.__name__} a second time: the first backward() freed the graph. Run the "
            "forward pass again, or call the first one with retain_graph=True."
        )


def check_cotangents(node: Any, cotangents: tuple[Any, ...]) -> None:
    """Raises `GraphError` unless there is one cotangent per input, of its shape and dtype, where the input needs one."""
    name, anomaly = node.function.__name__, is_anomaly_enabled()
    if len(cotangents) != len(node.edges):
        raise GraphError(f"{name}.backward returned {len(cotangents)} cotangents for {len(node.edges)} inputs.")
    for edge, dx in zip(node.edges, cotangents, strict=True):
        if edge is None:
            continue
        shape, dtype = edge.output if hasattr(edge, "output") else (edge.shape, edge.dtype)  # of a node, or of a leaf
        if dx is None or dx.shape != shape or dx.dtype != dtype:
            got = "None" if dx is None else f"{dx.dtype} {dx.shape}"
            raise GraphError(f"{name}.backward returned {got} as the cotangent of an input of {dtype} {shape}.")
        if anomaly:
            check_finite(dx, node, "backward pass")


def starting_cotangent(tensor: Any, gradient: Any) -> Array:
    """The cotangent that a backward walk from ``tensor`` starts with: ``gradient`` as an array of its shape and dtype."""
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
    gradient = gradient.data if hasattr(gradient, "requires_grad") else gradient
    if hasattr(gradient, "strides"):  # an array, where a list or a number has no device
        check_same_device("backward", tensor=tensor.data, gradient=gradient)
    gradient = array_module(tensor.data).asarray(gradient)
    if gradient.shape != tensor.shape:
        raise ShapeError(f"backward: the gradient has shape {gradient.shape}, the tensor {tensor.shape}; they must agree.")
    return gradient if gradient.dtype == tensor.dtype else convert(gradient, tensor.dtype)


# --- finding a NaN ---------------------------------------------------------------------------------------------------

ENGINE = ("tinyres/autograd", "tinyres/guards", "tinyres/ops", "tinyres/functional", "tinyres/losses", "tinyres/tensor")


def caller() -> str:
    """The innermost line outside the engine that led to the operation now running, as ``file:line, in function``."""
    for frame in reversed(traceback.extract_stack()):
        if not any(part in frame.filename.replace("\\", "/") for part in ENGINE):
            return f"{frame.filename}:{frame.lineno}, in {frame.name}"
    return "an unknown place"


def check_finite(array: Array, node: Any, phase: str) -> None:
    """Raises `NonFiniteError`, with the operation and where it was called, for a NaN or an infinity."""
    xp, op = array_module(array), node.function.__name__
    if not is_floating(array.dtype) or bool(xp.isfinite(array).all()):
        return
    what = "NaN" if bool(xp.isnan(array).any()) else "infinity"
    where = node.where or "an unknown place"
    raise NonFiniteError(f"{op} made a {what} in its {phase} (shape {array.shape}), called at {where}.", op=op)
