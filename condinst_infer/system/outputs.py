"""Outputs of a command: what may be written where, and files that are there whole or not at all.

A file is written under a temporary name beside its place, which it takes when all is done. Only
regular files are ever replaced or removed. A symbolic link stays, and what it points to is
written. Text also goes through a character device or a FIFO.
"""

import errno
import itertools
import json
import os
import re
import shutil
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from platform import node
from typing import Any, Literal, TextIO

from condinst_infer.errors import CondInstError, ConfigError, InputError
from condinst_infer.system.paths import kind_of

Kind = Literal["file", "text", "folder"]

_PREFIX = ".condinst-"
_SUFFIX_BYTES = 16  # a temporary name keeps a suffix up to here: writers choose a format by it
_NUMBERS = itertools.count()
_STREAM = re.compile(r"/dev/(?:fd/(\d+)|stdout|stderr)|/proc/self/fd/(\d+)")

_live: set[Path] = set()  # temporary files and folders of this process
_swept: set[Path] = set()  # folders in which those of killed processes were removed


def is_temporary(path: str | os.PathLike[str]) -> bool:
    """True if a name is that of a file which is being written, or was when its process died."""
    return Path(path).name.startswith(_PREFIX)


def check_place(path: Path, kind: Kind) -> None:
    """Find out before the work whether an output can be written.

    Args:
        kind: "text" may also be a character device or a FIFO.

    Raises:
        InputError: it is there and of another kind, or its folder can't be written to.
    """
    with _errors_of(path):
        if kind == "folder":
            _check_folder(path)
        elif kind == "file" or not is_stream(path):
            _check_parent(_target(path), path)


def check_not_input(output: Path, inputs: Sequence[Path], suffixes: Sequence[str] = ()) -> None:
    """Check that writing `output` replaces no input.

    Args:
        inputs: files, folders, and names of nothing.
        suffixes: of files in folders of `inputs` that are inputs too.

    Raises:
        ConfigError: it would.
    """
    try:
        found = output.stat()
    except (OSError, ValueError):  # nothing is there
        return
    for path in inputs if stat.S_ISREG(found.st_mode) else ():
        try:
            known = path.stat()
        except (OSError, ValueError):
            continue
        is_inside = output.suffix.lower() in suffixes and path.resolve() in output.resolve().parents
        if is_inside or os.path.samestat(found, known):
            raise ConfigError(
                f"the output {output} would overwrite the input {path}; give another name."
            )


def is_stream(path: Path) -> bool:
    """True if text goes through `path`: a character device, a FIFO or an open file of ours."""
    if _STREAM.fullmatch(str(path)):
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on success it takes the final name, else it is deleted.

    Folders are made as needed. The mode is that of the file which is replaced, else as the umask
    says.

    Raises:
        InputError: the file can't be written, or something else than a file is there.
    """
    with atomic_files(path) as (part,):
        yield part


@contextmanager
def atomic_files(*paths: Path) -> Iterator[list[Path]]:
    """A temporary path for each of some files that belong together: see `atomic_file`.

    All are whole before the first takes its name.
    """
    parts: list[_OutputPart] = []
    try:
        for path in paths:
            with _errors_of(path):
                parts.append(_OutputPart(path))
        with _errors_of(*paths, parts=parts):
            yield [part.path for part in parts]
        for number, part in enumerate(parts):
            done = ", ".join(str(path) for path in paths[:number])
            with _errors_of(part.wanted, beside=done):
                part.place()
    except KeyboardInterrupt as error:
        error.add_note(f"{', '.join(map(str, paths))} was not written")
        raise
    finally:
        for part in parts:
            part.discard()


class _OutputPart:
    """A file under its temporary name."""

    def __init__(self, wanted: Path) -> None:
        self.wanted = wanted
        self._target = _target(wanted)
        folder = self._target.parent
        folder.mkdir(parents=True, exist_ok=True)
        _remove_left_over(folder)
        self.path = _temporary(self._target)
        if self._target.exists() and not os.access(self._target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        _live.add(self.path)
        with self.path.open("xb") as file:
            if self._target.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(self._target.stat().st_mode))
            self._mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)

    def place(self) -> None:
        """Give the file its name."""
        self.path.chmod(self._mode)  # a library may have made the file anew
        _target(self.wanted)  # what came there meanwhile is not replaced either
        self.path.replace(self._target)

    def discard(self) -> None:
        """Remove what has not got its name."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        _live.discard(self.path)


@contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """`path` open for text in UTF-8: as `atomic_file`, or a device or FIFO that it goes through.

    Raises:
        InputError: it can't be written.
    """
    if not is_stream(path):
        with atomic_file(path) as part, part.open("w", encoding="utf-8") as file:
            yield file
        return
    with _errors_of(path), _opened_stream(path) as file:
        yield file


def _opened_stream(path: Path) -> TextIO:
    match = _STREAM.fullmatch(str(path))
    if match is None:
        return path.open("w", encoding="utf-8")
    # the same open file, not another one that begins at its first byte
    number = match[1] or match[2] or {"/dev/stdout": 1, "/dev/stderr": 2}[str(path)]
    return os.fdopen(os.dup(int(number)), "w", encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write `text`; InputError if that can't be done."""
    with text_file(path) as file:
        file.write(text)


def write_json(path: Path, content: Any, *, indent: int | None = None) -> None:
    """Write `content` as JSON and a line break; InputError if that can't be done."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_link(path: Path, to: str) -> None:
    """Make `path` a symbolic link to `to`; InputError if something else than a link is there."""
    with _errors_of(path):
        if not path.is_symlink():
            _target(path)
        part = _temporary(path)
        _live.add(part)
        try:
            part.symlink_to(to)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
            _live.discard(part)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; on success it takes the final name, else it is deleted.

    Raises:
        InputError: it can't be written, or there is something already; nothing of that is lost.
    """
    wanted = path
    with _errors_of(wanted):
        path = path.resolve()
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise InputError(f"{wanted} is there already; give the name of a new folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(path.parent)
        part = _temporary(path.with_suffix(""))
        _live.add(part)
        try:
            part.mkdir()
            yield part
            part.replace(path)  # fails if anything came to be there meanwhile
        except KeyboardInterrupt as error:
            error.add_note(f"{wanted} was not written")
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            _live.discard(part)


def discard_unfinished() -> None:
    """Remove all temporary files and folders of this process, which is about to end."""
    for part in list(_live):
        with suppress(OSError):
            part.unlink()
        shutil.rmtree(part, ignore_errors=True)


def _target(path: Path) -> Path:
    """Where `path` is written; InputError if something else than a regular file is there."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        mode = target.stat().st_mode
    except NotADirectoryError:
        raise _below_a_file(path) from None
    except FileNotFoundError:
        if not target.name or str(path).endswith("/"):
            raise IsADirectoryError(errno.EISDIR, "it is the name of a folder") from None
        return target
    kind = kind_of(mode)
    if kind is not None:
        raise InputError(f"{path} is {kind}; give the name of a file.")
    return target


def _check_folder(path: Path) -> None:
    """InputError if `path` can't be a folder with files of ours in it."""
    try:
        mode = path.stat().st_mode
    except NotADirectoryError:
        raise _below_a_file(path) from None
    except FileNotFoundError:
        _check_parent(path, path)
        return
    if not stat.S_ISDIR(mode):
        raise InputError(f"{path} is a file; give the name of a folder.")
    _check_parent(path / "file", path)


def _check_parent(target: Path, path: Path) -> None:
    """InputError if the folder of `target` can't be written to, or not be made."""
    folder = target.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        is_fixed = os.statvfs(folder).f_flag & os.ST_RDONLY
        reason = os.strerror(errno.EROFS if is_fixed else errno.EACCES)
        raise InputError(f"{path} can't be written: {reason}.")
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"{path} can't be written: {os.strerror(errno.EACCES)}.")


def _below_a_file(path: Path) -> InputError:
    """An error that names the file in the place of a folder of `path`."""
    file = next(parent for parent in path.parents if parent.exists())
    return InputError(f"{path} can't be written: {file} is a file, not a folder.")


def _temporary(target: Path) -> Path:
    """A name beside `target` that no other process or thread has, as short for any name."""
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= _SUFFIX_BYTES else ""
    return target.with_name(f"{_of_host()}{os.getpid()}-{next(_NUMBERS)}{suffix}")


def _of_host() -> str:
    """Beginning of temporary names of this machine: folders may be shared with others."""
    return f"{_PREFIX}{zlib.crc32(node().encode()):08x}-"


def _remove_left_over(folder: Path) -> None:
    """Remove what processes of this machine left in `folder` when they were killed."""
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = re.match(rf"{re.escape(_of_host())}(\d+)-\d+", entry.name)
            if match is None or _is_alive(int(match[1])):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    Path(entry.path).unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


@contextmanager
def _errors_of(*paths: Path, parts: Sequence[_OutputPart] = (), beside: str = "") -> Iterator[None]:
    """Say in one sentence why `paths` can't be written."""
    there = f" {beside} was written." if beside else ""
    try:
        yield
    except CondInstError as error:
        if there:
            raise InputError(f"{error}{there}") from None
        raise
    except Exception as error:
        reason = _reason(error, [part.path for part in parts])
        if reason is None:
            raise
        known = {str(part.path): str(part.wanted) for part in parts}
        named = getattr(error, "filename", None)
        if known and isinstance(named, str) and named not in known:
            raise InputError(f"{named}: {reason}.") from None  # of another file, meanwhile
        name = known.get(str(named), ", ".join(str(path) for path in paths))
        raise InputError(f"{name} can't be written: {reason}.{there}") from None


def _reason(error: Exception, parts: Sequence[Path]) -> str | None:
    """Why something could not be written; None if the error is about something else.

    Libraries raise errors of their own where the disk is full, some without a word of it.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error).rstrip(".")
    full = os.strerror(errno.ENOSPC)
    if full in str(error) or any(_is_full(part) for part in parts):
        return full
    return str(error) if isinstance(error, ValueError) and not parts else None  # a null character


def _is_full(part: Path) -> bool:
    """True if not a byte more goes where `part` lies."""
    probe = _temporary(part)
    try:
        with probe.open("xb") as file:
            file.write(bytes(65536))
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return False
