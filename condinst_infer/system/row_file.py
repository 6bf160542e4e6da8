"""Rows of a long JSON list, which wait in a temporary file, so that memory holds few of them."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from condinst_infer.errors import InputError
from condinst_infer.system.outputs import text_file

IN_MEMORY = 8 << 20  # bytes; more go to a file without a name
ROWS = "\0rows"  # stands for all rows in the content of a file


class RowFile:
    """Rows in the order they were added in; one thread adds, then reads.

    Args:
        folder: the place of the temporary file; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = SpooledTemporaryFile(IN_MEMORY, "w+", encoding="utf-8", dir=str(folder))  # noqa: SIM115 - `close`

    def add(self, rows: Iterable[Any]) -> None:
        """Add rows, plain data; InputError if the disk is full."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with self._errors():
            if self._file.tell() + len(text) > IN_MEMORY:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._file.write(text)

    def __iter__(self) -> Iterator[Any]:
        with self._errors():
            self._file.seek(0)
            yield from map(json.loads, self._file)

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"a temporary file in {self._folder} can't be written: {error.strerror}."
            ) from None


def write_with_rows(path: Path, content: Any, rows: Iterable[Any]) -> None:
    """Write `content` as JSON in which `ROWS` stands for the list of all rows.

    Raises:
        InputError: the file can't be written.
    """
    before, after = json.dumps(content).split(json.dumps(ROWS))
    with text_file(path) as file:
        file.write(f"{before}[")
        for number, row in enumerate(rows):
            file.write((", " if number else "") + json.dumps(row))
        file.write(f"]{after}\n")
