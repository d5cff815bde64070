"""Each kernel of the contract at the layers of the CIFAR networks, beside PyTorch's, interleaved.

FLOPs and bytes are those of `tinyres.kernels.costs`, so that every row of a case is divided by the same numbers."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import tinyres as tr
from tinyres.benchmarks import machine, peers, timing
from tinyres.kernels import dispatch
from tinyres.kernels.arrays import channels_first
from tinyres.kernels.costs import cost

EPS = 1e-5
Run = Callable[[], object]


class Case(NamedTuple):
    """A kernel call: ``args`` for ours, ``torch`` makes PyTorch's function from (memory format)."""

    name: str
    kernel: str
    args: tuple[Any, ...]
    torch: Callable[[Any], Run]


def _image(rng: np.random.Generator, n: int, c: int, h: int) -> Any:
    return channels_first(rng.standard_normal((n, h, h, c), np.float32))


def _t(array: Any, layout: Any = None) -> Any:
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.contiguous(memory_format=layout) if layout is not None and tensor.ndim == 4 else tensor


def convolutions(batch: int) -> list[Case]:
    """Forward, input gradient and weight gradient of each kind of layer."""
    rng, cases = np.random.default_rng(0), []
    shapes = [  # C, F, map, kernel, stride
        (3, 16, 32, 3, 1), (16, 16, 32, 3, 1), (16, 32, 32, 3, 2), (32, 32, 16, 3, 1), (32, 64, 16, 3, 2),
        (64, 64, 8, 3, 1), (16, 64, 32, 1, 1), (64, 16, 32, 1, 1), (256, 64, 8, 1, 1), (64, 128, 32, 1, 2),
    ]  # fmt: skip
    for c, f, h, k, s in shapes:
        x, w = _image(rng, batch, c, h), rng.standard_normal((f, c, k, k), np.float32)
        dy = _image(rng, batch, f, h // s)
        geometry = ((s, s), (k // 2, k // 2), (1, 1), 1)
        args: tuple[Any, ...]
        title = f"{k}x{k}{f'/{s}' if s > 1 else ''} {c}-{f} {h}x{h}"

        def forward(layout: Any, x: Any = x, w: Any = w, geometry: Any = geometry) -> Run:
            import torch.nn.functional as F

            tx, tw = _t(x, layout), _t(w, layout)
            return lambda: F.conv2d(tx, tw, None, *geometry)

        def gradient(which: int, layout: Any, x: Any = x, w: Any = w, dy: Any = dy, g: Any = geometry) -> Run:
            import torch

            td, tx, tw, mask = _t(dy, layout), _t(x, layout), _t(w, layout), [which == 0, which == 1, False]
            run = torch.ops.aten.convolution_backward
            return lambda: run(td, tx, tw, None, list(g[0]), list(g[1]), list(g[2]), False, [0, 0], 1, mask)

        cases.append(Case(f"conv {title}", "conv2d", (x, w, *geometry), forward))
        if c > 3:
            args = (dy, w, x.shape, *geometry)
            cases.append(Case(f"conv {title} dx", "conv2d_backward_input", args, partial(gradient, 0)))
        args = (dy, x, w.shape, *geometry)
        cases.append(Case(f"conv {title} dw", "conv2d_backward_weight", args, partial(gradient, 1)))
    return cases


def norms(batch: int) -> list[Case]:
    """Batch norm with ReLU and with the join, and their backward passes; PyTorch's as its users write them."""
    import contextlib

    with contextlib.suppress(ImportError):
        import torch
        import torch.nn.functional as F
    rng, cases = np.random.default_rng(1), []
    args: tuple[Any, ...]
    for c, h in ((16, 32), (32, 16), (64, 8)):
        x, residual, dy = (_image(rng, batch, c, h) for _ in range(3))
        weight, bias = np.ones(c, np.float32), np.zeros(c, np.float32)
        mean, var = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
        y = np.maximum(x + residual, 0)

        def forward(joined: bool, layout: Any, x: Any = x, r: Any = residual, v: Any = (weight, bias)) -> Run:
            tx, tr_, (tw, tb) = _t(x, layout), _t(r, layout), (_t(a) for a in v)
            mean, var = torch.zeros(len(tw)), torch.ones(len(tw))

            def run() -> object:
                z = F.batch_norm(tx, mean, var, tw, tb, True, 0.1, EPS)
                return F.relu_(z.add_(tr_) if joined else z)

            return run

        def backward(joined: bool, layout: Any, dy: Any = dy, x: Any = x, y: Any = y, v: Any = (weight, mean, var)) -> Run:
            td, tx, ty, (tw, tm, tv) = _t(dy, layout), _t(x, layout), _t(y, layout), (_t(a) for a in v)
            rstd = 1 / torch.sqrt(tv + EPS)

            def run() -> object:
                dz = torch.ops.aten.threshold_backward(td, ty, 0)
                dx = torch.ops.aten.native_batch_norm_backward(dz, tx, tw, tm, tv, tm, rstd, True, EPS, [True] * 3)
                return dx, dz

            return run

        for joined in (False, True):
            title = f"bn {'add ' if joined else ''}relu {c} {h}x{h}"
            args = (x, weight, bias, EPS, residual if joined else None, True)
            cases.append(Case(title, "batch_norm", args, partial(forward, joined)))
            args = (dy, x, y, weight, mean, var, EPS, True, joined)
            cases.append(Case(f"{title} dx", "batch_norm_backward", args, partial(backward, joined)))
    return cases


def others(batch: int) -> list[Case]:
    """The join and the ReLU alone, global pooling, the shortcut, cross-entropy, and the update of ResNet-20."""
    import contextlib

    with contextlib.suppress(ImportError):
        import torch
        import torch.nn.functional as F
    rng = np.random.default_rng(2)
    x, r, last = _image(rng, batch, 16, 32), _image(rng, batch, 16, 32), _image(rng, batch, 64, 8)
    logits, labels = rng.standard_normal((batch, 10), np.float32), rng.integers(0, 10, batch)
    shapes = [p.shape for p in tr.models.resnet20().parameters()]
    params, grads, buffers = ([rng.standard_normal(s, np.float32) for s in shapes] for _ in range(3))

    def join(layout: Any) -> Run:
        tx, ty = _t(x, layout), _t(r, layout)
        return lambda: F.relu_(tx + ty)

    def relu_backward(layout: Any) -> Run:
        td, ty = _t(x, layout), _t(r, layout)
        return lambda: torch.ops.aten.threshold_backward(td, ty, 0)

    def pool(layout: Any) -> Run:
        tl = _t(last, layout)
        return lambda: F.adaptive_avg_pool2d(tl, 1)

    def shortcut(layout: Any) -> Run:
        tx = _t(x, layout)
        return lambda: F.pad(tx[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))

    def loss(layout: Any) -> Run:
        tl, ty = _t(logits), _t(labels)
        return lambda: F.cross_entropy(tl, ty)

    def update(layout: Any) -> Run:
        tensors = [torch.nn.Parameter(_t(p).clone()) for p in params]
        for tensor, g in zip(tensors, grads, strict=True):
            tensor.grad = _t(g).clone()
        return torch.optim.SGD(tensors, lr=0.0, momentum=0.9, weight_decay=1e-4).step

    return [
        Case("add relu 16 32x32", "add_relu", (x, r), join),
        Case("relu 16 32x32 dx", "relu_backward", (x, r), relu_backward),
        Case("global pool 64 8x8", "global_avg_pool2d", (last,), pool),
        Case("shortcut A 16-32 32x32", "subsample_pad", (x, 32, 2), shortcut),
        Case("cross-entropy", "cross_entropy", (logits, labels, 0.0), loss),
        Case("sgd resnet20", "sgd", (params, grads, buffers, 0.0, 0.9, 1e-4, False), update),
    ]


def run(
    batch: int, backends: list[str], rounds: int, with_torch: bool, compiled: bool, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """The result of ``tinyres bench ops`` as a dict for JSON; ``say`` is told each line as it is ready."""
    rows: list[dict[str, Any]] = []
    layouts: dict[str, Any] = {}
    if with_torch and peers.installed():
        import torch

        from tinyres.kernels.arrays import threads

        torch.set_num_threads(threads())
        layouts = {"torch nchw": torch.contiguous_format, "torch channels_last": torch.channels_last}
    for case in (*convolutions(batch), *norms(batch), *others(batch)):
        runs: dict[str, Run] = {}
        for name in backends:
            with tr.use_backend(name):
                kernel = getattr(dispatch.current(), case.kernel)
            runs[name] = partial(kernel, *case.args)
        runs |= {name: case.torch(layout) for name, layout in layouts.items()}
        if layouts and compiled:
            runs["torch compile channels_last"] = peers.compiled(case.torch(torch.channels_last))
        with tr.strict():
            flops, moved = cost(case.kernel, case.args, runs[backends[0]]())
            seconds = timing.interleaved(runs, rounds, shortest=0.01)
        best = timing.best(seconds, [name for name in seconds if name.startswith("torch")]) if layouts else None
        for name, times in seconds.items():
            middle = median(times)
            rows.append({
                "case": case.name, "kernel": case.kernel, "row": name, "median_seconds": middle, "flops": flops,
                "bytes": moved, "gflops": flops / middle / 1e9, "gb_per_s": moved / middle / 1e9,
                "times_best_peer": timing.ratio(seconds[best], times) if best else None,
            })  # fmt: skip
            say(line(rows[-1]))
    return {"benchmark": "ops", "batch": batch, "machine": machine.describe(), "limits": machine.limits(),
            "rounds": rounds, "rows": rows}  # fmt: skip


HEADER = f"{'case':26} {'':28} {'ms':>8} {'GFLOP/s':>8} {'GB/s':>6} {'x best peer':>11}"


def line(row: dict[str, Any]) -> str:
    """One row of the table under `HEADER`."""
    times = f"{row['times_best_peer']:.2f}" if row["times_best_peer"] else "-"
    return (f"{row['case']:26} {row['row']:28} {1e3 * row['median_seconds']:8.3f} {row['gflops']:8.1f} "
            f"{row['gb_per_s']:6.1f} {times:>11}")  # fmt: skip
