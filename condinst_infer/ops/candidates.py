"""From dense head outputs to a fixed number of candidates per level, before NMS."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from condinst_infer.ops.onnx_nodes import is_exporting, quotient


class Candidates(NamedTuple):
    """M = L x T slots per image: every level fills exactly T, best score first within its run."""

    boxes: Tensor | None  # float32 [N, M, 4], xyxy in network pixels; None without a box branch
    scores: Tensor  # float32 [N, M], class * centreness; -1 in an empty slot
    labels: Tensor  # int32 [N, M]
    locations: Tensor  # int32 [N, M], index into the A locations of all levels


def select_candidates(
    class_logits: Sequence[Tensor],
    regression: Sequence[Tensor],
    centreness: Sequence[Tensor],
    *,
    strides: Sequence[int],
    image_sizes: Tensor,
    topk: int,
    score_threshold: float,
    threshold_by: str,
    rank_by: str,
    clip: bool,
) -> Candidates:
    """The best `topk` (location, class) pairs above the threshold of every level.

    Args:
        class_logits, regression, centreness: one [N, C, h, w] per level; see `HeadOutputs`. An
            empty regression gives candidates without boxes.
        strides: network pixels per cell of each level.
        image_sizes: int [N, 2], valid rows and columns.
        topk: T, slots per level.
        score_threshold: a candidate's `threshold_by` value must be greater.
        threshold_by, rank_by: "product" (class * centreness) or "class".
        clip: clip boxes to the image and drop those left empty.
    """
    runs, offset = [], 0
    for level, stride in enumerate(strides):
        logits, centre = class_logits[level], centreness[level]
        scores, labels, locations = _level_candidates(
            logits, centre, topk, score_threshold, threshold_by, rank_by
        )
        boxes = _boxes(regression[level], locations, stride) if regression else None
        if clip and boxes is not None:
            limits = image_sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)  # w, h, w, h
            boxes = torch.minimum(boxes.clamp(min=0), limits)
            solid = (boxes[:, :, 2:] > boxes[:, :, :2]).all(2)
            scores = torch.where(solid, scores, -1.0)
        if clip or rank_by != "product":  # the run must fall by the score NMS uses
            scores, order = scores.topk(topk, dim=1)
            if boxes is not None:
                boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
            labels, locations = labels.gather(1, order), locations.gather(1, order)
        runs.append(Candidates(boxes, scores, labels, locations + offset))
        offset = offset + logits.shape[2] * logits.shape[3]
    of_levels = [run.boxes for run in runs if run.boxes is not None]
    boxes = torch.cat(of_levels, 1) if of_levels else None
    scores, labels, locations = (
        torch.cat(parts, 1) for parts in zip(*(run[1:] for run in runs), strict=True)
    )
    return Candidates(boxes, scores, labels.int(), locations.int())


def best_candidates(candidates: Candidates, limit: int) -> Candidates:
    """The `limit` best of all levels without their boxes, in falling score; ties by slot."""
    if is_exporting():  # ONNX breaks ties so by itself
        scores, order = candidates.scores.topk(limit, dim=1)  # [N, limit]
    else:
        found = candidates.scores.sort(dim=1, descending=True, stable=True)
        scores, order = (part[:, :limit] for part in found)
    labels, locations = (part.gather(1, order) for part in candidates[2:])
    return Candidates(None, scores, labels, locations)


def _level_candidates(
    logits: Tensor,
    centreness: Tensor,
    topk: int,
    threshold: float,
    threshold_by: str,
    rank_by: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores float32, labels and locations int64 of one level's slots, [N, T] each.

    The best T pairs lie in the best T locations (by their best class), so only those locations'
    pairs are sorted: 80 times fewer.
    """
    classes, height, width = logits.shape[1:]
    logits, quality = logits.flatten(2), centreness.flatten(2).sigmoid()  # [N, C, A], [N, 1, A]
    best = logits.amax(1, keepdim=True).sigmoid()  # [N, 1, A]
    best = _ranks(best, quality, threshold, threshold_by, rank_by)[:, 0]
    best = functional.pad(best, (0, topk), value=-1.0)  # TopK never asks for more than there is
    best, place = best.topk(topk, dim=1)  # [N, T]
    place = place.clamp(max=height * width - 1)  # padding reads the last location
    scores = logits.gather(2, _columns(place, classes)).sigmoid()  # [N, C, T]
    quality = quality.gather(2, place[:, None])  # [N, 1, T]
    ranks = _ranks(scores, quality, threshold, threshold_by, rank_by)
    ranks = torch.where(best[:, None] > 0, ranks, -1.0)
    ranks, pair = ranks.transpose(1, 2).flatten(1).topk(topk, dim=1)  # [N, T]
    slot = quotient(pair, classes)
    place = place.gather(1, slot)
    scores = ranks
    if rank_by != "product":
        scores = torch.where(ranks > 0, ranks * quality[:, 0].gather(1, slot), -1.0)
    return scores, pair - slot * classes, place


def _boxes(regression: Tensor, place: Tensor, stride: int) -> Tensor:
    """Boxes [N, T, 4] of the cells `place` [N, T] of one level's regression [N, 4, h, w]."""
    centre = torch.stack(_centre(place, regression.shape[3], stride), 2)  # [N, T, 2]
    distances = regression.flatten(2).gather(2, _columns(place, 4)).transpose(1, 2) * stride
    centre = centre.to(distances.dtype)
    return torch.cat([centre - distances[:, :, :2], centre + distances[:, :, 2:]], 2)


def _ranks(
    scores: Tensor, quality: Tensor, threshold: float, threshold_by: str, rank_by: str
) -> Tensor:
    """Values that pairs are ranked by, -1 where they miss the threshold."""
    product = scores * quality
    passed = (product if threshold_by == "product" else scores) > threshold
    return torch.where(passed, product if rank_by == "product" else scores, -1.0)


def places_from_locations(
    locations: Tensor,
    shapes: Sequence[tuple[int, ...]],
    strides: Sequence[int],
    sizes_of_interest: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Centres of candidates, and the object size their level stands for.

    Args:
        locations: int [N, K], index into the A locations of all levels.
        shapes: (h, w) of each level.
        strides, sizes_of_interest: pixels, per level.

    Returns:
        centres float32 [N, K, 2], (x, y) in network pixels, and sizes float32 [N, K].
    """
    centres = torch.zeros((*locations.shape, 2), device=locations.device)
    sizes = torch.zeros(locations.shape, device=locations.device)
    offset = 0
    for (height, width), stride, size in zip(shapes, strides, sizes_of_interest, strict=True):
        here = locations >= offset  # a later level overwrites an earlier one
        x, y = _centre(locations - offset, width, stride)
        centres = torch.where(here[:, :, None], torch.stack([x, y], 2).float(), centres)
        sizes = torch.where(here, float(size), sizes)
        offset = offset + height * width
    return centres, sizes


def _centre(place: Tensor, width: int, stride: int) -> tuple[Tensor, Tensor]:
    """(x, y) of cell `place` in network pixels, stride * column + stride // 2; section 3.2."""
    row = quotient(place, width)
    return (place - row * width) * stride + stride // 2, row * stride + stride // 2


def _columns(place: Tensor, channels: int) -> Tensor:
    return place[:, None].expand(-1, channels, -1)
