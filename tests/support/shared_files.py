"""Files that take long to make, made once for all workers of a test run."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def shared_file(
    factory: pytest.TempPathFactory, name: str, write: Callable[[Path], object]
) -> Path:
    """The file `name` of this run, by `write` if it is not there yet; nobody may change it.

    Args:
        name: with the folder it lies in, which other files may share.
        write: writes the file to the path it is given, which has the right name already.
    """
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    path = root / "shared" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            part = path.parent / "part" / path.name
            part.parent.mkdir(exist_ok=True)
            write(part)
            part.rename(path)
    return path
