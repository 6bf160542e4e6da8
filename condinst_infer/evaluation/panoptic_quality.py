"""Panoptic quality (arXiv:1801.00868) of what a pipeline finds, or of segments in a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from condinst_infer.config.model import MAX_BATCH, CondInstConfig
from condinst_infer.datasets.coco import check_images
from condinst_infer.datasets.coco_panoptic import (
    ID_BITS,
    PanopticImage,
    PanopticTruth,
    id_map,
    read_results,
    run_starts,
)
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.evaluation.average_precision import Numbers, same_categories
from condinst_infer.pipeline import Pipeline
from condinst_infer.results.panoptic import PanopticSegmentation
from condinst_infer.system.ordered_map import run_over_images
from condinst_infer.system.outputs import write_json


@dataclass(frozen=True)
class ClassQuality:
    """The quality of one category, and the segments it comes from."""

    id: int
    name: str
    is_thing: bool
    quality: Numbers  # PQ, SQ, RQ
    matched: int  # true positives: pairs of an IoU above 0.5
    missed: int  # false negatives
    wrong: int  # false positives


@dataclass(frozen=True)
class PanopticQuality:
    """PQ, SQ and RQ, 0 to 100: means over the categories that occur; None where none does.

    SQ is the mean IoU of matched segments, RQ the F1 score of matching, and PQ of a category is
    SQ * RQ.
    """

    all: Numbers
    things: Numbers
    stuff: Numbers
    classes: tuple[ClassQuality, ...]  # that occur, in the truth or in what was found
    images: int


class PredictedSegments(NamedTuple):
    """The segments found in one image."""

    ids: np.ndarray  # int32 [H, W], 0 where there is none
    categories: Mapping[int, int]  # of each id, as the ground truth numbers them


def evaluate_panoptic(
    pipeline: Pipeline,
    truth: PanopticTruth,
    images: str | Path,
    *,
    batch: int = MAX_BATCH,
    workers: int = 1,
    save: str | Path | None = None,
) -> PanopticQuality:
    """The panoptic quality of what `pipeline` finds in the images of a COCO panoptic file.

    Args:
        pipeline: of a panoptic model, whose classes must be among those of the file, by name or
            else by id.
        truth: see `read_panoptic`.
        images: folder that the file names of the images are relative to.
        batch: images read and run at once.
        workers: batches worked on at the same time; load the model with the same number.
        save: a .json file to write what was found to; its PNGs go to the folder of its name.

    Raises:
        InputError: the file, an image, a PNG or the classes of the model don't fit.
        ConfigError: the model is not panoptic.
    """
    category_of = category_of_model(pipeline.config, truth)
    paths = {image.id: Path(images) / image.file_name for image in truth.images}
    check_images(paths.values(), truth.file)  # before minutes of work
    folder = None if save is None else Path(save).with_suffix("")

    def judge_batch(batch: list[PanopticImage]) -> list[tuple[np.ndarray, dict[str, Any]]]:
        results = pipeline.panoptic([paths[image.id] for image in batch])
        return [
            _judge(truth, image, result, category_of, folder)
            for image, result in zip(batch, results, strict=True)
        ]

    # images of one size share a canvas, and only those fill a batch
    ordered = sorted(truth.images, key=lambda image: image.size)
    total, rows = np.zeros((4, len(truth.categories))), []
    size = max(batch, pipeline.metadata.batch or 1)
    for counts, row in run_over_images(judge_batch, ordered, size, workers):
        total += counts
        rows.append(row)
    if save is not None:
        write_json(Path(save), {"annotations": rows})
    return quality(truth, total)


def evaluate_panoptic_file(truth: PanopticTruth, file: str | Path) -> PanopticQuality:
    """The panoptic quality of segments in a file of COCO's panoptic results, PNGs beside it."""
    found = read_results(file, truth)
    total = np.zeros((4, len(truth.categories)))
    for image, result in zip(truth.images, found.images, strict=True):
        categories = {segment.id: segment.category for segment in result.segments}
        total += count_matches(truth, image, PredictedSegments(id_map(result), categories))
    return quality(truth, total)


def category_of_model(config: CondInstConfig, truth: PanopticTruth) -> dict[int, int]:
    """Category id of the model -> that of the file, of things and stuff."""
    if not config.is_panoptic:
        raise ConfigError(
            f"{config.name} is an instance model and has no panoptic quality; leave --panoptic "
            "out, or take a model trained from a panoptic preset."
        )
    ids = (*config.category_ids, *config.panoptic.stuff_ids)
    names = (*config.class_names, *config.panoptic.stuff_names)
    own = dict(zip(ids, names, strict=True))
    listed = {category.id: category.name for category in truth.categories.values()}
    return same_categories(own, listed, truth.file)


def _judge(
    truth: PanopticTruth,
    image: PanopticImage,
    result: PanopticSegmentation,
    category_of: Mapping[int, int],
    folder: Path | None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Counts of one image, and its entry in a result file whose PNG goes to `folder`."""
    if result.id_map.shape != image.size:
        raise InputError(
            f"{image.file_name} has (height, width) {result.id_map.shape}, but {truth.file} says "
            f"{image.size}."
        )
    row = result.to_coco(image.id, image.png.name)
    for segment in row["segments_info"]:
        segment["category_id"] = category_of[segment["category_id"]]
    if folder is not None:
        result.write_png(folder / row["file_name"])
    categories = {segment["id"]: segment["category_id"] for segment in row["segments_info"]}
    return count_matches(truth, image, PredictedSegments(result.id_map, categories)), row


def count_matches(
    truth: PanopticTruth, image: PanopticImage, found: PredictedSegments
) -> np.ndarray:
    """Counts of one image for each of the C categories, float64 [4, C].

    The rows: sum of the IoUs of matched segments, how many they are, missed and wrong ones.
    Segments of one category match above an IoU of 0.5; what the truth leaves void counts in no
    union. Crowds are never missed, and what lies by more than half in void or in crowds of its
    category is not wrong (section 4.1 of the paper, and COCO's evaluation).
    """
    place = {category: i for i, category in enumerate(truth.categories)}
    segments = sorted(image.segments)
    kinds = np.array([place[s.category] for s in segments], np.intp)  # [T]
    crowd = np.array([s.crowd for s in segments], bool)
    found_ids = sorted(found.categories)
    found_kinds = np.array([place[found.categories[id_]] for id_ in found_ids], np.intp)  # [F]
    common = _common(id_map(image), [s.id for s in segments], found.ids, found_ids)
    areas, found_areas = common.sum(1)[1:], common.sum(0)[1:]
    void, common = common[0, 1:], common[1:, 1:]
    same = kinds[:, None] == found_kinds
    iou = common / np.maximum(areas[:, None] + found_areas - common - void, 1)
    matched = (iou > 0.5) & same & ~crowd[:, None]
    covered = void + (common * (same & crowd[:, None])).sum(0)
    missed = ~matched.any(1) & ~crowd
    wrong = ~matched.any(0) & (2 * covered <= found_areas)
    one, _ = np.nonzero(matched)
    count = len(place)
    return np.stack(
        [
            np.bincount(kinds[one], iou[matched], count),
            np.bincount(kinds[one], minlength=count),
            np.bincount(kinds[missed], minlength=count),
            np.bincount(found_kinds[wrong], minlength=count),
        ]
    )


def _common(
    ids: np.ndarray, known: list[int], found: np.ndarray, found_known: list[int]
) -> np.ndarray:
    """Pixels that each pair of segments shares, int64 [1 + T, 1 + F]; the first are void."""
    both = ids.astype(np.int64) << ID_BITS | found
    starts = run_starts(both)  # some thousands: sorting them costs a tenth of all pixels
    lengths = np.diff(starts, append=both.size)
    pairs, which = np.unique(both.ravel()[starts], return_inverse=True)
    table = np.zeros((1 + len(known), 1 + len(found_known)), np.int64)
    rows = np.searchsorted([0, *known], pairs >> ID_BITS)
    columns = np.searchsorted([0, *found_known], pairs & (1 << ID_BITS) - 1)
    table[rows, columns] = np.bincount(which, lengths)  # exact: below 2^53
    return table


def quality(truth: PanopticTruth, total: np.ndarray) -> PanopticQuality:
    """PQ, SQ and RQ from the sum over all images of what `count_matches` gives, float64 [4, C]."""
    classes = []
    for category, (iou, matched, missed, wrong) in zip(
        truth.categories.values(), total.T.tolist(), strict=True
    ):
        if matched + missed + wrong == 0:
            continue
        sizes = matched + (missed + wrong) / 2
        numbers: Numbers = {
            "PQ": 100 * iou / sizes,
            "SQ": 100 * iou / max(matched, 1),
            "RQ": 100 * matched / sizes,
        }
        counts = int(matched), int(missed), int(wrong)
        classes.append(ClassQuality(*category, numbers, *counts))
    return PanopticQuality(
        _mean(classes),
        _mean([c for c in classes if c.is_thing]),
        _mean([c for c in classes if not c.is_thing]),
        tuple(classes),
        len(truth.images),
    )


def _mean(classes: list[ClassQuality]) -> Numbers:
    values = {name: [c.quality[name] or 0.0 for c in classes] for name in ("PQ", "SQ", "RQ")}
    return {name: float(np.mean(v)) if v else None for name, v in values.items()}
