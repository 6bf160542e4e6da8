"""Odd names of files, and things that are no readable files, for tests of every reader."""

import os
import socket
from collections.abc import Callable
from pathlib import Path


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)  # relative: a socket's name has at most 108 bytes


def _closed(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    path.parent.chmod(0)


def _unreadable(path: Path) -> None:
    path.touch()
    path.chmod(0)


# kind: (name of the argument without suffix, what puts the thing there)
THINGS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no UTF-8": ("\udcff", lambda _: None),
    "255 bytes": ("a" * 240, lambda _: None),
    "256 bytes": ("a" * 256, lambda _: None),
    "5000 bytes": ("a" * 5000, lambda _: None),
    "long folders": ("a/" * 2500 + "a", lambda _: None),
    "NUL": ("a\0b", lambda _: None),
    "closed folder": ("closed/thing", _closed),
    "unreadable": ("thing", _unreadable),
    "loop": ("thing", lambda path: path.symlink_to(path.name)),
    "dangling": ("thing", lambda path: path.symlink_to("nothing")),
    "FIFO": ("thing", os.mkfifo),
    "/dev/zero": ("thing", lambda path: path.symlink_to("/dev/zero")),
    "/dev/null": ("thing", lambda path: path.symlink_to("/dev/null")),
    "socket": ("thing", _socket),
    "folder": ("thing", Path.mkdir),
    "empty": ("thing", Path.touch),
}
