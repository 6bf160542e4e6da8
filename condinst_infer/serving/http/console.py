"""Lines on stdout and stderr that neither stop nor end the server, whatever became of the streams.

A stream may be closed, its disk full, its reader gone, or a pipe that nobody reads: such lines are
dropped. `print` and Python's log handlers raise, or block every thread that logs.
"""

import logging
import os
import select
from contextlib import suppress
from typing import Any

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


class OneLineFormatter(logging.Formatter):
    """Formats records so that no text of a client can look like another line or steer a terminal.

    A message is one line, control characters are escaped, and lines of a traceback are indented.
    """

    def __init__(self) -> None:
        super().__init__("condinst: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Format the line of a record."""
        return escape_controls(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Format the traceback of a record."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {escape_controls(line)}" for line in lines)


def escape_controls(text: str) -> str:
    """`text` with an escape in place of every character that is not printed, such as ESC."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ConsoleHandler(logging.Handler):
    """Writes log records to stderr; one that can't be written at once is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(OneLineFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        say(STDERR, self.format(record), wait_s=0)
