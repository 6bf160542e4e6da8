"""`condinst eval`: average precision or panoptic quality of a model file or of results."""

import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from condinst_infer.cli.options import (
    RunOptions,
    Verb,
    add_json,
    add_run,
    positive,
    table_of_numbers,
)
from condinst_infer.config.model import DetectConfig
from condinst_infer.contract.model_file import model_path
from condinst_infer.datasets.coco import read_json
from condinst_infer.datasets.coco_panoptic import read_panoptic
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.evaluation.average_precision import (
    AveragePrecision,
    CocoTruth,
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
from condinst_infer.system.outputs import write_json
from condinst_infer.system.paths import is_folder

RESULTS = "panoptic.json"  # in a folder that `condinst predict --panoptic` wrote


@dataclass(frozen=True, kw_only=True)
class EvalOptions(RunOptions):
    """Options of `condinst eval`; ConfigError if two of them exclude each other."""

    model: Path
    annotations: Path
    images: Path | None
    panoptic: bool
    pngs: Path | None
    max_dets: int | None
    limit: int | None
    detections: Path | None
    json: bool

    def __post_init__(self) -> None:
        if self.panoptic and self.max_dets is not None:
            raise ConfigError("--max-dets is for average precision; of PQ every segment counts.")
        if self.pngs is not None and not self.panoptic:
            raise ConfigError("--pngs is the folder of panoptic ground truth; give --panoptic too.")


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `EvalOptions`."""
    parser.add_argument(
        "model",
        type=model_path,
        metavar="MODEL",
        help="an .onnx, .engine or .safetensors file, nuclei, the model that ships, or a .json "
        "file of COCO results; with --panoptic also the folder that predict --panoptic wrote",
    )
    _add_ground_truth(parser)
    parser.add_argument(
        "--max-dets",
        type=positive,
        metavar="K",
        help="count at most K detections per class and image "
        f"(default: {DetectConfig.max_detections})",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="use only the first N images of the annotations (default: all)",
    )
    parser.add_argument(
        "--detections", type=Path, metavar="FILE", help="also write the detections, as COCO results"
    )
    add_run(parser)
    add_json(parser)


def _add_ground_truth(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--annotations",
        type=Path,
        required=True,
        metavar="FILE",
        help="ground truth: a COCO instances file; with --panoptic a COCO panoptic file",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of the images; not needed for a .json file",
    )
    parser.add_argument(
        "--panoptic", action="store_true", help="measure PQ, SQ and RQ of a panoptic model"
    )
    parser.add_argument(
        "--pngs",
        type=Path,
        metavar="DIR",
        help="folder of the PNGs of the panoptic ground truth (default: the folder with the name "
        "of --annotations)",
    )


def run(options: EvalOptions) -> int:
    """Print the accuracy of a model file or of a file of results."""
    if options.panoptic:
        result: Any = _panoptic_quality(options)
        text = _panoptic_text
    else:
        result = _average_precision(options)
        text = _average_precision_text
    if options.json:
        print(json.dumps({"model": str(options.model)} | asdict(result)))
    else:
        print(text(result))
    return 0


def _average_precision(options: EvalOptions) -> AveragePrecision:
    max_dets = options.max_dets or DetectConfig.max_detections
    truth = read_truth(options.annotations, limit=options.limit)
    if options.model.suffix.lower() == ".json":
        rows = read_json(options.model)
        if not isinstance(rows, list):
            raise InputError(f"{options.model} is no list of COCO results.")
    else:
        rows = _detect(options, truth, max_dets)
    if options.detections is not None:
        write_json(options.detections, rows)
    return score(truth, rows, max_detections=max_dets)


def _load(options: EvalOptions, workers: int) -> tuple[Pipeline, Path]:
    """The pipeline, and the folder of the images."""
    if options.images is None:
        raise ConfigError(f"{options.model} needs the folder of the images: --images DIR.")
    pipeline = load(options.model, **options.for_load(), workers=workers, max_batch=options.batch)
    return pipeline, options.images


def _detect(options: EvalOptions, truth: CocoTruth, max_dets: int) -> list[dict[str, Any]]:
    """Results of the model on all images, as rows of a COCO result file."""
    workers = options.workers_for(len(truth.images))
    pipeline, images = _load(options, workers)
    with pipeline:
        most = pipeline.config.detect.max_detections
        if max_dets > most:
            print(
                f"condinst: the model reports at most {most} instances per image, so more than "
                "these never count.",
                file=sys.stderr,
            )
        return detect(pipeline, truth, images, batch=options.batch, workers=workers)


def _panoptic_quality(options: EvalOptions) -> PanopticQuality:
    truth = read_panoptic(options.annotations, options.pngs, limit=options.limit)
    source = options.model / RESULTS if is_folder(options.model) else options.model
    if source.suffix.lower() == ".json":
        if options.detections is not None:
            raise ConfigError(f"{options.model} holds results already; leave --detections out.")
        return evaluate_panoptic_file(truth, source)
    workers = options.workers_for(len(truth.images))
    pipeline, images = _load(options, workers)
    with pipeline:
        return evaluate_panoptic(
            pipeline,
            truth,
            images,
            batch=options.batch,
            workers=workers,
            save=options.detections,
        )


def _panoptic_text(result: PanopticQuality) -> str:
    things = sum(c.is_thing for c in result.classes)
    rows = [
        {"": name, **numbers}
        for name, numbers in (
            ("all", result.all),
            ("things", result.things),
            ("stuff", result.stuff),
        )
    ]
    rows += [
        {"": c.name, **c.quality, "matched": c.matched, "missed": c.missed, "wrong": c.wrong}
        for c in result.classes
    ]
    return (
        f"{result.images} images, {things} classes of things and {len(result.classes) - things} "
        f"kinds of stuff occur\n{table_of_numbers(rows)}"
    )


def _average_precision_text(result: AveragePrecision) -> str:
    rows = [{"": "box", **result.box}, {"": "mask", **result.mask}]
    return (
        f"{result.images} images, {result.detections} detections, of which the best "
        f"{result.max_detections} per class and image count\n{table_of_numbers(rows)}"
    )


VERB = Verb(
    "condinst eval model.onnx --annotations instances_val2017.json --images val2017\n"
    "  condinst eval model.onnx --panoptic --annotations panoptic_val2017.json --images val2017",
    add_options,
    EvalOptions,
    run,
    inputs=("model", "annotations", "images", "pngs"),
    outputs={"detections": "text"},
)
