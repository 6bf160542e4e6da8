"""`condinst export`, `import`, `info` and `compare`."""

import argparse
import dataclasses
import json
import math
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from condinst_infer.cli.int8 import check_int8, int8_info, write_int8
from condinst_infer.cli.sources import check_suffix
from condinst_infer.cli.stage_times import stage_times
from condinst_infer.cli.triton import write_repository
from condinst_infer.config.model import CondInstConfig, config_from_dict, override
from condinst_infer.config.model_zoo import published
from condinst_infer.contract.metadata import file_sha256
from condinst_infer.errors import CheckpointError, ConfigError, InputError, ModelFileError, require
from condinst_infer.system.files import replacing

_HEADER_LIMIT = 100_000_000  # bytes; the safetensors format allows no longer header


def export(args: argparse.Namespace) -> int:
    """Write the file, or a model repository for Triton."""
    check_int8(args)
    if args.triton is not None:
        report = write_repository(args, _write_onnx)
    else:
        report = _write_file(args)
    if args.json:
        print(json.dumps({"output": str(args.triton or args.output), **report}))
    return 0


def _write_file(args: argparse.Namespace) -> dict[str, Any]:
    """Write `args.output`, and return the figures of its check."""
    check_suffix(args.output, ".onnx")
    if args.model.suffix.lower() in (".onnx", ".engine"):
        raise ConfigError(
            f"{args.model} is exported already; give the .safetensors checkpoint it was made of."
        )
    with replacing(args.output) as part:
        report = _write_onnx(args, part)
    if not args.json:
        print(f"-> {args.output}")
    return report


def _write_onnx(args: argparse.Namespace, part: Path) -> dict[str, Any]:
    """Write the file, check it against torch, and keep what torch computes in it.

    Returns:
        The figures of the check as plain data; without --json they are printed too.
    """
    for module in ("torch", "safetensors", "onnx", "onnxscript", "onnxruntime"):
        require(module, "export")
    from condinst_infer import checkpoint
    from condinst_infer.export.onnx_export import export_onnx
    from condinst_infer.verification.check_export import finish_export

    model = checkpoint.load(args.model)
    model.config = _narrowed(model.config, args)
    with stage_times() as on_stage:
        if args.precision == "int8":
            return write_int8(args, model, part, on_stage)
        export_onnx(
            model,
            part,
            graph=args.graph,
            precision=args.precision,
            size=args.size,
            batch=args.batch,
            checkpoint_sha256=file_sha256(args.model),
            on_stage=on_stage,
        )
        report = finish_export(model, part, on_stage=on_stage)
    for warning in report.warnings:
        print(f"condinst: warning: {warning}", file=sys.stderr)
    if not args.json:
        print(report)
    return {"check": report.to_dict()}


def _narrowed(config: CondInstConfig, args: argparse.Namespace) -> CondInstConfig:
    """`config` with another count, another NMS, and another lowest reported score."""
    given = {name: getattr(args, name) for name in ("max_detections", "nms")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    score_threshold = args.score_threshold
    if score_threshold is not None:
        if not 0 <= score_threshold < 1:  # also refuses NaN
            raise ConfigError(f"--score-threshold is {score_threshold}; it must be from 0 to 1.")
        detect = config.detect
        rooted = detect.threshold_by == "product" and detect.score_root
        changes["score_threshold"] = score_threshold**2 if rooted else score_threshold
    return override(config, **changes)


def import_(args: argparse.Namespace) -> int:
    """Convert published weights into a checkpoint of ours."""
    check_suffix(args.output, ".safetensors")
    for module in ("torch", "safetensors", "yaml"):
        require(module, "export")
    config = args.config if args.preset_from is None else published(args.preset_from)
    from condinst_infer import checkpoint

    model = checkpoint.import_weights(args.weights, config)
    if args.classes is not None:
        model.config = _renamed(model.config, args.classes)
    with replacing(args.output) as part:
        checkpoint.save(model, part)
    print(f"{model.config.name}, {model.config.heads.num_classes} classes -> {args.output}")
    return 0


def _renamed(config: CondInstConfig, path: Path) -> CondInstConfig:
    """`config` with the class names in a text file, one per line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the class names in {path} can't be read: {error}.") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != config.heads.num_classes:
        raise ConfigError(
            f"{path} names {len(names)} classes, the weights have {config.heads.num_classes}."
        )
    return override(config, class_names=names)


def info(args: argparse.Namespace) -> int:
    """What is inside a model file."""
    suffix = args.file.suffix.lower()
    if suffix == ".onnx":
        data = _onnx_info(args.file)
    elif suffix == ".safetensors":
        data = _safetensors_info(args.file)
    elif suffix == ".engine":
        data = _engine_info(args.file)
    else:
        raise ModelFileError(
            f"{args.file} is no model file; it must be .onnx, .engine or .safetensors."
        )
    data["sha256"] = file_sha256(args.file)
    data["bytes"] = args.file.stat().st_size
    if args.json:
        print(json.dumps(data))
        return 0
    config = config_from_dict(data.pop("config"))
    for key, value in (_config_info(config) | data).items():
        print(f"{key + ':':20}{value}")
    return 0


def _onnx_info(path: Path) -> dict[str, Any]:
    from condinst_infer.runtimes.ort import OrtSession

    session = OrtSession(path)
    data = dataclasses.asdict(session.metadata)
    data["versions"] = ", ".join(f"{k} {v}" for k, v in session.metadata.versions.items())
    data["size"] = list(data["size"]) if data["size"] else "dynamic"
    data["batch"] = data["batch"] or "dynamic"
    if not data["int8_for"]:
        del data["int8_for"]
    data |= int8_info(path)
    data["inputs"] = {name: str(spec) for name, spec in session.inputs.items()}
    data["outputs"] = {name: str(spec) for name, spec in session.outputs.items()}
    return data


def _engine_info(path: Path) -> dict[str, Any]:
    """From the sidecar; the engine is compared with it and not loaded."""
    from condinst_infer.trt import sidecar

    beside, _ = sidecar.read(path)
    metadata = beside.metadata(path)
    versions = ", ".join(f"{k} {v}" for k, v in metadata.versions.items())
    return {
        "config": dataclasses.asdict(metadata.config),
        "graph": metadata.graph,
        "checkpoint_sha256": metadata.checkpoint_sha256,
        "versions": versions,
        **beside.lines(),
    }


def _safetensors_info(path: Path) -> dict[str, Any]:
    """From the header alone: eight bytes of length, then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _HEADER_LIMIT)))
        metadata = header.pop("__metadata__", {})
        tensors = [math.prod(tensor["shape"]) for tensor in header.values()]
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from None
    except (struct.error, ValueError, AttributeError, KeyError, TypeError):
        raise CheckpointError(f"{path} is not a safetensors file.") from None
    if "condinst" not in metadata:
        raise CheckpointError(
            f"{path} was not written by condinst-infer. Convert it: "
            "condinst import WEIGHTS -o model.safetensors"
        )
    config = CondInstConfig.from_json(metadata["condinst"])
    return {
        "config": dataclasses.asdict(config),
        "tensors": len(tensors),
        "parameters": sum(tensors),
    }


def _config_info(config: CondInstConfig) -> dict[str, Any]:
    """The lines about a config that a person wants to see."""
    detect = config.detect
    by_masks = f"{detect.mask_nms}, by the masks of {config.mask_candidates} candidates"
    return {
        "name": config.name,
        "backbone": config.backbone.backbone_type,
        "neck": config.neck.neck_type,
        "input": f"short side {config.input.short_side}, long side {config.input.long_side} pixels",
        "head levels": " ".join(f"P{level}" for level in config.heads.head_levels),
        "mask head": f"{config.mask.mask_head_depth} layers of {config.mask.mask_head_width}, "
        f"{config.num_params} parameters, {config.mask.coordinates} coordinates",
        "mask stride": f"{config.mask.mask_stride} pixels",
        "NMS": "by boxes" if detect.nms == "box" else by_masks,
        "max detections": detect.max_detections,
        "lowest score": round(config.reported_floor, 4),
        "classes": _first(config.class_names),
        **({"stuff": _first(config.panoptic.stuff_names)} if config.is_panoptic else {}),
    }


def _first(names: Sequence[str]) -> str:
    """Some of `names`, and how many there are."""
    return ", ".join(names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "")


def compare(args: argparse.Namespace) -> int:
    """Print where two model files differ; 1 if more than they may."""
    from condinst_infer.verification.compare import compare as compared

    report = compared(args.a, args.b, args.images)
    if args.json:
        print(json.dumps(report.to_dict()))
    else:
        print(report)
        print("they agree." if report.ok else "they differ by more than they may.")
    return 0 if report.ok else 1
