"""The linear layer is the reference's own: matrix products, at which NumPy's BLAS is no slower."""

from tinyres.kernels.reference.linear import *  # noqa: F403
