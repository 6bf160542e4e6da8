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
    return lambda name: Path(name).suffix.lower() in known and not is_temporary(name)


def is_pattern(name: str) -> bool:
    """True if `name` holds `*`, `?` or `[` and is neither a file with such a name nor a URL."""
    return glob.has_magic(name) and "://" not in name and not paths.exists(name)


def files_that_match(pattern: str, problems: list[Unreadable]) -> list[Path]:
    """All files that match `pattern`, sorted; `**` stands for any folders.

    As `glob.glob`, which passes over closed folders, and calls itself for each folder in another.

    Args:
        problems: folders that can't be read come to its end.
    """
    search = _Search(pattern)
    found = search.run()
    problems += dict.fromkeys(search.problems)  # each once: `**` looks twice into a folder
    return found


class _Search:
    """A search for the files of one pattern: parts of a path with `*`, `?`, `[]` or `**`."""

    def __init__(self, pattern: str) -> None:
        self._parts = [part for part in pattern.split("/") if part]
        self.problems: list[Unreadable] = []
        self._found: set[Path] = set()
        self._seen: set[tuple[int, int, int]] = set()  # folders that `**` came to
        # folders, with "/" at their end or "", and the number of the part that is looked for there
        self._todo = deque([("/" if pattern.startswith("/") else "", 0)])

    def run(self) -> list[Path]:
        """The files, sorted."""
        while self._todo:
            folder, number = self._todo.pop()
            part = self._parts[number]
            if part == "**" and not self._is_new(folder, number):
                continue
            if glob.has_magic(part):
                self._look_into(folder, number)
            elif number < len(self._parts) - 1:
                self._todo.append((f"{folder}{part}/", number + 1))
            elif self._is_so(paths.is_file, folder + part):
                self._found.add(Path(folder + part))
        return sorted(self._found)

    def _is_new(self, folder: str, number: int) -> bool:
        """True where `**` comes to a folder for the first time: it may also stand for nothing."""
        try:
            status = paths.status_of(folder or ".")
        except InputError as error:
            self.problems.append(Unreadable(folder, str(error)))
            return False
        place = (status.st_dev, status.st_ino, number) if status else None
        if place is None or place in self._seen:
            return False
        self._seen.add(place)
        if number < len(self._parts) - 1:
            self._todo.append((folder, number + 1))
        return True

    def _look_into(self, folder: str, number: int) -> None:
        """Find files and further folders in `folder` by a part that is no plain name."""
        part, is_last = self._parts[number], number == len(self._parts) - 1
        if folder and not self._is_so(paths.is_folder, folder):
            return
        matches = re.compile(fnmatch.translate("*" if part == "**" else part)).match
        for entry in paths.entries_of(folder.rstrip("/") or folder, self.problems):
            if not matches(entry.name) or (entry.name[0] == "." and part[0] != "."):
                continue
            if is_last and paths.is_regular(entry) and not is_temporary(entry.name):
                self._found.add(Path(folder + entry.name))
            elif (part == "**" or not is_last) and paths.leads_to_folder(entry):
                below = (f"{folder}{entry.name}/", number if part == "**" else number + 1)
                # links come last, so that a folder is known by its own name
                if entry.is_symlink():
                    self._todo.appendleft(below)
                else:
                    self._todo.append(below)

    def _is_so(self, test: Callable[[str], bool], path: str) -> bool:
        """The result of a test of what is at `path`; a problem if that can't be known."""
        try:
            return test(path)
        except InputError as error:
            self.problems.append(Unreadable(path, str(error)))
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
