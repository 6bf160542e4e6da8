"""Standard output and error that may be closed, full, or without a reader."""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class PatientStream:
    """A text stream whose errors are kept, not raised: work goes on without its report.

    Characters that the encoding of the terminal lacks are written with escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore

    def write(self, text: str) -> int:
        """Write `text`, or nothing after an error."""
        if self.error is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Write what is waiting."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Keep the first error, and let what is waiting go nowhere."""
        self.error = error
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_standard_streams() -> None:
    """Open closed standard streams on nothing, so that no other file takes their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.dup(number), "w"))
