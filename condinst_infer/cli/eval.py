"""`condinst eval`."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from condinst_infer.cli import options
from condinst_infer.config.model import DetectConfig
from condinst_infer.datasets.coco import read_json
from condinst_infer.datasets.coco_panoptic import read_panoptic
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.evaluation.average_precision import (
    Evaluation,
    Numbers,
    Truth,
    detect,
    read_truth,
    score,
)
from condinst_infer.evaluation.panoptic_quality import (
    PanopticQuality,
    evaluate_panoptic,
    evaluate_panoptic_file,
)
from condinst_infer.pipeline import Pipeline, load
from condinst_infer.system.files import replacing

FOUND = "panoptic.json"  # in a folder that `condinst predict --panoptic` wrote


def evaluate(args: argparse.Namespace) -> int:
    """Print COCO's numbers of a model file or of a file of detections."""
    if args.panoptic:
        return _panoptic(args)
    if args.pngs is not None:
        raise ConfigError("--pngs is the folder of panoptic ground truth; give --panoptic too.")
    max_dets = args.max_dets or DetectConfig.max_detections
    truth = read_truth(args.annotations, limit=args.limit)
    from_file = args.model.suffix.lower() == ".json"
    rows = _from_file(args) if from_file else _from_model(args, truth, max_dets)
    if args.detections is not None:
        with replacing(args.detections) as part:
            part.write_text(json.dumps(rows), encoding="utf-8")
    result = score(truth, rows, max_detections=max_dets)
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


def _loaded(args: argparse.Namespace, workers: int) -> Pipeline:
    if args.images is None:
        raise ConfigError(f"{args.model} needs the folder of the images: --images DIR.")
    return load(args.model, **options.runtime(args), workers=workers, max_batch=args.batch)


def _from_model(args: argparse.Namespace, truth: Truth, max_dets: int) -> list[dict[str, Any]]:
    workers = options.workers(args, len(truth.images))
    with _loaded(args, workers) as pipeline:
        most = pipeline.config.detect.max_detections
        if max_dets > most:
            print(
                f"condinst: the model reports at most {most} instances per image, so more than "
                "these never count.",
                file=sys.stderr,
            )
        return detect(pipeline, truth, args.images, batch=args.batch, workers=workers)


def _panoptic(args: argparse.Namespace) -> int:
    """Print the panoptic quality of a model file or of a file of segments."""
    if args.max_dets is not None:
        raise ConfigError("--max-dets is for average precision; of PQ every segment counts.")
    truth = read_panoptic(args.annotations, args.pngs, limit=args.limit)
    found = args.model / FOUND if args.model.is_dir() else args.model
    if found.suffix.lower() == ".json":
        if args.detections is not None:
            raise ConfigError(f"{args.model} is what was found already; leave --detections out.")
        result = evaluate_panoptic_file(truth, found)
    else:
        workers = options.workers(args, len(truth.images))
        with _loaded(args, workers) as pipeline:
            result = evaluate_panoptic(
                pipeline,
                truth,
                args.images,
                batch=args.batch,
                workers=workers,
                save=args.detections,
            )
    if args.json:
        print(json.dumps({"model": str(args.model)} | asdict(result)))
    else:
        _print_panoptic(result)
    return 0


def _print_panoptic(result: PanopticQuality) -> None:
    things = sum(c.is_thing for c in result.classes)
    print(
        f"{result.images} images, {things} classes of things and {len(result.classes) - things} "
        "kinds of stuff occur"
    )
    width = max([6, *(len(c.name) for c in result.classes)])
    print(" " * width + "    PQ    SQ    RQ matched  missed   wrong")
    for name, numbers in (("all", result.all), ("things", result.things), ("stuff", result.stuff)):
        print(f"{name:{width}}" + _cells(numbers))
    for c in result.classes:
        counts = "".join(f"{count:8}" for count in (c.matched, c.missed, c.wrong))
        print(f"{c.name:{width}}" + _cells(c.quality) + counts)


def _print(result: Evaluation) -> None:
    print(
        f"{result.images} images, {result.detections} detections, of which the best "
        f"{result.max_detections} per class and image count"
    )
    print(" " * 6 + "".join(f"{name:>6}" for name in result.box))
    for name, numbers in (("box", result.box), ("mask", result.mask)):
        print(f"{name:6}" + _cells(numbers))


def _cells(numbers: Numbers) -> str:
    cells = ("-" if value is None else f"{value:.1f}" for value in numbers.values())
    return "".join(f"{cell:>6}" for cell in cells)
