"""The linear layer y = x w^T + b and its gradients: one matrix product each."""

from typing import Any

from tinyres.kernels.reference.mixed import mixed


@mixed
def linear(x: Any, w: Any, b: Any | None) -> Any:
    y = x @ w.T
    if b is not None:
        y += b
    return y


def linear_backward_input(dy: Any, w: Any) -> Any:
    return dy @ w


@mixed
def linear_backward_weight(dy: Any, x: Any) -> Any:
    return dy.T @ x


def linear_backward_bias(dy: Any) -> Any:
    return dy.sum(axis=0)
