"""A step captured once and replayed: `capture`.

A training step spends much of its time on its way from one kernel to the next: Python looks up the operation, checks,
records the graph, launches. All of that comes out the same at every step. So the kernels of a step are recorded, once, and
from then on they are replayed as one: on a GPU as a CUDA graph, on a CPU as a list of compiled jobs. The backend brings the
recorder (``Graph``); what is here knows no device.

Python code in the function runs while the step is recorded, and never again. What would go wrong because of it is looked
for: see `tinyres.kernels.recording` for what NumPy computes in between, and `_Recording.verify`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinyres import guards
from tinyres.errors import UsageError
from tinyres.kernels import dispatch, recording
from tinyres.kernels.arrays import array_module
from tinyres.tensor import Tensor

NOT_ASKED = "not asked for"  # the reason of a function that whoever wraps it does not want to be captured
MOST = 8  # recordings that a captured function keeps in a thread, each with memory of its own
WARM_UP = 2  # runs on a GPU before the capture: they compile, allocate and fill tables; on a CPU one is enough


class Captured:
    """A function that is recorded and replayed: see `capture`.

    ``reason``: why the last call was not, nor will be, a replay; "" if it was, or if the recording is still to come.
    ``recordings``: how many have been made; more than a few say that shapes, modes or parameters change all the time.
    """

    def __init__(self, function: Callable[..., Any], reason: str = "") -> None:
        self.function, self.reason, self.recordings = function, reason, 0
        self._never = reason
        self._local = threading.local()  # each thread has recordings of its own: replays share their memory

    def __call__(self, *args: Any) -> Any:
        backend, notes = dispatch.current(), recording.active()
        self.reason = self._never or ("" if backend.graph else f"the backend {backend.name} records no graphs")
        if self.reason or notes or guards.is_anomaly_enabled() or guards.flags.calls is not None:
            return self.function(*args)
        leaves: list[Any] = []
        form = _flatten(args, leaves)
        if guards.is_grad_enabled() and any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves):
            self.reason = "an argument requires a gradient, and a replay has no graph"
            return self.function(*args)
        key = backend.name, guards.is_grad_enabled(), form
        own = self._own()
        found = next((r for r in own if r.key == key and r.fits()), None)
        if found is None:
            found = _Recording(self.function, key, backend)
        else:
            own.remove(found)
        self.recordings += found.stage == RECORD
        result = found.run(args, leaves)  # (if it raises, a recording is not finished, and is forgotten)
        self.reason = found.reason
        own.append(found)  # the one that was used last
        del own[:-MOST]
        return result

    @property
    def graph(self) -> Any:
        """The graph that the last call replayed, None if it did not."""
        last = self._own()[-1:]
        return last[0].graph if last and last[0].stage == DONE and not last[0].reason else None

    def forget(self) -> None:
        """Drops this thread's recordings, and their memory: the next calls record anew."""
        self._own().clear()

    def _own(self) -> list[_Recording]:
        if not hasattr(self._local, "recordings"):
            self._local.recordings = []
        return self._local.recordings

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return f"Captured({name}: {self.reason or f'{self.recordings} recordings'})"


def capture(function: Callable[..., Any]) -> Captured:
    """``step = tr.capture(train_step)``: a function that does what ``train_step`` does, and from its fourth call on does it
    without Python, replaying the kernels that were recorded.

    >>> def train_step(x, y):
    ...     loss = F.cross_entropy(model(x), y)
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    >>> step = tr.capture(train_step)
    >>> predict = tr.capture(model)           # under no_grad(), with the model in evaluation mode

    Arguments are tensors and arrays, which are copied into the recording's own, and numbers, strings and None, each value of
    which has a recording of its own; also in tuples, lists and dicts. The result, of tensors and arrays likewise, is **the
    recording's own memory, which the next call overwrites**: copy what is to last. Gradients stay in ``.grad``.

    Other shapes, dtypes, modes (training or evaluation, `no_grad`), another backend, a parameter whose array was replaced:
    then the function is recorded anew; ``step.recordings`` counts. What cannot be recorded runs as it is, and the reason is
    in ``step.reason``: dropout, hooks, NumPy on the way, ``.item()``, a gradient that is added to one from before the call.
    Other things that Python does in the function (a counter, ``print``) happen in the first calls alone.

    A learning rate may change from call to call: set it, or step the schedule, outside of the function.

    Raises `UsageError` for what cannot be called.
    """
    if not callable(function):
        raise UsageError(f"capture() takes a function or a module, got {type(function).__name__}")
    return Captured(function)


# --- arguments and results -------------------------------------------------------------------------------------------


def _flatten(value: Any, leaves: list[Any]) -> Any:
    """The form of nested tuples, lists and dicts of tensors and arrays, which are appended to ``leaves``."""
    if isinstance(value, Tensor):
        leaves.append(value)
        return ("tensor", value.shape, value.dtype.str, value.requires_grad)
    if hasattr(value, "strides"):
        leaves.append(value)
        return ("array", value.shape, value.dtype.str)
    if isinstance(value, tuple | list):
        return (type(value), *(_flatten(part, leaves) for part in value))
    if isinstance(value, dict):
        return (dict, *((key, _flatten(part, leaves)) for key, part in value.items()))
    return ("value", type(value), value)


def _rebuilt(value: Any, arrays: Iterator[Any]) -> Any:
    """``value`` with other arrays in the place of its own; tensors without a graph."""
    if isinstance(value, Tensor):
        return Tensor(next(arrays))
    if hasattr(value, "strides"):
        return next(arrays)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_rebuilt(part, arrays) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(_rebuilt(part, arrays) for part in value)
    if isinstance(value, dict):
        return {key: _rebuilt(part, arrays) for key, part in value.items()}
    return value


def _data(leaf: Any) -> Any:
    return leaf.data if isinstance(leaf, Tensor) else leaf


def _numbers_in(value: Any) -> bool:
    """Whether a result holds numbers, which a replay would repeat."""
    if isinstance(value, tuple | list):
        return any(map(_numbers_in, value))
    if isinstance(value, dict):
        return any(map(_numbers_in, value.values()))
    return not (value is None or isinstance(value, Tensor | str) or hasattr(value, "strides"))


# --- one recording ---------------------------------------------------------------------------------------------------

WARM, RECORD, VERIFY, DONE = range(4)


class _Recording:
    """The kernels of a call with arguments of one form, on its way from the first call to the replays."""

    def __init__(self, function: Callable[..., Any], key: Any, backend: Any) -> None:
        self.function, self.key, self.reason = function, key, ""
        self.graph: Any = backend.graph()
        self.stage, self.warm = WARM, 0
        self.notes = self._notes()
        self.inputs: list[Any] = []  # the recording's own arguments
        self.result: Any = None
        self.outputs: list[Any] = []  # the arrays of the result
        self.tensors: list[tuple[Tensor, Any, bool]] = []  # with the arrays and the flag that the recording knows
        self.gradients: list[tuple[Tensor, Any]] = []

    def _notes(self) -> recording.Notes:
        runs = self.graph.runs
        return recording.Notes(runs, self.graph.owns if runs else lambda array: True)

    def fits(self) -> bool:
        """Whether all is as it was: modules in the same mode, tensors with the same arrays."""
        for module, mode in self.notes.modules.items():
            if module.training != mode:
                return False
        for tensor, array, requires in self.tensors:
            if tensor.data is not array or tensor.requires_grad != requires:
                return False
        return all(check() for check in self.notes.checks)

    def run(self, args: Any, leaves: list[Any]) -> Any:
        if self.reason:
            self.graph, self.inputs, self.outputs, self.result = None, [], [], None  # and their memory
            return self.function(*args)
        if self.stage == WARM:
            return self._warm_up(args)
        if self.stage == RECORD:
            return self._record(args, leaves)
        for own, given in zip(self.inputs, leaves, strict=True):
            own[...] = _data(given)
        if self.stage == VERIFY:
            return self._verify(args)
        self._replay()
        return _rebuilt(self.result, iter(self.outputs))

    def _replay(self) -> None:
        for refresh in self.notes.refreshers:
            refresh()
        self.graph.replay()
        for tensor, gradient in self.gradients:
            tensor.grad = gradient

    def _warm_up(self, args: Any) -> Any:
        before = recording.begin(self.notes)  # which modules and tensors there are
        try:
            with self.graph.memory():
                result = self.function(*args)
        finally:
            recording.begin(before)
        self.warm += 1
        if self.warm >= (1 if self.graph.runs else WARM_UP):
            self.stage = RECORD
        return self._outside(result)

    def _record(self, args: Any, leaves: list[Any]) -> Any:
        tensors, self.notes = list(self.notes.leaves.values()), self._notes()
        self.inputs = [_own_copy(_data(leaf)) for leaf in leaves]
        before = recording.begin(self.notes)
        try:
            if self.graph.runs:
                given = (array.view(recording.Recorded) for array in self.inputs)
                with _watched(tensors, self.notes), self.graph.capture(self.notes, not guards.is_grad_enabled()):
                    result = self.function(*_rebuilt(args, given))
            else:
                result = self._launches(args)
        finally:
            recording.begin(before)
            self.notes.finish()
        for tensor in self.notes.leaves.values():
            tensor.grad = recording.plain(tensor.grad)
        self.reason = self.reason or self.notes.reason
        if self.reason and not self.graph.runs:  # nothing has been done yet
            return self.function(*args)
        if not self.reason:
            self._keep(result)
            if not self.graph.runs:
                self._replay()
        self.stage = VERIFY if self.graph.runs else DONE
        return self._outside(result)

    def _launches(self, args: Any) -> Any:
        """Captures what is launched on a GPU, which does not run yet."""
        try:
            with self.graph.capture():
                return self.function(*_rebuilt(args, iter(self.inputs)))
        except Exception as error:  # whatever CuPy, the driver or a kernel may raise
            self.reason = f"the capture failed: {error}"
            return None

    def _keep(self, result: Any) -> None:
        """Notes what the recording leaves behind, and all that must stay as it is."""
        if _numbers_in(result):
            self.reason = "its result holds a number, which a replay would repeat; return the tensor that it was read from"
        found: list[Any] = []
        _flatten(result, found)
        self.result, self.outputs = result, [recording.plain(_data(leaf)) for leaf in found]
        tensors = dict.fromkeys(self.notes.leaves.values())
        for module in self.notes.modules:
            tensors |= dict.fromkeys(value for value in vars(module).values() if isinstance(value, Tensor))
        self.gradients = [(tensor, tensor.grad) for tensor in tensors if tensor.grad is not None]
        self.tensors = [(tensor, tensor.data, tensor.requires_grad) for tensor in tensors]

    def _outside(self, result: Any) -> Any:
        """The result of one of the first calls, copied from memory that the recording will write to."""
        leaves: list[Any] = []
        _flatten(result, leaves)
        if any(isinstance(leaf, Tensor) and leaf.node is not None and leaf.node.edges is not None for leaf in leaves):
            self.reason = "its result still has a graph: call backward() in it, or call it under no_grad()"
        if not leaves or any(isinstance(leaf, Tensor) and leaf.node is not None for leaf in leaves if self.reason):
            return result
        return _rebuilt(result, (array_module(_data(leaf)).array(_data(leaf)) for leaf in leaves))

    def _verify(self, args: Any) -> Any:
        """Runs the function once more as it is, and the replay from the same state, in memory that was filled with NaN: all
        that both leave behind must have the same bits. What differs was computed on the way, and not by a kernel.
        """
        for refresh in self.notes.refreshers:
            refresh()
        arrays = list(self.notes.arrays.values())
        state = [array.copy() for array in arrays]
        with self.graph.memory():
            result = self.function(*args)
        found: list[Any] = []
        _flatten(result, found)
        expected, after = [_data(leaf).copy() for leaf in found], [array.copy() for array in arrays]
        try:
            _write(arrays, state)
            self.graph.poison()
            self._replay()
        except BaseException:  # Ctrl-C: the function has done its work, and that stays
            _write(arrays, after)
            raise
        same = len(expected) == len(self.outputs) and all(map(_same_bits, expected, self.outputs))
        if not (same and all(map(_same_bits, after, arrays))):
            self.reason = "a replay gives other numbers than the function: it computes something without a kernel"
            _write(arrays, after)
        self.stage = DONE
        return _rebuilt(result, iter(expected))


def _own_copy(array: Any) -> Any:
    """A copy; of images (N, C, H, W), channels-last in memory, as kernels want them."""
    copy = array_module(array).array(array, order="C")
    if copy.ndim == 4 and copy.dtype.kind == "f":
        copy = array_module(copy).ascontiguousarray(copy.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return copy


@contextmanager
def _watched(tensors: list[Tensor], notes: recording.Notes) -> Iterator[None]:
    """A block in which the arrays of these tensors tell who computes with them."""
    arrays = [(tensor, tensor.data, tensor.data.view(recording.Recorded)) for tensor in tensors]
    for tensor, _, view in arrays:
        tensor.data = view
    try:
        yield
    finally:
        for tensor, array, view in arrays:
            if tensor.data is view:
                tensor.data = array
            else:
                tensor.data = recording.plain(tensor.data)
                notes.refuse("a tensor was given another array in it")


def _write(targets: list[Any], values: list[Any]) -> None:
    for target, value in zip(targets, values, strict=True):
        if target.flags.writeable:
            target[...] = value


def _same_bits(a: Any, b: Any) -> bool:
    return (
        a.shape == b.shape and a.dtype == b.dtype and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    )
