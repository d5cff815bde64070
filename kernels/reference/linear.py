"""The linear layer y = x w^T + b and its gradients: one matrix product each."""

from tinyres.kernels.arrays import Array
from tinyres.kernels.reference.mixed import mixed


@mixed
def linear(x: Array, w: Array, b: Array | None) -> Array:
    y = x @ w.T
    if b is not None:
        y += b
    return y


def linear_backward_input(dy: Array, w: Array) -> Array:
    return dy @ w


@mixed
def linear_backward_weight(dy: Array, x: Array) -> Array:
    return dy.T @ x


def linear_backward_bias(dy: Array) -> Array:
    return dy.sum(axis=0)
