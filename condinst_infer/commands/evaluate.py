"""`condinst eval`."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from condinst_infer.annotations import read_json
from condinst_infer.commands import options
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.evaluate import Evaluation, Truth, detect, read_truth, score
from condinst_infer.output import replacing
from condinst_infer.pipeline import load


def evaluate(args: argparse.Namespace) -> int:
    """Print COCO's numbers of a model file or of a file of detections."""
    truth = read_truth(args.annotations, limit=args.limit)
    rows = _from_file(args) if args.model.suffix.lower() == ".json" else _from_model(args, truth)
    if args.detections is not None:
        with replacing(args.detections) as part:
            part.write_text(json.dumps(rows), encoding="utf-8")
    result = score(truth, rows, max_detections=args.max_dets)
    if args.json:
        print(json.dumps({"model": str(args.model)} | asdict(result)))
    else:
        _print(result)
    return 0


def _from_file(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = read_json(args.model)
    if not isinstance(rows, list):
        raise InputError(f"{args.model} is no list of COCO results.")
    return rows


def _from_model(args: argparse.Namespace, truth: Truth) -> list[dict[str, Any]]:
    if args.images is None:
        raise ConfigError(f"{args.model} needs the folder of the images: --images DIR.")
    workers = options.workers(args, len(truth.images))
    with load(
        args.model,
        **options.runtime(args),
        workers=workers,
        max_batch=args.batch,
    ) as pipeline:
        most = pipeline.config.detect.max_detections
        if args.max_dets > most:
            print(
                f"condinst: the model reports at most {most} instances per image, so more than "
                "these never count.",
                file=sys.stderr,
            )
        return detect(pipeline, truth, args.images, batch=args.batch, workers=workers)


def _print(result: Evaluation) -> None:
    print(
        f"{result.images} images, {result.detections} detections, of which the best "
        f"{result.max_detections} per class and image count"
    )
    print(" " * 6 + "".join(f"{name:>6}" for name in result.box))
    for name, numbers in (("box", result.box), ("mask", result.mask)):
        cells = ("-" if value is None else f"{value:.1f}" for value in numbers.values())
        print(f"{name:6}" + "".join(f"{cell:>6}" for cell in cells))
