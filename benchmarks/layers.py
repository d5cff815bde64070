"""Each kernel of the contract at the layers of the CIFAR networks, beside PyTorch's, interleaved.

FLOPs and bytes are those of `tinyres.kernels.costs`, so that every row of a case is divided by the same numbers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import tinyres as tr
from tinyres.benchmarks import fresh, machine, peers, timing
from tinyres.kernels import dispatch
from tinyres.kernels.arrays import channels_first, threads
from tinyres.kernels.costs import cost

EPS = 1e-5
Run = Callable[[], object]


class Case(NamedTuple):
    """A kernel call: ``args`` are for ours; ``torch``, if PyTorch has such a function, makes it for a memory format."""

    name: str
    kernel: str
    args: tuple[Any, ...]
    torch: Callable[[Any], Run] | None


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
        (3, 16, 32, 3, 1),
        (16, 16, 32, 3, 1),
        (16, 32, 32, 3, 2),
        (32, 32, 16, 3, 1),
        (32, 64, 16, 3, 2),
        (64, 64, 8, 3, 1),
        (16, 64, 32, 1, 1),
        (64, 16, 32, 1, 1),
        (256, 64, 8, 1, 1),
        (64, 128, 32, 1, 2),
    ]
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
            kernel = "batch_norm_add_relu" if joined else "batch_norm"
            args = (x, residual, weight, bias, EPS) if joined else (x, weight, bias, EPS, True)
            cases.append(Case(title, kernel, args, partial(forward, joined)))
            args = (dy, x, y, weight, mean, var, EPS, True)
            cases.append(Case(f"{title} dx", f"{kernel}_backward", args, partial(backward, joined)))

        def inference(joined: bool, layout: Any, x: Any = x, r: Any = residual, v: Any = (mean, var, weight, bias)) -> Run:
            tx, tr_, vectors = _t(x, layout), _t(r, layout), [_t(a) for a in v]

            def run() -> object:
                z = F.batch_norm(tx, *vectors, False, 0.1, EPS)
                return F.relu_(z.add_(tr_) if joined else z)

            return run

        args = (x, weight, bias, mean, var, EPS, True)
        cases.append(Case(f"bn relu {c} {h}x{h} eval", "batch_norm_inference", args, partial(inference, False)))
        args = (x, residual, weight, bias, mean, var, EPS)
        cases.append(Case(f"bn add relu {c} {h}x{h} eval", "batch_norm_add_relu_inference", args, partial(inference, True)))
    return cases


def others(batch: int) -> list[Case]:
    """The join, the fork and the ReLU alone, global pooling and the shortcut, each forward and backward."""
    import contextlib

    with contextlib.suppress(ImportError):
        import torch
        import torch.nn.functional as F
    rng = np.random.default_rng(2)
    x, r, last = _image(rng, batch, 16, 32), _image(rng, batch, 16, 32), _image(rng, batch, 64, 8)
    pooled, half = rng.standard_normal((batch, 64), np.float32), _image(rng, batch, 32, 16)

    def join(layout: Any) -> Run:
        tx, ty = _t(x, layout), _t(r, layout)
        return lambda: F.relu_(tx + ty)

    def fork(layout: Any) -> Run:
        tx, ty = _t(x.copy("K"), layout), _t(r, layout)
        return lambda: tx.add_(ty)

    def relu(layout: Any) -> Run:
        tx = _t(x, layout)
        return lambda: F.relu(tx)

    def relu_backward(layout: Any) -> Run:
        td, ty = _t(x, layout), _t(r, layout)
        return lambda: torch.ops.aten.threshold_backward(td, ty, 0)

    def pool(layout: Any) -> Run:
        tl = _t(last, layout)
        return lambda: F.adaptive_avg_pool2d(tl, 1)

    def pool_backward(layout: Any) -> Run:
        tl, td = _t(last, layout), _t(pooled)[:, :, None, None]
        return lambda: torch.ops.aten._adaptive_avg_pool2d_backward(td, tl)

    def shortcut(layout: Any) -> Run:
        tx = _t(x, layout)
        return lambda: F.pad(tx[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))

    def shortcut_backward(layout: Any) -> Run:
        tx, td = _t(x, layout), _t(half, layout)

        def run() -> object:
            dx = torch.zeros_like(tx)
            dx[:, :, ::2, ::2] = td[:, 8:24]
            return dx

        return run

    return [
        Case("add relu 16 32x32", "add_relu", (x, r), join),
        Case("fork 16 32x32", "accumulate", (x.copy("K"), r), fork),
        Case("relu 16 32x32", "relu", (x,), relu),
        Case("relu 16 32x32 dx", "relu_backward", (x, r), relu_backward),
        Case("global pool 64 8x8", "global_avg_pool2d", (last,), pool),
        Case("global pool 64 8x8 dx", "global_avg_pool2d_backward", (pooled, last.shape), pool_backward),
        Case("shortcut A 16-32 32x32", "subsample_pad", (x, 32, 2), shortcut),
        Case("shortcut A 16-32 32x32 dx", "subsample_pad_backward", (half, x.shape, 2), shortcut_backward),
    ]


def ends(batch: int) -> list[Case]:
    """What comes before and after the blocks: crop and flip, the linear layer, cross-entropy, and the update."""
    import contextlib

    with contextlib.suppress(ImportError):
        import torch
        import torch.nn.functional as F
    rng = np.random.default_rng(3)
    x, w, b, dy = (rng.standard_normal(shape, np.float32) for shape in ((batch, 64), (10, 64), (10,), (batch, 10)))
    labels = rng.integers(0, 10, batch)
    log_probs = dy - np.log(np.exp(dy).sum(axis=1, keepdims=True))
    shapes = [p.shape for p in tr.models.resnet20().parameters()]
    params, grads, buffers = ([rng.standard_normal(s, np.float32) for s in shapes] for _ in range(3))
    images = rng.integers(0, 256, (batch, 3, 32, 32), np.uint8)
    moves = rng.integers(0, 9, (batch, 2)), rng.integers(0, 2, batch).astype(bool)
    mean, scale = np.full((3, 32, 32), 0.5, np.float32), np.full((3, 32, 32), 4, np.float32)

    def product(run: Callable[..., Any]) -> Callable[[Any], Run]:
        def make(layout: Any) -> Run:
            tensors = [_t(a) for a in (x, w, b, dy)]
            return lambda: run(*tensors)

        return make

    def loss(layout: Any) -> Run:
        tl, ty = _t(dy), _t(labels)
        return lambda: F.cross_entropy(tl, ty)

    def loss_backward(layout: Any) -> Run:
        tl, ty, one, count = _t(log_probs), _t(labels), torch.tensor(1.0), torch.tensor(float(batch))

        def run() -> object:
            d = torch.ops.aten.nll_loss_backward(one, tl, ty, None, 1, -100, count)
            return torch.ops.aten._log_softmax_backward_data(d, tl, 1, torch.float32)

        return run

    def update(layout: Any) -> Run:
        tensors = [torch.nn.Parameter(_t(p).clone()) for p in params]
        for tensor, g in zip(tensors, grads, strict=True):
            tensor.grad = _t(g).clone()
        return torch.optim.SGD(tensors, lr=0.0, momentum=0.9, weight_decay=1e-4).step

    return [
        Case("crop and flip", "crop_flip", (images, *moves, 4, mean, scale), None),
        Case("linear 64-10", "linear", (x, w, b), product(lambda x, w, b, dy: F.linear(x, w, b))),
        Case("linear 64-10 dx", "linear_backward_input", (dy, w), product(lambda x, w, b, dy: dy @ w)),
        Case("linear 64-10 dw", "linear_backward_weight", (dy, x), product(lambda x, w, b, dy: dy.T @ x)),
        Case("linear 64-10 db", "linear_backward_bias", (dy,), product(lambda x, w, b, dy: dy.sum(0))),
        Case("cross-entropy", "cross_entropy_mean", (dy, labels, 0.0), loss),
        Case("cross-entropy dx", "cross_entropy_mean_backward", (np.ones((), "f4"), log_probs, labels, 0.0), loss_backward),
        Case("sgd resnet20", "sgd", (params, grads, buffers, 0.0, 0.9, 1e-4, False), update),
    ]


def cases(batch: int) -> list[Case]:
    """Each kernel that training or evaluating a ResNet-20 or ResNet-56 calls, at the layers of these networks."""
    return [*convolutions(batch), *norms(batch), *others(batch), *ends(batch)]


def measure(
    batch: int,
    case: str,
    backends: list[str],
    rounds: int,
    layouts: list[str],
    compiled: bool,
    into: timing.Timed | None = None,
) -> timing.Timed:
    """The times of each row of one case, in this process; ``layouts`` are PyTorch's memory formats."""
    return _measure(next(c for c in cases(batch) if c.name == case), backends, rounds, layouts, compiled, into)


def _measure(
    case: Case, backends: list[str], rounds: int, layouts: list[str], compiled: bool, into: timing.Timed | None
) -> timing.Timed:
    runs: dict[str, Run] = {name: _kernel(case, name) for name in backends}
    if case.torch and layouts:
        import torch

        torch.set_num_threads(threads())
        runs |= {LAYOUTS[layout]: case.torch(getattr(torch, layout)) for layout in layouts}
        if compiled:
            runs["torch compile channels_last"] = peers.compiled(case.torch(torch.channels_last))
    with tr.strict():
        return timing.interleaved(runs, rounds, 0.01, into)


def _kernel(case: Case, backend: str) -> Run:
    with tr.use_backend(backend):
        kernel = getattr(dispatch.current(), case.kernel)
    return partial(kernel, *case.args)


LAYOUTS = {"contiguous_format": "torch nchw", "channels_last": "torch channels_last"}


def run(
    batch: int,
    backends: list[str],
    rounds: int,
    with_torch: bool,
    compiled: bool,
    processes: int | None = None,
    say: Callable[[str], None] = print,
    keep: Callable[[dict[str, Any]], object] = lambda result: None,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The result of ``tinyres bench ops`` as a dict for JSON; the other arguments are those of `steps.run`."""
    result = machine.result("ops", about, batch=batch, rounds=rounds, processes=processes, rows=[])
    layouts = list(LAYOUTS) if with_torch and peers.installed() else []
    for case in cases(batch):
        with tr.strict():
            flops, moved = cost(case.kernel, case.args, _kernel(case, backends[0])())
        timed = timing.Timed.nothing()
        try:
            if processes:
                one = {"batch": batch, "case": case.name, "backends": backends, "rounds": rounds}
                one |= {"layouts": layouts, "compiled": compiled}
                timing.in_processes(processes, lambda one=one: timing.Timed(*fresh.call("layers", "measure", **one)), timed)
            else:
                _measure(case, backends, rounds, layouts, compiled, timed)
        finally:
            rows = _rows(case, timed.complete(), flops, moved)
            result["rows"] += rows
            keep(result)
        for row in rows:
            say(line(row))
    result["complete"] = True
    keep(result)
    return result


def _rows(case: Case, timed: timing.Timed, flops: int, moved: int) -> list[dict[str, Any]]:
    best, rows = timing.best(timed.seconds, [name for name in timed.seconds if peers.is_peer(name)]), []
    for row in map(partial(timing.summary, timed, best=best), timed.seconds):
        work = {"flops": flops, "bytes": moved}
        rates = {"gflops": flops / row["median_seconds"] / 1e9, "gb_per_s": moved / row["median_seconds"] / 1e9}
        rows.append({"case": case.name, "kernel": case.kernel, **row, **work, **rates})
    return rows


HEADER = (
    f"{'case':26} {'':28} {'ms':>8} {'quartiles':>17} {'GFLOP/s*':>8} {'GB/s':>6} {'x best peer':>11} {'95 % interval':>13} "
    f"{'first s':>7}\n* {machine.GFLOPS}"
)


def line(row: dict[str, Any]) -> str:
    """One row of the table under `HEADER`."""
    low, high = (f"{1e3 * s:.3f}" for s in row["quartile_seconds"])
    return (
        f"{row['case']:26} {row['row']:28} {1e3 * row['median_seconds']:8.3f} {f'{low} - {high}':>17} {row['gflops']:8.1f} "
        f"{row['gb_per_s']:6.1f} {timing.ratio_text(row)} {row['first_seconds']:7.3f}"
    )
