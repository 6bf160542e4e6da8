"""`condinst export --precision int8`."""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condinst_infer.cli.sources import image_files
from condinst_infer.contract.metadata import file_sha256, props_from_onnx
from condinst_infer.errors import ConfigError

if TYPE_CHECKING:
    from condinst_infer.model.condinst import CondInst

_OPTIONS = ("target", "calibration", "annotations", "images", "limit", "max_loss")


def check_int8(args: argparse.Namespace) -> None:
    """ConfigError if the options of int8 don't fit together."""
    if args.precision != "int8":
        for name in _OPTIONS:
            if getattr(args, name) is not None:
                option = {"target": "--for"}.get(name, f"--{name.replace('_', '-')}")
                raise ConfigError(f"{option} is for int8 only: add --precision int8.")
        return
    if args.calibration is None:
        raise ConfigError("int8 needs images like those it will see: --calibration IMAGES.")
    if (args.annotations is None) != (args.images is None):
        raise ConfigError("--annotations FILE and --images DIR need each other.")
    if args.max_loss is not None and not 0 <= args.max_loss < math.inf:  # also refuses NaN
        raise ConfigError(f"--max-loss is {args.max_loss}; it must be at least 0.")


def write_int8(
    args: argparse.Namespace, model: "CondInst", part: Path, on_stage: Callable[[str], object]
) -> dict[str, Any]:
    """Write `model` in int8 to `part`, and return what was measured; without --json, print it."""
    from condinst_infer.quantization import int8

    limit = args.limit or int8.LIMIT
    truth = None
    if args.annotations is not None:
        truth = int8.Truth(args.annotations, args.images, limit)
    report = int8.export_int8(
        model,
        part,
        [file.path for file in image_files(args.calibration, part)],
        target=args.target or "cpu",
        graph=args.graph,
        size=args.size,
        batch=args.batch,
        limit=limit,
        truth=truth,
        max_loss=args.max_loss,
        checkpoint_sha256=file_sha256(args.model),
        on_stage=on_stage,
    )
    if not args.json:
        print(report)
    return {"int8": report.to_dict()}


def int8_info(path: Path) -> dict[str, Any]:
    """What was measured when the int8 file `path` was made; nothing of other files."""
    text = props_from_onnx(path.read_bytes(), path).get("condinst_int8")
    return {} if text is None else {"int8": json.loads(text)}
