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

from tinyres.kernels import dispatch
from tinyres.kernels.contract import NAMES
from tinyres.kernels.costs import cost


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

    def table(self, *what: str) -> str:
        """A table as text: milliseconds, share of the block, calls, GFLOP/s and GB/s; at the end, the time in no kernel.

        FLOPs are those of direct convolution, whatever the algorithm (`tinyres.kernels.costs`).
        """
        rows = {"  ".join(key): record for key, record in self.by(*(what or ("kernel",))).items()}
        if not self.seconds:
            return "nothing was measured: no kernel ran inside the profile"
        width = max(map(len, [*rows, "in no kernel"]))
        lines = [f"{'':{width}}       ms  share  calls GFLOP/s*   GB/s"]
        for name, r in rows.items():
            rate = max(r.seconds, 1e-12) * 1e9
            lines.append(
                f"{name:{width}} {1e3 * r.seconds:8.2f} {r.seconds / self.seconds:6.1%} {r.calls:6d} "
                f"{r.flops / rate:8.1f} {r.bytes / rate:6.1f}"
            )
        rest = self.seconds - sum(r.seconds for r in rows.values())
        lines.append(f"{'in no kernel':{width}} {1e3 * rest:8.2f} {rest / self.seconds:6.1%}")
        lines.append("* direct-convolution equivalent: Winograd multiplies less than is counted")
        return "\n".join(lines)
