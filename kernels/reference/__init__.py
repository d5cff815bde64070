"""The reference: every kernel of the contract in plain array operations, for NumPy and CuPy arrays.

It is the path to read, the baseline of every benchmark and the oracle of every test, so it is written with the memory
layout that makes NumPy fast: channels last, and blocks of a few images, so that what one step writes is still in the
cache when the next step reads it.
"""

from tinyres.kernels.contract import kernels_of

globals().update(kernels_of(__name__))
