"""Masks and logits made for tests of pasting and merging."""

import numpy as np
import torch
from torch.nn.functional import interpolate

from condinst_infer.ops.panoptic import semantic_logits


def smooth_masks(random, count, height, width):
    """Probabilities [count, height, width] with blobs of all sizes, some at the borders."""
    coarse = torch.from_numpy(random.standard_normal((count, 1, 5, 6)).astype(np.float32))
    logits = interpolate(coarse, size=(height, width), mode="bicubic") * 6 - 2
    return torch.sigmoid(logits)[:, 0].numpy()


def logits_of(kind: str, classes: int, cells: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Float32 [C, h, w]: regions; noise; many equal numbers; single cells in and out of class 0."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal((classes, *cells)).astype(np.float32)
    if kind == "noise":
        return noise
    if kind == "ties":
        return np.round(noise)
    if kind == "spikes":
        noise = np.where(random.random(noise.shape) < 0.003, 500, noise - 5).astype(np.float32)
        noise[0] = np.where(random.random(cells) < 0.01, -500, 1)
        return noise
    coarse = torch.from_numpy(random.standard_normal((1, classes, 4, 5)).astype(np.float32))
    return interpolate(coarse, size=cells, mode="bicubic")[0].numpy()


def assert_equal_labels(labels, semantic, net_size, image_size, needed=True) -> None:
    """Equal to the twin's, but where two classes are equal to rounding."""
    logits = semantic_logits(torch.from_numpy(semantic), net_size=net_size, image_size=image_size)
    differs = (labels != logits.argmax(0).numpy()) & needed
    chosen = logits.gather(0, torch.from_numpy(labels.astype(np.int64))[None])[0].numpy()
    best = logits.amax(0).numpy()
    # other orders of the same float32 sums; worst seen 5e-7 for logits up to 5
    assert (best - chosen)[differs].max(initial=0) < 1e-6 * np.abs(semantic).max()
    assert differs.sum() <= 1e-3 * differs.size
