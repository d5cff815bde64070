"""The table of operations that the tests run: each with inputs, its definition in loops, and PyTorch's name for it."""

import functools
import itertools
from typing import Any

import cases_of_arguments
import cases_of_functions
import definitions
import numpy as np
from case import Case

import tinyres.functional as F
from tinyres.kernels import naive


@functools.cache
def expected(name: str) -> np.ndarray:
    """What the loops make of a case's inputs."""
    case = BY_NAME[name]
    return np.asarray(case.naive(*case.arrays()))


def cotangent(case: Case) -> np.ndarray:
    return np.array(np.random.default_rng(11).standard_normal(expected(case.name).shape))


@functools.cache
def expected_gradients(name: str) -> list[np.ndarray]:
    """The NumPy backend's gradients in float64 of contiguous inputs: those that test_ops_backward.py holds against
    differences and against PyTorch.
    """
    import tinyres as tr

    case = BY_NAME[name]
    leaves = [tr.tensor(a, requires_grad=True) for a in case.arrays()]
    with tr.use_backend("numpy"):
        case.run(*leaves).backward(cotangent(case))
    return [leaf.grad for leaf in leaves]


# --- the table -------------------------------------------------------------------------------------------------------


def arithmetic() -> list[Case]:
    cases = []
    pairs = [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1, 3), (4, 1)), ((), (2, 2)), ((1, 1), (3, 2)), ((), ())]
    operators: dict[str, Any] = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
    }
    for name, f in operators.items():
        cases += [
            Case(f"{name}{list(a)}{list(b)}", f, f, (a, b), lambda t, x, y, f=f: f(x, y), "positive") for a, b in pairs
        ]
        for side, g in {"right": lambda a, f=f: f(a, 2.5), "left": lambda a, f=f: f(2.5, a)}.items():
            cases.append(Case(f"{name}-number-{side}", g, g, ((2, 3),), lambda t, x, g=g: g(x), "positive"))
    cases.append(Case("neg", lambda a: -a, lambda a: -a, ((2, 3),), lambda t, a: -a))
    for k in (2, 3, -1, 0.5, 1, 0):
        power = lambda a, k=k: a**k  # noqa: E731
        cases.append(Case(f"pow{k}", power, power, ((2, 3),), lambda t, a, f=power: f(a), "positive"))
    products = [
        ((2, 3), (3, 4)),
        ((3,), (3, 4)),
        ((2, 3), (3,)),
        ((3,), (3,)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((4,), (2, 4, 3)),
        ((2, 3, 4), (4,)),
        ((1, 2, 3), (4, 3, 1)),
    ]
    for a, b in products:
        f = lambda a, b: a @ b  # noqa: E731
        cases.append(Case(f"matmul{list(a)}{list(b)}", f, definitions.matmul, (a, b), lambda t, x, y: x @ y))
    return cases


def shapes() -> list[Case]:
    cases = []
    for dim, keepdim in itertools.product((None, 0, -1, (0, 2), (-1, 1)), (False, True)):
        for name in ("sum", "mean"):

            def run(x, name=name, dim=dim, keepdim=keepdim):
                return getattr(x, name)(dim=dim, keepdim=keepdim)

            def loops(x, name=name, dim=dim, keepdim=keepdim):
                axes = range(x.ndim) if dim is None else (dim,) if isinstance(dim, int) else dim
                y = x
                for axis in axes:
                    y = np.apply_along_axis(lambda v: [sum(v) / (len(v) if name == "mean" else 1)], axis, y)
                return y if keepdim else np.squeeze(y, tuple(axes))

            def other(t, x, name=name, dim=dim, keepdim=keepdim):
                return getattr(x, name)(dim=(0, 1, 2) if dim is None else dim, keepdim=keepdim)

            cases.append(Case(f"{name}-{dim}{'-keepdim' * keepdim}", run, loops, ((2, 3, 4),), other))

    def elements(shape):
        return lambda x: np.array(list(x.flat)).reshape(shape)

    def moved(dims):
        def loops(x):
            y = np.zeros([x.shape[d] for d in dims])
            for index in np.ndindex(x.shape):
                y[tuple(index[d] for d in dims)] = x[index]
            return y

        return loops

    for shape in ((6, 4), (-1,), (2, 3, 1, 4), (4, -1)):
        cases.append(
            Case(
                f"reshape{list(shape)}",
                lambda x, s=shape: x.reshape(*s),
                elements(shape),
                ((2, 3, 4),),
                lambda t, x, s=shape: x.reshape(s),
                view=True,
            )
        )
    cases.append(
        Case("flatten", lambda x: x.flatten(1), elements((2, 12)), ((2, 3, 4),), lambda t, x: x.flatten(1), view=True)
    )
    for dims in ((2, 0, 1), (0, 2, 1), (-1, 0, 1)):
        cases.append(
            Case(
                f"permute{list(dims)}",
                lambda x, d=dims: x.permute(*d),
                moved([d % 3 for d in dims]),
                ((2, 3, 4),),
                lambda t, x, d=dims: x.permute(*d),
                view=True,
            )
        )
    cases.append(
        Case(
            "transpose",
            lambda x: x.transpose(0, 2),
            moved((2, 1, 0)),
            ((2, 3, 4),),
            lambda t, x: x.transpose(0, 2),
            view=True,
        )
    )
    cases.append(Case("T", lambda x: x.T, moved((2, 1, 0)), ((2, 3, 4),), lambda t, x: x.permute(2, 1, 0), view=True))
    return cases


def elementwise() -> list[Case]:
    images = (2, 3, 4, 5)
    return [
        Case("relu", F.relu, naive.relu, (images,), lambda t, x: t.relu(x)),
        Case("relu-0d", F.relu, naive.relu, ((),), lambda t, x: t.relu(x)),
        Case("relu-method", lambda x: x.relu(), naive.relu, ((3, 4),), lambda t, x: t.relu(x)),
        Case("relu6", F.relu6, naive.relu6, (images,), lambda t, x: t.nn.functional.relu6(x), "wide"),
        Case("add_relu", F.add_relu, naive.add_relu, (images, images), lambda t, x, y: t.relu(x + y)),
        Case("add_relu-2d", F.add_relu, naive.add_relu, ((3, 4), (3, 4)), lambda t, x, y: t.relu(x + y)),
        Case(
            "add_relu-itself",
            lambda x: F.add_relu(x, x),
            lambda x: naive.add_relu(x, x),
            (images,),
            lambda t, x: t.relu(x + x),
        ),
        Case(
            "dropout",
            lambda x: F.dropout(x, 0.3, generator=np.random.default_rng(7)),
            lambda x: x * (np.random.default_rng(7).random(x.shape, np.float32) >= 0.3) / 0.7,
            (images,),
        ),
        Case("dropout-all", lambda x: F.dropout(x, 1.0, generator=np.random.default_rng(7)), lambda x: 0 * x, (images,)),
        Case("dropout-eval", lambda x: F.dropout(x, 0.3, False) * 1, lambda x: x, (images,)),
        Case("log_softmax", F.log_softmax, definitions.log_softmax, ((3, 5),), lambda t, x: t.log_softmax(x, -1)),
        Case(
            "log_softmax-0",
            lambda x: F.log_softmax(x, 0),
            lambda x: definitions.log_softmax(x, 0),
            ((3, 5),),
            lambda t, x: t.log_softmax(x, 0),
            "wide",
        ),
        Case(
            "log_softmax-3d",
            lambda x: F.log_softmax(x, 1),
            lambda x: definitions.log_softmax(x, 1),
            ((2, 4, 3),),
            lambda t, x: t.log_softmax(x, 1),
        ),
    ]


def losses() -> list[Case]:
    labels = np.array([0, 4, 2, 2])
    cases = []
    for smoothing, reduction in itertools.product((0.0, 0.1, 1.0), ("mean", "sum", "none")):
        options = {"label_smoothing": smoothing, "reduction": reduction}
        cases.append(
            Case(
                f"cross_entropy-{smoothing}-{reduction}",
                lambda x, o=options: F.cross_entropy(x, labels, **o),
                lambda x, o=options: definitions.cross_entropy(x, labels, **o),
                ((4, 5),),
                lambda t, x, o=options: t.nn.functional.cross_entropy(x, t.from_numpy(labels), **o),
                "wide",
            )
        )
    return cases


def linear() -> list[Case]:
    return [
        Case("linear", F.linear, definitions.linear, ((4, 3), (5, 3), (5,)), lambda t, *a: t.nn.functional.linear(*a)),
        Case("linear-nobias", F.linear, definitions.linear, ((1, 7), (2, 7)), lambda t, *a: t.nn.functional.linear(*a)),
    ]


def conv(x, w, bias=False, **options) -> Case:
    name = f"conv2d{list(x)}{list(w)}{'-bias' * bias}" + "".join(f"-{k[0]}{v}" for k, v in options.items())
    return Case(
        name.replace(" ", ""),
        lambda *a: F.conv2d(*a, **options),
        lambda *a: definitions.conv2d(*a, **options),
        (x, w, w[:1]) if bias else (x, w),
        lambda t, *a: t.nn.functional.conv2d(*a, **options),
    )


def convolutions() -> list[Case]:
    cases = []
    for k, d, p, s in itertools.product((1, 3), (1, 2), range(4), (1, 2, 3)):
        if k == 1 and d == 2:
            continue
        for rest in range(s):  # every remainder of (H + 2p - d (k - 1) - 1) / s, on the other axis another one
            reach = d * (k - 1) + 1
            h = next(h for h in range(4, 20) if h + 2 * p >= reach and (h + 2 * p - reach) % s == rest)
            w = next(w for w in range(5, 20) if w + 2 * p >= reach and (w + 2 * p - reach) % s == (rest + 1) % s)
            cases.append(conv((2, 2, h, w), (3, 2, k, k), stride=s, padding=p, dilation=d))
    for s, p, h in ((1, 0, 6), (1, 2, 5), (2, 2, 6), (2, 2, 7), (3, 1, 7), (3, 1, 8), (3, 1, 9)):
        cases.append(conv((2, 2, h, h + 1), (2, 2, 5, 5), stride=s, padding=p))
    for s in (1, 2, 3):
        cases.append(conv((2, 4, 6, 7), (6, 2, 3, 3), stride=s, padding=1, groups=2))
        cases.append(conv((2, 4, 6, 7), (4, 1, 3, 3), stride=s, padding=1, groups=4))  # depthwise
        cases.append(conv((2, 3, 7, 6), (6, 1, 5, 5), stride=s, padding=2, groups=3))  # depthwise, two filters each
        cases.append(conv((2, 4, 5, 5), (2, 2, 1, 1), stride=s, groups=2, bias=True))
    cases += [
        conv((2, 3, 6, 7), (4, 3, 3, 3), padding=1, bias=True),
        conv((2, 3, 6, 7), (4, 3, 1, 3), stride=(1, 2), padding=(0, 1), bias=True),
        conv((2, 3, 6, 7), (4, 3, 5, 1), stride=(2, 1), padding=(2, 0)),
        conv((2, 3, 9, 8), (2, 3, 2, 3), stride=(3, 2), padding=(1, 0), dilation=(2, 1)),
        conv((2, 3, 9, 8), (2, 3, 3, 2), dilation=(1, 3), padding=(0, 2)),
        conv((2, 4, 9, 8), (2, 2, 3, 2), stride=(1, 2), dilation=(2, 1), padding=(3, 1), groups=2),
        conv((1, 1, 1, 1), (1, 1, 1, 1)),
        conv((1, 1, 1, 1), (1, 1, 3, 3), padding=1, bias=True),
        conv((3, 2, 3, 3), (2, 2, 3, 3)),
        conv((7, 3, 4, 4), (16, 3, 3, 3), padding=1),
        conv((2, 16, 5, 5), (17, 16, 3, 3), padding=1, stride=2),
        conv((2, 17, 4, 5), (8, 17, 1, 1), stride=2),
    ]
    return cases


def normalisation() -> list[Case]:
    cases = []
    for shape, training in itertools.product(((3, 4, 5, 2), (6, 4), (2, 1, 1, 1), (1, 3, 4, 4)), (True, False)):
        c = shape[1]
        mean, var = np.linspace(-0.5, 0.5, c), np.linspace(0.5, 2, c)

        def statistics(x, mean=mean, var=var):
            return np.array(mean, x.dtype), np.array(var, x.dtype)

        def given(training=training, mean=mean, var=var):
            return {} if training else {"mean": mean, "var": var}

        def other(t, x, w, b, training=training, mean=mean, var=var):
            kept = t.from_numpy(mean.copy()).to(x.dtype), t.from_numpy(var.copy()).to(x.dtype)
            return t.nn.functional.batch_norm(x, *kept, w, b, training, 0.1, 1e-5)

        end = f"{list(shape)}{'-train' if training else '-eval'}".replace(" ", "")
        parameters = ((c,), (c,))
        cases += [
            Case(
                f"batch_norm{end}",
                lambda x, w, b, s=statistics, t=training: F.batch_norm(x, *s(x), w, b, t),
                lambda x, w, b, g=given: definitions.batch_norm(x, w, b, **g()),
                (shape, *parameters),
                other,
            ),
            Case(
                f"batch_norm_relu{end}",
                lambda x, w, b, s=statistics, t=training: F.batch_norm(x, *s(x), w, b, t, relu=True),
                lambda x, w, b, g=given: naive.relu(definitions.batch_norm(x, w, b, **g())),
                (shape, *parameters),
                lambda t, x, w, b, other=other: t.relu(other(t, x, w, b)),
            ),
            Case(
                f"batch_norm_add_relu{end}",
                lambda x, r, w, b, s=statistics, t=training: F.batch_norm_add_relu(x, r, *s(x), w, b, t),
                lambda x, r, w, b, g=given: naive.add_relu(definitions.batch_norm(x, w, b, **g()), r),
                (shape, shape, *parameters),
                lambda t, x, r, w, b, other=other: t.relu(other(t, x, w, b) + r),
            ),
        ]
    cases.append(
        Case(
            "batch_norm-plain",
            lambda x: F.batch_norm(x, np.zeros(3, x.dtype), np.ones(3, x.dtype), training=True),
            lambda x: definitions.batch_norm(x, np.ones(3), np.zeros(3)),
            ((4, 3, 2, 2),),
            lambda t, x: t.nn.functional.batch_norm(x, None, None, training=True),
        )
    )
    return cases


def pooling() -> list[Case]:
    cases = []
    windows: list[tuple[Any, Any, Any]] = [
        (2, None, 0),
        (2, 2, 1),
        (3, 2, 1),
        (3, 1, 1),
        (3, 3, 0),
        (2, 3, 0),
        ((1, 2), None, 0),
        ((3, 2), (2, 1), (1, 0)),
        (1, 1, 0),
        (1, 2, 0),
        (4, 3, 2),
    ]
    for kernel, stride, padding in windows:
        for name in ("max", "avg"):
            ours, loops = getattr(F, f"{name}_pool2d"), getattr(definitions, f"{name}_pool2d")
            options = (kernel, stride, padding)
            cases.append(
                Case(
                    f"{name}_pool2d-{kernel}-{stride}-{padding}".replace(" ", ""),
                    lambda x, f=ours, o=options: f(x, *o),
                    lambda x, f=loops, o=options: f(x, *o),
                    ((2, 3, 6, 7),),
                    lambda t, x, n=name, o=options: getattr(t.nn.functional, f"{n}_pool2d")(x, *o),
                )
            )
    for shape in ((2, 3, 4, 5), (1, 1, 1, 1)):
        cases.append(
            Case(
                f"global_avg_pool2d{list(shape)}",
                F.global_avg_pool2d,
                naive.global_avg_pool2d,
                (shape,),
                lambda t, x: x.mean(dim=(2, 3)),
            )
        )
    for c, out, stride, size in ((2, 4, 2, 4), (2, 5, 2, 5), (3, 3, 2, 3), (1, 4, 1, 2), (2, 7, 3, 7)):

        def padded(t, x, c=c, out=out, stride=stride):
            before = (out - c) // 2
            return t.nn.functional.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, out - c - before))

        cases.append(
            Case(
                f"subsample_pad-{c}-{out}-{stride}-{size}",
                lambda x, o=out, s=stride: F.subsample_pad(x, o, s),
                lambda x, o=out, s=stride: naive.subsample_pad(x, o, s),
                ((2, c, size, size + 1),),
                padded,
            )
        )
    return cases


CASES = [*arithmetic(), *shapes(), *elementwise(), *losses(), *linear(), *convolutions(), *normalisation(), *pooling()]
CASES += [*cases_of_arguments.all_of_them(), *cases_of_functions.all_of_them()]
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases have one name"
