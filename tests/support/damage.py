"""Ways in which a file that is read back can be damaged, or be another one."""

from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], object]


def truncate(path: Path) -> None:
    """Keep the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_folder(path: Path) -> None:
    """Put a folder in the place of a file."""
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": truncate,
    "image": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "list": lambda path: path.write_text("[1, 2]"),
    "text": lambda path: path.write_text("no such thing\n"),
    "number": lambda path: path.write_text("7"),
    "not-utf-8": lambda path: path.write_bytes(b'{"model": "\xff\xfe"}\n'),
    "nested": lambda path: path.write_text("[" * 100_000),
    "folder": make_folder,
    "zeros": lambda path: path.write_bytes(bytes(4096)),
}
