"""Files and folders that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from condinst_infer.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on success it takes the final name, else it is deleted.

    Folders are made as needed.

    Raises:
        InputError: the file can't be written.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}.") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; on success it takes the final name, else it is deleted.

    Raises:
        InputError: it can't be written, or there is something already; nothing of that is lost.
    """
    path = path.resolve()
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise InputError(f"{path} is there already; give the name of a new folder.")
        part.mkdir(parents=True)
        try:
            yield part
            part.replace(path)  # fails if anything came to be there meanwhile
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}.") from None


def write_id_png(path: Path, ids: Any) -> None:
    """Write segment ids, int [H, W], as COCO's panoptic PNG does: id = R + 256 G + 65536 B.

    Raises:
        InputError: the file can't be written.
    """
    import cv2
    import numpy as np

    colours = np.stack([ids >> shift & 255 for shift in (16, 8, 0)], -1)  # B, G, R
    with replacing(path) as part:
        part.write_bytes(cv2.imencode(".png", colours.astype(np.uint8))[1].tobytes())
