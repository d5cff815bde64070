"""Known-wrong CUDA kernels, planted one at a time by replacing a text of a source: the suite proves that it can fail.

Each must be caught by the check that stands beside it, which is one that the other files run, in at least one of the orders
in which a block's threads run. Without the fault the check passes in all of them.
"""

import functools

import numpy as np
import pytest
from cuda_sources import SOURCE, sources

from tinyres.kernels import cuda
from tinyres.kernels.cuda.sources import KernelFault

ORDERS = "012"
CAUGHT = (AssertionError, KernelFault)
OWN = {"own.cu": SOURCE}


def registry():
    """A function that registers a fault, and the dict that it fills: in ``file``, ``old`` becomes ``new``, which ``check``
    must notice.
    """
    mutants = {}

    def mutant(name, file, old, new, check):
        assert name not in mutants, name
        mutants[name] = (file, old, new), check

    return mutant, mutants


def of(check, *arguments):
    """A check of test_ops_kernels, on the kernels in CUDA C++."""
    return lambda: check(cuda, *arguments)


def fails(check):
    """Whether a check fails in one of the orders of threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYRES_EMULATOR", "checked")
        for order in ORDERS:
            patch.setenv("TINYRES_EMULATOR_ORDER", order)
            try:
                with np.errstate(all="ignore"):
                    check()
            except CAUGHT:
                return True
    return False


@functools.cache
def fails_without_a_fault(check):
    with sources(OWN):
        return fails(check)


def check_places(mutants):
    """Every fault can be planted: whoever changes a source hears it at once, not only where the wrong kernels are run."""
    for replacement, _ in mutants.values():
        with sources(OWN, replacement):
            pass


def check_caught(replacement, check):
    assert not fails_without_a_fault(check), "the check fails without the fault"
    with sources(OWN, replacement):
        assert fails(check), "nobody notices"
