"""Kinds of model files, told by their suffix, and the model that ships with the package."""

import os
from enum import Enum
from pathlib import Path

from condinst_infer.errors import ConfigError, ModelFileError
from condinst_infer.system.paths import exists


class ModelFile(Enum):
    """A kind of model file; the value is the suffix."""

    ONNX = ".onnx"
    ENGINE = ".engine"
    CHECKPOINT = ".safetensors"

    def matches(self, path: str | Path) -> bool:
        """True if `path` ends in the suffix, in small or capital letters."""
        return Path(path).suffix.lower() == self.value


SHIPPED = "nuclei"  # the name of the model in condinst_infer/data
_DATA = Path(__file__).parent.parent / "data"


def model_path(name: str | os.PathLike[str], kind: ModelFile = ModelFile.ONNX) -> Path:
    """The file that a user's MODEL names: a path, or the name of the model that ships.

    A path that exists comes first.

    Args:
        kind: of the shipped file, .onnx or .safetensors.
    """
    path = Path(name)
    if str(path) == SHIPPED and not exists(path, ModelFileError):
        return _DATA / f"{SHIPPED}{kind.value}"
    return path


def kind_of(path: str | Path) -> ModelFile:
    """The kind of the model file `path`; ModelFileError if the name is that of none."""
    for kind in ModelFile:
        if kind.matches(path):
            return kind
    if str(path) == SHIPPED:
        raise ModelFileError(
            f"{path} exists here and is no model file; the model that ships with the same name is "
            f"{_DATA / path}{ModelFile.ONNX.value}."
        )
    raise ModelFileError(
        f"{path} is no model file; it must end in .onnx, .engine or .safetensors, or be {SHIPPED}, "
        "the model that ships."
    )


def check_output(path: Path, kind: ModelFile) -> None:
    """ConfigError if the output `path` does not end in the suffix of `kind`."""
    if not kind.matches(path):
        raise ConfigError(f"the output {path} must end in {kind.value}.")
