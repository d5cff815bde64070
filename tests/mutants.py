"""Known faults, planted one at a time: the suite proves that it can fail.

A mutant is a function that plants a fault with a `pytest.MonkeyPatch`, registered with the checks of which each must catch
it. A check is what the other test files run, without arguments; it is first seen to pass without the fault.
"""

import functools

import pytest
import test_ops_cases as operations
from cases import BY_NAME, expected_gradients

import tinyres as tr
from tinyres.errors import TinyresError
from tinyres.kernels import dispatch

CAUGHT = (AssertionError, TinyresError)


def registry():
    """A decorator for mutants, and the dict that it fills."""
    mutants = {}

    def mutant(*checks):
        def register(plant):
            mutants[plant.__name__] = (plant, checks)
            return plant

        return register

    return mutant, mutants


def check_caught(plant, checks):
    with tr.use_backend("numpy"):
        for check in checks:
            check()
        for check in checks:
            with pytest.MonkeyPatch.context() as patch:
                plant(patch)
                with pytest.raises(CAUGHT):
                    check()


def case(name):
    """The check of an operation's case by its definition."""
    expected_gradients(name)  # of the right engine, before any fault is planted
    return functools.partial(operations.check_case, BY_NAME[name])


def slope(name):
    """Its check by central differences."""
    return functools.partial(operations.check_gradient, BY_NAME[name])


def kernel(check, *arguments):
    """A check of the kernels of the backend in use."""
    return lambda: check(dispatch.current(), *arguments)


def replace(patch, name, kernel):
    """A kernel of the NumPy backend gives way to a wrong one."""
    patch.setattr(dispatch.current(), name, kernel)
