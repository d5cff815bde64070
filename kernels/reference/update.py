"""Stochastic gradient descent with momentum and weight decay, in place."""

from typing import Any


def sgd(
    params: list[Any], grads: list[Any], buffers: list[Any], lr: float, momentum: float, weight_decay: float, nesterov: bool
) -> None:
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        if weight_decay:
            g = g + weight_decay * p
        if momentum:
            v = buffers[i]
            v *= momentum
            v += g
            g = g + momentum * v if nesterov else v
        p -= lr * g
