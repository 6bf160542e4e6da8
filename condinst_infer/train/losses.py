"""The losses of CondInst (arXiv:2102.03026 section 3.3) from raw head outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn import functional

from condinst_infer.config.model import CondInstConfig
from condinst_infer.model.heads import HeadOutputs
from condinst_infer.ops import aligned_bilinear, mask_logits, places_from_locations
from condinst_infer.train.targets import (
    IGNORED,
    GroundTruth,
    Targets,
    assign_targets,
    centreness_targets,
)


@dataclass(frozen=True)
class LossConfig:
    """Parameters of the losses; limits of 0 are off."""

    focal_alpha: float = 0.25  # weight of the positives; arXiv:1708.02002 section 4.1
    focal_gamma: float = 2.0  # same
    box_loss_plus_one: bool = True  # as AdelaiDet; mmdetection: False
    centre_radius: float = 1.5  # strides around an object's centre; 0 is its whole box; AdelaiDet
    max_mask_samples: int = 500  # random, per process; section 3.3; not with topk_masks_per_image
    max_mask_samples_per_image: int = 0  # random; mmdetection: 300
    topk_masks_per_image: int = 0  # best scores, spread over the objects; section 3.3: 64
    panoptic_weight: float = 0.5  # of the loss "panoptic": mu of equation 2, section 3.3


class Positives(NamedTuple):
    """The M locations that have an object, in the order level, image, row, column."""

    image: Tensor  # int64 [M]
    location: Tensor  # int64 [M], index into the A locations of all levels
    instance: Tensor  # int64 [M], index into the objects of the image
    of_level: tuple[tuple[Tensor, Tensor], ...]  # image and place in the level's own h*w

    def gather(self, levels: Sequence[Tensor]) -> Tensor:
        """Float32 [M, C] from one [N, C, h, w] per level."""
        pairs = zip(levels, self.of_level, strict=True)
        return torch.cat([x.flatten(2)[image, :, place] for x, (image, place) in pairs]).float()


def condinst_losses(
    raw: HeadOutputs,
    truths: Sequence[GroundTruth],
    config: CondInstConfig,
    settings: LossConfig,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The losses of a batch: "class", "box", "centreness" and "mask".

    And "semantic" where there is the auxiliary head, "panoptic" where there is a semantic branch.

    Float32 scalars in any precision of `raw`, with a gradient even without positives. Normalisers
    are means over all processes: the mean of their gradients is that of one with all images.

    Args:
        raw: of N images.
        truths: of the same images on the same device and canvas.
        generator: draws mask samples where there are too many.
    """
    with torch.autocast(raw.mask_features.device.type, enabled=False):
        shapes = _shapes(raw)
        targets = assign_targets(
            truths,
            shapes,
            config.strides,
            num_classes=config.heads.num_classes,
            sizes_of_interest=config.heads.sizes_of_interest,
            radius=settings.centre_radius,
        )
        positives = positives_of(targets, shapes)
        losses = _detector_losses(raw, targets, positives, settings)
        rows = mask_samples(raw, positives, settings, generator)
        per_sample = mask_losses(raw, truths, positives, rows, config)
        losses["mask"] = per_sample.sum() / _mean_over_processes(per_sample.new_tensor(len(rows)))
        if raw.semantic_logits is not None:
            labels = torch.stack([truth.semantic for truth in truths])  # [N, h, w]
            total = _sum_focal(raw.semantic_logits.float(), labels - 1, settings)
            losses["semantic"] = total / _mean_over_processes((labels > 0).sum())
        if raw.semantic is not None:
            losses["panoptic"] = settings.panoptic_weight * _panoptic_loss(raw.semantic, truths)
        return losses


def _panoptic_loss(logits: Tensor, truths: Sequence[GroundTruth]) -> Tensor:
    """Mean cross-entropy of `logits` [N, C, h, w] over the cells that show things or stuff."""
    labels = torch.stack([truth.stuff for truth in truths if truth.stuff is not None])  # [N, h, w]
    total = functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / _mean_over_processes((labels != IGNORED).sum())


def positives_of(targets: Targets, shapes: Sequence[tuple[int, int]]) -> Positives:
    """The locations of `targets` that have an object; `shapes` are (h, w) per level."""
    sizes = [height * width for height, width in shapes]
    found = [(part >= 0).nonzero() for part in targets.indices.split(sizes, 1)]  # [m, 2] each
    of_level = tuple((part[:, 0], part[:, 1]) for part in found)
    image = torch.cat([image for image, _ in of_level])
    starts = [sum(sizes[:level]) for level in range(len(sizes))]
    location = torch.cat([p + start for (_, p), start in zip(of_level, starts, strict=True)])
    return Positives(image, location, targets.indices[image, location], of_level)


def _detector_losses(
    raw: HeadOutputs, targets: Targets, positives: Positives, settings: LossConfig
) -> dict[str, Tensor]:
    """The losses of FCOS (arXiv:2006.09214 section 2)."""
    sizes = [height * width for height, width in _shapes(raw)]
    pairs = zip(raw.class_logits, targets.labels.split(sizes, 1), strict=True)
    focal = [_sum_focal(logits.flatten(2), labels, settings) for logits, labels in pairs]
    distances = targets.distances[positives.image, positives.location]  # [M, 4]
    centreness = centreness_targets(distances)
    box = giou_loss(
        positives.gather(raw.regression), distances, plus_one=settings.box_loss_plus_one
    )
    quality = functional.binary_cross_entropy_with_logits(
        positives.gather(raw.centreness)[:, 0], centreness, reduction="sum"
    )
    count = _mean_over_processes(centreness.new_tensor(len(centreness)))
    weight = _mean_over_processes(centreness.sum(), at_least=1e-6)
    return {
        "class": torch.stack(focal).sum() / count,
        "box": (box * centreness).sum() / weight,
        "centreness": quality / count,
    }


def mask_samples(
    raw: HeadOutputs,
    positives: Positives,
    settings: LossConfig,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose the positives for the mask loss among M, int64 [K] (section 3.3)."""
    limit, topk = settings.max_mask_samples_per_image, settings.topk_masks_per_image
    scores = positives.location
    if topk:
        scores = positives.gather(raw.class_logits).amax(1).sigmoid()
        scores = scores * positives.gather(raw.centreness)[:, 0].sigmoid()
    kept = []
    for image in range(len(raw.mask_features)):
        rows = (positives.image == image).nonzero()[:, 0]
        if 0 < limit < len(rows):
            rows = _some(rows, limit, generator)
        elif topk and len(rows):
            rows = rows[_best_of_each(positives.instance[rows], scores[rows], topk)]
        kept.append(rows)
    rows, limit = torch.cat(kept), settings.max_mask_samples
    return _some(rows, limit, generator) if not topk and 0 < limit < len(rows) else rows


def _some(rows: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` of `rows` at random."""
    device = "cpu" if generator is None else generator.device
    order = torch.randperm(len(rows), generator=generator, device=device)
    return rows[order[:count].to(rows.device)]


def _best_of_each(instance: Tensor, scores: Tensor, topk: int) -> Tensor:
    """Rows of the best scores of each object, `topk` shared equally among them, at least one."""
    order = scores.argsort(descending=True)
    order = order[instance[order].argsort(stable=True)]  # by object, best first
    _, counts = instance[order].unique_consecutive(return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    rank = torch.arange(len(order), device=order.device) - starts
    return order[rank < max(1, topk // len(counts))]


def mask_losses(
    raw: HeadOutputs,
    truths: Sequence[GroundTruth],
    positives: Positives,
    rows: Tensor,
    config: CondInstConfig,
) -> Tensor:
    """Dice loss of each of the `rows` [K] of `positives`, [K], grouped by image."""
    centres, sizes = places_from_locations(
        positives.location[None], _shapes(raw), config.strides, config.heads.sizes_of_interest
    )
    params = positives.gather(raw.params)  # [M, P]
    head = {k: v for k, v in config.mask_head_settings.items() if k != "factor"}
    # nothing but a path for the gradient: where no image has samples, that of the features is 0
    losses = [raw.mask_features[:0].float().sum(dim=(1, 2, 3)) + params[:0].sum()]
    for image, features in enumerate(raw.mask_features.split(1)):
        own = rows[positives.image[rows] == image]
        if len(own) == 0:
            continue
        logits = mask_logits(features, params[None, own], centres[:, own], sizes[:, own], **head)
        logits = aligned_bilinear(logits, config.mask_factor)[0]  # [k, H/s, W/s]
        masks = truths[image].masks[positives.instance[own]]
        losses.append(dice_loss(logits.sigmoid(), masks))
    return torch.cat(losses)


def _sum_focal(logits: Tensor, labels: Tensor, settings: LossConfig) -> Tensor:
    """Focal loss of `logits` [N, C, ...], where `labels` [N, ...] outside 0..C-1 are background."""
    classes = torch.arange(logits.shape[1], device=labels.device)
    targets = labels[:, None] == classes.view(-1, *[1] * (labels.dim() - 1))
    alpha, gamma = settings.focal_alpha, settings.focal_gamma
    return focal_loss(logits, targets, alpha=alpha, gamma=gamma).sum()


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Focal loss (arXiv:1708.02002 equation 5) of each of `logits`; `targets` is bool."""
    wrong = torch.where(targets, -logits, logits)  # logit of the other answer
    weight = torch.where(targets, alpha, 1 - alpha)
    return weight * wrong.sigmoid() ** gamma * functional.softplus(wrong)


def giou_loss(distances: Tensor, targets: Tensor, *, plus_one: bool) -> Tensor:
    """1 - GIoU (arXiv:1902.09630) of boxes around one location, [M].

    Args:
        distances, targets: [M, 4], left top right bottom in strides; a target's are above 0.
        plus_one: add 1 to intersection and union.
    """
    low, high = torch.minimum(distances, targets), torch.maximum(distances, targets)
    common, hull = _areas(low), _areas(high)
    union = _areas(distances) + _areas(targets) - common
    iou = (common + plus_one) / (union + plus_one)
    return 1 - iou + (hull - union) / hull


def _areas(distances: Tensor) -> Tensor:
    return (distances[:, :2] + distances[:, 2:]).prod(1)


def dice_loss(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Dice loss (equation 5) of `probabilities` [K, H, W] and bool `masks` [K, H, W], [K]."""
    common = (probabilities * masks).sum((1, 2))
    areas = masks.sum((1, 2), dtype=torch.float32)  # faster than whole numbers
    return 1 - 2 * common / (probabilities.square().sum((1, 2)) + areas + 1e-5)


def _mean_over_processes(total: Tensor, at_least: float = 1.0) -> Tensor:
    """Mean of `total` over all processes; a divisor, so their sum is raised to `at_least`."""
    total, processes = total.detach().float().clone(), 1
    if distributed.is_available() and distributed.is_initialized():
        processes = distributed.get_world_size()
        distributed.all_reduce(total)
    return total.clamp(min=at_least) / processes


def _shapes(raw: HeadOutputs) -> list[tuple[int, int]]:
    """(h, w) of each level."""
    return [(logits.shape[2], logits.shape[3]) for logits in raw.class_logits]
