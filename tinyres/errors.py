"""The errors that a user of tinyres can cause. A command turns each into one line and exit status 2."""

from tinyres.files import printable

__all__ = [
    "CheckpointError",
    "DataError",
    "DeviceError",
    "GraphError",
    "NonFiniteError",
    "ShapeError",
    "TinyresError",
    "UsageError",
]


class TinyresError(Exception):
    """Base of all errors here. The message says what is wrong and what to do; names in it may come from a file."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ShapeError(TinyresError, ValueError):
    """An operation was given arrays whose shapes or dtypes do not fit together."""


class DataError(TinyresError, ValueError):
    """A data set is missing, damaged, or not what it claims to be."""


class CheckpointError(TinyresError, ValueError):
    """A file of weights or a checkpoint cannot be read, or does not fit the model."""


class GraphError(TinyresError, RuntimeError):
    """The graph of a backward pass was used in a way that it does not allow."""


class NonFiniteError(TinyresError, ArithmeticError):
    """A NaN or an infinity appeared; ``op`` names the operation that made it first."""

    def __init__(self, message: str, op: str = "") -> None:
        super().__init__(message)
        self.op = op


class UsageError(TinyresError, ValueError):
    """An argument is not valid here."""


class DeviceError(TinyresError, RuntimeError):
    """Arrays live on different devices, or a device is not available."""


def __dir__() -> list[str]:
    return __all__
