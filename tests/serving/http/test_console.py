"""Lines on streams that are closed, full, without a reader, or blocked."""

import logging
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from condinst_infer.serving.http import console
from condinst_infer.serving.http.console import ConsoleHandler, OneLineFormatter, say


@contextmanager
def stream(kind: str) -> Iterator[tuple[int, int]]:
    """Two file descriptors: what is written to the second comes out of the first, or doesn't."""
    ends = dict(zip(("reading", "writing"), os.pipe(), strict=True))
    reading, writing = ends.values()
    try:
        if kind == "closed":
            os.close(ends.pop("writing"))
        elif kind == "no reader":
            os.close(ends.pop("reading"))
        elif kind == "/dev/full":
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, writing)
            os.close(full)
        elif kind == "full pipe":
            os.set_blocking(writing, False)
            with pytest.raises(BlockingIOError):
                while True:
                    os.write(writing, bytes(select.PIPE_BUF))
            os.set_blocking(writing, True)
        yield reading, writing
    finally:
        for end in ends.values():
            os.close(end)


@pytest.mark.parametrize("kind", ["closed", "/dev/full", "no reader", "full pipe"])
def test_a_stream_that_takes_nothing_stops_nobody(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stream(kind) as (_, number):
        start = time.monotonic()
        assert not say(number, "a line", wait_s=0.05)
        monkeypatch.setattr(console, "STDERR", number)
        record = logging.makeLogRecord({"msg": "%d lines", "args": (2,)})
        ConsoleHandler().handle(record)
        assert time.monotonic() - start < 10


def test_lines_reach_a_stream_that_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "log").open("w+b") as file:
        long = "x" * 100_000
        assert say(file.fileno(), f"{long}\udcff")
        monkeypatch.setattr(console, "STDERR", file.fileno())
        ConsoleHandler().handle(logging.makeLogRecord({"msg": "%d lines", "args": (2,)}))
        assert Path(file.name).read_text() == f"{long}\\udcff\ncondinst: 2 lines\n"


def test_no_text_of_a_client_makes_a_line_of_its_own_or_steers_the_terminal() -> None:
    hostile = "a\x1b[2J\r\ncondinst: b\0\x7f\x9b31m\u202e\u2028ü"
    escaped = r"a\x1b[2J\r\ncondinst: b\x00\x7f\x9b31m\u202e\u2028ü"
    try:
        raise ValueError(hostile)
    except ValueError:
        record = logging.makeLogRecord(
            {"msg": "%s", "args": (hostile,), "exc_info": sys.exc_info()}
        )
    first, *others = OneLineFormatter().format(record).split("\n")
    assert first == f"condinst: {escaped}"
    assert others[0] == "  Traceback (most recent call last):"
    assert others[-2:] == [
        r"  ValueError: a\x1b[2J\r",
        r"  condinst: b\x00\x7f\x9b31m\u202e\u2028ü",
    ]
    assert not [line for line in others if not line.startswith("  ")]


def test_a_slow_reader_is_waited_for() -> None:
    with stream("full pipe") as (reading, number):
        timer = threading.Timer(0.1, lambda: os.read(reading, 2 * select.PIPE_BUF))
        timer.start()
        assert say(number, "a line", wait_s=20)
        timer.join()
