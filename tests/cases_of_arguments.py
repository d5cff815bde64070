"""The part of the table in cases.py that is about arguments: what PyTorch takes beside the plain call, made of several
operations here.
"""

from typing import Any

import definitions
import numpy as np
from case import Case

import tinyres.functional as F


def all_of_them() -> list[Case]:
    return [*indexing(), *powers(), *images(), *losses(), *pools()]


def indexing() -> list[Case]:
    mask = np.arange(12).reshape(3, 4) % 3 == 0
    indices: list[Any] = [
        1,
        slice(None, None, 2),
        (..., -1),
        (None, slice(1, 3)),
        ([0, 2, 0],),
        (slice(None), [1, 1]),
        (mask,),
    ]
    cases = [
        Case(
            f"index-{i}", lambda x, i=index: x[i], lambda x, i=index: x[i], ((3, 4),), lambda t, x, i=index: x[i], view=True
        )
        for i, index in enumerate(indices)
    ]

    def padded(x):
        y = np.full((x.shape[0], x.shape[1] + 3, x.shape[2] + 1), 7.0)
        y[:, 1:-2, :-1] = x
        return y

    both = lambda x: x.unsqueeze(-1).squeeze((0, -1))  # noqa: E731
    return [
        *cases,
        Case("pad", lambda x: F.pad(x, (0, 1, 1, 2), value=7), padded, ((2, 3, 4),)),
        Case("squeeze", both, lambda x: x.reshape(x.shape[1:]), ((1, 3, 4),), lambda t, x: both(x), view=True),
    ]


def powers() -> list[Case]:
    f = lambda a, b: a**b  # noqa: E731
    g = lambda a: 2.5**a  # noqa: E731
    return [
        Case("power", f, f, ((2, 3), (3,)), lambda t, a, b: f(a, b), "positive"),
        Case("power-of-a-number", g, g, ((2, 3),), lambda t, a: g(a)),
    ]


def images() -> list[Case]:
    def same(x, w, dilation=1):
        """With a margin that keeps the size, the odd pixel of it behind."""
        total = [dilation * (k - 1) for k in w.shape[2:]]
        wide = np.pad(x, ((0, 0), (0, 0), *((n // 2, n - n // 2) for n in total)))
        return definitions.conv2d(wide, w, dilation=dilation)

    cases = []
    for kernel in ((3, 3), (2, 4), (4, 1)):
        cases.append(
            Case(
                f"conv2d-same-{kernel}",
                lambda x, w: F.conv2d(x, w, padding="same"),
                same,
                ((2, 3, 5, 6), (4, 3, *kernel)),
                None
                if kernel != (3, 3)
                else lambda t, x, w: t.nn.functional.conv2d(x, w, padding="same"),  # (else it warns)
            )
        )

    def one(f):
        return lambda x, *others: f(x[None], *others)[0]

    rows = lambda x, w, b: definitions.linear(x.reshape(-1, x.shape[-1]), w, b).reshape(*x.shape[:-1], -1)  # noqa: E731
    norm = lambda x, w, b: definitions.batch_norm(x[..., None], w, b)[..., 0]  # noqa: E731
    return [
        *cases,
        Case("conv2d-one", F.conv2d, one(definitions.conv2d), ((3, 5, 6), (4, 3, 3, 3)), lambda t, *a: t.conv2d(*a)),
        Case("linear-3d", F.linear, rows, ((2, 3, 4), (5, 4), (5,)), lambda t, *a: t.nn.functional.linear(*a)),
        Case("linear-1d", F.linear, rows, ((4,), (5, 4), (5,)), lambda t, *a: t.nn.functional.linear(*a)),
        Case(
            "batch_norm-3d",
            lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
            norm,
            ((3, 4, 5), (4,), (4,)),
            lambda t, x, w, b: t.nn.functional.batch_norm(x, None, None, w, b, True),
        ),
    ]


def losses() -> list[Case]:
    labels = np.array([0, 4, -100, 2])
    weight, several = np.array([1.0, 2.0, 0.5, 0.0, 3.0]), np.array([[0, 1, 2], [2, 1, 1]])

    def loops(x, labels, weight=None, smoothing=0.0, ignored=-100):
        """The weighted mean over all rows of (N, K, ...)."""
        rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
        total, terms = 0.0, 0.0
        for row, label in zip(rows, labels.flat, strict=True):
            if label != ignored:
                w = np.ones(len(row)) if weight is None else weight
                q = smoothing / len(row) + (1 - smoothing) * (np.arange(len(row)) == label)
                total, terms = total - (w * q * definitions.log_softmax(row)).sum(), terms + w[label]
        return np.array(total / terms)

    def soft(x, p):
        return -(p * definitions.log_softmax(x)).sum(axis=1)

    def case(name, shape, labels, **options):
        def run(x):
            w = options.get("weight")
            return F.cross_entropy(x, labels, w, label_smoothing=options.get("smoothing", 0.0))

        def other(t, x):
            w = None if "weight" not in options else t.from_numpy(weight)
            smoothing = options.get("smoothing", 0.0)
            return t.nn.functional.cross_entropy(x, t.from_numpy(labels), w, label_smoothing=smoothing)

        return Case(f"cross_entropy-{name}", run, lambda x: loops(x, labels, **options), (shape,), other, "wide")

    return [
        case("ignored", (4, 5), labels),
        case("weighted", (4, 5), np.array([0, 4, 2, 2]), weight=weight),
        case("weighted-ignored-smooth", (4, 5), labels, weight=weight, smoothing=0.2),
        case("many", (2, 4, 3), several, smoothing=0.1),
        Case(
            "cross_entropy-probabilities",
            lambda x, p: F.cross_entropy(x, p, reduction="none"),
            soft,
            ((4, 5), (4, 5)),
            lambda t, x, p: t.nn.functional.cross_entropy(x, p, reduction="none"),
        ),
    ]


def pools() -> list[Case]:
    def windows(x, reduce, kernel, stride, padding, ceil, count=True, divisor=None):
        """One window after the other; with ``ceil``, they may reach beyond the margin if they begin before its end."""
        (h, w), edge = x.shape[2:], (0, 0)
        starts = [
            [
                s
                for s in range(-padding, n + padding, stride)
                if s + kernel <= n + padding or (ceil and s < n and s - stride + kernel < n + padding)
            ]
            for n in (h, w)
        ]
        y = np.zeros((*x.shape[:2], *map(len, starts)))
        for i, top in enumerate(starts[0]):
            for j, left in enumerate(starts[1]):
                part = x[:, :, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
                terms = [min(s + kernel, n + padding) - s for s, n in ((top, h), (left, w))]
                terms = terms if count else part.shape[2:]
                edge = terms[0] * terms[1] if divisor is None else divisor
                y[:, :, i, j] = part.max(axis=(2, 3)) if reduce == "max" else part.sum(axis=(2, 3)) / edge
        return y

    cases = []
    for name, options in {
        "max_pool2d-ceil": (3, 2, 1, True),
        "max_pool2d-ceil-large": (5, 3, 0, True),
        "avg_pool2d-ceil": (3, 2, 1, True),
        "avg_pool2d-ceil-inside": (2, 3, 1, True, False),
        "avg_pool2d-inside": (3, 2, 1, False, False),
        "avg_pool2d-divisor": (2, 2, 0, False, True, 3),
    }.items():
        ours, kind = getattr(F, name[:10]), name[:3]
        given = options if kind == "avg" else (*options[:3], 1, options[3])
        cases.append(
            Case(
                name,
                lambda x, f=ours, o=given: f(x, *o),
                lambda x, k=kind, o=options: windows(x, k, *o),
                ((2, 3, 4, 6),),
                lambda t, x, k=kind, o=given: getattr(t.nn.functional, f"{k}_pool2d")(x, *o),
            )
        )

    def means(x, rows, columns):
        (h, w), y = x.shape[2:], np.zeros((*x.shape[:2], rows, columns))
        for i, j in np.ndindex(rows, columns):
            part = x[:, :, i * h // rows : -(-(i + 1) * h // rows), j * w // columns : -(-(j + 1) * w // columns)]
            y[:, :, i, j] = part.mean(axis=(2, 3))
        return y

    for size in ((1, 1), (3, 2), (3, 5), (8, 9)):
        cases.append(
            Case(
                f"adaptive_avg_pool2d-{size}",
                lambda x, s=size: F.adaptive_avg_pool2d(x, s),
                lambda x, s=size: means(x, *s),
                ((2, 3, 6, 7),),
                lambda t, x, s=size: t.nn.functional.adaptive_avg_pool2d(x, s),
            )
        )
    return cases
