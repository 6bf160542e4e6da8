"""Names of files that a user typed: what is there, and in one sentence why it can't be read.

Only regular files are read: a FIFO, a device or a socket could make a program wait for ever, or
give it bytes without end. One exception: text also comes through a pipe that this process has
open already, named /dev/stdin or /dev/fd/N, as a shell makes for `<(command)`.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from condinst_infer.errors import CondInstError, InputError

StrPath = str | os.PathLike[str]
Error = type[CondInstError]

MAX_PIPED_BYTES = 1 << 30
SHOWN = 300  # characters of a name in a message
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)
_OPEN_PIPE = re.compile(r"/dev/stdin|(?:/dev/fd|/proc/self/fd)/[0-9]{1,9}")
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)


def kind_of(mode: int) -> str | None:
    """The kind of thing that a mode of `stat` is of, such as "a FIFO"; None for a regular file."""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), None)


def printable(text: str) -> str:
    r"""`text` with the bytes of names that are no UTF-8 written as \xff: any stream takes it."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode()


def shown(path: StrPath) -> str:
    """A name for a message: without control characters, and with an end to its length."""
    text = printable(os.fspath(path))
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(text) <= SHOWN:
        return text
    half = SHOWN // 2 - 2
    return f"{text[:half]}...{text[-half:]}"


def is_file(path: StrPath, error: Error = InputError) -> bool:
    """True for a regular file, also behind links; `error` if that can't be known."""
    status = status_of(path, error)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder(path: StrPath, error: Error = InputError) -> bool:
    """True for a folder, also behind links; `error` if that can't be known."""
    status = status_of(path, error)
    return status is not None and stat.S_ISDIR(status.st_mode)


def exists(path: StrPath, error: Error = InputError) -> bool:
    """True if anything is at `path`; `error` if that can't be known."""
    return status_of(path, error) is not None


def status_of(path: StrPath, error: Error = InputError) -> os.stat_result | None:
    """The status of what is at `path`; None for nothing, `error` if that can't be known."""
    with reading(path, error):
        try:
            return os.stat(path)  # noqa: PTH116 - Path(path) costs more than the call
        except OSError as problem:
            if problem.errno in _NOT_THERE:
                return None
            raise


def real_path(path: StrPath) -> Path:
    """`path`, absolute and without links; a loop of links and what is no name stay as they are."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return Path.cwd() / path


class RealPaths:
    """Paths without links; that of each folder is looked up once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, path: Path) -> str:
        """`path`, absolute and without links."""
        try:
            if path.is_symlink():
                return str(real_path(path))
        except OSError:
            return str(path)
        return f"{self._of_folder(path)}/{path.name}"

    def is_below(self, path: Path, folder: Path) -> bool:
        """True if `path` lies in `folder` or below it."""
        return self.of(path).startswith(f"{str(folder).rstrip('/')}/")

    def _of_folder(self, path: Path) -> str:
        folder = str(path.parent)
        if folder not in self._folders:
            self._folders[folder] = str(real_path(folder))
        return self._folders[folder]


def is_open_pipe(path: StrPath) -> bool:
    """True if `path` names a pipe that this process has open: /dev/stdin or /dev/fd/N."""
    if not _OPEN_PIPE.fullmatch(os.fspath(path)):
        return False
    status = status_of(path)
    return status is not None and stat.S_ISFIFO(status.st_mode)


def check_readable_file(path: StrPath, error: Error = InputError) -> None:
    """Check that `path` is a regular file that can be opened; `error` if not."""
    with open_file(path, error):
        pass


def is_utf8_name(path: StrPath) -> bool:
    """True for a name in UTF-8, as nearly all libraries take them only."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def check_utf8_name(path: StrPath, reader: str, error: Error = InputError) -> None:
    """Check that `path` is a name in UTF-8, since `reader` takes no other; `error` if not."""
    if not is_utf8_name(path):
        raise error(
            f"{shown(path)}: {reader} takes no name that is not UTF-8; rename the file or its "
            "folder."
        )


@contextmanager
def open_file(path: StrPath, error: Error = InputError) -> Iterator[BinaryIO]:
    """The regular file `path`, open to be read.

    Raises:
        `error`: nothing or something else is there, or it can't be opened or read.
    """
    with reading(path, error):
        # a FIFO opens at once with O_NONBLOCK, which regular files don't know
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | os.O_CLOEXEC
        file = open(path, "rb", opener=lambda name, _: _open_regular(name, flags, error))  # noqa: PTH123, SIM115
    with file:
        try:
            yield file
        except OSError as problem:
            raise _unreadable(path, problem, error) from None


def _open_regular(path: str, flags: int, error: Error) -> int:
    """The number of the open file; `error` if it is none."""
    number = os.open(path, flags)
    kind = kind_of(os.fstat(number).st_mode)
    if kind is None:
        return number
    os.close(number)
    raise error(f"{shown(path)} is {kind}, not a file.")


def read_bytes(path: StrPath, error: Error = InputError, *, max_bytes: int | None = None) -> bytes:
    """The content of a regular file; `error` if it can't be read or is longer than `max_bytes`."""
    with open_file(path, error) as file, reading(path, error):
        return _content(file, path, error, max_bytes)


def read_text_bytes(
    path: StrPath, error: Error = InputError, *, max_bytes: int | None = None
) -> bytes:
    """As `read_bytes`, for text: it may also come through a pipe that is open already."""
    if not is_open_pipe(path):
        return read_bytes(path, error, max_bytes=max_bytes)
    with reading(path, error), open(path, "rb") as pipe:  # noqa: PTH123 - of /dev
        return _content(pipe, path, error, min(max_bytes or MAX_PIPED_BYTES, MAX_PIPED_BYTES))


def read_text(path: StrPath, error: Error = InputError, *, max_bytes: int | None = None) -> str:
    """The content of `path` in UTF-8, with or without BOM; `error` if it can't be read."""
    content = read_text_bytes(path, error, max_bytes=max_bytes)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(
            f"{shown(path)} is not text in UTF-8: byte {problem.start} is "
            f"0x{content[problem.start]:02x}."
        ) from None


@contextmanager
def reading(path: StrPath, error: Error = InputError) -> Iterator[None]:
    """Say in one sentence why `path` can't be read; a missing one is said to be so."""
    try:
        yield
    except OSError as problem:
        raise _unreadable(path, problem, error) from None
    except MemoryError:
        raise error(f"{shown(path)} needs more memory than there is.") from None
    except ValueError as problem:
        if not isinstance(problem, UnicodeEncodeError) and "null" not in str(problem):
            raise
        raise error(f"{shown(path)} can't be the name of a file.") from None


def _unreadable(path: StrPath, problem: OSError, error: Error) -> CondInstError:
    """The error for a file that the system refused to read."""
    if problem.errno in _NOT_THERE:
        return error(f"{shown(path)} does not exist.")
    if problem.errno == errno.EISDIR:  # Windows has EACCES
        return error(f"{shown(path)} is a folder, not a file.")
    if problem.errno == errno.ENXIO:
        return error(f"{shown(path)} is a socket, not a file.")
    reason = problem.strerror or str(problem).rstrip(".")
    return error(f"{shown(path)} can't be read: {reason}.")


class Unreadable(NamedTuple):
    """A folder that could not be listed."""

    path: str
    error: str  # a sentence


def files_below(
    folder: StrPath, is_wanted: Callable[[str], bool], problems: list[Unreadable]
) -> list[Path]:
    """All regular files below `folder` whose name is wanted, sorted.

    Linked files are taken; linked folders are not entered. No recursion: folders may be nested as
    deep as the system allows.

    Args:
        problems: folders that can't be read come to its end.
    """
    found: list[Path] = []
    folders = [os.fspath(folder)]
    while folders:
        for entry in entries_of(folders.pop(), problems):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif is_wanted(entry.name) and is_regular(entry):
                found.append(Path(entry.path))
    return sorted(found)


def entries_of(folder: str, problems: list[Unreadable]) -> "list[os.DirEntry[str]]":
    """The entries of a folder; none, and a problem, if it can't be read."""
    try:
        with reading(folder or "."), os.scandir(folder or ".") as entries:
            return list(entries)
    except InputError as error:
        problems.append(Unreadable(folder, f"the folder {error}"))
        return []


def is_regular(entry: "os.DirEntry[str]") -> bool:
    """True for a file, also behind links; a loop of links is none."""
    try:
        return entry.is_file()
    except OSError:
        return False


def leads_to_folder(entry: "os.DirEntry[str]") -> bool:
    """True for a folder, also behind links; a loop of links is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _content(file: BinaryIO, path: StrPath, error: Error, max_bytes: int | None) -> bytes:
    """All bytes of an open file; `error` if there are more than `max_bytes`."""
    content = file.read() if max_bytes is None else file.read(max_bytes + 1)
    if max_bytes is not None and len(content) > max_bytes:
        raise error(f"{shown(path)} is too long: more than {max_bytes} bytes.")
    return content
