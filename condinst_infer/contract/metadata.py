"""What a model file says about itself: written by export, checked by every runtime."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from condinst_infer.config.model import CondInstConfig, config_from_dict
from condinst_infer.errors import ConfigError, ModelFileError

CONTRACT_VERSION = 1  # of tensor names, shapes and meanings; export/README.md
KEY, DIGEST_KEY = "condinst", "condinst_sha256"


@dataclass(frozen=True)
class Metadata:
    """The contract one ONNX file fulfils."""

    config: CondInstConfig
    graph: str = "full"  # "detector" stops before NMS
    precision: str = "fp32"  # of weights and features; boxes, scores and coordinates stay float32
    int8_for: str = ""  # "cpu" or "tensorrt" where the precision is int8
    size: tuple[int, int] | None = None  # (height, width) of a static canvas; None is dynamic
    batch: int | None = None  # None is dynamic
    checkpoint_sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)  # what exported it
    contract: int = CONTRACT_VERSION

    def to_props(self) -> dict[str, str]:
        """This as ONNX metadata_props; the digest shows later tampering."""
        return sealed(KEY, self)


def sealed(key: str, data: Any) -> dict[str, str]:
    """A dataclass as JSON under `key`, and the SHA-256 of that text under `key`_sha256."""
    text = json.dumps(dataclasses.asdict(data), sort_keys=True)
    return {key: text, f"{key}_sha256": hashlib.sha256(text.encode()).hexdigest()}


def unbroken(key: str, props: Mapping[str, str]) -> bool:
    """Whether what `sealed` made is as it was."""
    return hashlib.sha256(props[key].encode()).hexdigest() == props.get(f"{key}_sha256")


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def metadata_from_props(props: Mapping[str, str], path: object) -> Metadata:
    """The metadata in `props` of the model file `path`.

    Raises:
        ModelFileError: not written by this package, changed since, or of another contract.
    """
    if KEY not in props or DIGEST_KEY not in props:
        raise ModelFileError(
            f"{path} was not written by condinst-infer (no metadata). "
            "Export it again: condinst export MODEL.safetensors -o MODEL.onnx"
        )
    text = props[KEY]
    if not unbroken(KEY, props):
        raise ModelFileError(
            f"the metadata of {path} was changed after export. "
            "Export it again: condinst export MODEL.safetensors -o MODEL.onnx"
        )
    try:
        data: dict[str, Any] = json.loads(text)
        config = config_from_dict(data.pop("config"))
        if data.get("contract") != CONTRACT_VERSION:
            raise ModelFileError(
                f"{path} follows contract {data.get('contract')}, this version reads "
                f"{CONTRACT_VERSION}. Export it again with this version."
            )
        size = data.pop("size")
        return Metadata(config=config, size=tuple(size) if size else None, **data)
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise ModelFileError(f"the metadata of {path} can't be read: {error}") from None


def props_from_onnx(data: bytes, path: object) -> dict[str, str]:
    """The metadata_props of a serialised ONNX model, read without the onnx package.

    Raises:
        ModelFileError: `data`, the content of `path`, is not ONNX.
    """
    try:
        entries = [dict(_fields(value)) for number, value in _fields(data) if number == 14]
        return {entry[1].decode(): entry.get(2, b"").decode() for entry in entries}
    except (IndexError, KeyError, ValueError):
        raise ModelFileError(f"{path} is not an ONNX file.") from None


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of the texts and messages inside a protobuf message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("cut off")
            yield key >> 3, message[at : at + size]
            at += size
        else:
            raise ValueError("no protobuf")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number of variable length at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
