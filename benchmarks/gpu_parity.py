"""Parity on the device: each kernel, and whole training steps, against references in float64 and against PyTorch.

Errors are relative, in norm: |ours - reference| / |reference|. They are reported and not judged: in float32, and more so in
TF32, a single ReLU that switches moves a gradient by 1e-3, and from the second step on the weights are not the same.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import tinyres as tr
from tinyres.benchmarks import gpu_peers, layers, peers
from tinyres.benchmarks.gpu_run import Run
from tinyres.kernels import reference

LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4
MEAN, SCALE = 0.5, 4.0  # of the images: uniform noise becomes numbers from -2 to 2


def kernels(one: Run) -> list[dict[str, Any]]:
    """The relative error of each kernel against the reference in float64, and PyTorch's on the CPU beside it."""
    rows = []
    for case in one.in_time("parity", layers.cases(one.plan.batch)):
        wide = [_widen(a) for a in case.args]
        expected = getattr(reference, case.kernel)(*wide)
        args = one.upload(list(case.args))
        got = getattr(one.kernels, case.kernel)(*args)
        if case.kernel in ("sgd", "accumulate"):  # these work in place
            expected, got = wide[0], args[0]
        row = {"case": case.name, "kernel": case.kernel, "error": _error(got, expected)}
        if case.torch and case.kernel.startswith("conv2d") and peers.installed():
            theirs = case.torch(None)()
            theirs = next(t for t in theirs if t is not None) if isinstance(theirs, tuple) else theirs
            row["error_of_torch"] = _error(theirs.numpy(), expected)
        rows.append(row)
        one.say(f"{case.name:28} {row['error']:.1e}")
    return rows


def _widen(value: Any) -> Any:
    if isinstance(value, list):
        return [_widen(v) for v in value]
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value


def _error(got: Any, expected: Any) -> float:
    """The relative error, the largest over several results; a NaN is an infinite error."""
    if isinstance(expected, tuple | list):
        return max(_error(g, e) for g, e in zip(got, expected, strict=True) if e is not None)
    host = got.get() if hasattr(got, "get") else np.asarray(got)
    error = np.linalg.norm((host - expected).ravel()) / max(np.linalg.norm(np.ravel(expected)), 1e-30)
    return float(error) if np.isfinite(error) else float("inf")


# --- whole steps -----------------------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """What some training steps give, as NumPy arrays; parameters in our order."""

    losses: list[float]
    gradients: list[np.ndarray]  # of the first step
    parameters: list[np.ndarray]  # after the last one


class Data(NamedTuple):
    images: np.ndarray  # (batch * steps, 3, 32, 32), uint8, random
    labels: np.ndarray
    batch: int

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """In float64, normalised."""
        for i in range(0, len(self.images), self.batch):
            part = slice(i, i + self.batch)
            yield (self.images[part] / 255 - MEAN) * SCALE, self.labels[part]


def steps(one: Run) -> dict[str, Any]:
    """Some training steps of a network from the same weights and batches: ours on the device with exact products and with
    TF32, and PyTorch's in float32, each against PyTorch in float64 and against our NumPy path in float64.
    """
    name, batch, count = one.plan.parity
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (batch * count, 3, 32, 32), np.uint8), rng.integers(0, 10, batch * count)
    data, torch = Data(images, labels, batch), peers.installed()
    oracles = {"NumPy float64": lambda: _plain(name, data)}
    runs: dict[str, Callable[[], Trained]] = {
        f"{one.backend} exact": lambda: _ours(one, name, data, tf32=False),
        f"{one.backend} TF32": lambda: _ours(one, name, data, tf32=True),
    }
    if torch:
        oracles = {"PyTorch float64": lambda: _torch(name, data, "float64", "cpu"), **oracles}
        runs["PyTorch float32, CPU"] = lambda: _torch(name, data, "float32", "cpu")
    if gpu_peers.available():
        runs["PyTorch TF32, GPU"] = lambda: _torch(name, data, "float32", "cuda")
    expected = {oracle: run() for oracle, run in oracles.items()}
    rows = []
    one.say(HEADER)
    for row in one.in_time("parity of steps", list(runs)):
        got = runs[row]()
        for oracle, wanted in expected.items():
            rows.append({"row": row, "against": oracle, **_distances(name, got, wanted)})
            one.say(line(rows[-1]))
    return {"model": name, "batch": batch, "steps": count, "rows": rows}


HEADER = f"{'':22} {'against':16} {'losses':>9} {'gradient':>9} {'largest':>9} {'parameters':>10} {'largest':>9}"


def line(row: dict[str, Any]) -> str:
    """A row of `steps` under `HEADER`: the largest error of a loss; of the first gradient and of the parameters at the end,
    as a whole and of the worst array.
    """
    return (
        f"{row['row']:22} {row['against']:16} {max(row['losses']):9.1e} {row['gradient']:9.1e} "
        f"{row['worst_gradient']:9.1e} {row['parameters']:10.1e} {row['worst_parameter']:9.1e}"
    )


def _distances(name: str, got: Trained, wanted: Trained) -> dict[str, Any]:
    """Relative errors: each step's loss; gradients and parameters as one vector each, and the worst array's."""
    names = [key for key, _ in _network(name).named_parameters()]

    def errors(a: list[np.ndarray], b: list[np.ndarray]) -> tuple[float, float, str]:
        each = [_error(x, y) for x, y in zip(a, b, strict=True)]
        whole = _error(*(np.concatenate([array.ravel() for array in arrays]) for arrays in (a, b)))
        return whole, max(each), names[int(np.argmax(each))]

    gradient, worst_gradient, gradient_of = errors(got.gradients, wanted.gradients)
    parameters, worst_parameter, parameter_of = errors(got.parameters, wanted.parameters)
    return {
        "losses": [_error(a, b) for a, b in zip(got.losses, wanted.losses, strict=True)],
        "gradient": gradient,
        "worst_gradient": worst_gradient,
        "worst_gradient_of": gradient_of,
        "parameters": parameters,
        "worst_parameter": worst_parameter,
        "worst_parameter_of": parameter_of,
    }


def _network(name: str) -> Any:
    """Ours, always with the same weights."""
    from tinyres import models

    tr.manual_seed(0)
    return models.build(name)


def _ours(one: Run, name: str, data: Data, tf32: bool) -> Trained:
    """Whole steps, from the images on: the first two run as they are, from the third on they are captured and replayed."""
    from tinyres.train.resident import ResidentStep, Sums

    with _tf32(tf32), tr.use_backend(one.backend), tr.strict():
        net = _network(name).to(one.kernels.device)
        optimizer = tr.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        step = ResidentStep(net, optimizer, data.images, data.labels, data.batch, mean=MEAN, scale=SCALE, augment=False)
        count = len(data.labels) // data.batch
        step.start(0, Sums(0, 0, 0.0, False), [LR] * count, np.arange(len(data.labels)))
        sums, gradients = [0.0], []
        for _ in range(count):
            step.run(1)
            sums.append(step.sums().loss)
            gradients = gradients or [_on_host(p.grad) for p in net.parameters()]
        if step.reason:
            one.say(f"{name}: not captured: {step.reason}")
        parameters = [_on_host(p.data) for p in net.parameters()]
    return Trained([float(loss) / data.batch for loss in np.diff(sums)], gradients, parameters)


def _plain(name: str, data: Data) -> Trained:
    """Ours by the NumPy path, in float64."""
    with tr.use_backend("numpy"):
        net = _network(name).double()
        optimizer = tr.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        losses, gradients = [], []
        for images, labels in data.batches():
            optimizer.zero_grad()
            loss = tr.functional.cross_entropy(net(tr.Tensor(images)), labels)
            loss.backward()
            losses.append(loss.item())
            gradients = gradients or [_on_host(p.grad) for p in net.parameters()]
            optimizer.step()
        return Trained(losses, gradients, [_on_host(p.data) for p in net.parameters()])


def _torch(name: str, data: Data, dtype: str, device: str) -> Trained:
    import torch
    import torch.nn.functional as F

    ours = [_on_host(p.data) for p in _network(name).parameters()]
    net = peers.network(name).to(device, getattr(torch, dtype))
    # A block names its convolutions before its batch norms there. Those of one kind are in the same order in both.
    places = sorted(range(len(ours)), key=lambda i: ours[i].ndim)
    theirs = dict(zip(places, sorted(net.parameters(), key=lambda p: p.ndim), strict=True))
    with torch.no_grad():
        for i, parameter in theirs.items():
            parameter.copy_(torch.from_numpy(ours[i]))

    def in_our_order(values: Callable[[Any], Any]) -> list[np.ndarray]:
        return [values(theirs[i]).detach().cpu().numpy().copy() for i in range(len(ours))]

    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    losses, gradients = [], []
    for images, labels in data.batches():
        optimizer.zero_grad()
        x = torch.from_numpy(images).to(device, getattr(torch, dtype))
        loss = F.cross_entropy(net(x), torch.from_numpy(labels).to(device))
        loss.backward()
        losses.append(loss.item())
        gradients = gradients or in_our_order(lambda p: p.grad)
        optimizer.step()
    return Trained(losses, gradients, in_our_order(lambda p: p))


def _on_host(array: Any) -> np.ndarray:
    """A copy, in the array's own order of axes."""
    return np.array(array.get() if hasattr(array, "get") else array)


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Whether our convolutions may round float32 to TF32, for a block."""
    before = os.environ.get("TINYRES_TF32")
    os.environ["TINYRES_TF32"] = str(int(allowed))
    try:
        yield
    finally:
        if before is None:
            del os.environ["TINYRES_TF32"]
        else:
            os.environ["TINYRES_TF32"] = before
