"""The random generator that initialisation and dropout use by default.

Its state is part of a checkpoint, so that an interrupted run resumes bit for bit.
"""

import numpy as np

from tinyres.kernels import recording
from tinyres.kernels.forks import held_across_fork

_generator = np.random.default_rng(0)
held_across_fork(_generator.bit_generator.lock)


def default_generator() -> np.random.Generator:
    """The generator in use; read or set its state through ``.bit_generator.state``."""
    recording.refuse("it draws random numbers on the host")
    return _generator


def manual_seed(seed: int) -> np.random.Generator:
    """Starts the default generator anew from ``seed`` (a non-negative integer) and returns it."""
    _generator.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    return _generator
