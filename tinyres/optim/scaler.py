"""GradScaler: dynamic loss scaling, which float16 needs (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2).

Gradients below 6e-8 are 0 in float16. So the loss, and with it every gradient, is multiplied by a scale that is as large as
possible: when a gradient overflows, the step is skipped and the scale is halved; after many good steps it is doubled.
bfloat16 has the range of float32 and needs no scale.

    scaler.scale(loss).backward()
    scaler.step(optimizer)          divides the gradients by the scale; skips the step if one is not finite
    scaler.update()

The scale, the count of good steps and the flag for gradients that are not finite are arrays on the parameters' device, and
nothing here reads them: a GPU runs its steps without waiting for the host.
"""

from __future__ import annotations

from typing import Any

from tinyres.device import move
from tinyres.errors import CheckpointError, GraphError, UsageError
from tinyres.kernels import dispatch
from tinyres.kernels.arrays import array_module
from tinyres.locks import unshared
from tinyres.optim.optimizer import Optimizer
from tinyres.tensor import Tensor


class GradScaler:
    """Names, places and meanings are those of ``torch.amp.GradScaler``; a number in the first place is ``init_scale``, as
    ``torch.cuda.amp.GradScaler`` has it. ``device`` changes nothing: it works where the loss is. With ``enabled=False`` it
    leaves everything as it is.

    The scale starts at ``init_scale``. It is multiplied by ``backoff_factor`` when a gradient overflows, and by
    ``growth_factor`` after ``growth_interval`` steps in a row without that. Raises `UsageError` for values out of range.
    """

    def __init__(
        self,
        device: str | float = "cuda",
        init_scale: float | None = None,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if not isinstance(device, str):
            if init_scale is not None:
                raise UsageError(
                    f"GradScaler: its first argument is a device, such as 'cuda', or init_scale; got {device!r}"
                )
            init_scale = device
        init_scale = 2.0**16 if init_scale is None else init_scale
        if not (init_scale > 0 and growth_factor > 1 and 0 < backoff_factor < 1 and growth_interval >= 1):
            raise UsageError(
                "GradScaler: init_scale must be above 0, growth_factor above 1, backoff_factor between 0 and 1, "
                f"growth_interval 1 or more; got {init_scale}, {growth_factor}, {backoff_factor}, {growth_interval}"
            )
        self.enabled = enabled
        self._factors = (growth_factor, backoff_factor, growth_interval)
        self._start: tuple[float, int] = (init_scale, 0)  # until the arrays are made, on the device of the first loss
        self._scale: Any = None
        self._good_steps: Any = None
        self._found: dict[int, Any] = {}  # by id of the optimizer: 1 if a gradient was not finite, since the last update
        self._stepped: set[int] = set()

    def __repr__(self) -> str:
        scale = self._start[0] if self._scale is None else float(self._scale)
        return f"GradScaler(scale {scale:g})" if self.enabled else "GradScaler(enabled=False)"

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the scale: what to call ``backward()`` on."""
        return loss * Tensor(self._scale_beside(loss)) if self.enabled else loss

    def backward(self, loss: Tensor) -> None:
        """``scale(loss).backward()``: the backward pass, with the scale as the cotangent of the loss."""
        loss.backward(self._scale_beside(loss) if self.enabled else None)

    def _scale_beside(self, loss: Tensor) -> Any:
        """The scale, on the device of the loss."""
        if self._scale is None:
            xp = array_module(loss.data)
            self._scale = xp.full((), self._start[0], "f4")
            self._good_steps = xp.full((), self._start[1], "i4")
        self._scale, self._good_steps = move(self._scale, loss.device), move(self._good_steps, loss.device)
        return self._scale

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, in place. `step` does this; call it yourself to see or clip the true gradients.

        Raises `GraphError` if this was done already since the last `update`, or if no loss was scaled.
        """
        if not self.enabled:
            return
        if self._scale is None:
            raise GraphError("GradScaler: no loss has been scaled; call scale(loss).backward() first")
        if id(optimizer) in self._found:
            raise GraphError("GradScaler: unscale_() was called on this optimizer since the last update() already")
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self._found[id(optimizer)] = dispatch.current().unscale([p.grad for p in params if p.grad is not None], self._scale)

    def step(self, optimizer: Optimizer) -> None:
        """``optimizer.step()``, but nothing changes if a gradient is not finite. Unscales first, unless that was done.

        Raises `GraphError` if this was called already since the last `update`.
        """
        if not self.enabled:
            optimizer.step()
            return
        if id(optimizer) in self._stepped:
            raise GraphError("GradScaler: step() was called on this optimizer since the last update() already")
        if id(optimizer) not in self._found:
            self.unscale_(optimizer)
        optimizer.step(skip=self._found[id(optimizer)])
        self._stepped.add(id(optimizer))

    def update(self) -> None:
        """Halve the scale if a gradient was not finite, double it after ``growth_interval`` good steps in a row.

        Raises `GraphError` if nothing was unscaled since the last update.
        """
        if not self.enabled:
            return
        if not self._found:
            raise GraphError("GradScaler: update() without a step() or unscale_() since the last one")
        self._scale = unshared(self._scale)  # a scaled loss that waits for its backward pass keeps its own
        found, *others = self._found.values()
        for other in others:
            found = array_module(found).maximum(found, other)
        dispatch.current().update_scale(self._scale, self._good_steps, found, *self._factors)
        self._found, self._stepped = {}, set()

    def get_scale(self) -> float:
        """The scale as a number, 1 if not enabled; on a GPU this waits for the steps that run."""
        if not self.enabled:
            return 1.0
        return self._start[0] if self._scale is None else float(self._scale)

    def state_dict(self) -> dict[str, Any]:
        """Numbers under PyTorch's names; empty if not enabled."""
        if not self.enabled:
            return {}
        growth, backoff, interval = self._factors
        good_steps = self._start[1] if self._scale is None else int(self._good_steps)
        return {
            "scale": self.get_scale(),
            "growth_factor": growth,
            "backoff_factor": backoff,
            "growth_interval": interval,
            "_growth_tracker": good_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises `CheckpointError`, and changes nothing, if it does not fit."""
        if not self.enabled:
            return
        try:
            scale, good_steps = float(state["scale"]), int(state["_growth_tracker"])
            factors = float(state["growth_factor"]), float(state["backoff_factor"]), int(state["growth_interval"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"this is no state of an enabled GradScaler: {error!r}") from error
        self._factors, self._start = factors, (scale, good_steps)
        if self._scale is not None:
            self._scale = unshared(self._scale)
            self._scale[...], self._good_steps[...] = scale, good_steps
