"""Every operation of the table, on every backend, in both precisions and in each memory layout."""

import itertools
import re

import numpy as np
import pytest
from backends import BACKENDS, UNSUPPORTED, running, supports, tolerance
from cases import BY_NAME, CASES, cotangent, expected, expected_gradients
from layouts import LAYOUTS

import tinyres as tr
from tinyres.kernels.dispatch import BackendError

DTYPES = ("float32", "float64")
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def check_case(case, backend="numpy", dtype="float64", layout="contiguous"):
    """Forward against the loops, backward against `expected_gradients`, and what must not be touched."""
    arrays = [LAYOUTS[layout](np.array(a, dtype)) for a in case.arrays()]
    before = [a.copy() for a in arrays]
    leaves = [tr.Tensor(a, requires_grad=True) for a in arrays]
    y = case.run(*leaves)
    want = expected(case.name)
    assert isinstance(y.data, np.ndarray) and y.shape == want.shape and y.dtype == dtype
    np.testing.assert_allclose(y.data, want, **tolerance(dtype, want))
    if not case.view:
        assert not any(np.shares_memory(y.data, a) for a in arrays), "the result is a view of an input"

    dy = LAYOUTS[layout](np.array(cotangent(case), dtype))
    dy.flags.writeable = False
    y.backward(dy)
    for leaf, want in zip(leaves, expected_gradients(case.name), strict=True):
        assert isinstance(leaf.grad, np.ndarray) and leaf.grad.dtype == dtype
        np.testing.assert_allclose(leaf.grad, want, **tolerance(dtype, want, 10))
        assert not any(np.shares_memory(leaf.grad, a) for a in (dy, *arrays)), "a gradient is a view"
        leaf.grad += 1  # it is the user's own
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, b, "an input was written to")


def check_gradient(case, **options):
    """Backward against central differences of the forward pass, with a random cotangent, in float64."""
    tr.gradcheck(case.run, case.arrays(), **options)


def runs(dtypes, *layouts):
    """Each case on each backend, in each precision and memory layout.

    Only kernels can make a difference between all of these: in the plain run every case meets every backend and precision in
    one layout, another from case to case, and every kind of operation meets them in each layout.
    """
    seen = set()
    for i, case in enumerate(CASES):
        kind, turned = re.match(r"\w+", case.name)[0], layouts[i % len(layouts) :] + layouts[: i % len(layouts)]
        for backend, dtype, layout in itertools.product(BACKENDS, dtypes, turned):
            if supports(backend, case.name, dtype):
                covers = {(backend, dtype, case.name), (backend, dtype, layout, kind)}
                marks = [pytest.mark.kernels] if covers <= seen else []
                seen |= covers
                yield pytest.param(case, backend, dtype, layout, id=f"{case}-{backend}-{dtype}-{layout}", marks=marks)


@pytest.mark.parametrize(("case", "backend", "dtype", "layout"), [*runs(DTYPES, *LAYOUTS)])
def test_an_operation_gives_what_its_definition_gives(case, backend, dtype, layout):
    with running(backend):
        check_case(case, backend, dtype, layout)


@pytest.mark.parametrize(
    ("case", "backend"), [(c, b) for c in CASES for b in BACKENDS if supports(b, c.name, "float64")], ids=str
)
def test_the_gradient_is_the_slope(case, backend):
    with running(backend):
        check_gradient(case)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b in UNSUPPORTED])
def test_what_a_backend_declares_unsupported_it_refuses(backend):
    """And no declaration is idle. (What it does not declare must run: the tests above.)"""
    refused = set()
    for case, dtype in itertools.product(CASES, DTYPES):
        if not supports(backend, case.name, dtype):
            leaves = [tr.tensor(a, dtype=dtype, requires_grad=True) for a in case.arrays()]
            with running(backend), pytest.raises(BackendError, match=f"backend '{backend}' does not do this"):
                case.run(*leaves)
            refused |= {pattern for pattern in UNSUPPORTED[backend] if re.search(pattern, f"{case.name} {dtype}")}
    assert refused == set(UNSUPPORTED[backend])


@pytest.mark.torch
@pytest.mark.parametrize("case", [case for case in CASES if case.torch], ids=str)
def test_pytorch_agrees(case):
    import torch

    leaves = [torch.tensor(a, requires_grad=True) for a in case.arrays()]
    y = case.torch(torch, *leaves)
    want = expected(case.name)
    np.testing.assert_allclose(want, y.detach().numpy(), **tolerance("float64", want))
    y.backward(torch.from_numpy(cotangent(case)))
    for leaf, ours in zip(leaves, expected_gradients(case.name), strict=True):
        np.testing.assert_allclose(ours, leaf.grad.numpy(), **tolerance("float64", ours, 10))


@every_case
def test_without_recording_the_result_is_the_same_bits_and_nothing_is_locked(case):
    arrays = case.arrays()
    recorded = case.run(*(tr.tensor(a, requires_grad=True) for a in arrays))
    with tr.no_grad():
        free = case.run(*(tr.Tensor(a, requires_grad=True) for a in arrays))
    np.testing.assert_array_equal(recorded.data, free.data)
    assert not free.requires_grad and free.node is None
    assert all(a.flags.writeable for a in arrays)


def gradients(case, leaves):
    case.run(*leaves).backward(cotangent(case))
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name", ["conv2d[2,3,6,7][4,3,3,3]-bias-p1", "batch_norm_add_relu[3,4,5,2]-train", "max_pool2d-3-2-1", "linear"]
)
def test_read_only_inputs_are_welcome(name, backend):
    case = BY_NAME[name]
    with tr.use_backend(backend):
        usual = gradients(case, [tr.tensor(a, requires_grad=True) for a in case.arrays()])
        arrays = case.arrays()
        for a in arrays:
            a.flags.writeable = False
        for got, want in zip(gradients(case, [tr.Tensor(a, requires_grad=True) for a in arrays]), usual, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("name", ["conv2d[2,3,6,7][4,3,3,3]-bias-p1", "linear", "batch_norm_relu[3,4,5,2]-train"])
def test_a_gradient_is_the_same_whichever_others_are_wanted(name, wanted, backend):
    case = BY_NAME[name]
    with tr.use_backend(backend):
        usual = gradients(case, [tr.tensor(a, requires_grad=True) for a in case.arrays()])
        some = [tr.tensor(a, requires_grad=w) for a, w in zip(case.arrays(), wanted, strict=True)]
        for got, want, w in zip(gradients(case, some), usual, wanted, strict=True):
            assert (got is not None) == w
            if w:
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_give_the_same_bits(backend):
    for case in CASES:
        with tr.use_backend(backend):
            first, second = (case.run(*map(tr.tensor, case.arrays())).data for _ in range(2))
        np.testing.assert_array_equal(first, second, case.name)
