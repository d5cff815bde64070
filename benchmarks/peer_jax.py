"""The same networks in JAX, compiled by ``jax.jit``: the whole training step is one function, and its arrays are reused.

Images lie channels-last, as Flax has them. XLA takes the number of its threads from NPROC when it starts.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from tinyres.benchmarks import networks
from tinyres.kernels.arrays import threads

LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4
EPS, KEPT = 1e-5, 0.9  # of batch norm, and how much of a running statistic stays


class Layers:
    """The operations of `networks.walk`; ``statistics`` are the running ones after this pass."""

    def __init__(self, weights: dict[str, Any], training: bool) -> None:
        self.weights, self.training = weights, training
        self.statistics: dict[str, Any] = {}

    def conv(self, x: Any, name: str, stride: int) -> Any:
        from jax import lax

        w = self.weights[f"{name}.weight"]  # (KH, KW, C, F)
        padding = [(len(w) // 2, len(w) // 2)] * 2
        return lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def norm(self, x: Any, name: str) -> Any:
        from jax import lax

        weight, bias, mean, var = (
            self.weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        if self.training:
            n, old_mean, old_var = x.size // x.shape[3], mean, var
            mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
            self.statistics[f"{name}.running_mean"] = KEPT * old_mean + (1 - KEPT) * mean
            self.statistics[f"{name}.running_var"] = KEPT * old_var + (1 - KEPT) * var * n / (n - 1)
        return (x - mean) * (weight * lax.rsqrt(var + EPS)) + bias

    def relu(self, x: Any) -> Any:
        import jax

        return jax.nn.relu(x)

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def subsample_pad(self, x: Any, channels: int, stride: int) -> Any:
        import jax.numpy as jnp

        missing = channels - x.shape[3]
        margins = [(0, 0)] * 3 + [(missing // 2, missing - missing // 2)]
        return jnp.pad(x[:, ::stride, ::stride], margins)

    def pool(self, x: Any) -> Any:
        return x.mean(axis=(1, 2))

    def linear(self, x: Any, name: str) -> Any:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]


class Net:
    """A network with its optimizer: ``parameters``, running ``statistics``, ``momenta``, by the names of `networks.ours`."""

    def __init__(self, name: str, weights: dict[str, Any]) -> None:
        jax = start()
        arrays = {key: jax.numpy.asarray(w.transpose(2, 3, 1, 0) if w.ndim == 4 else w) for key, w in weights.items()}
        self.plain = name.startswith("plain")
        self.statistics = {key: w for key, w in arrays.items() if "running" in key}
        self.parameters = {key: w for key, w in arrays.items() if "running" not in key}
        self.momenta = jax.tree.map(jax.numpy.zeros_like, self.parameters)
        self._step = jax.jit(self._update, donate_argnums=(0, 1, 2))
        self._infer = jax.jit(
            lambda parameters, statistics, x: self._forward(Layers({**parameters, **statistics}, False), x)
        )

    def _forward(self, layers: Layers, x: Any) -> Any:
        return networks.walk(layers, layers.weights, x, self.plain)

    def _loss(self, parameters: Any, statistics: Any, x: Any, y: Any) -> Any:
        import jax

        layers = Layers({**parameters, **statistics}, True)
        log_probs = jax.nn.log_softmax(self._forward(layers, x))
        return -log_probs[jax.numpy.arange(len(y)), y].mean(), layers.statistics

    def _update(self, parameters: Any, statistics: Any, momenta: Any, x: Any, y: Any) -> Any:
        import jax

        run = jax.value_and_grad(self._loss, has_aux=True)
        (loss, statistics), gradients = run(parameters, statistics, x, y)
        momenta = jax.tree.map(lambda m, g, p: MOMENTUM * m + g + WEIGHT_DECAY * p, momenta, gradients, parameters)
        return jax.tree.map(lambda p, m: p - LR * m, parameters, momenta), statistics, momenta, loss

    def train(self, x: Any, y: Any) -> Any:
        """One step; returns the loss."""
        state = self._step(self.parameters, self.statistics, self.momenta, x, y)
        self.parameters, self.statistics, self.momenta, loss = state
        return loss.block_until_ready()  # JAX returns before it has computed

    def infer(self, x: Any) -> Any:
        """The logits in evaluation mode."""
        return self._infer(self.parameters, self.statistics, x).block_until_ready()


def start() -> Any:
    """JAX on the CPU, with as many threads as ours."""
    before = os.environ.get("NPROC")
    os.environ["NPROC"] = str(threads())
    try:
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.devices()
    finally:
        del os.environ["NPROC"]
        os.environ |= {"NPROC": before} if before is not None else {}
    return jax


def step(name: str, images: Any, labels: Any, training: bool) -> Callable[[], object]:
    """One training step (or inference) as a function. ``images`` and ``labels`` are NumPy arrays."""
    net = Net(name, networks.ours(name).state_dict())
    x, y = (start().numpy.asarray(a) for a in (images.transpose(0, 2, 3, 1), labels))
    return partial(net.train, x, y) if training else partial(net.infer, x)
