"""What an operation says about its cotangents (``fresh``) against what its backward returns, by memory."""

import itertools

import fake_cupy
import numpy as np
import pytest
from backends import require
from cases import CASES, cotangent

import tinyres as tr
import tinyres.functional as F
from tinyres import autograd, ops

FRESH = {op for op in vars(ops).values() if isinstance(op, type) and issubclass(op, autograd.Function) and op.fresh}


def share(a, b):
    """Whether two arrays have memory in common; on different devices they have not."""
    return np.shares_memory(a, b) if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else a is b


def watch(monkeypatch):
    """Checks each fresh operation that a walk passes, and returns the set of those that it has seen."""
    right, seen = autograd.cotangents, set()

    def cotangents(node, dy):
        result = right(node, dy)
        if node.function.fresh:
            seen.add(node.function)
            made = [dx for dx in result if dx is not None]
            others = [dy, *(a for a in node.saved if a is not None)]
            for dx, other in [*itertools.product(made, others), *itertools.combinations(made, 2)]:
                assert not share(dx, other), f"{node.function.__name__} says that its cotangents are fresh"
            assert all(dx.flags.writeable for dx in made if isinstance(dx, np.ndarray)), node.function.__name__
        return result

    monkeypatch.setattr(autograd, "cotangents", cotangents)
    return seen


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_what_an_operation_calls_fresh_is_an_array_that_nobody_else_has(backend, monkeypatch):
    require(backend)
    seen = watch(monkeypatch)
    with tr.use_backend(backend):
        for case in CASES:
            y = case.run(*(tr.tensor(a, dtype=np.float32, requires_grad=True) for a in case.arrays()))
            y.backward(np.array(cotangent(case), np.float32))
        x = tr.tensor(np.ones((2, 3)), requires_grad=True)
        x.float().backward(np.ones((2, 3), np.float32))
    assert seen == FRESH - {ops.Move}, "each fresh operation is in the table of cases, or here"


def test_so_is_what_comes_back_from_another_device(monkeypatch):
    fake_cupy.install(monkeypatch)
    seen = watch(monkeypatch)
    x = tr.tensor(np.ones(3, np.float32), requires_grad=True)
    (x * 2).to("cuda").cpu().sum().backward()
    assert seen == {ops.Move} and (x.grad == 2).all()


@pytest.mark.parametrize("op", [ops.Add, ops.AddReLU, ops.Reshape], ids=lambda op: op.__name__)
def test_the_check_sees_an_operation_that_is_not(op, monkeypatch):
    watch(monkeypatch)
    monkeypatch.setattr(op, "fresh", True)
    x = tr.tensor(np.ones((2, 3)), requires_grad=True)
    a, b = x * 1, x * 2
    y = {ops.Add: a + b, ops.AddReLU: F.add_relu(a, b), ops.Reshape: a.reshape(6)}[op]
    with pytest.raises(AssertionError, match=f"{op.__name__} says"):
        y.backward(np.ones(y.shape))
