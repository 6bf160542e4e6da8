"""Kinds of model files, told by their suffix."""

from enum import Enum
from pathlib import Path

from condinst_infer.errors import ConfigError, ModelFileError


class ModelFile(Enum):
    """A kind of model file; the value is the suffix."""

    ONNX = ".onnx"
    ENGINE = ".engine"
    CHECKPOINT = ".safetensors"

    def matches(self, path: str | Path) -> bool:
        """True if `path` ends in the suffix, in small or capital letters."""
        return Path(path).suffix.lower() == self.value


def kind_of(path: str | Path) -> ModelFile:
    """The kind of the model file `path`; ModelFileError if the name is that of none."""
    for kind in ModelFile:
        if kind.matches(path):
            return kind
    raise ModelFileError(f"{path} is no model file; it must end in .onnx, .engine or .safetensors.")


def check_output(path: Path, kind: ModelFile) -> None:
    """ConfigError if the output `path` does not end in the suffix of `kind`."""
    if not kind.matches(path):
        raise ConfigError(f"the output {path} must end in {kind.value}.")
