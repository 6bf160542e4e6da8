"""Image files that a folder, a pattern or a list names, in order."""

import fnmatch
import glob
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from condinst_infer.errors import InputError
from condinst_infer.processing.preprocess import IMAGE_SUFFIXES
from condinst_infer.system import paths
from condinst_infer.system.outputs import is_temporary
from condinst_infer.system.paths import Unreadable

MAX_LIST_BYTES = 64 << 20  # a million names


def image_paths(source: str | os.PathLike[str]) -> list[Path]:
    """The images below a folder, or those that match a pattern, sorted.

    Raises:
        InputError: there is none, a folder can't be read, or `source` is neither a folder nor a
            pattern.
    """
    name = os.fsdecode(source)
    problems: list[Unreadable] = []
    if paths.is_folder(name):
        found, where = files_below(name, IMAGE_SUFFIXES, problems), f"in the folder {name}"
    elif is_pattern(name):
        matches = files_that_match(name, problems)
        found = [path for path in matches if path.suffix.lower() in IMAGE_SUFFIXES]
        where = f"that match {name}"
    else:
        raise InputError("map takes an iterable of images; call the pipeline with one image.")
    if problems:
        raise InputError(problems[0].error)
    if not found:
        raise InputError(f"there are no images ({', '.join(IMAGE_SUFFIXES)}) {where}.")
    return found


def files_below(
    folder: str | os.PathLike[str], suffixes: Sequence[str], problems: list[Unreadable]
) -> list[Path]:
    """All files below `folder` that end in one of `suffixes`, sorted.

    Args:
        problems: folders that can't be read come to its end.
    """
    return paths.files_below(folder, _ends_in(suffixes), problems)


def _ends_in(suffixes: Sequence[str]) -> Callable[[str], bool]:
    known = frozenset(suffixes)
    return lambda name: os.path.splitext(name)[1].lower() in known and not is_temporary(name)


def is_pattern(name: str) -> bool:
    """True if `name` holds `*`, `?` or `[` and is neither a file with such a name nor a URL."""
    return glob.has_magic(name) and "://" not in name and not paths.exists(name)


def files_that_match(pattern: str, problems: list[Unreadable]) -> list[Path]:
    """All files that match `pattern`, sorted; as `glob.glob`, which passes over closed folders.

    `**` stands for any folders, linked ones too, each entered once.

    Args:
        problems: folders that can't be read come to its end.
    """
    start = "/" if pattern.startswith("/") else ""
    found: set[Path] = set()
    seen: set[tuple[str, int]] = set()  # folders that `**` came to
    todo = deque([(start, 0)])
    parts = [part for part in pattern.split("/") if part]
    while todo:  # no recursion: folders may be nested as deep as the system allows
        folder, number = todo.pop()
        part, is_last = parts[number], number == len(parts) - 1
        if part == "**":
            place = (os.path.realpath(folder), number)
            if place in seen:
                continue
            seen.add(place)
            if not is_last:
                todo.append((folder, number + 1))
        elif not glob.has_magic(part):
            path = os.path.join(folder, part)
            if not is_last:
                todo.append((path, number + 1))
            elif _look(paths.is_file, path, problems):
                found.add(Path(path))
            continue
        if folder and not _look(paths.is_folder, folder, problems):
            continue
        matches = re.compile(fnmatch.translate("*" if part == "**" else part)).match
        for entry in paths.entries_of(folder, problems):
            if not matches(entry.name) or (entry.name[0] == "." and part[0] != "."):
                continue
            path = os.path.join(folder, entry.name)
            if is_last and paths.is_regular(entry) and not is_temporary(path):
                found.add(Path(path))
            elif _is_folder(entry) and (part == "**" or not is_last):
                after = (path, number if part == "**" else number + 1)
                # links come last, so that a folder is known by its own name
                todo.appendleft(after) if entry.is_symlink() else todo.append(after)
    return sorted(found)


def _look(test: Callable[[str], bool], path: str, problems: list[Unreadable]) -> bool:
    """The result of a test of what is at `path`; False, and a problem, if that can't be known."""
    try:
        return test(path)
    except InputError as error:
        problems.append(Unreadable(path, str(error)))
        return False


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """True for a folder, also behind links."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def paths_in_list(file: str) -> list[Path]:
    """The files that a list names, one per line: relative to its folder, in a pipe to this one.

    Raises:
        InputError: it can't be read, is too long, is no text or names nothing.
    """
    content = paths.read_text_bytes(file, max_bytes=MAX_LIST_BYTES).removeprefix(b"\xef\xbb\xbf")
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise InputError(
            f"{paths.shown(file)} is no list of paths: line {line} holds a null character."
        )
    folder = Path() if paths.is_open_pipe(file) else Path(file).parent
    lines = (line.strip() for line in os.fsdecode(content).split("\n"))
    named = [folder / line for line in lines if line]
    if not named:
        raise InputError(f"there is no path in {paths.shown(file)}.")
    return named
