"""Fork while other threads work: a child process has the thread that forks and no other, so a lock that another one held
would stay taken for good, and what it guards half changed. So whoever forks takes all locks before, and lets go of them on
both sides.
"""

import os
from contextlib import ExitStack
from typing import Any

_locks: list[Any] = []  # a thread that holds one may ask for a later one, never for an earlier one
_taken = ExitStack()


def held_across_fork(lock: Any) -> Any:
    """The lock itself, which from now on is held while this process is being forked."""
    _locks.append(lock)
    return lock


def _take() -> None:
    for lock in _locks:  # those of kernels too that another thread is importing meanwhile
        _taken.enter_context(lock)


def _let_go() -> None:
    _taken.pop_all().close()  # (with the first lock gone, another thread may begin to fork)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take, after_in_parent=_let_go, after_in_child=_let_go)
