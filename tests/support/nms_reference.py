"""Greedy class-aware NMS as a plain loop, and random scenes to try it on."""

from typing import NamedTuple

import numpy as np


class Scene(NamedTuple):
    """Inputs of ClassNMS."""

    boxes: np.ndarray  # float32 [N, M, 4], xyxy
    scores: np.ndarray  # float32 [N, M]
    labels: np.ndarray  # int32 [N, M]


def greedy_nms(scene: Scene, *, threshold: float, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """keep int32 [N, K] with -1 in unused slots, and count int32 [N].

    Goes through the boxes in falling score and keeps each that no kept box of its class overlaps
    by more than `threshold`. In float32, so that a comparison can be exact.
    """
    batch = len(scene.scores)
    kept = np.full((batch, keep), -1, dtype=np.int32)
    counts = np.zeros(batch, dtype=np.int32)
    for n, (boxes, scores, labels) in enumerate(zip(*scene, strict=True)):
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        for slot in np.argsort(-scores, kind="stable"):
            if scores[slot] <= 0 or counts[n] == keep:
                break
            rivals = kept[n, : counts[n]]
            rivals = rivals[labels[rivals] == labels[slot]]
            low = np.maximum(boxes[rivals, :2], boxes[slot, :2])
            high = np.minimum(boxes[rivals, 2:], boxes[slot, 2:])
            overlap = np.maximum(high - low, np.float32(0)).prod(1)
            with np.errstate(invalid="ignore"):  # two empty boxes: 0 / 0 suppresses nothing
                iou = overlap / (areas[rivals] + areas[slot] - overlap)
            if not (iou > np.float32(threshold)).any():
                kept[n, counts[n]] = slot
                counts[n] += 1
    return kept, counts


def random_scene(
    random: np.random.Generator, *, batch: int, slots: int, classes: int, crowd: int = 20
) -> Scene:
    """Boxes in heaps of about `crowd`; a third of the scenes on a grid: equal scores and boxes,
    and overlaps that are exactly 0.5 or 0.6.

    Every image has another number of empty slots, the last of several none but empty ones; one box
    in twenty has no area.
    """
    heaps = max(1, slots // crowd)
    centres = random.uniform(0, 600, (batch, heaps, 2))[:, random.integers(0, heaps, slots)]
    extents = np.exp(random.uniform(2, 4.5, (batch, slots, 2)))
    centres = centres + random.normal(0, 4, centres.shape)
    boxes = np.concatenate([centres - extents / 2, centres + extents / 2], 2)
    scores = random.uniform(0.05, 1, (batch, slots))
    if random.random() < 1 / 3:
        boxes, scores = np.round(boxes / 24) * 24, np.round(scores * 10) / 10
    flat = random.random((batch, slots)) < 0.05
    boxes[:, :, 2] = np.where(flat, boxes[:, :, 0], boxes[:, :, 2])
    empty = random.random((batch, slots)) < np.linspace(0, 1, batch, endpoint=True)[:, None]
    scores = np.where(empty, random.choice([-1.0, 0.0], (batch, slots)), scores)
    labels = random.integers(0, classes, (batch, slots), dtype=np.int32)
    return Scene(boxes.astype(np.float32), scores.astype(np.float32), labels)
