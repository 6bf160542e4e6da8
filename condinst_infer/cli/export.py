"""`condinst export`: a checkpoint as ONNX, in fp32, fp16 or int8, or as a model repository."""

import json
import math
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condinst_infer.cli.options import Verb, add_json, positive, size
from condinst_infer.cli.sources import image_files
from condinst_infer.cli.stage_times import stage_times
from condinst_infer.config.model import CondInstConfig, DetectConfig, override
from condinst_infer.config.validation import CHOICES
from condinst_infer.contract.metadata import file_sha256
from condinst_infer.contract.model_file import ModelFile, check_output, kind_of, model_path
from condinst_infer.errors import ConfigError, require
from condinst_infer.system.outputs import atomic_file, new_folder

if TYPE_CHECKING:
    from condinst_infer.model.condinst import CondInst

_ONLY_INT8 = ("target", "calibration", "annotations", "images", "limit", "max_accuracy_drop")
_DEFAULTS = {"graph": "full", "precision": "fp32", "standard_ops": False}
_ONLY_CHECKPOINT = ("size", "batch", "max_detections", "score_threshold", "nms")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `condinst export`; ConfigError if they don't fit together."""

    model: Path
    output: Path | None
    triton: Path | None
    graph: str
    precision: str
    size: tuple[int, int] | None
    batch: int | None
    max_detections: int | None
    score_threshold: float | None
    nms: str | None
    target: str | None
    calibration: list[str] | None
    annotations: Path | None
    images: Path | None
    limit: int | None
    max_accuracy_drop: float | None
    standard_ops: bool
    metadata_from: Path | None
    json: bool

    def __post_init__(self) -> None:
        if self.metadata_from is not None:
            self._check_alone()
        if self.precision != "int8":
            for name in _ONLY_INT8:
                if getattr(self, name) is not None:
                    option = {"target": "--for"}.get(name, _option(name))
                    raise ConfigError(f"{option} is for int8 only: add --precision int8.")
            return
        if self.calibration is None:
            raise ConfigError("int8 needs images like those it will see: --calibration IMAGES.")
        if (self.annotations is None) != (self.images is None):
            raise ConfigError("--annotations FILE and --images DIR need each other.")
        drop = self.max_accuracy_drop
        if drop is not None and not 0 <= drop < math.inf:  # also refuses NaN
            raise ConfigError(f"--max-accuracy-drop is {drop}; it must be at least 0.")

    def given(self, names: Collection[str]) -> list[str]:
        """Fields among `names` that have another value than their default."""
        return [name for name in names if getattr(self, name) != _DEFAULTS.get(name)]

    def _check_alone(self) -> None:
        """ConfigError if something is wanted beside --metadata-from, which changes nothing else."""
        if given := self.given(["triton", *_DEFAULTS, *_ONLY_CHECKPOINT, *_ONLY_INT8]):
            raise ConfigError(
                f"{_option(given[0])} and --metadata-from exclude each other: that gives back what "
                "the file was exported with."
            )


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `ExportOptions`."""
    parser.add_argument(
        "model",
        type=partial(model_path, kind=ModelFile.CHECKPOINT),
        metavar="MODEL",
        help="a .safetensors checkpoint of ours, or nuclei, the model that ships; with --triton, "
        "--standard-ops or --metadata-from also an .onnx file",
    )
    written = parser.add_mutually_exclusive_group(required=True)
    written.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the .onnx file to write"
    )
    written.add_argument(
        "--triton",
        type=Path,
        metavar="DIR",
        help="write a model repository for NVIDIA Triton instead: a new folder with a model that "
        "takes images and returns boxes and masks as COCO RLE",
    )
    parser.add_argument(
        "--graph",
        choices=("full", "detector"),
        default="full",
        help="the whole network, or the part before NMS, to run with our CUDA kernels "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="precision of weights and features; int8 needs --calibration (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="fix the input size in pixels, multiples of 32 (default: any size)",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        metavar="N",
        help="fix the batch size (default: any)",
    )
    parser.add_argument(
        "--standard-ops",
        action="store_true",
        help="ONNX's own operators alone, for runtimes that know no functions; with --size and "
        "--batch also without Loop, If and dynamic shapes. TensorRT then has none of our kernels",
    )
    parser.add_argument(
        "--metadata-from",
        type=Path,
        metavar="FILE",
        help="give MODEL, an .onnx file that a tool took the metadata from, that of the .onnx FILE "
        "it was made of, if it passes the self-test there",
    )
    _add_detections(parser)
    _add_int8(parser)
    add_json(parser)


def _add_detections(parser: ArgumentParser) -> None:
    default = DetectConfig()
    parser.add_argument(
        "--max-detections",
        type=positive,
        metavar="K",
        help="largest number of instances per image (default: the checkpoint's, usually "
        f"{default.max_detections})",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        metavar="S",
        help="lowest score the file can report, 0 to 1 (default: the checkpoint's, usually "
        f"{default.score_threshold**0.5:.3f})",
    )
    parser.add_argument(
        "--nms",
        choices=CHOICES["nms"],
        help="suppress duplicates by the overlap of boxes or of masks; mask needs no box branch "
        "(default: the checkpoint's, usually box)",
    )


def _add_int8(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "int8", "convolutions in 8 bits, with the accuracy measured beside fp32"
    )
    group.add_argument(
        "--for",
        dest="target",
        choices=("cpu", "tensorrt"),
        help="where the file will run: ONNX Runtime and OpenVINO, or TensorRT (default: cpu)",
    )
    group.add_argument(
        "--calibration",
        nargs="+",
        metavar="IMAGES",
        help="image files, folders (searched) or patterns that show what the model will see",
    )
    group.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="a COCO instances file: measure mask AP instead of the agreement with fp32",
    )
    group.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images of --annotations"
    )
    group.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="use at most N images of --calibration, and of --annotations (default: 64)",
    )
    group.add_argument(
        "--max-accuracy-drop",
        type=float,
        metavar="X",
        help="keep layers in fp32 until int8 loses no more: points of mask AP with --annotations "
        "(default: 0.5), else percent of what fp32 finds (default: 5)",
    )


def run(options: ExportOptions) -> int:
    """Write the file, or a model repository for Triton."""
    if options.triton is not None:
        figures = _write_repository(options, options.triton)
    else:
        assert options.output is not None
        figures = _write_file(options, options.output)
    if options.json:
        print(json.dumps({"output": str(options.triton or options.output), **figures}))
    return 0


def _write_file(options: ExportOptions, output: Path) -> dict[str, Any]:
    """Write `output`, and return the figures of the check."""
    check_output(output, ModelFile.ONNX)
    is_onnx = ModelFile.ONNX.matches(options.model)
    rewrites = options.standard_ops or options.metadata_from is not None
    if ModelFile.ENGINE.matches(options.model) or is_onnx and not rewrites:
        raise ConfigError(
            f"{options.model} is exported already; give the .safetensors checkpoint it was made of."
        )
    if options.metadata_from is not None and not is_onnx:
        raise ConfigError(f"--metadata-from is for an .onnx file, not for {options.model}.")
    with atomic_file(output) as part:
        figures = _rewrite(options, part) if is_onnx else _write_onnx(options, part)
    if not options.json:
        print(f"-> {output}")
    return figures


def _write_onnx(options: ExportOptions, part: Path) -> dict[str, Any]:
    """Write the file, check it against PyTorch, and store the self-test in it.

    Returns:
        The figures of the check as plain data; without --json they are printed too.
    """
    for module in ("torch", "safetensors", "onnx", "onnxscript", "onnxruntime"):
        require(module, "export")
    from condinst_infer import checkpoint
    from condinst_infer.export.onnx_export import export_onnx
    from condinst_infer.verification.check_export import finish_export

    model = checkpoint.load(options.model)
    model.config = _narrow(model.config, options)
    with stage_times() as on_stage:
        if options.precision == "int8":
            return _write_int8(options, model, part, on_stage)
        export_onnx(
            model,
            part,
            graph=options.graph,
            precision=options.precision,
            size=options.size,
            batch=options.batch,
            standard_ops=options.standard_ops,
            checkpoint_sha256=file_sha256(options.model),
            on_stage=on_stage,
        )
        report = finish_export(model, part, on_stage=on_stage)
    for warning in report.warnings:
        print(f"condinst: warning: {warning}", file=sys.stderr)
    if not options.json:
        print(report)
    return {"check": report.to_dict()}


def _rewrite(options: ExportOptions, part: Path) -> dict[str, Any]:
    """Write an exported file in another form, and return the figures of the check."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, "export")
    from condinst_infer.verification.rewritten import write_standard_ops, write_with_metadata

    if options.metadata_from is not None:
        passed = write_with_metadata(options.model, options.metadata_from, part)
        if not options.json:
            print(f"the self-test passed {passed.proof}")
        return {"self_test": passed.proof}
    _check_exported(options, but=("size", "batch", "standard_ops"))
    report = write_standard_ops(options.model, part, size=options.size, batch=options.batch)
    if not options.json:
        print(report)
    return {"check": report.to_dict()}


def _narrow(config: CondInstConfig, options: ExportOptions) -> CondInstConfig:
    """`config` with another count, another NMS, and another lowest reported score."""
    given = {"max_detections": options.max_detections, "nms": options.nms}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    score_threshold = options.score_threshold
    if score_threshold is not None:
        if not 0 <= score_threshold < 1:  # also refuses NaN
            raise ConfigError(f"--score-threshold is {score_threshold}; it must be from 0 to 1.")
        detect = config.detect
        rooted = detect.threshold_by == "product" and detect.score_root
        changes["score_threshold"] = score_threshold**2 if rooted else score_threshold
    return override(config, **changes)


def _write_int8(
    options: ExportOptions, model: "CondInst", part: Path, on_stage: Callable[[str], object]
) -> dict[str, Any]:
    """Write `model` in int8, and return what was measured; without --json, print it."""
    from condinst_infer.evaluation.average_precision import LabelledImages
    from condinst_infer.quantization import int8

    assert options.calibration is not None
    limit = options.limit or int8.LIMIT
    truth = None
    if options.annotations is not None and options.images is not None:
        truth = LabelledImages(options.annotations, options.images, limit)
    report = int8.export_int8(
        model,
        part,
        [file.path for file in image_files(options.calibration, part)],
        target=options.target or "cpu",
        graph=options.graph,
        size=options.size,
        batch=options.batch,
        limit=limit,
        truth=truth,
        max_accuracy_drop=options.max_accuracy_drop,
        checkpoint_sha256=file_sha256(options.model),
        on_stage=on_stage,
    )
    if options.standard_ops:
        from condinst_infer.verification.rewritten import write_standard_ops

        plain = part.rename(part.with_stem(f"{part.stem}-plain"))
        try:
            write_standard_ops(plain, part)
        finally:
            plain.unlink()
    if not options.json:
        print(report)
    return {"int8": report.to_dict()}


def _write_repository(options: ExportOptions, output: Path) -> dict[str, Any]:
    """Write a model repository into the new folder `output`; a checkpoint is exported on the way.

    Returns:
        The figures of the export, if there was one, and the names of the models in the folder.
    """
    from condinst_infer.serving.triton import repository

    kind = kind_of(options.model)
    if options.graph != "full":
        raise ConfigError("Triton needs the whole model: --graph full.")
    if kind is not ModelFile.CHECKPOINT:
        _check_exported(options)
    name, figures = repository.model_name(options.model), {}
    with new_folder(output) as folder:
        model = options.model
        if kind is ModelFile.CHECKPOINT:
            model = folder / "model.onnx"
            figures = _write_onnx(options, model)
        repository.write_repository(folder, name, model)
        if model != options.model:
            model.unlink()
    network = repository.NETWORK.format(name)
    if not options.json:
        print(f"-> {output}: {name} takes images, {network} is its network")
    return {"model": name, "network": network, **figures}


def _check_exported(options: ExportOptions, *, but: Collection[str] = ()) -> None:
    """ConfigError if an option says how to export a file that is exported already.

    Args:
        but: options that are meant for such a file.
    """
    names = [name for name in (*_ONLY_CHECKPOINT, *_DEFAULTS) if name not in but]
    if given := options.given(names):
        raise ConfigError(
            f"{_option(given[0])} is chosen when a checkpoint is exported; "
            f"{options.model} is exported already."
        )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _batch(text: str) -> int | None:
    """Parse a whole number >= 1, or None from "dynamic"."""
    return None if text == "dynamic" else positive(text)


VERB = Verb(
    "condinst export model.safetensors -o model.onnx --precision fp16\n"
    "  condinst export model.safetensors -o int8.onnx --precision int8 --calibration photos/\n"
    "  condinst export model.onnx --triton models/",
    add_options,
    ExportOptions,
    run,
    inputs=("model", "metadata_from", "annotations", "images", "calibration"),
    outputs={"output": "file", "triton": "folder"},
)
