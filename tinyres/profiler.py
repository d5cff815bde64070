"""Where the time of a training step goes: by kernel and by layer, forward and backward, with FLOPs and bytes.

    with tr.profile(model) as p:
        step()
    print(p.table())

Every operation asks the backend for its kernels, and its node keeps that backend for the backward pass. So the profiler
installs a backend that measures, a separate one for each layer; hooks on the modules say which layer is running.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from tinyres import markup
from tinyres.kernels import dispatch
from tinyres.kernels.contract import NAMES
from tinyres.kernels.costs import cost

NOTHING = "nothing was measured: no kernel ran inside the profile"
MOST_LINES = 20  # of a repr


class Record:
    """Sums over the calls of one kernel in one layer: ``seconds``, ``calls``, ``flops``, ``bytes``."""

    def __init__(self) -> None:
        self.seconds, self.calls, self.flops, self.bytes = 0.0, 0, 0, 0

    def __iadd__(self, other: "Record") -> "Record":
        self.seconds += other.seconds
        self.calls += other.calls
        self.flops += other.flops
        self.bytes += other.bytes
        return self


class _Measuring:
    """A backend that measures each call of its kernels under the name of one layer."""

    def __init__(self, inner: Any, layer: str, records: dict[tuple[str, str], Record]) -> None:
        self.name, self.device, self.graph = inner.name, inner.device, inner.graph
        for kernel in NAMES:
            setattr(self, kernel, self._measured(kernel, getattr(inner, kernel), records[layer, kernel]))

    @staticmethod
    def _measured(kernel: str, run: Callable[..., Any], record: Record) -> Callable[..., Any]:
        def measured(*args: Any) -> Any:
            start = time.perf_counter()
            result = run(*args)
            record.seconds += time.perf_counter() - start
            flops, moved = cost(kernel, args, result)
            record.calls, record.flops, record.bytes = record.calls + 1, record.flops + flops, record.bytes + moved
            return result

        return measured


class profile:
    """A context that measures every kernel called inside it; with a ``model``, by layer. It can be entered many times.

    Afterwards ``records`` maps (layer, kernel) to a `Record`, ``seconds`` is the time spent inside, and ``by("kernel")``,
    ``by("layer", "pass")`` and ``table(...)`` add it up.
    """

    def __init__(self, model: Any = None) -> None:
        self.model = model
        self.records: dict[tuple[str, str], Record] = defaultdict(Record)
        self.seconds = 0.0
        self._backends: dict[tuple[str, str], Any] = {}  # by name of the backend and layer

    def __enter__(self) -> "profile":
        self._inner = dispatch.current()
        self._path, self._handles = ["(no layer)"], []
        for name, module in self.model.named_modules() if self.model is not None else ():
            if name and not any(True for _ in module.children()):
                self._handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
                self._handles.append(module.register_forward_hook(lambda *_: self._leave()))
        self._block = dispatch.using(self._inner)
        self._in_use = self._block.__enter__()
        self._use(self._path[-1])
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._start
        self._block.__exit__(None, None, None)
        for handle in self._handles:
            handle.remove()

    def _enter(self, layer: str) -> None:
        self._path.append(layer)
        self._use(layer)

    def _leave(self) -> None:
        self._path.pop()
        self._use(self._path[-1])

    def _use(self, layer: str) -> None:
        key = self._inner.name, layer
        if key not in self._backends:
            self._backends[key] = _Measuring(self._inner, layer, self.records)
        self._in_use[-1] = self._backends[key]

    def by(self, *what: str) -> dict[tuple[str, ...], Record]:
        """Sums by "kernel", "layer" and "pass" (forward, backward or update), in any combination; the longest first."""
        sums: dict[tuple[str, ...], Record] = defaultdict(Record)
        for (layer, kernel), record in self.records.items():
            which = "backward" if "backward" in kernel else "update" if kernel == "sgd" else "forward"
            if record.calls:
                sums[tuple({"layer": layer, "kernel": kernel, "pass": which}[w] for w in what)] += record
        return dict(sorted(sums.items(), key=lambda item: -item[1].seconds))

    def _cells(self, *what: str) -> list[tuple[str, ...]]:
        """The rows of the table as texts; the last is the time in no kernel."""
        lines, rest = [], self.seconds
        for key, r in self.by(*(what or ("kernel",))).items():
            rates = (f"{amount / max(r.seconds, 1e-12) / 1e9:.1f}" for amount in (r.flops, r.bytes))
            lines.append(("  ".join(key), f"{1e3 * r.seconds:.2f}", f"{r.seconds / self.seconds:.1%}", f"{r.calls}", *rates))
            rest -= r.seconds
        return [*lines, ("in no kernel", f"{1e3 * rest:.2f}", f"{rest / self.seconds:.1%}", "", "", "")]

    def table(self, *what: str) -> str:
        """A table as text: milliseconds, share of the block, calls, GFLOP/s and GB/s; at the end, the time in no kernel.

        FLOPs are those of direct convolution, whatever the algorithm (`tinyres.kernels.costs`).
        """
        if not self.seconds:
            return NOTHING
        rows = self._cells(*what)
        width = max(len(name) for name, *_ in rows)
        lines = [f"{'':{width}}       ms  share  calls GFLOP/s*   GB/s"]
        for name, ms, share, calls, flops, moved in rows:
            lines.append(f"{name:{width}} {ms:>8} {share:>6} {calls:>6} {flops:>8} {moved:>6}".rstrip())
        lines.append("* direct-convolution equivalent: Winograd multiplies less than is counted")
        return "\n".join(lines)

    def __repr__(self) -> str:
        lines = [f"profile of {self._of()}, {self.seconds:.3g} s:", *self.table().splitlines()]
        if len(lines) > MOST_LINES:
            lines[MOST_LINES - 3 : -2] = [f"... and {len(lines) - MOST_LINES + 1} kernels more: see table() and by()"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        if not self.seconds:
            return f"<p>{NOTHING}</p>"
        *rows, rest = self._cells()
        heads = (f"{self._of()}, by kernel", "ms", "share", "calls", "GFLOP/s (direct-convolution equivalent)", "GB/s")
        return markup.table(heads, rows, rest)

    def _of(self) -> str:
        return type(self.model).__name__ if self.model is not None else "all that ran"
