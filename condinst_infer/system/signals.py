"""Ctrl-C and SIGTERM: the first ends work at the next good place, the second acts at once."""

import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

from condinst_infer.system.outputs import discard_unfinished

NUMBERS = (signal.SIGINT, signal.SIGTERM)
# `timeout` and SLURM send SIGTERM to a process and then to its group: two of one event
SAME_EVENT_S = 0.2
_noted_at = -math.inf  # when `stop_signals` took a signal


class Interrupted(KeyboardInterrupt):
    """A signal ended the work."""

    def __init__(self, number: int, what_is_there: str = "") -> None:
        super().__init__(what_is_there)
        self.number = number

    @property
    def exit_status(self) -> int:
        """As shells have it: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + self.number


@contextmanager
def stop_signals(stop: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """The signals that came, SIGINT or SIGTERM: the first calls `stop`, a second acts at once."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came  # only that thread may set a handler
        return
    before = {}

    def note(number: int, _frame: Any) -> None:
        global _noted_at
        if not came:
            came.append(number)
            _noted_at = monotonic()
            stop()
        elif monotonic() - _noted_at > SAME_EVENT_S:
            for each in NUMBERS:
                signal.signal(each, before[each])
            signal.raise_signal(number)

    for number in NUMBERS:
        before[number] = signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let signals end a command: the first raises `Interrupted`, the second ends the process.

    The second, unless it comes within `SAME_EVENT_S`, does so at once, also while a library
    computes: a thread waits for it. What this process has not finished writing is removed, and its
    children are killed.
    """
    global _noted_at
    _noted_at = -math.inf
    before = {number: signal.signal(number, _interrupt) for number in NUMBERS}
    ours, of_handler = socket.socketpair()
    of_handler.setblocking(False)
    wakeup = signal.set_wakeup_fd(of_handler.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_wait_for_second, args=(ours,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        of_handler.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _forget_in_child() -> None:
    """Let no forked process write to our socket: one Ctrl-C reaches all of them."""
    signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_in_child)


def _interrupt(number: int, _frame: Any) -> None:
    if monotonic() - _noted_at > SAME_EVENT_S:
        for each in NUMBERS:
            signal.signal(each, _ignore)  # in the midst of an `except` or `finally`
        raise Interrupted(number)


def _ignore(_number: int, _frame: Any) -> None:
    """A second signal is for the thread."""


def _wait_for_second(numbers: socket.socket) -> None:
    """End the process when a second signal comes; return when the other end is closed."""
    first: float | None = None
    with numbers:
        while came := numbers.recv(1):
            if came[0] not in NUMBERS:
                continue
            first = first or monotonic()
            if monotonic() - first > SAME_EVENT_S:
                discard_unfinished()
                _kill_children(os.getpid())
                os._exit(128 + came[0])


def _kill_children(pid: int) -> None:
    """Kill all processes below `pid`, where the system lists them."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError, ValueError):
            for child in map(int, path.read_text().split()):
                _kill_children(child)
                os.kill(child, signal.SIGKILL)
