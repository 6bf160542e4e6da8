"""Two artefacts of one model, stage by stage: where do they begin to differ, and is it too much?"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from condinst_infer.config.model import CondInstConfig
from condinst_infer.contract.metadata import Metadata
from condinst_infer.errors import ConfigError
from condinst_infer.processing.preprocess import (
    ImageSource,
    network_image,
    read_image,
    resize,
    stack_images,
)
from condinst_infer.processing.tail import full_from_detector
from condinst_infer.verification.intermediates import (
    HEADS,
    Intermediates,
    IntermediateSource,
    open_intermediates,
)

HISTOGRAM_EDGES = (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)  # of mask IoU
DETECTION_ROWS = ("detections", "boxes", "scores", "masks")
SAME_BOX = 0.05  # pixels
MATCH_IOU = 0.5  # boxes of one class that overlap less are different detections


class Tolerances(NamedTuple):
    """The most that two files of one model may differ by."""

    tensor: float  # largest difference over the largest magnitude of a stage
    unmatched: float  # share of detections without a partner
    box: float  # pixels
    score: float
    mask_iou: float  # mean
    mask: float  # mean difference of probabilities
    share: float = 1.0  # of values, boxes and scores that must be within; 1.0 is all


# fp32: measured 2e-6 and 2e-4 pixels over all presets; fp16 has 11 bits and a hundred layers.
# A detection at the threshold or at an NMS tie may go either way in any precision.
# int8 moves values inside the network far, and detections little: on micrographs 0.46 of the
# largest value, 14 pixels, 0.04 of the score and 0.07 of the mask IoU were the most.
LIMITS = {
    "fp32": Tolerances(
        tensor=2e-4, unmatched=0.02, box=0.05, score=1e-3, mask_iou=0.995, mask=1e-4
    ),
    "fp16": Tolerances(tensor=3e-2, unmatched=0.15, box=4.0, score=3e-2, mask_iou=0.95, mask=5e-3),
    # bf16 has 8 bits: measured 0.02, 0.007, 0.35 pixels, 0.003, 0.992 on the nuclei model
    "bf16": Tolerances(
        tensor=0.05, unmatched=0.15, box=2.0, score=0.02, mask_iou=0.95, mask=5e-3, share=0.95
    ),
    "int8": Tolerances(
        tensor=0.6, unmatched=0.15, box=20.0, score=0.06, mask_iou=0.9, mask=1e-2, share=0.95
    ),
}


def limits_of(config: CondInstConfig, precision: str) -> Tolerances:
    """The tolerances for two files of one model."""
    limits = LIMITS[precision]
    if config.detect.nms == "box":
        return limits
    # boxes are whole cells of masks, and one at 0.5 goes either way: the masks' row judges those
    return limits._replace(box=limits.box + 2 * config.mask.mask_stride)


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the table: a stage, how far it differs, and what was allowed."""

    stage: str
    difference: float
    limit: float
    unit: str

    @property
    def ok(self) -> bool:
        return self.difference <= self.limit


@dataclass(frozen=True)
class ComparisonReport:
    """Everything `compare` found; `ok` if every stage is within its limit."""

    rows: tuple[ComparisonRow, ...]
    detections: tuple[int, int]  # of A and B over all images
    mask_iou_histogram: dict[str, int]  # matched pairs per interval
    precision: str
    after_nms: bool = True  # False where one of them is a detector graph, which has no detections

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """This as plain data for JSON."""
        # a row without a limit has none in JSON either, which knows no infinity
        rows = [
            asdict(row) | {"limit": row.limit if isfinite(row.limit) else None, "ok": row.ok}
            for row in self.rows
        ]
        return asdict(self) | {"rows": rows, "ok": self.ok}

    def __str__(self) -> str:
        lines = [f"{'stage':<20}{'difference':>12}{'limit':>10}  unit"]
        for row in self.rows:
            verdict = "" if row.ok else "  TOO FAR"
            lines.append(
                f"{row.stage:<20}{row.difference:>12.3g}{row.limit:>10.3g}  {row.unit}{verdict}"
            )
        if not self.after_nms:
            return "\n".join(lines)
        if not sum(self.detections):
            return "\n".join([*lines, "no detections were there to compare"])
        lines.append(f"detections: {self.detections[0]} and {self.detections[1]}")
        bins = "  ".join(f"{name}: {count}" for name, count in self.mask_iou_histogram.items())
        return "\n".join([*lines, f"mask IoU of matched pairs: {bins}"])


def compare(
    path_a: str | Path,
    path_b: str | Path,
    images: Sequence[ImageSource] = (),
    *,
    threads: int | None = None,
) -> ComparisonReport:
    """Compare two files of one model on `images`, or on two generated batches.

    Raises:
        ConfigError: they are not the same model.
    """
    with (
        closing(open_intermediates(path_a, threads=threads)) as a,
        closing(open_intermediates(path_b, threads=threads)) as b,
    ):
        _check_same_model(a.metadata, b.metadata)
        feeds = feeds_for(a.metadata, b.metadata, images)
        precision = precision_of(a, b)
        limits = limits_of(a.metadata.config, precision)
        runs = ((_stages(a, feed), _stages(b, feed)) for feed in feeds)
        return report_on(runs, precision, limits)


def _stages(source: IntermediateSource, feeds: Mapping[str, np.ndarray]) -> Intermediates:
    """The stages of an artefact, and the instances of one that stops before NMS."""
    stages = source.run(feeds)
    if source.metadata.graph == "detector":
        stages = stages | full_from_detector(stages, source.metadata.config)
    return stages


def precision_of(a: IntermediateSource, b: IntermediateSource) -> str:
    """The key in LIMITS of what two artefacts may differ by."""
    found = (a.metadata.precision, b.metadata.precision)
    return next((name for name in ("int8", "bf16", "fp16") if name in found), "fp32")


def _check_same_model(a: Metadata, b: Metadata) -> None:
    for name in ("input", "backbone", "neck", "heads", "mask", "detect", "panoptic"):
        if getattr(a.config, name) != getattr(b.config, name):
            raise ConfigError(
                f"these are different models: their {name} settings differ. "
                "See both: condinst info FILE"
            )


def feeds_for(
    a: Metadata, b: Metadata, images: Sequence[ImageSource]
) -> list[dict[str, np.ndarray]]:
    """Network inputs that both artefacts take."""
    size, batch = a.size or b.size, a.batch or b.batch
    if {a.size, b.size} - {None, size} or {a.batch, b.batch} - {None, batch}:
        raise ConfigError("the two files are static and of different canvas or batch size.")
    config = a.config.input
    feeds = []
    for source in images:
        pixels, canvas = network_image(read_image(source), config, size)
        pixels, shapes = stack_images([pixels] * (batch or 1), canvas)
        feeds.append({"images": pixels, "image_sizes": shapes})
    if feeds:
        return feeds
    rng = np.random.default_rng(0)
    divisor = config.size_divisor
    for count, canvas in ((2, (6 * divisor, 8 * divisor)), (1, (8 * divisor, 5 * divisor))):
        canvas, made = size or canvas, []
        for i in range(batch or count):
            shape = (canvas[0] - 7 * i, canvas[1] - 11 * i)
            coarse = rng.integers(0, 256, (shape[0] // 16 + 2, shape[1] // 16 + 2, 3), np.uint8)
            made.append(resize(coarse, shape))
        pixels, shapes = stack_images(made, canvas)
        feeds.append({"images": pixels, "image_sizes": shapes})
    return feeds


def report_on(
    runs: Iterable[tuple[Intermediates, Intermediates]],
    precision: str,
    limits: Tolerances | None = None,
) -> ComparisonReport:
    """The report on the stages of two artefacts, one pair per input."""
    limits = limits or LIMITS[precision]
    worst: dict[str, float] = {}
    pairs: list[tuple[float, float, float]] = []  # box distance, score difference, mask IoU
    counts, unmatched, after_nms = [0, 0], 0, False
    for ours, theirs in runs:
        for stage in (*HEADS, "params_map", "mask_features", "semantic"):
            if stage in ours and stage in theirs:
                scale = max(float(np.abs(ours[stage]).max()), 1e-6)
                apart = np.abs(ours[stage].astype(np.float32) - theirs[stage].astype(np.float32))
                most = float(np.quantile(apart, limits.share))
                worst[stage] = _worse(worst.get(stage, 0.0), most / scale)
        if "candidate_scores" in ours and "candidate_scores" in theirs:
            share = _candidates_apart(ours, theirs, limits)
            worst["candidates"] = max(worst.get("candidates", 0.0), share)
        if "num_detections" in ours and "num_detections" in theirs:
            after_nms = True
            for i in range(len(ours["num_detections"])):
                found = _compare_detections(ours, theirs, i)
                na, nb = int(ours["num_detections"][i]), int(theirs["num_detections"][i])
                counts = [counts[0] + na, counts[1] + nb]
                unmatched += na + nb - 2 * len(found)
                pairs += found
    rows = [
        ComparisonRow(s, d, limits.tensor, "of the largest value")
        for s, d in worst.items()
        if s != "candidates"
    ]
    if "candidates" in worst:
        share = worst["candidates"]
        rows.append(ComparisonRow("candidates", share, limits.unmatched, "differ"))
    if sum(counts):
        rows += _detection_rows(pairs, unmatched / sum(counts), limits)
    if not rows:
        raise ConfigError("the two files have no stage in common that could be compared.")
    histogram = np.histogram([iou for _, _, iou in pairs], HISTOGRAM_EDGES)[0]
    names = [f"{lo:g}-{hi:g}" for lo, hi in zip(HISTOGRAM_EDGES, HISTOGRAM_EDGES[1:], strict=False)]
    return ComparisonReport(
        tuple(rows),
        (counts[0], counts[1]),
        dict(zip(names, map(int, histogram), strict=True)),
        precision,
        after_nms,
    )


def _worse(a: float, b: float) -> float:
    """The larger difference; not a number where one of them is none."""
    return float(np.maximum(a, b))


def _detection_rows(
    pairs: Sequence[tuple[float, float, float]], unmatched: float, limits: Tolerances
) -> list[ComparisonRow]:
    """Rows on the matched detections of all images."""
    box, score, iou = np.array(pairs).T if pairs else (np.zeros(1), np.zeros(1), np.ones(1))
    far = {
        "detections": (unmatched, limits.unmatched, "without a partner"),
        "boxes": (float(np.quantile(box, limits.share)), limits.box, "pixels"),
        "scores": (float(np.quantile(score, limits.share)), limits.score, ""),
        "masks": (float(1 - iou.mean()), 1 - limits.mask_iou, "1 - mean IoU"),
    }
    return [ComparisonRow(stage, d, limit, unit) for stage, (d, limit, unit) in far.items()]


def _candidates_apart(ours: Intermediates, theirs: Intermediates, limits: Tolerances) -> float:
    """Share of candidates that only one side has, or that score or sit too differently.

    A full graph does not say where its candidates sit: there only the sorted scores are compared,
    of those that both sides have. With mask NMS there are no boxes.
    """
    names = ("candidate_scores", "candidate_labels", "candidate_locations", "candidate_boxes")
    if names[2] not in ours or names[2] not in theirs:
        a, b = (np.sort(side[names[0]].clip(0))[:, ::-1] for side in (ours, theirs))
        shared = min(a.shape[1], b.shape[1])
        a, b = a[:, :shared], b[:, :shared]
        return float((np.abs(a - b) > limits.score).sum() / max(1, ((a > 0) | (b > 0)).sum()))
    apart = total = 0
    for i in range(len(ours[names[0]])):
        sides = []
        for side in (ours, theirs):
            scores, labels, places, *boxes = (side[name][i] for name in names if name in side)
            real = scores > 0
            keys = zip(places[real].tolist(), labels[real].tolist(), strict=True)
            values = np.column_stack([scores[real], *(box[real] for box in boxes)])
            sides.append(dict(zip(keys, values, strict=True)))
        a, b = sides
        both = a.keys() & b.keys()
        allowed = np.array([limits.score, *[limits.box] * 4])
        far = sum((np.abs(a[key] - b[key]) > allowed[: len(a[key])]).any() for key in both)
        apart += len(a) + len(b) - 2 * len(both) + 2 * far
        total += len(a) + len(b)
    return apart / max(1, total)


def _compare_detections(
    ours: Intermediates, theirs: Intermediates, i: int
) -> list[tuple[float, float, float]]:
    """(box distance, score difference, mask IoU) of the pairs in image `i`."""
    pairs = []
    for a, b in match_slots(ours, theirs, i):
        masks = (ours["masks"][i, a] > 0.5, theirs["masks"][i, b] > 0.5)
        union = (masks[0] | masks[1]).sum()
        overlap = (masks[0] & masks[1]).sum() / union if union else 1.0
        distance = np.abs(ours["boxes"][i, a] - theirs["boxes"][i, b]).max()
        score = abs(ours["scores"][i, a] - theirs["scores"][i, b])
        pairs.append((float(distance), float(score), float(overlap)))
    return pairs


def match_slots(ours: Intermediates, theirs: Intermediates, i: int) -> list[tuple[int, int]]:
    """Slots of the detections of image `i` that are one instance: by box IoU, best score first."""
    na, nb = int(ours["num_detections"][i]), int(theirs["num_detections"][i])
    iou = _box_iou(ours["boxes"][i, :na], theirs["boxes"][i, :nb])
    iou[ours["labels"][i, :na, None] != theirs["labels"][i, None, :nb]] = 0
    slots = []
    for a in range(na):
        b = int(iou[a].argmax()) if nb else 0
        if nb and iou[a, b] >= MATCH_IOU:
            iou[:, b] = -1
            slots.append((a, b))
    return slots


def _box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU [len(a), len(b)] of xyxy boxes; 1 for the same box, even one without area."""
    inner = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    overlap = inner.clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    iou = overlap / np.maximum(areas[0][:, None] + areas[1][None] - overlap, 1e-9)
    return np.where((np.abs(a[:, None] - b[None]) < SAME_BOX).all(2), 1.0, iou)
