"""A step's counters are the reference's own: nobody captures a step of these kernels."""

from tinyres.kernels.reference.step import *  # noqa: F403
