"""Image files that a folder or a pattern names, in order."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from condinst_infer.errors import InputError
from condinst_infer.processing.preprocess import IMAGE_SUFFIXES
from condinst_infer.system.outputs import is_temporary


def image_paths(source: str | os.PathLike[str]) -> list[Path]:
    """The images below a folder, or those that match a pattern, sorted.

    Raises:
        InputError: there is none, or `source` is neither a folder nor a pattern.
    """
    name = os.fsdecode(source)
    if Path(name).is_dir():
        found, where = files_below(Path(name), IMAGE_SUFFIXES), f"in the folder {name}"
    elif is_pattern(name):
        matches = files_that_match(name)
        found = [path for path in matches if path.suffix.lower() in IMAGE_SUFFIXES]
        where = f"that match {name}"
    else:
        raise InputError("map takes an iterable of images; call the pipeline with one image.")
    if not found:
        raise InputError(f"there are no images ({', '.join(IMAGE_SUFFIXES)}) {where}.")
    return found


def files_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """All files below `folder` that end in one of `suffixes`, sorted."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    return sorted(path for path in found if path.is_file() and not is_temporary(path))


def is_pattern(name: str) -> bool:
    """True if `name` holds `*`, `?` or `[` and is neither a file with such a name nor a URL."""
    return glob.has_magic(name) and "://" not in name and not Path(name).exists()


def files_that_match(pattern: str) -> list[Path]:
    """All files that match `pattern`, sorted; `**` stands for any folders."""
    # Path.glob takes no absolute pattern
    matches = map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207
    return sorted(path for path in matches if path.is_file() and not is_temporary(path))
