"""Mask NMS as plain loops over pairs, and random scenes of masks to try it on."""

from typing import NamedTuple

import numpy as np

Kept = tuple[np.ndarray, np.ndarray, np.ndarray]  # keep [N, K], scores [N, K], count [N]
ONE = np.float32(1)


class Masks(NamedTuple):
    """Inputs of MaskNMS."""

    masks: np.ndarray  # float32 or float16 [N, C, h, w], probabilities
    scores: np.ndarray  # float32 [N, C], falling
    labels: np.ndarray  # int32 [N, C]


def loop_mask_nms(
    scene: Masks, kind: str, *, iou: float = 0.5, score: float = 0.05, keep: int
) -> Kept:
    """What `ops.mask_nms` promises, one candidate after the other; float32, to be compared exactly.

    Args:
        kind: "greedy", "fast" or "matrix".
        iou, score: the thresholds.
    """
    batch = len(scene.scores)
    kept = np.full((batch, keep), -1, np.int32), np.zeros((batch, keep), np.float32)
    counts = np.zeros(batch, np.int32)
    for n, (masks, scores, labels) in enumerate(zip(*scene, strict=True)):
        bits = [mask > 0.5 for mask in masks]
        found: list[int] = []
        new = scores.copy()
        for j in range(len(scores)):
            earlier = [i for i in range(j) if labels[i] == labels[j]]
            if scores[j] <= 0 or not bits[j].any():
                new[j] = -1
            elif kind == "matrix":
                new[j] = scores[j] * min([ONE, *(_decay(bits, labels, i, j) for i in earlier)])
            else:
                rivals = [i for i in earlier if kind == "fast" or i in found]
                if all(_iou(bits[i], bits[j]) <= np.float32(iou) for i in rivals):
                    found.append(j)
        if kind == "matrix":
            found = [j for j in np.argsort(-new, kind="stable") if new[j] > np.float32(score)]
        found = found[:keep]
        counts[n] = len(found)
        kept[0][n, : len(found)], kept[1][n, : len(found)] = found, new[found]
    return *kept, counts


def _decay(bits: list[np.ndarray], labels: np.ndarray, i: int, j: int) -> np.float32:
    """What candidate `i` takes off the score of the later `j`."""
    own = max([_iou(bits[k], bits[i]) for k in range(i) if labels[k] == labels[i]], default=0)
    return (ONE - _iou(bits[i], bits[j])) / (ONE - own) if own < 1 else ONE


def _iou(a: np.ndarray, b: np.ndarray) -> np.float32:
    return np.float32((a & b).sum()) / np.float32(max((a | b).sum(), 1))


def mask_scene(
    random: np.random.Generator,
    *,
    batch: int,
    candidates: int,
    size: tuple[int, int],
    classes: int = 2,
    dtype: type = np.float32,
) -> Masks:
    """Rectangles in heaps; every second scene has equal masks and equal scores.

    Every image has another number of empty slots, the last of several none but empty ones, whose
    masks are zero; one candidate in twenty has no cell, its mask is 0.5 everywhere.
    """
    height, width = size
    coarse = random.random() < 0.5
    shape = (batch, candidates)
    heaps = random.uniform(0, 1, (max(1, candidates // 6), 2))[
        random.integers(0, max(1, candidates // 6), shape)
    ]
    middle = (heaps + random.normal(0, 0.05, (*shape, 2))) * (height, width)
    half = np.exp(random.uniform(-2.5, -0.7, (*shape, 2))) * (height, width)
    low, high = middle - half, middle + half
    if coarse:
        low, high = np.floor(low / 4) * 4, np.ceil(high / 4) * 4
    y, x = np.arange(height)[:, None], np.arange(width)
    edges = [edge[..., None, None] for edge in (*np.moveaxis(low, 2, 0), *np.moveaxis(high, 2, 0))]
    inside = (y >= edges[0]) & (x >= edges[1]) & (y < edges[2]) & (x < edges[3])
    masks = np.where(inside, random.uniform(0.51, 1, inside.shape), 0.5)
    masks[random.random(shape) < 0.05] = 0.5
    scores = -np.sort(-random.uniform(0.05, 1, shape), axis=1)
    scores = np.round(scores, 1) if coarse else scores
    real = np.round(np.linspace(candidates, 0 if batch > 1 else candidates, batch))
    empty = np.arange(candidates) >= real[:, None]
    masks[empty], scores[empty] = 0, random.choice([-1.0, 0.0])
    labels = random.integers(0, classes, shape, dtype=np.int32)
    return Masks(masks.astype(dtype), scores.astype(np.float32), labels)
