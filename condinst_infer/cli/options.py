"""Options that several verbs share, and the frozen dataclasses they become."""

import argparse
import re
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from condinst_infer.config.model import MAX_BATCH
from condinst_infer.config.validation import parse_device
from condinst_infer.contract.model_file import model_path
from condinst_infer.errors import ConfigError
from condinst_infer.system.outputs import Kind, check_not_input, check_place

MAX_WORKERS = 8  # by default: each holds an image and the model's buffers
_FILTERS = ("score_threshold", "max_detections", "classes")
_PANOPTIC_FORMATS = ("coco", "none")  # also those of videos
_THRESHOLDS = ("instance_threshold", "overlap_threshold", "stuff_area_limit")


class Verb(NamedTuple):
    """One verb of the command line."""

    example: str  # below its help text
    add_options: Callable[[ArgumentParser], None]
    options: Callable[..., Any]  # frozen dataclass: one field per option
    run: Callable[[Any], int]  # options -> exit status
    inputs: Sequence[str] = ()  # fields of `options` that name files or folders which are read
    outputs: Mapping[str, Kind] = MappingProxyType({})  # the same of what is written

    def check_places(self, options: Any) -> None:
        """Check that all outputs can be written, and that none is an input or another output.

        Raises:
            ConfigError, InputError: what is wrong.
        """
        places: list[tuple[Path, Kind]] = [
            (path, kind)
            for name, kind in self.outputs.items()
            for path in _paths(getattr(options, name))
        ]
        if not places:
            return
        from condinst_infer.processing.preprocess import IMAGE_SUFFIXES

        inputs = [path for name in self.inputs for path in _paths(getattr(options, name))]
        for path, kind in places:
            check_place(path, kind)
            check_not_input(path, inputs, IMAGE_SUFFIXES)
            inputs.append(path)  # two outputs in one file


def _paths(value: Any) -> list[Path]:
    """The paths in an option of one or several, or none."""
    values = [] if value is None else [value] if isinstance(value, (str, Path)) else value
    return [Path(each) for each in values]


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Options that say what runs a model file; see `condinst_infer.load`."""

    device: str | None
    runtime: str | None
    precision: str | None
    threads: int | None

    def for_load(self) -> dict[str, Any]:
        """Keyword arguments of `condinst_infer.load`."""
        names = ("device", "runtime", "precision", "threads")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class RunOptions(DeviceOptions):
    """Options that say how a model file is run on many images."""

    workers: int | None
    batch: int

    def workers_for(self, images: int) -> int:
        """`--workers`; by default so many that all cores are busy, but none without an image."""
        batches = -(-images // self.batch)
        if self.workers or batches <= 1:
            return self.workers or 1
        from condinst_infer.system.hardware import usable_cores

        return max(1, min(usable_cores() // (self.threads or 1), MAX_WORKERS, batches))


@dataclass(frozen=True, kw_only=True)
class PredictOptions(RunOptions):
    """Options of `condinst predict`; ConfigError if two of them exclude each other."""

    model: Path
    source: list[str]
    output: Path
    score_threshold: float | None
    max_detections: int | None
    classes: list[int | str] | None
    panoptic: bool
    instance_threshold: float | None
    overlap_threshold: float | None
    stuff_area_limit: int | None
    overlays: bool
    format: str | None
    every: int
    reconnect: int
    max_pixels: int
    ray: str | None
    shards: str
    shard_size: int
    json: bool

    @property
    def result_format(self) -> str:
        """`--format`, or its default."""
        return self.format or "coco"

    def __post_init__(self) -> None:
        if self.panoptic and self.result_format not in _PANOPTIC_FORMATS:
            raise ConfigError(f"--panoptic writes --format coco or none, not {self.format}.")
        if self.ray is not None and self.format is not None:
            raise ConfigError("--ray writes shards: --format can't be used with it.")
        excluded, reason = _THRESHOLDS, "it goes with --panoptic"
        if self.panoptic:
            excluded, reason = _FILTERS, "every pixel counts; use --instance-threshold"
        for name in excluded:
            if getattr(self, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} can't be used here: {reason}.")

    def of_call(self) -> dict[str, Any]:
        """Keyword arguments of a call of the pipeline, or of `Pipeline.panoptic`."""
        names = _THRESHOLDS if self.panoptic else _FILTERS
        return {name: getattr(self, name) for name in names}


def add_model(
    parser: ArgumentParser,
    text: str = "an .onnx, .engine or .safetensors file, or nuclei, the model that ships",
) -> None:
    """Add the positional MODEL."""
    parser.add_argument("model", type=model_path, metavar="MODEL", help=text)


def add_output(parser: ArgumentParser, metavar: str, text: str, default: str | None = None) -> None:
    """Add `-o`, required if there is no default."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar=metavar,
        required=default is None,
        default=default,
        help=text,
    )


def add_device(parser: ArgumentParser) -> None:
    """Add `--device`, `--runtime` and `--precision`."""
    parser.add_argument(
        "--device",
        type=_device,
        metavar="{cpu,cuda,cuda:N}",
        help="device to run on; cuda:1 is the second GPU (default: cpu; cuda for an .engine)",
    )
    parser.add_argument(
        "--runtime",
        choices=("onnxruntime", "openvino"),
        help="library that runs an .onnx file on a CPU (default: onnxruntime)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8"),
        help="precision that OpenVINO computes in (default: that of the file)",
    )


def add_run(parser: ArgumentParser) -> None:
    """Add the fields of `RunOptions`."""
    add_device(parser)
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="batches in progress at the same time, each from reading to writing; 1 takes the "
        f"least memory (default: one per --threads cores, up to {MAX_WORKERS})",
    )
    add_threads(parser, "CPU threads of the model in each worker (default: all cores, shared)")
    parser.add_argument(
        "--batch",
        type=positive,
        default=MAX_BATCH,
        metavar="N",
        help="images per call of the model; on a CPU more than 1 takes memory and saves no time "
        "(default: %(default)s)",
    )


def add_threads(parser: ArgumentParser, text: str = "CPU threads (default: all)") -> None:
    """Add `--threads`."""
    parser.add_argument("--threads", type=positive, metavar="N", help=text)


def add_json(parser: ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def table_of_numbers(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a table under their keys: real numbers with one digit, "-" where there is none."""
    from tabulate import tabulate

    columns = {key for row in rows for key in row}
    align = ("left", *["right"] * (len(columns) - 1))
    return tabulate(
        rows, headers="keys", tablefmt="plain", floatfmt=".1f", missingval="-", colalign=align
    )


def _device(text: str) -> str:
    """Parse "cpu", "cuda" or "cuda:N"."""
    parse_device(text)
    return text


def positive(text: str) -> int:
    """Parse a whole number >= 1."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,11}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 1")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """Parse (height, width) from "512x736"."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, such as 512x736")
    return int(match[1]), int(match[2])
