"""Ctrl-C, and requests to end, during a training run: they wait for the end of the step."""

import signal
import threading
from typing import Any


class Interrupt:
    """``with interrupt:`` the first Ctrl-C, SIGTERM or SIGHUP sets ``asked``, and a second one raises KeyboardInterrupt at
    once. What a program around this one ignores or handles itself is left alone; so is everything in other threads than the
    main one.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def _note(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> None:
        self.asked = False
        if threading.current_thread() is not threading.main_thread():
            return
        usual = (signal.SIG_DFL, signal.default_int_handler)
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):  # (Windows has no SIGHUP)
                handler = signal.getsignal(signal.Signals[name])
                if handler in usual or (name == "SIGINT" and callable(handler)):
                    self._before[signal.Signals[name]] = handler
        for number in self._before:
            signal.signal(number, self._note)

    def __exit__(self, *error: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
