"""`condinst serve` as a process."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.waiting import eventually

ENDED = "condinst: interrupted; every request has its response.\n"  # on stderr, after a signal
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}  # for other folders
_LINE = r"condinst_nano is at http://127\.0\.0\.1:(\d+) \(workers: \d\)\n"
_MAIN = "\nimport sys; from condinst_infer.cli.main import main; sys.exit(main())"


def command(model: Path, *words: object, first: str = "") -> list[str]:
    """The words of the command; `first` is Python code that runs before it."""
    start = ["-c", first + _MAIN] if first else ["-m", "condinst_infer"]
    return [sys.executable, *start, "serve", str(model), *map(str, words)]


@contextmanager
def process(
    model: Path, *words: object, first: str = "", **options: Any
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server and the port that it prints."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    with subprocess.Popen(command(model, "--port", 0, *words, first=first), **pipes) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            found = re.fullmatch(_LINE, line)
            assert found, line
            yield server, int(found[1])
        finally:
            server.kill()


def free_port() -> int:
    """A port that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for_status(port: int, status: str) -> None:
    """Wait until the server at `port` says `status` in /health."""
    eventually(lambda: _status(port) == status, pause=0.05)


def _status(port: int) -> str:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=20).json()["status"]
    except httpx.TransportError:
        return ""
