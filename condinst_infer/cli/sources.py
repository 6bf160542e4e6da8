"""Sources of `condinst predict`: images, folders, patterns, videos, cameras and URLs."""

import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from condinst_infer.errors import InputError
from condinst_infer.processing.preprocess import IMAGE_SUFFIXES
from condinst_infer.system.paths import (
    RealPaths,
    Unreadable,
    is_folder,
    is_open_pipe,
    real_path,
    shown,
    status_of,
)


class ImageFile(NamedTuple):
    """One image to read."""

    path: Path
    name: Path  # relative: where its results belong inside an output folder


class VideoSource(NamedTuple):
    """One video to read: a file, a camera or a URL."""

    source: str
    name: Path  # relative: where its results belong inside an output folder

    @property
    def path(self) -> Path:
        """The file, where it is one."""
        return Path(self.source)


class Media(NamedTuple):
    """All that the sources of a command name."""

    images: list[ImageFile]
    videos: list[VideoSource]
    problems: list[Unreadable]  # folders that can't be read


def media(sources: Sequence[str], output: Path) -> Media:
    """Images and videos that `sources` name, as in `image_files`; also cameras and URLs."""
    problems: list[Unreadable] = []
    if all(Path(s).suffix.lower() in IMAGE_SUFFIXES and not _is_folder(s) for s in sources):
        return Media(image_files(sources, output, problems=problems), [], problems)
    from condinst_infer.video.sources import VIDEO_SUFFIXES, is_live

    streams = dict.fromkeys(source for source in sources if is_live(source))
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    named = [source for source in sources if source not in streams]
    images: list[ImageFile] = []
    videos: list[VideoSource] = []
    for file in image_files(named, output, suffixes, problems=problems):
        if file.path.suffix.lower() in VIDEO_SUFFIXES:
            videos.append(VideoSource(str(file.path), file.name))
        else:
            images.append(file)
    videos += [VideoSource(source, _stream_name(source)) for source in streams]
    return Media(images, videos, problems)


def _stream_name(source: str) -> Path:
    """A file name for the results of a camera or a URL."""
    from condinst_infer.video.sources import display_name

    name = display_name(source).partition("://")[2] or source
    return Path(re.sub(r"\W+", "-", name).strip("-"))


def image_files(
    sources: Sequence[str],
    output: Path,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
    *,
    problems: list[Unreadable] | None = None,
) -> list[ImageFile]:
    """The images that files, folders and glob patterns name, each once.

    A folder gives all files below it that end in one of `suffixes`, sorted. What lies
    in `output` is left out of folders and patterns, so that a second run does not read what the
    first one drew. A list, a .txt file or an open pipe with a path per line, gives the files it
    names; paths are relative to its folder. A name that exists nowhere stays: reading it says
    what is wrong.

    Args:
        problems: folders that can't be read come to its end; None makes the first an error.

    Raises:
        InputError: a folder, a pattern or a list without images.
    """
    found: dict[str, ImageFile] = {}
    real_paths, unreadable = RealPaths(), list[Unreadable]()
    for source in sources:
        for file in _expand(source, real_path(output), suffixes, unreadable, real_paths):
            found.setdefault(real_paths.of(file.path), file)
    if problems is None and unreadable:
        raise InputError(unreadable[0].error)
    if problems is not None:
        problems += unreadable
    return list(found.values())


def _expand(
    source: str,
    output: Path,
    suffixes: Sequence[str],
    problems: list[Unreadable],
    real_paths: RealPaths,
) -> list[ImageFile]:
    path = Path(source)
    try:
        status = status_of(path)
    except InputError:  # reading it says why, and other sources are done
        return [ImageFile(path, Path(path.name))]
    is_list = is_open_pipe(source)
    if status is not None and stat.S_ISREG(status.st_mode):
        is_list = path.suffix.lower() == ".txt"
        if not is_list:
            return [ImageFile(path, Path(path.name))]
    from condinst_infer.processing import image_files as files

    known = len(problems)
    if is_list:
        return [ImageFile(path, Path(path.name)) for path in files.paths_in_list(source)]
    if status is not None and stat.S_ISDIR(status.st_mode):
        below = files.files_below(path, suffixes, problems)
        found = [ImageFile(p, p.relative_to(path)) for p in below]
        if output == real_path(path):
            return found
        what = f"images ({', '.join(suffixes)}) in the folder"
    elif status is None and files.is_pattern(source):
        found = [ImageFile(p, Path(p.name)) for p in files.files_that_match(source, problems)]
        what = "files that match"
    else:
        return [ImageFile(path, Path(path.name))]
    found = [file for file in found if not real_paths.is_below(file.path, output)]
    if not found:
        reason = f"there are no {what} {shown(source)}."
        raise InputError(problems[-1].error if len(problems) > known else reason)
    return found


def _is_folder(source: str) -> bool:
    """True for a folder; what can't be looked at is none."""
    try:
        return is_folder(source)
    except InputError:
        return False
