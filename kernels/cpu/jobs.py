"""What a recording knows about jobs: which memory they use, so that it can tell which of them must wait for which."""

import threading
from array import array
from typing import Any, NamedTuple

import numpy as np

from tinyres.kernels.cpu import buffers
from tinyres.kernels.cpu.buffers import address


class Access(NamedTuple):
    """Memory that a job reads or writes. ``per_image``: bytes of each image in it, or 0 where each part may use it all."""

    address: int
    size: int
    per_image: int
    writes: bool


class Local(NamedTuple):
    """Which memory a job uses, all of it, but for scratch memory. With ``images``, a job on a batch of so many of which
    ``parts`` parts make ``step`` images, the first the first ones: each part uses its own images alone of what is
    ``per_image``. A ``constant`` job computes from weights alone, into memory that is its own (see `constant`).
    """

    accesses: list[Access]
    images: int = 0
    step: int = 1
    parts: int = 1
    constant: bool = False


def by_image(array: np.ndarray, writes: bool = False) -> Access:
    """The use of a contiguous array of images."""
    return Access(address(array), array.nbytes, array.nbytes // len(array), writes)


def whole(array: np.ndarray, writes: bool = False) -> Access:
    return Access(address(array), array.nbytes, 0, writes)


def touched(first: int, steps: tuple[int, ...], shape: tuple[int, ...]) -> Access:
    """The reading of an array of floats, from the address of its first element and the steps in bytes along its axes."""
    reach = [step * (size - 1) for step, size in zip(steps, shape, strict=True)]
    low = first + sum(min(0, r) for r in reach)
    return Access(low, first + sum(max(0, r) for r in reach) + 4 - low, 0, False)


class Job(NamedTuple):
    """What `spread` was called with."""

    address: int
    parameters: array
    count: int
    scratch_size: int
    local: Local | None


class _Jobs(threading.local):
    recorded: list[Job] | None = None
    kept: list[Any] = []  # noqa: RUF012
    constants = False


# While a step is recorded (see `graph`), ``recorded`` is where this thread's jobs are noted, ``kept`` what lives as long as
# they, and ``constants`` says whether what is computed from weights alone is to be computed once.
jobs = _Jobs()


def constant(shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray | None:
    """Memory for what is computed from weights alone, if a recording is to compute it once: nothing else will lie there."""
    if not jobs.constants:
        return None
    jobs.kept.append(buffers.alone(shape, dtype))
    return jobs.kept[-1]


def keep(*arrays: np.ndarray | None) -> None:
    """Arrays of NumPy's that a job knows by address live as long as a recording that the job is part of."""
    if jobs.recorded is not None:
        jobs.kept += [a for a in arrays if type(a) is np.ndarray]
