"""The compiled update of all parameters against the reference in float64."""

import numpy as np
import pytest

pytest.importorskip("numba", reason="Numba is not installed")
from test_cpu_kernels_values import draw

from tinyres.kernels import cpu, reference
from tinyres.kernels.contract import Unsupported


def parameters(seed, dtype):
    return [draw(seed, shape).astype(dtype) for shape in ((), (0,), (1,), (16, 3, 3, 3), (40_000,), (31,), (70_001,))]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_update_is_the_reference_s(momentum, nesterov, decay, dtype):
    results = []
    for k, kind in ((cpu, dtype), (reference, "float64")):
        params, grads = parameters(1, kind), parameters(2, kind)
        grads[3] = grads[3].transpose(3, 2, 1, 0).copy().transpose(3, 2, 1, 0)  # as the weight gradient lies
        buffers = parameters(3, kind) if momentum else []
        for _ in range(2):
            k.sgd(params, grads, buffers, 0.1, momentum, decay, nesterov)
        assert all((a == b).all() for a, b in zip(grads, parameters(2, kind), strict=True)), "a gradient changed"
        results.append([*params, *buffers])
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14 if dtype == "float64" else 3e-6)


def test_the_update_refuses_what_it_would_have_to_write_in_another_way():
    p, g = draw(0, (4, 6)), draw(1, (4, 6))
    frozen = p.copy()
    frozen.flags.writeable = False
    for params in ([p[:, ::2]], [p.T], [frozen]):
        with pytest.raises(Unsupported):
            cpu.sgd(params, [np.ones(params[0].shape, np.float32)], [], 0.1, 0.0, 0.0, False)
    for arguments in (([p], [g[0]], []), ([p, p], [g], []), ([p], [g], [g[0]])):
        with pytest.raises(ValueError, match="same shapes"):
            cpu.sgd(*arguments, 0.1, 0.9 if arguments[2] else 0.0, 0.0, False)
    np.testing.assert_array_equal(p, draw(0, (4, 6)))
    cpu.sgd([], [], [], 0.1, 0.9, 0.0, False)
