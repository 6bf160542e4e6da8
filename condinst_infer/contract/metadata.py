"""Metadata of a model file: written by export, checked by every runtime."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from condinst_infer.config.bounds import MAX_SIDE
from condinst_infer.config.field_types import dataclass_from_json
from condinst_infer.config.model import CondInstConfig, config_from_dict
from condinst_infer.errors import ConfigError, ModelFileError, require, shorten
from condinst_infer.system.json_text import parse_json

CONTRACT_VERSION = 1  # of tensor names, shapes and meanings; export/README.md
KEY, DIGEST_KEY = "condinst", "condinst_sha256"
FIELD_CHOICES = {"precision": ("fp32", "fp16", "int8"), "int8_for": ("", "cpu", "tensorrt")}
LATER = ("standard_ops",)  # fields of Metadata that the first files did not have
MAX_BATCH = 65_536  # images of a static file


@dataclass(frozen=True)
class Metadata:
    """The contract one ONNX file fulfils."""

    config: CondInstConfig
    graph: str = "full"  # "detector" stops before NMS
    precision: str = "fp32"  # of weights and features; boxes, scores and coordinates stay float32
    int8_for: str = ""  # "cpu" or "tensorrt" where the precision is int8
    size: tuple[int, int] | None = None  # (height, width) of a static canvas; None is dynamic
    batch: int | None = None  # None is dynamic
    standard_ops: bool = False  # no node of our domain; static ones have no Loop and no If either
    checkpoint_sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)  # what exported it
    contract: int = CONTRACT_VERSION

    def describe(self) -> str:
        """Network, classes, precision, batch and size in a few words."""
        config, count = self.config, len(self.config.class_names)
        parts = [config.name, "1 class" if count == 1 else f"{count} classes"]
        if config.is_panoptic:
            parts.append(f"{len(config.panoptic.stuff_names)} kinds of stuff")
        parts.append(self.precision)
        if self.graph != "full":
            parts.append(f"{self.graph} graph")
        parts.append("any batch" if self.batch is None else f"batch {self.batch}")
        size = self.size
        parts.append("any size" if size is None else f"{size[1]} x {size[0]} pixels")
        if self.standard_ops:
            parts.append("standard operators")
        return ", ".join(parts)

    def to_props(self) -> dict[str, str]:
        """This as ONNX metadata_props; the digest shows later tampering."""
        return seal(KEY, self)


def seal(key: str, data: Any) -> dict[str, str]:
    """A dataclass as JSON under `key`, and the SHA-256 of that text under `key`_sha256."""
    text = json.dumps(dataclasses.asdict(data), sort_keys=True)
    return {key: text, f"{key}_sha256": hashlib.sha256(text.encode()).hexdigest()}


def is_unbroken(key: str, props: Mapping[str, str]) -> bool:
    """True if what `seal` made is as it was."""
    text = props[key].encode(errors="surrogatepass")
    return hashlib.sha256(text).hexdigest() == props.get(f"{key}_sha256")


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
            f"{path} was not written by condinst-infer (no metadata). If a tool dropped it, give "
            f"it back: condinst export {path} -o FIXED.onnx --metadata-from MODEL.onnx. Otherwise "
            "export the model again: condinst export MODEL.safetensors -o MODEL.onnx"
        )
    text = props[KEY]
    if not is_unbroken(KEY, props):
        raise ModelFileError(
            f"the metadata of {path} was changed after export. "
            "Export it again: condinst export MODEL.safetensors -o MODEL.onnx"
        )
    data = parse_json(text, f"the metadata of {path}", ModelFileError)
    try:
        metadata = _metadata_from_json(data, path)
        _check_ranges(metadata)
    except ConfigError as error:
        raise ModelFileError(f"the metadata of {path} can't be read: {error}") from None
    return metadata


def _metadata_from_json(data: Any, path: object) -> Metadata:
    """The metadata whose types are right; ConfigError names the field."""
    if not isinstance(data, dict) or "config" not in data:
        raise ConfigError("it has no configuration.")
    config = config_from_dict(data["config"])
    if data.get("contract") != CONTRACT_VERSION:
        raise ModelFileError(
            f"{path} follows contract {shorten(data.get('contract'))}, this version reads "
            f"{CONTRACT_VERSION}. Export it again with this version."
        )
    rest = {name: value for name, value in data.items() if name != "config"}
    return dataclass_from_json(rest, Metadata, "metadata", optional=LATER, known={"config": config})


def _check_ranges(metadata: Metadata) -> None:
    """ConfigError for a value that no file of this package has; an unknown graph comes later."""
    divisor, size, batch = metadata.config.input.size_divisor, metadata.size, metadata.batch
    for name, choices in FIELD_CHOICES.items():
        if (value := getattr(metadata, name)) not in choices:
            raise ConfigError(
                f"{name} is {shorten(value)}; it must be one of {', '.join(choices)}."
            )
    if size is not None and not all(0 < side <= MAX_SIDE and side % divisor == 0 for side in size):
        raise ConfigError(
            f"size is {list(size)}; it must be multiples of {divisor} from {divisor} to {MAX_SIDE}."
        )
    if batch is not None and not 0 < batch <= MAX_BATCH:
        raise ConfigError(f"batch is {batch}; it must be a whole number from 1 to {MAX_BATCH}.")


def props_from_onnx(data: bytes, path: object) -> dict[str, str]:
    """The metadata_props of a serialised ONNX model.

    Raises:
        ModelFileError: `data`, the content of `path`, is not ONNX.
        MissingExtraError: the package onnx is not installed.
    """
    onnx = require("onnx", "tensorrt")
    with onnx_errors(path):
        model = onnx.load_model_from_string(data)
    return model_props(model)


def model_props(model: Any) -> dict[str, str]:
    """The metadata_props of an ONNX model in memory."""
    return {prop.key: prop.value for prop in model.metadata_props}


@contextmanager
def onnx_errors(path: object) -> Iterator[None]:
    """Let what stops the reading of `path` be a ModelFileError: it is not ONNX."""
    try:
        yield
    except Exception as error:  # protobuf's, which is not ours to import
        raise ModelFileError(
            f"{path} is not an ONNX file: {' '.join(str(error).split())}."
        ) from None
