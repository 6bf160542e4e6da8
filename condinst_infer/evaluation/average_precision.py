"""COCO's average precision of what a pipeline finds, or of detections in a file."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from condinst_infer.config.model import MAX_BATCH, CondInstConfig, DetectConfig, Size
from condinst_infer.datasets.coco import (
    check_images,
    coco_library,
    read_instances,
    rle_from_segmentation,
    unusable,
)
from condinst_infer.errors import ConfigError, InputError, shorten
from condinst_infer.pipeline import Pipeline
from condinst_infer.results.instances import Instances
from condinst_infer.system.ordered_map import run_over_images

Numbers = dict[str, float | None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's twelve numbers for boxes and for masks, 0 to 100; None where nothing defines one.

    AP: mean over IoU 0.50 to 0.95; AP50, AP75: at one IoU; S, M, L: objects below 32^2, between,
    and above 96^2 pixels. AR1, AR10: recall with one and ten detections per class and image, AR:
    with `max_detections` of them, as all the others.
    """

    box: Numbers
    mask: Numbers
    images: int
    detections: int
    max_detections: int


@dataclass(frozen=True)
class LabelledImages:
    """Annotated images to measure the accuracy on."""

    annotations: Path  # a COCO instances file
    images: Path  # folder that its `file_name` entries are relative to
    limit: int | None = None  # only the first images of the file; None takes all


class CocoTruth(NamedTuple):
    """Content of a COCO instances file, checked."""

    file: Path
    images: dict[int, str]  # file names of the images to evaluate, by id
    sizes: dict[int, Size]  # of all images in the file, by id
    categories: dict[int, str]  # names by id
    annotations: list[dict[str, Any]]  # on `images`, as COCO's evaluation reads them


def evaluate(
    pipeline: Pipeline,
    annotations: str | Path,
    images: str | Path,
    *,
    max_detections: int = DetectConfig.max_detections,
    limit: int | None = None,
    batch: int = MAX_BATCH,
    workers: int = 1,
) -> AveragePrecision:
    """The average precision of what `pipeline` finds in the images of an annotation file.

    Args:
        pipeline: any; its classes must be among those of the file, by name or else by id.
        annotations: a COCO instances file.
        images: folder that its `file_name` entries are relative to.
        max_detections: most that count per class and image, best first.
        limit: only the first images of the file; None takes all.
        batch: images read and run at once.
        workers: batches worked on at the same time; load the model with the same number.

    Raises:
        InputError: the file, an image or the classes of the model don't fit; the text says which.
        MissingExtraError: faster-coco-eval is not installed.
    """
    truth = read_truth(annotations, limit=limit)
    found = detect(pipeline, truth, images, batch=batch, workers=workers)
    return score(truth, found, max_detections=max_detections)


def evaluate_detections(
    annotations: str | Path,
    detections: Iterable[Mapping[str, Any]],
    *,
    max_detections: int = DetectConfig.max_detections,
) -> AveragePrecision:
    """The average precision of rows of a COCO result file; errors as in `evaluate`."""
    return score(read_truth(annotations), detections, max_detections=max_detections)


def read_truth(annotations: str | Path, *, limit: int | None = None) -> CocoTruth:
    """The first `limit` images of a COCO instances file, or all, with what is on them.

    Crowds, polygons, compressed and uncompressed RLE are taken; missing `iscrowd` is 0, missing
    `area` and `bbox` come from the mask.

    Raises:
        InputError: not such a file, or inconsistent.
    """
    file = Path(annotations)
    content = read_instances(file)
    sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in content["images"]}
    images = {entry["id"]: entry["file_name"] for entry in content["images"][:limit]}
    categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
    truth = CocoTruth(file, images, sizes, categories, [])
    rows = _entries(truth, content["annotations"], f"{file}: annotation", scored=False)
    return truth._replace(annotations=rows)


def detect(
    pipeline: Pipeline,
    truth: CocoTruth,
    images: str | Path,
    *,
    batch: int = MAX_BATCH,
    workers: int = 1,
) -> list[dict[str, Any]]:
    """Run `pipeline` on the images of `truth`; returns rows of a COCO result file."""
    category_of = category_of_model(pipeline.config, truth)
    paths = {id_: Path(images) / name for id_, name in truth.images.items()}
    check_images(paths.values(), truth.file)  # before minutes of work

    def detect_batch(ids: list[int]) -> list[list[dict[str, Any]]]:
        results = pipeline([paths[id_] for id_ in ids])
        return [_rows(truth, *pair, category_of) for pair in zip(ids, results, strict=True)]

    # images of one size share a canvas, and only those fill a batch
    ids = sorted(truth.images, key=lambda id_: truth.sizes[id_])
    size = max(batch, pipeline.metadata.batch or 1)
    return list(chain.from_iterable(run_over_images(detect_batch, ids, size, workers)))


def _rows(
    truth: CocoTruth, image: int, result: Instances, category_of: dict[int, int]
) -> list[dict[str, Any]]:
    """Result rows of one image, with the categories of the file."""
    if result.image_size != truth.sizes[image]:
        raise InputError(
            f"{truth.images[image]} has (height, width) {result.image_size}, but "
            f"{truth.file} says {truth.sizes[image]}."
        )
    return [row | {"category_id": category_of[row["category_id"]]} for row in result.to_coco(image)]


def score(
    truth: CocoTruth,
    detections: Iterable[Mapping[str, Any]],
    *,
    max_detections: int = DetectConfig.max_detections,
) -> AveragePrecision:
    """The average precision of rows of a COCO result file against `truth`."""
    if max_detections < 1:
        raise ConfigError(f"max_detections is {max_detections}; it must be at least 1.")
    rows = _entries(truth, detections, "detection", scored=True)
    box, mask = (_numbers(truth, rows, kind, max_detections) for kind in ("bbox", "segm"))
    return AveragePrecision(box, mask, len(truth.images), len(rows), max_detections)


def category_of_model(config: CondInstConfig, truth: CocoTruth) -> dict[int, int]:
    """Category id of the model -> that of the file: where the names agree, else the same id."""
    own = dict(zip(config.category_ids, config.class_names, strict=True))
    return same_categories(own, truth.categories, truth.file)


def same_categories(
    own: Mapping[int, str], categories: Mapping[int, str], file: Path
) -> dict[int, int]:
    """Ids of a model's classes -> those of `file`; both are ids and names."""
    id_of = {name: category for category, name in categories.items()}
    if len(id_of) == len(categories) and id_of.keys() >= set(own.values()):
        return {category: id_of[name] for category, name in own.items()}
    missing = [f"{id_} ({name})" for id_, name in own.items() if id_ not in categories]
    if missing:
        raise InputError(
            f"{file} does not list {len(missing)} of the model's {len(own)} classes, "
            "neither by name nor by id: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}."
        )
    return {category: category for category in own}


def _entries(
    truth: CocoTruth, rows: Iterable[Mapping[str, Any]], what: str, *, scored: bool
) -> list[dict[str, Any]]:
    """The rows on the images of `truth`, checked and as COCO's evaluation reads them.

    They are numbered from 1: an object whose id is 0 would count as never found.
    """
    coco_mask = coco_library().mask
    entries = []
    for number, row in enumerate(rows, 1):
        try:
            image, category = row["image_id"], row["category_id"]
            if image not in truth.sizes or category not in truth.categories:
                raise ValueError(
                    f"image {shorten(image)} or category {shorten(category)} is not in {truth.file}"
                )
            if image not in truth.images:
                continue
            rle = rle_from_segmentation(row["segmentation"], truth.sizes[image])
            x, y, width, height = row["bbox"] if "bbox" in row else coco_mask.toBbox(rle)
            given = "area" in row and not scored
            entry = {
                "id": number,
                "image_id": image,
                "category_id": category,
                "segmentation": rle,
                "bbox": [float(x), float(y), float(width), float(height)],
                "iscrowd": 0 if scored else _crowd(row),
                "area": float(row["area"] if given else coco_mask.area(rle)),
            }
            entries.append(entry | ({"score": float(row["score"])} if scored else {}))
        except Exception as error:  # faster-coco-eval reports bad masks in many ways
            raise unusable(what, number, row, error) from None
    return entries


def _crowd(row: Mapping[str, Any]) -> int:
    """1 for a group of objects, else 0."""
    if (crowd := row.get("iscrowd", 0)) not in (0, 1):
        raise ValueError(f"its iscrowd is {shorten(crowd)}, not 0 or 1")
    return int(crowd)


def _numbers(
    truth: CocoTruth, detections: list[dict[str, Any]], kind: str, max_detections: int
) -> Numbers:
    """COCO's twelve numbers; `kind` is "bbox" or "segm"."""
    library = coco_library()
    sizes = ((image, *truth.sizes[image]) for image in truth.images)
    images = [{"id": image, "height": height, "width": width} for image, height, width in sizes]
    common = {"images": images, "categories": [{"id": id_} for id_ in truth.categories]}
    if kind == "bbox":  # a detection is small, medium or large by what is judged
        detections = [row | {"area": row["bbox"][2] * row["bbox"][3]} for row in detections]
    judge = library.COCOeval_faster(
        library.COCO(common | {"annotations": truth.annotations}),
        library.COCO(common | {"annotations": detections}),
        iouType=kind,
        print_function=_log.debug,
    )
    limits = sorted({1, min(10, max_detections), max_detections})
    judge.params.maxDets = limits
    judge.evaluate()
    judge.accumulate()
    return _summary(judge.eval["precision"], judge.eval["recall"], limits)


def _summary(precision: np.ndarray, recall: np.ndarray, limits: list[int]) -> Numbers:
    """Means over what is defined.

    Args:
        precision: float [T, R, C, S, M], -1 where undefined: 10 IoUs from 0.50, recalls, classes,
            sizes (all, small, medium, large), limits of detections.
        recall: float [T, C, S, M].
        limits: M detections per class and image, ascending.
    """
    most, ten = len(limits) - 1, limits.index(min(10, limits[-1]))
    parts = {
        "AP": precision[..., 0, most],
        "AP50": precision[0, ..., 0, most],
        "AP75": precision[5, ..., 0, most],
        "APS": precision[..., 1, most],
        "APM": precision[..., 2, most],
        "APL": precision[..., 3, most],
        "AR1": recall[..., 0, 0],
        "AR10": recall[..., 0, ten],
        "AR": recall[..., 0, most],
        "ARS": recall[..., 1, most],
        "ARM": recall[..., 2, most],
        "ARL": recall[..., 3, most],
    }
    defined = {name: values[values > -1] for name, values in parts.items()}
    return {
        name: 100 * float(values.mean()) if values.size else None
        for name, values in defined.items()
    }
