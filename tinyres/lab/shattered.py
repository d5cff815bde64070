"""Shattered gradients: in a deep plain net, the gradients of two inputs have nothing to do with each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from tinyres import functional as F
from tinyres.lab import figures
from tinyres.lab.experiment import Claim, Config, Lab, Numbers, Run, Setting, by_setting, values
from tinyres.lab.statistics import Check, above, below, holds, mean
from tinyres.tensor import Tensor

Net = Callable[[Tensor], Tensor]
SLOPES = {"plain": -1.0, "residual": math.log2(3 / 4), "residual, batch norm": -0.5}  # of the theory
LAGS = 32


def weights(random: np.random.Generator, outputs: int, inputs: int) -> Tensor:
    """He's, for layers whose inputs are rectified."""
    return Tensor(random.standard_normal((outputs, inputs)) * math.sqrt(2 / inputs))


def centred(h: Tensor) -> Tensor:
    """Less its mean over the batch, which counts as a constant in the derivative: one number per point is wanted."""
    return h - Tensor(h.data.mean(0, keepdims=True))


def normalised(h: Tensor) -> Tensor:
    """Batch norm; its statistics count as constants in the derivative."""
    return centred(h) * Tensor(1 / np.sqrt(h.data.var(0, keepdims=True) + 1e-5))


def net(kind: str, depth: int, beta: float, width: int, random: np.random.Generator) -> Net:
    """(N, width) -> (N, 1): ``depth`` layers of a plain net or blocks of a residual one, and a linear layer.

    "plain": relu(W h), centred before the ReLU; "plain, not centred": with small biases; "looks linear": both signs of W h
    are rectified and subtracted, so that the whole is linear at the start (section 5). "residual": h + W relu(h), centred;
    "residual, batch norm": h + beta W relu(bn(h)).
    """
    layers = [weights(random, width, width) for _ in range(depth)]
    biases = [Tensor(random.standard_normal(width) / math.sqrt(width)) for _ in range(depth)]
    last = Tensor(random.standard_normal((1, width)) / math.sqrt(width))

    def run(h: Tensor) -> Tensor:
        for w, b in zip(layers, biases, strict=True):
            if kind == "plain":
                h = F.relu(centred(F.linear(h, w)))
            elif kind == "plain, not centred":
                h = F.relu(F.linear(h, w, b))
            elif kind == "looks linear":
                h = F.linear(F.relu(h), w) - F.linear(F.relu(-h), w)
            elif kind == "residual":
                h = h + F.linear(F.relu(centred(h)), w)
            else:
                h = h + F.linear(F.relu(normalised(h)), w) * beta
        return F.linear(h, last)

    return run


def gradient(run: Net, x: np.ndarray) -> np.ndarray:
    """The derivative of each point's output by that point, in the shape of x."""
    leaf = Tensor(x, requires_grad=True)
    run(leaf).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def on_a_line(inner: Net, width: int, points: int, random: np.random.Generator) -> np.ndarray:
    """The gradient (points,) of a net of scalars in [-2, 2]: a first layer with kinks all over them, and ``inner``."""
    w = weights(random, width, 1)
    b = Tensor(random.uniform(-2, 2, width) * w.data[:, 0])
    x = np.linspace(-2, 2, points)[:, None]
    return gradient(lambda t: inner(F.relu(F.linear(t, w, b))), x)[:, 0]


def autocorrelation(series: np.ndarray, lags: int = LAGS) -> list[float]:
    """At lags 0, 1, ..., ``lags``; NaN for a constant."""
    s = series - series.mean()
    variance = float((s * s).mean())
    if variance <= 1e-20 * float((series * series).mean()):
        return [math.nan] * (lags + 1)
    return [float((s[k:] * s[: len(s) - k]).mean()) / variance for k in range(lags + 1)]


def correlation(run: Net, x: np.ndarray) -> float:
    """R: the mean product of the gradients of two inputs over the mean square of one; NaN if all are 0."""
    g = gradient(run, x)
    n, total = len(g), g.sum(0)
    squares = float((g * g).sum())
    return float((total @ total - squares) / (n - 1)) / squares if squares else math.nan


def slope(x: Any, y: Any) -> float:
    return float(np.polyfit(x, y, 1)[0])


def order(numbers: Numbers) -> list[Check]:
    one, deep = numbers["lag 1, plain, 1 layer"], numbers["lag 1, plain, 24 layers"]
    small, large = (numbers[f"lag 1, residual, batch norm, 50 blocks, beta {beta}"] for beta in ("0.1", "1"))
    return [
        above("plain, 1 layer", one, 0.9),
        above("plain, 1 layer, above residual, beta 0.1", one, small),
        above("residual, beta 0.1, above beta 1", small, large),
        above("residual, beta 1, above plain, 24 layers, by 0.05", large, [v + 0.05 for v in deep]),
        below("plain, 24 layers, about 0", deep, 0.1),
        above("plain, 24 layers, about 0", deep, -0.1),
    ]


def slopes(numbers: Numbers) -> list[Check]:
    checks = [holds(kind, numbers[f"slope, {kind}"], theory) for kind, theory in SLOPES.items()]
    return [*checks, holds("50 blocks, beta 0.1: R", numbers["R of 50 blocks, beta 0.1"], (1 + 50 * 0.1**2) ** -0.5)]


def centring(numbers: Numbers) -> list[Check]:
    return [
        above("plain, 24 layers, not centred", numbers["lag 1, plain, not centred, 24 layers"], 0.5),
        above("looks linear, 24 layers: R", numbers["R of 24 layers, looks linear"], 0.99),
    ]


class Shattered(Lab):
    name = "shattered"
    title = "Shattered gradients: deep plain nets give every input a gradient of its own"
    seeds = 20
    claims = (
        Claim(
            "Along a line of inputs, the gradient of a shallow net looks like brown noise, that of a deep plain net like "
            "white noise; residual nets lie in between, the nearer to brown the smaller their branches.",
            "Balduzzi et al. 2017, arXiv 1702.08591, figures 1 and 2",
            "autocorrelation at lag 1: plain of 1 layer above 0.9, above 50 residual blocks with beta 0.1, above those with "
            "beta 1, above plain of 24 layers by 0.05; and that within 0.1 of 0",
            order,
        ),
        Claim(
            "With depth L, the correlation of the gradients of two inputs falls as 1/2^L in plain nets, as (3/4)^L in "
            "residual ones, as 1/sqrt(L) with batch norm, and as 1/sqrt(1 + beta^2 L) if that has branches scaled by beta.",
            "Balduzzi et al. 2017, theorems 1 to 3 and corollary 1",
            "the 95 % interval of the slope holds the theory's: log2 R by L -1 and log2(3/4), log R by log(L + 5/4) -1/2; "
            "and that of R after 50 blocks with beta 0.1 holds 0.816",
            slopes,
        ),
        Claim(
            "It is the centring of activations, as batch norm does it, that shatters: without it a deep plain net keeps its "
            "gradient in one piece, and so does one that begins as linear.",
            "Balduzzi et al. 2017, section 5, for the second half; the first is why some replications fail",
            "autocorrelation of 24 layers without centring above 0.5; R of 24 layers of looks-linear above 0.99",
            centring,
        ),
    )
    method = (
        "Nets {width} wide at the start of training, in float64. Along a line: the gradient of the output by the input at "
        "{points} points of [-2, 2]; the first layer's kinks are spread over them, as biases do it; pre-activations are "
        "centred over the points, and the statistics count as constants in the derivative. Between inputs: {inputs} "
        "Gaussian inputs of {width} dimensions; R is the mean product of two inputs' gradients over the mean square of "
        "one. By the theory a batch-normalised block l multiplies R by (1 + beta^2 / (2 v)) / (1 + beta^2 / v), v = 1 + "
        "beta^2 l being the variance before it: for beta 1 the product is (L + 5/4)^(-1/2) to within 1 % times a constant, "
        "whence the 5/4."
    )
    differs = (
        "The paper's nets have 200 rectifiers per layer, as here. Its theory takes co-active units as a given quarter; "
        "here it is what centred Gaussian activations do. At full scale nets are wider, and inputs more."
    )
    scales: ClassVar = {
        "quick": {"width": 200, "points": 256, "inputs": 64},
        "full": {"width": 1000, "points": 256, "inputs": 256},
        "tiny": {"width": 12, "points": 40, "inputs": 6},
    }

    least: ClassVar = {"points": 8, "inputs": 2, "width": 4}

    def settings(self, config: Config) -> list[Setting]:
        lines = [("plain", depth, 1.0) for depth in (1, 2, 5, 10, 24)] + [("plain, not centred", 24, 1.0)]
        lines += [("residual, batch norm", 50, 1.0), ("residual, batch norm", 50, 0.1)]
        found = [{"of": "line", "kind": kind, "depth": depth, "beta": beta} for kind, depth, beta in lines]
        found += [{"of": "R", "kind": kind, "beta": 1.0} for kind in (*SLOPES, "looks linear")]
        return [*found, {"of": "R", "kind": "residual, batch norm", "beta": 0.1}]

    def label(self, setting: Setting) -> str:
        return f"{setting['of']} of {setting['kind']} {setting.get('depth', '')}".strip()

    def depths(self, setting: Setting) -> list[int]:
        if setting["kind"] == "looks linear":
            return [1, 24]
        if setting["beta"] != 1:
            return [10, 50]
        return {"plain": list(range(1, 7)), "residual": list(range(1, 11))}.get(setting["kind"], [2, 4, 8, 16, 32, 64])

    def run(self, setting: Setting, seed: int, config: Config) -> dict[str, Any]:
        random = np.random.default_rng([seed, len(setting["kind"]), setting.get("depth", 0), round(10 * setting["beta"])])
        kind, beta, width = setting["kind"], setting["beta"], config["width"]
        if setting["of"] == "line":  # (the first layer is one of a plain net's)
            depth = setting["depth"] - kind.startswith("plain")
            found = on_a_line(net(kind, depth, beta, width, random), width, config["points"], random)
            lags = autocorrelation(found, min(LAGS, config["points"] // 4))
            return {"lags": lags, "lag 1": lags[1], "gradient": np.round(found / found.std(), 3) if seed == 0 else None}
        x = random.standard_normal((config["inputs"], width))
        return {"R": [correlation(net(kind, depth, beta, width, random), x) for depth in self.depths(setting)]}

    def numbers(self, runs: Sequence[Run], config: Config) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for s in self.settings(config):
            if s["of"] == "line":
                found[f"lag 1, {called(s)}"] = values(runs, "lag 1", **s)
                continue
            depths = self.depths(s)
            curves = [run.result["R"] for run in by_setting(runs, **s)]
            if s["kind"] == "looks linear" or s["beta"] != 1:
                what = "layers, looks linear" if s["beta"] == 1 else "blocks, beta 0.1"
                found[f"R of {depths[-1]} {what}"] = [curve[-1] for curve in curves]
                continue
            by_depth = [math.log(d + 5 / 4) for d in depths] if s["kind"] == "residual, batch norm" else depths
            logarithm = np.log if s["kind"] == "residual, batch norm" else np.log2
            found[f"slope, {s['kind']}"] = [slope(by_depth, logarithm(np.maximum(curve, 1e-9))) for curve in curves]
        return found

    def seen(self, numbers: Numbers) -> str:
        found, damped = (mean(numbers[name]) for name in ("slope, residual, batch norm", "R of 50 blocks, beta 0.1"))
        return (
            f"With batch norm the correlation falls faster than the theory says, with slope {found:.3f} in place of -0.5, "
            "and the reason is a mean. Rectified activations have a mean square of 1/2, of which 1/(2 pi) is the square "
            "of their mean; that part is the same for all inputs, and the next batch norm takes it out. So a block adds 1 "
            "- 1/pi to the variance by which the next ones divide, not 1, and the slope becomes -1 / (2 (1 - 1/pi)) = "
            f"-0.733. For the same reason R of 50 blocks with beta 0.1 is {damped:.3f}, below the theory's 0.816. Without "
            "batch norm the slopes are the theory's but for the batch: of 64 centred inputs two correlate by -1/63, a "
            "unit is open for both with probability 0.2475 and not 1/4, and the slopes become -1.015 and -0.420. The "
            "order of the nets is the paper's."
        )

    def draw(self, figure: Any, runs: Sequence[Run], config: Config) -> None:
        figure.set_size_inches(8, 6.2)
        grid = figure.add_gridspec(3, 3)
        random = np.random.default_rng(0)
        noise = random.standard_normal(config["points"])
        shown: list[tuple[str, Any, bool | None]] = [("brown noise", np.cumsum(noise), None), ("white noise", noise, None)]
        residual = "residual, batch norm"
        for kind, depth, beta in (("plain", 1, 1.0), ("plain", 24, 1.0), (residual, 50, 0.1), (residual, 50, 1.0)):
            one = by_setting(runs, of="line", kind=kind, depth=depth, beta=beta)[0]
            shown.append((called(one.setting), np.array(one.result["gradient"], float), kind.startswith("residual")))
        for k, (name, series, shortcuts) in enumerate((shown[0], shown[2], shown[4], shown[1], shown[3], shown[5])):
            axes = figure.add_subplot(grid[k // 3, k % 3])
            colour = figures.GREY if shortcuts is None else figures.SHORTCUTS if shortcuts else figures.PLAIN
            axes.plot(np.linspace(-2, 2, len(series)), series, color=colour, linewidth=0.8)
            axes.set_title(name, fontsize=8)
            axes.set(xticks=[-2, 0, 2], yticks=[])
        axes = figure.add_subplot(grid[2, :])
        for kind, theory in (
            ("plain", lambda d: 2.0**-d),
            ("residual", lambda d: 0.75**d),
            ("residual, batch norm", lambda d: math.prod((k + 1.5) / (k + 2) for k in range(d))),
        ):
            setting = {"of": "R", "kind": kind, "beta": 1.0}
            depths = self.depths(setting)
            axes.plot(depths, [theory(d) for d in depths], color="black", linewidth=0.8, linestyle=":")
            for i, run in enumerate(by_setting(runs, **setting)):
                figures.line(axes, depths, run.result["R"], kind, kind != "plain", first=i == 0)
        axes.set(xscale="log", yscale="log", xlabel="depth L (dotted: the theory)", ylabel="correlation R")
        figures.name_lines(axes)


def called(setting: Setting) -> str:
    kind, depth = setting["kind"], setting["depth"]
    if kind == "residual, batch norm":
        return f"{kind}, {depth} blocks, beta {setting['beta']:g}"
    return f"{kind}, {depth} layer{'s' * (depth > 1)}"
