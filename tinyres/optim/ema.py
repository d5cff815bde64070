"""EMA: an exponential moving average of a model's weights, which often tests better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinyres.device import move
from tinyres.errors import CheckpointError, UsageError
from tinyres.kernels.arrays import array_module
from tinyres.locks import unshare
from tinyres.nn import Module, Parameter
from tinyres.tensor import Tensor


class EMA:
    """average = decay * average + (1 - decay) * weights at each ``update()``, starting from the present weights
    of ``model``. Raises `UsageError` for a ``decay`` outside [0, 1).

    Buffers are copied at each update: the running statistics of batch norm are averages already.
    """

    def __init__(self, model: Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"EMA: decay must be within [0, 1), got {decay}")
        self.model, self.decay = model, decay
        self._tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._averages = {name: tensor.data.copy() for name, tensor in self._tensors.items()}

    def __repr__(self) -> str:
        return f"EMA(of {len(self._averages)} tensors of {type(self.model).__name__}, decay={self.decay})"

    def update(self) -> None:
        """Add the model's present weights to the average: call this after each optimizer step."""
        for name, tensor in self._tensors.items():
            average = self._averages[name] = move(self._averages[name], tensor.device)
            if isinstance(tensor, Parameter):
                average += (1 - self.decay) * (tensor.data - average)
            else:
                average[...] = tensor.data

    @contextmanager
    def applied(self) -> Iterator[Module]:
        """Inside ``with ema.applied():`` the model has the averaged weights; afterwards its own again, bit for bit."""
        own = {name: tensor.data.copy() for name, tensor in self._tensors.items()}
        self._write(self._averages)
        try:
            yield self.model
        finally:
            self._write(own)

    def _write(self, arrays: Mapping[str, Any]) -> None:
        unshare(self._tensors.values())
        for name, tensor in self._tensors.items():
            tensor.data[...] = move(arrays[name], tensor.device)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the averaged weights and of the buffers, by the model's names."""
        return {name: np.array(Tensor(average).numpy()) for name, average in self._averages.items()}

    def load_state_dict(self, arrays: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises `CheckpointError`, and changes nothing, if it does not fit."""
        own = self._averages
        wrong = [name for name in own if name not in arrays or arrays[name].shape != own[name].shape]
        wrong += [name for name in arrays if name not in own]
        if wrong:
            raise CheckpointError(f"averaged weights missing, unexpected or of another shape: {', '.join(wrong)}")
        for name, average in own.items():
            average[...] = array_module(average).asarray(arrays[name])
