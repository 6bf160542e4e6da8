"""Atomic writing: files and folders are there whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from condinst_infer.errors import ConfigError, InputError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
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


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON; InputError if the file can't be written."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(content), encoding="utf-8")


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


PACKAGE = Path(__file__).parents[1]
_IN_A_CLONE = {"capi": "engines/capi", "triton": "export/triton"}


def native_sources(name: str) -> Path:
    """The folder of native sources "capi" or "triton": in the package, else in the clone."""
    for folder in (PACKAGE / "data" / name, PACKAGE.parent / _IN_A_CLONE[name]):
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"{PACKAGE} came without its {name} sources. Install it again: pip install condinst-infer"
    )
