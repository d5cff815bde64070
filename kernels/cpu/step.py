"""A step's counters are the reference's own: numbers, not arrays."""

from tinyres.kernels.reference.step import *  # noqa: F403
