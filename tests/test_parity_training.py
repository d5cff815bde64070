"""Training is PyTorch's: from the same weights and batches, twenty steps of SGD give its losses, gradients, parameters and
running statistics, for residual nets with both shortcuts, a plain net and bottlenecks.
"""

import functools
import itertools
from pathlib import Path

import numpy as np
import parity
import pytest
from backends import BACKENDS

import tinyres as tr

GOLDEN = Path(__file__).parent / "golden" / "training.npz"
RELATIVE = {"float64": 1e-9, "float32": 1e-3}
# (the definitions in loops would take hours; test_naive.py has the gradients of a network)
every_run = pytest.mark.parametrize(
    ("name", "dtype", "backend"),
    [
        pytest.param(name, dtype, backend, marks=[pytest.mark.kernels] if backend == "cuda-emulated" and i else [])
        for backend in BACKENDS  # (emulated, each takes as long as all others together)
        for i, (name, dtype) in enumerate(itertools.product(parity.NETS, ("float32", "float64")))
        if backend != "naive"
    ],
)


@functools.cache
def ours(name, dtype, backend):
    with tr.use_backend(backend):
        return parity.train(name, dtype)


def distance(a, b):
    """Of two lists or dicts of arrays, relative to the second."""
    a, b = ([x[key] for key in sorted(x)] if isinstance(x, dict) else x for x in (a, b))
    return np.sqrt(sum(((p - q) ** 2).sum() for p, q in zip(a, b, strict=True)) / sum((q**2).sum() for q in b))


@every_run
def test_twenty_steps_give_the_recorded_numbers_of_pytorch(name, dtype, backend):
    run = parity.digest(*ours(name, dtype, backend))
    with np.load(GOLDEN) as file:
        golden = {key: file[f"{name} {dtype} {key}"] for key in run}
    np.testing.assert_allclose(run["losses"], golden["losses"], rtol=RELATIVE[dtype])
    np.testing.assert_allclose(run["norms"][:3], golden["norms"][:3], rtol=RELATIVE[dtype])
    for key in ("state", "statistics", *(["gradients"] if dtype == "float64" else [])):
        atol = RELATIVE[dtype] * np.abs(golden[key]).max()
        np.testing.assert_allclose(run[key], golden[key], rtol=0, atol=atol, err_msg=key)


@pytest.mark.torch
@every_run
def test_twenty_steps_are_those_of_pytorch(name, dtype, backend):
    losses, gradients, state = ours(name, dtype, backend)
    their_losses, their_gradients, their_state = theirs(name, dtype)
    np.testing.assert_allclose(losses, their_losses, rtol=RELATIVE[dtype])
    assert set(state) == set(their_state)
    for key, array in their_state.items():
        assert distance([state[key]], [array]) < RELATIVE[dtype], key
    if dtype == "float64":  # the first steps parameter by parameter, all twenty as a whole
        for step, other in zip(gradients[:3], their_gradients, strict=False):
            for key, array in other.items():
                assert distance([step[key]], [array]) < 1e-9, key
        assert max(map(distance, gradients, their_gradients)) < 1e-7
    else:  # one ReLU that tips over moves a gradient by about 1e-3 at once
        assert distance(gradients[0], their_gradients[0]) < 5e-3


@functools.cache
def theirs(name, dtype):
    import torch_nets

    shapes = {key: a.shape for key, a in parity.NETS[name]().state_dict().items()}
    return torch_nets.train(name, parity.weights(shapes, dtype), parity.batches(dtype), dtype, **parity.SETTINGS[dtype])


def test_the_networks_learn_in_these_runs():
    """Parity of runs in which nothing moves would prove little."""
    with np.load(GOLDEN) as file:
        for name in parity.NETS:
            assert np.ptp(file[f"{name} float64 losses"]) > 0.3
    assert GOLDEN.stat().st_size < 300_000
