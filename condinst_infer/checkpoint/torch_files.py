"""Files of `torch.save`, read only when the checksums inside say that they are whole."""

import zipfile
from pathlib import Path
from typing import Any

import torch

_MAGIC = b"PK\x03\x04"  # the first bytes of a zip; files of PyTorch before 1.6 are none


def load_torch_file(path: Path) -> Any:
    """The content of a .pth or .pt file as plain tensors and containers, on the CPU.

    Nothing in it is executed.

    Raises:
        DamagedFileError: a checksum of the file differs.
        Exception: whatever torch's unpickler stumbles over.
    """
    check_zip(path)
    return torch.load(path, map_location="cpu", weights_only=True)


class DamagedFileError(Exception):
    """A zip is not as it was written; the text is a reason without a full stop."""


def check_zip(path: Path) -> None:
    """Compare all that a zip holds with the checksums in it, a megabyte at a time.

    `torch.load` reads past them. A file that is no zip passes.

    Raises:
        DamagedFileError: one differs.
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        begins_as_zip = file.read(len(_MAGIC)) == _MAGIC
    if not begins_as_zip and not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            differing = archive.testzip()
    except OSError:
        raise
    except Exception as error:  # a damaged directory: zipfile, zlib and struct say it in many ways
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DamagedFileError(f"it is a broken zip: {reason}") from None
    if differing is not None:
        raise DamagedFileError(f"the checksum of {differing} in it differs")
