"""Training targets of each location of the pyramid, from the objects of an image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IGNORED = -1  # where `stuff` says nothing: void, crowds and padding


class GroundTruth(NamedTuple):
    """The G objects of one image on its padded canvas [H, W]; G may be 0."""

    boxes: Tensor  # float32 [G, 4], xyxy, network pixels
    labels: Tensor  # int64 [G]
    centres: Tensor  # float32 [G, 2], (x, y) of each mask's centre of mass, network pixels
    masks: Tensor  # bool [G, H/s, W/s], the pixels s//2, s//2 + s, ... for mask stride s
    semantic: Tensor  # int64 [H/f, W/f] at the mask features' stride: 0 background, else class + 1
    # of panoptic data, int64 [H/4, W/4]: 0 any thing, else the kind of stuff + 1, or IGNORED
    stuff: Tensor | None = None


class Targets(NamedTuple):
    """Targets of the A locations of N images."""

    labels: Tensor  # int64 [N, A]; num_classes is background
    indices: Tensor  # int64 [N, A], into the objects of the image; -1 in the background
    distances: Tensor  # float32 [N, A, 4], left top right bottom in strides; 0 in the background


def ground_truth(
    masks: Tensor, boxes: Tensor, labels: Tensor, *, mask_stride: int, feature_stride: int
) -> GroundTruth:
    """Everything the losses need of one image; where objects overlap, `semantic` has the smallest.

    Args:
        masks: bool or uint8 0 and 1, [G, H, W], full masks on the padded canvas, on the CPU.
        boxes: float32 [G, 4], xyxy, network pixels.
        labels: int64 [G].
        mask_stride: network pixels per cell of the masks that the mask loss compares.
        feature_stride: network pixels per cell of the mask features.
    """
    filled = masks.view(torch.uint8).numpy()  # torch takes ten times as long to add bytes
    in_column, in_row = filled.sum(1, dtype=np.int32), filled.sum(2, dtype=np.int32)  # [G, W | H]
    areas = in_row.sum(1)
    moments = [counts @ np.arange(counts.shape[1]) for counts in (in_column, in_row)]
    centres = np.stack(moments, 1) / np.maximum(areas, 1)[:, None]
    return GroundTruth(
        boxes.float(),
        labels.long(),
        torch.from_numpy(centres).float(),
        sample_at_stride(masks, mask_stride).bool(),
        _semantic(
            sample_at_stride(masks, feature_stride).bool(), torch.from_numpy(areas), labels.long()
        ),
    )


def sample_at_stride(maps: Tensor, stride: int) -> Tensor:
    """The pixel of `maps` [..., H, W] for each cell of `stride`: s//2, s//2 + s, ..."""
    return maps[..., stride // 2 :: stride, stride // 2 :: stride]


def _semantic(masks: Tensor, areas: Tensor, labels: Tensor) -> Tensor:
    """Class + 1 of the smallest object at each cell of bool `masks` [G, h, w], 0 at none."""
    semantic = labels.new_zeros(masks.shape[1:])
    for i in areas.argsort(descending=True).tolist():
        semantic[masks[i]] = labels[i] + 1
    return semantic


def assign_targets(
    truths: Sequence[GroundTruth],
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    num_classes: int,
    sizes_of_interest: Sequence[int],
    radius: float = 1.5,
    centre_from: str = "mask",
) -> Targets:
    """The object each location is responsible for.

    A location takes an object if it lies inside its box, near its centre, and the largest of its
    four distances is in the level's range; of several it takes the one with the smallest box.

    Args:
        truths: N images.
        shapes: (h, w) of each level.
        strides: network pixels per cell of each level.
        num_classes: also the label of the background.
        sizes_of_interest: largest distance a level is responsible for, pixels, per level; the
            next level begins there, and the last one has no end.
        radius: a location is near a centre if closer in x and in y, in strides; 0 takes all.
        centre_from: "mask", the centre of mass, or "box".

    FCOS (arXiv:1904.01355) section 3.2; the centre of mass: CondInst section 3.3.
    """
    ends = (0.0, *map(float, sizes_of_interest[:-1]), torch.inf)
    found = []
    for truth in truths:
        box = (truth.boxes[:, :2] + truth.boxes[:, 2:]) / 2
        centres = box if centre_from == "box" else truth.centres
        levels = [
            _level_targets(truth, centres, shape, stride, ends[i : i + 2], radius, num_classes)
            for i, (shape, stride) in enumerate(zip(shapes, strides, strict=True))
        ]
        found.append(tuple(torch.cat(parts) for parts in zip(*levels, strict=True)))
    return Targets(*(torch.stack(parts) for parts in zip(*found, strict=True)))


def _level_targets(
    truth: GroundTruth,
    centres: Tensor,
    shape: tuple[int, int],
    stride: int,
    limits: tuple[float, ...],
    radius: float,
    num_classes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels [h*w], indices [h*w] and distances [h*w, 4] of one level of one image."""
    boxes, device = truth.boxes, centres.device
    x, y = (torch.arange(n, device=device) * stride + stride // 2 for n in (shape[1], shape[0]))
    if len(boxes) == 0:
        indices = torch.full((len(y) * len(x),), -1, device=device)
        return torch.full_like(indices, num_classes), indices, boxes.new_zeros(len(indices), 4)
    # conditions hold for rows and columns apart: little is left to do for every location
    inside_x, far_x = _along(x, boxes[:, 0], boxes[:, 2], centres[:, 0], radius * stride)
    inside_y, far_y = _along(y, boxes[:, 1], boxes[:, 3], centres[:, 1], radius * stride)
    farthest = torch.maximum(far_y[:, None], far_x)  # [h, w, G]
    taken = (farthest >= limits[0]) & (farthest <= limits[1])
    taken &= inside_y[:, None] & inside_x
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    cost, best = torch.where(taken, areas, torch.inf).flatten(0, 1).min(1)  # [h*w]
    found = cost < torch.inf
    place = torch.cartesian_prod(y, x).flip(1)  # [h*w, 2]
    own = boxes[best]
    distances = torch.cat([place - own[:, :2], own[:, 2:] - place], 1) / stride
    return (
        torch.where(found, truth.labels[best], num_classes),
        torch.where(found, best, -1),
        torch.where(found[:, None], distances, 0.0),
    )


def _along(
    places: Tensor, low: Tensor, high: Tensor, centres: Tensor, near: float
) -> tuple[Tensor, Tensor]:
    """For `places` [n] on one axis and objects [G]: inside and near, farthest edge; both [n, G]."""
    before, after = places[:, None] - low, high - places[:, None]
    inside = torch.minimum(before, after) > 0
    if near:
        inside &= (places[:, None] - centres).abs() < near
    return inside, torch.maximum(before, after)


def centreness_targets(distances: Tensor) -> Tensor:
    """Centreness of a location in its box, 1 to 0, [...] from `distances` [..., 4]; FCOS eq. 3."""
    pairs = distances.unflatten(-1, (2, 2))  # left top, right bottom
    ratios = pairs.amin(-2) / pairs.amax(-2).clamp(min=1e-9)  # the background's are 0
    return ratios.prod(-1).sqrt()
