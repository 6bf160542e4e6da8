"""A look at every image before a training: is it there, and of the size that the file says?"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from condinst_infer.config.model import MAX_PIXELS, Size
from condinst_infer.errors import InputError
from condinst_infer.processing.preprocess import check_size, upright_size
from condinst_infer.system.paths import exists, open_file
from condinst_infer.train.records import CocoData

THREADS = 16  # they wait for the disk
SHOWN = 3  # names of each problem in the message

ExpectedSize = tuple[Path, Size]  # an image file, and its (height, width) in the annotations


class _Problem(NamedTuple):
    kind: str
    detail: str


def check_training_images(data: CocoData, annotations: Path) -> None:
    """`check_image_sizes` of all images of a data set and, in a panoptic one, all its PNGs."""
    images = [(record.path, record.size) for record in data.records]
    pngs = [(r.panoptic.png, r.size) for r in data.records if r.panoptic is not None]
    check_image_sizes([*images, *pngs], annotations)


def check_image_sizes(images: Sequence[ExpectedSize], annotations: Path) -> None:
    """Compare the size in the header of every image with the one in the annotations.

    Nothing is decoded: some thousands of images take a second or two.

    Raises:
        InputError: of any image; the text has the number of each problem and the first names.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        found = [p for p in threads.map(_problem, images, chunksize=64) if p is not None]
    if not found:
        return
    parts = [f"{annotations}: {len(found)} of {len(images)} images can't be used."]
    kinds = dict.fromkeys(problem.kind for problem in found)
    for kind in kinds:
        details = [problem.detail for problem in found if problem.kind == kind]
        names = ", ".join([*details[:SHOWN], *["..."][: len(details) > SHOWN]])
        parts.append(f"{kind}: {len(details)} ({names}).")
    if _MISSING in kinds:
        parts.append("The image folder must be the one that file_name is relative to.")
    raise InputError(" ".join(parts))


_MISSING, _SIZE, _UNREADABLE = "Do not exist", "Have another size", "Can't be read"


def _problem(image: ExpectedSize) -> _Problem | None:
    """The reason why an image can't be trained on, or None."""
    path, size = image
    try:
        if not exists(path):
            return _Problem(_MISSING, str(path))
        with open_file(path) as file:
            found = upright_size(file, str(path), size)
        check_size(found, str(path), MAX_PIXELS)
    except InputError as error:
        return _Problem(_UNREADABLE, str(error).rstrip("."))
    if found == size:
        return None
    return _Problem(_SIZE, f"{path} is {found[1]} x {found[0]} pixels, not {size[1]} x {size[0]}")
