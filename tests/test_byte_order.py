"""Arrays in another byte order than the machine's give the same numbers, or are refused."""

import re

import numpy as np
import pytest
from backends import BACKENDS
from cases import CASES, cotangent

import tinyres as tr
import tinyres.functional as F
from tinyres.errors import ShapeError
from tinyres.kernels import dispatch

FIRST = {re.match(r"\w+", case.name)[0]: case for case in reversed(CASES)}  # one case of each kind


def swapped(a, dtype=None):
    a = np.asarray(a, dtype)
    return a.astype(a.dtype.newbyteorder())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", FIRST.values(), ids=list(FIRST))
def test_an_operation_takes_any_byte_order(case, backend):
    results = []
    with tr.use_backend(backend):
        for order in (np.asarray, swapped):
            leaves = [tr.Tensor(order(np.array(a, np.float32)), requires_grad=True) for a in case.arrays()]
            y = case.run(*leaves)
            y.backward(order(np.array(cotangent(case), np.float32)))
            results.append([y.data, *(leaf.grad for leaf in leaves)])
    for a, b in zip(*results, strict=True):
        assert b.dtype.isnative
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_stands_beside_tensors_takes_any_byte_order_or_is_refused(backend):
    x, labels = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32), np.array([0, 2, 1, 1], np.int32)
    probabilities, weight = np.full((4, 3), 1 / 3, np.float32), np.array([1, 2, 3], np.float32)
    with tr.use_backend(backend):
        for arguments in ((labels,), (probabilities,), (labels, weight)):
            want = F.cross_entropy(x, *arguments)
            np.testing.assert_array_equal(F.cross_entropy(swapped(x), *map(swapped, arguments)).data, want.data)
        np.testing.assert_array_equal((tr.Tensor(x) + swapped(x)).data, x + x)
        np.testing.assert_array_equal(tr.Tensor(x)[swapped(labels)].data, x[labels])
        with pytest.raises(ShapeError, match=r"running_mean [<>]f4"):
            F.batch_norm(x, swapped(np.zeros(3, np.float32)), swapped(np.ones(3, np.float32)), training=True)
        kernels = dispatch.current()  # they refuse, and the reference runs
        np.testing.assert_array_equal(kernels.relu(swapped(x)), np.maximum(x, 0))
        losses = [kernels.cross_entropy(x, order(labels), 0.0)[0] for order in (np.asarray, swapped)]
        np.testing.assert_allclose(*losses, rtol=1e-6)


def test_a_tensor_of_another_byte_order_is_a_copy_in_the_machine_s():
    a = swapped(np.arange(3.0))
    for t in (tr.Tensor(a), tr.tensor(a), tr.tensor(swapped(np.arange(3)))):
        assert t.dtype.isnative and t.data.tolist() == [0, 1, 2]
