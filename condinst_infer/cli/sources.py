"""Sources of `condinst predict`: images, folders, patterns, videos, cameras and URLs."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from condinst_infer.errors import InputError
from condinst_infer.processing.preprocess import IMAGE_SUFFIXES


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


def media(sources: Sequence[str], output: Path) -> tuple[list[ImageFile], list[VideoSource]]:
    """Images and videos that `sources` name, as in `image_files`; also cameras and URLs."""
    if all(Path(s).suffix.lower() in IMAGE_SUFFIXES and not Path(s).is_dir() for s in sources):
        return image_files(sources, output), []
    from condinst_infer.video.sources import VIDEO_SUFFIXES, is_live

    streams = dict.fromkeys(source for source in sources if is_live(source))
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    files = image_files([s for s in sources if s not in streams], output, suffixes)
    videos = [file for file in files if file.path.suffix.lower() in VIDEO_SUFFIXES]
    return (
        [file for file in files if file not in videos],
        [VideoSource(str(path), name) for path, name in videos]
        + [VideoSource(source, _stream_name(source)) for source in streams],
    )


def _stream_name(source: str) -> Path:
    """A file name for the results of a camera or a URL."""
    from condinst_infer.video.sources import display_name

    name = display_name(source).partition("://")[2] or source
    return Path(re.sub(r"\W+", "-", name).strip("-"))


def image_files(
    sources: Sequence[str], output: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> list[ImageFile]:
    """The images that files, folders and glob patterns name, each once.

    A folder gives all files below it that end in one of `suffixes`, sorted. What lies
    in `output` is left out of folders and patterns, so that a second run does not read what the
    first one drew. A manifest, a .txt file with a path per line, gives the files it names; paths
    are relative to its folder. A name that exists nowhere stays in the list: reading it says what
    is wrong.

    Raises:
        InputError: a folder, a pattern or a manifest without images.
    """
    found: dict[Path, ImageFile] = {}
    for source in sources:
        for file in _expand(source, output.resolve(), suffixes):
            found.setdefault(file.path.resolve(), file)
    return list(found.values())


def _expand(source: str, output: Path, suffixes: Sequence[str]) -> list[ImageFile]:
    path = Path(source)
    if path.suffix.lower() != ".txt" and path.is_file():
        return [ImageFile(path, Path(path.name))]
    from condinst_infer.processing.image_files import files_below, files_that_match, is_pattern

    if path.is_dir():
        files = [ImageFile(p, p.relative_to(path)) for p in files_below(path, suffixes)]
        if output == path.resolve():
            return files
        what = f"images ({', '.join(suffixes)}) in the folder"
    elif path.suffix.lower() == ".txt" and path.is_file():
        lines = map(str.strip, path.read_text(errors="surrogateescape").splitlines())
        named = [ImageFile(path.parent / line, Path(Path(line).name)) for line in lines if line]
        if not named:
            raise InputError(f"there is no path in {source}.")
        return named
    elif is_pattern(source):
        files = [ImageFile(p, Path(p.name)) for p in files_that_match(source)]
        what = "files that match"
    else:
        return [ImageFile(path, Path(path.name))]
    files = [file for file in files if output not in file.path.resolve().parents]
    if not files:
        raise InputError(f"there are no {what} {source}.")
    return files
