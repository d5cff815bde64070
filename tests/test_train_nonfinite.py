"""NaN and infinity in a training run: it stops, names the operation and spares the checkpoint."""

from pathlib import Path

import numpy as np
import pytest
from test_train_trainer import Tiny, colours, numpy_kernels, quick_files, tiny_trainer  # noqa: F401

import tinyres as tr
from tinyres.errors import NonFiniteError
from tinyres.train import Trainer
from tinyres.train.checkpoint import read
from tinyres.train.progress import Silent


class Exploding(Tiny):
    """Divides by zero in the forward pass, or only in the backward pass, from the seventh call on."""

    def __init__(self, backward: bool) -> None:
        super().__init__()
        self.backward, self.calls = backward, 0

    def forward(self, x: tr.Tensor) -> tr.Tensor:
        self.calls += self.training
        y = super().forward(x)
        if self.calls < 7:
            return y
        return (y * 0.0) ** 0.5 if self.backward else y / 0.0


@pytest.mark.parametrize(("backward", "op", "phase"), [(False, "Div", "forward"), (True, "Pow", "backward")])
def test_a_nan_stops_the_run_names_its_op_and_spares_the_checkpoint(
    tmp_path: Path, backward: bool, op: str, phase: str
) -> None:
    tr.manual_seed(7)
    trainer = Trainer(
        Exploding(backward), colours(), batch_size=8, lr=0.1, epochs=3, out=tmp_path / "run", save_every=0, display=Silent()
    )
    with pytest.raises(NonFiniteError) as error:
        trainer.fit()
    assert error.value.op == op
    for part in ("epoch 2/3, step 2", op, f"{phase} pass", "lower learning rate than 0.1", "last good checkpoint"):
        assert part in str(error.value)
    arrays, kept, texts = read(tmp_path / "run" / "last.safetensors")
    assert all(np.isfinite(array).all() for array in [*arrays.values(), *kept["momentum"].values()])
    assert (texts["run"]["state"]["epoch"], texts["run"]["state"]["step"]) == (1, 1)


def test_a_run_whose_scaled_gradients_are_never_finite_ends_instead_of_doing_nothing(tmp_path: Path) -> None:
    class Always(Tiny):
        def forward(self, x: tr.Tensor) -> tr.Tensor:
            return (super().forward(x) * 0.0) ** 0.5

    trainer = Trainer(Always(), colours(), batch_size=8, epochs=9, amp="fp16", out=tmp_path / "run", display=Silent())
    with pytest.raises(NonFiniteError, match=r"Pow made a.* in its backward pass") as error:
        trainer.fit()
    assert error.value.op == "Pow" and trainer.scaler.get_scale() < 1


class Chancy(Tiny):
    """Divides by zero when it draws one random number: that of its seventh call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bad = 0, 2.0

    def forward(self, x: tr.Tensor) -> tr.Tensor:
        drawn = tr.default_generator().random()
        self.calls += 1
        if self.calls == 7:
            self.bad = drawn
        return super().forward(x) / (0.0 if drawn == self.bad else 1.0)


def test_the_op_is_looked_for_with_the_random_numbers_of_the_step_that_failed() -> None:
    with pytest.raises(NonFiniteError) as error:
        Trainer(Chancy(), colours(), batch_size=8, lr=0.1, epochs=3, display=Silent()).fit()
    assert error.value.op == "Div"


@pytest.mark.parametrize("lr", [1e30, 1e40])
def test_weights_that_an_update_made_infinite_are_never_saved(tmp_path: Path, lr: float) -> None:
    trainer = tiny_trainer(tmp_path / "run", lr=lr, save_every=0)
    with pytest.raises(NonFiniteError) as error:
        trainer.fit()
    assert error.value.op
    arrays, _, _ = read(tmp_path / "run" / "last.safetensors")
    assert all(np.isfinite(array).all() for array in arrays.values())
