"""Ctrl-C and SIGTERM as a wish to stop at the next good place."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals(stop: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """The signals that came, SIGINT or SIGTERM: the first calls `stop`, a second acts at once."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came  # only that thread may set a handler
        return
    before = {}

    def note(number: int, _frame: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
