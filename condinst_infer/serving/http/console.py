"""Lines on stdout and stderr that neither stop nor end the server, whatever became of the streams.

A stream may be closed, its disk full, its reader gone, or a pipe that nobody reads: such lines are
dropped. `print` and Python's log handlers raise, or block every thread that logs.
"""

import logging
import os
import select
from contextlib import suppress

STDOUT, STDERR = 1, 2


def say(stream: int, text: str, *, wait_s: float = 1.0) -> bool:
    """Write lines to STDOUT or STDERR if the stream takes them within `wait_s`; True if it did."""
    data = f"{text}\n".encode(errors="backslashreplace")
    poll = select.poll()
    poll.register(stream, select.POLLOUT)
    with suppress(OSError):
        while data and poll.poll(wait_s * 1000):
            # a pipe that is ready takes as much at once; more could block
            data = data[os.write(stream, data[: select.PIPE_BUF]) :]
    return not data


class ConsoleHandler(logging.Handler):
    """Writes log records to stderr; one that can't be written at once is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("condinst: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        say(STDERR, self.format(record), wait_s=0)
