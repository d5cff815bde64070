"""The part of the table in cases.py that is about functions of each element, reductions, norms of each example, and the
squared error. Their definitions are Python's `math`, and loops.
"""

import itertools
import math
from typing import Any

import numpy as np
from case import Case

import tinyres.functional as F


def all_of_them() -> list[Case]:
    return [*elementwise(), *softmaxes(), *reductions(), *norms(), *squares()]


def each(f):
    """A function of a number, applied to all elements."""
    return lambda x: np.array([f(v) for v in x.flat]).reshape(x.shape)


def elementwise() -> list[Case]:
    def sigmoid(v):
        return 1 / (1 + math.exp(-v))

    def gelu(v):
        return v * math.erfc(-v / math.sqrt(2)) / 2

    def gelu_tanh(v):
        return v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2

    methods: dict[str, Any] = {
        "exp": (math.exp, "normal"),
        "log": (math.log, "positive"),
        "sqrt": (math.sqrt, "positive"),
        "abs": (math.fabs, "normal"),
        "tanh": (math.tanh, "normal"),
        "sigmoid": (sigmoid, "wide"),
        "clone": (float, "normal"),
    }
    cases = []
    for (name, (f, data)), shape in itertools.product(methods.items(), ((2, 3, 5), ())):
        run = lambda x, name=name: getattr(x, name)()  # noqa: E731
        cases.append(Case(f"{name}-{len(shape)}d", run, each(f), (shape,), lambda t, x, run=run: run(x), data))
    functions: dict[str, Any] = {
        "silu": (lambda v: v * sigmoid(v), {}),
        "gelu": (gelu, {}),
        "gelu-tanh": (gelu_tanh, {"approximate": "tanh"}),
        "leaky_relu": (lambda v: v if v > 0 else 0.01 * v, {}),
        "leaky_relu-0.3": (lambda v: v if v > 0 else 0.3 * v, {"negative_slope": 0.3}),
    }
    for (name, (f, options)), data in itertools.product(functions.items(), ("normal", "wide")):
        short = name.partition("-")[0]
        cases.append(
            Case(
                f"{name}-{data}",
                lambda x, n=short, o=options: getattr(F, n)(x, **o),
                each(f),
                ((3, 4, 5),),
                lambda t, x, n=short, o=options: getattr(t.nn.functional, n)(x, **o),
                data,
            )
        )
    return cases


def softmaxes() -> list[Case]:
    def loops(x, dim):
        def one(row):
            powers = [math.exp(v) for v in row]
            return [p / sum(powers) for p in powers]

        return np.apply_along_axis(one, dim, x)

    cases = []
    for shape, dim in (((3, 5), -1), ((3, 5), 0), ((2, 4, 3), 1), ((1,), 0)):
        run = lambda x, dim=dim: x.softmax(dim)  # noqa: E731
        name = f"softmax{list(shape)}-{dim}"
        cases.append(Case(name, run, lambda x, d=dim: loops(x, d), (shape,), lambda t, x, run=run: run(x), "wide"))
    return cases


def reductions() -> list[Case]:
    def along(f, dim, keepdim):
        """A function of a list, of the elements along the axes ``dim``."""

        def loops(x):
            axes = range(x.ndim) if dim is None else [d % x.ndim for d in ((dim,) if isinstance(dim, int) else dim)]
            y = np.zeros([1 if i in axes else n for i, n in enumerate(x.shape)])
            for index in np.ndindex(y.shape):
                y[index] = f(x[tuple(slice(None) if i in axes else k for i, k in enumerate(index))].ravel().tolist())
            return y if keepdim else y.squeeze(tuple(axes))

        return loops

    def std(correction):
        def one(values):
            mean = sum(values) / len(values)
            return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - correction))

        return one

    shape, cases = (3, 4, 5), []
    for name, dim, keepdim in (
        ("amax", None, False),
        ("amax", (0, -1), True),
        ("amin", 1, False),
        ("max", None, False),
        ("min", None, False),
    ):
        options = {} if dim is None and name in ("max", "min") else {"dim": () if dim is None else dim, "keepdim": keepdim}
        run = lambda x, name=name, o=options: getattr(x, name)(**o)  # noqa: E731
        loops = along(max if "max" in name else min, dim, keepdim)
        cases.append(Case(f"{name}-{dim}", run, loops, (shape,), lambda t, x, run=run: run(x)))
    for name, dim, keepdim in (("max", 1, False), ("max", -1, True), ("min", 0, False)):
        run = lambda x, name=name, d=dim, k=keepdim: getattr(x, name)(d, k).values  # noqa: E731
        loops = along(max if name == "max" else min, dim, keepdim)
        cases.append(Case(f"{name}-along-{dim}", run, loops, (shape,), lambda t, x, run=run: run(x)))
    for dim, correction, keepdim in ((None, 1, False), (1, 1, True), ((0, -1), 0, False), (2, 2.5, False)):
        run = lambda x, d=dim, c=correction, k=keepdim: x.std(d, correction=c, keepdim=k)  # noqa: E731
        loops = along(std(correction), dim, keepdim)
        cases.append(Case(f"std-{dim}-{correction}", run, loops, (shape,), lambda t, x, run=run: run(x)))
    return cases


def norms() -> list[Case]:
    def normalised(part, eps=1e-5):
        values = part.ravel().tolist()
        mean = sum(values) / len(values)
        return (part - mean) / math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + eps)

    def layer_norm(x, w=1.0, b=0.0, axes=1):
        y = np.zeros(x.shape)
        for index in np.ndindex(x.shape[: x.ndim - axes]):
            y[index] = normalised(x[index]) * w + b
        return y

    def group_norm(x, groups, w=None, b=None):
        y, size = np.zeros(x.shape), x.shape[1] // groups
        for n, g in np.ndindex(x.shape[0], groups):
            y[n, g * size : (g + 1) * size] = normalised(x[n, g * size : (g + 1) * size])
        ones = [1] * (x.ndim - 2)
        return y if w is None else y * w.reshape(-1, *ones) + b.reshape(-1, *ones)

    cases = []
    for shape, axes in (((3, 5), 1), ((2, 3, 4, 5), 2), ((5,), 1)):
        last = shape[len(shape) - axes :]
        run = lambda x, w, b, s=last: F.layer_norm(x, s, w, b)  # noqa: E731
        other = lambda t, x, w, b, s=last: t.nn.functional.layer_norm(x, s, w, b)  # noqa: E731
        loops = lambda x, w, b, axes=axes: layer_norm(x, w, b, axes)  # noqa: E731
        cases.append(Case(f"layer_norm{list(shape)}-{axes}", run, loops, (shape, last, last), other))
    for shape, groups in (((2, 6, 3, 5), 3), ((2, 6, 3, 5), 1), ((3, 4, 5), 4), ((3, 6), 2)):
        c = shape[1:2]
        run = lambda x, w, b, g=groups: F.group_norm(x, g, w, b)  # noqa: E731
        other = lambda t, x, w, b, g=groups: t.nn.functional.group_norm(x, g, w, b)  # noqa: E731
        loops = lambda x, w, b, g=groups: group_norm(x, g, w, b)  # noqa: E731
        cases.append(Case(f"group_norm{list(shape)}-{groups}", run, loops, (shape, c, c), other))
    return [
        *cases,
        Case("layer_norm-plain", lambda x: F.layer_norm(x, 5), layer_norm, ((3, 5),), lambda t, x: t.layer_norm(x, (5,))),
        Case(
            "layer_norm-nobias",
            lambda x, w: F.layer_norm(x, (5,), w),
            layer_norm,
            ((3, 5), (5,)),
            lambda t, x, w: t.layer_norm(x, (5,), w),
        ),
        Case(
            "group_norm-plain",
            lambda x: F.group_norm(x, 2),
            lambda x: group_norm(x, 2),
            ((2, 4, 3),),
            lambda t, x: t.nn.functional.group_norm(x, 2),
        ),
    ]


def squares() -> list[Case]:
    def loops(x, target, reduction):
        y = np.array([(a - b) ** 2 for a, b in zip(x.flat, target.flat, strict=True)]).reshape(x.shape)
        return y if reduction == "none" else np.array(sum(y.flat) / (y.size if reduction == "mean" else 1))

    return [
        Case(
            f"mse_loss-{reduction}",
            lambda x, target, r=reduction: F.mse_loss(x, target, reduction=r),
            lambda x, target, r=reduction: loops(x, target, r),
            ((3, 5), (3, 5)),
            lambda t, x, target, r=reduction: t.nn.functional.mse_loss(x, target, reduction=r),
        )
        for reduction in ("mean", "sum", "none")
    ]
