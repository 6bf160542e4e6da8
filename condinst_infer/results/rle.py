"""COCO run-length encoding of one mask."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from condinst_infer.results.crop import CroppedMask


def rle_from_crop(crop: CroppedMask, image_size: tuple[int, int]) -> dict[str, Any]:
    """The compressed COCO RLE of a mask, equal to `pycocotools.mask.encode` of the dense one."""
    height, width = image_size
    rows, columns = crop.mask.shape
    padded = np.zeros((columns, rows + 1), np.uint8)  # a zero below closes the runs of a column
    if crop.mask.size:
        padded[:, :rows] = cv2.transpose(crop.mask.view(np.uint8))  # runs go down the columns
    flat = np.concatenate([[np.uint8(0)], padded.ravel()])
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), rows + 1)
    places = (crop.x + column) * height + crop.y + row
    starts, stops = places[::2], places[1::2]
    # Full-height columns touch the next one: one run, not two.
    apart = starts[1:] != stops[:-1]
    edges = np.empty(2 * (np.count_nonzero(apart) + min(len(starts), 1)) + 2, dtype=np.int64)
    edges[0], edges[-1] = 0, height * width
    edges[1:-1:2] = starts[np.concatenate([[True], apart])[: len(starts)]]
    edges[2:-1:2] = stops[np.concatenate([apart, [True]])[: len(stops)]]
    counts = np.diff(edges)
    if len(counts) > 1 and counts[-1] == 0:  # COCO writes no empty run at the end
        counts = counts[:-1]
    return {"size": [height, width], "counts": compressed_counts(counts)}


def compressed_counts(counts: Sequence[int] | np.ndarray) -> str:
    """Run lengths [n] as COCO's text: differences to the run two before, five bits a character."""
    rest = np.array(counts, dtype=np.int64)
    rest[3:] -= np.asarray(counts, dtype=np.int64)[1:-2]
    characters = []  # one uint8 [n] per group of five bits, 0 where the number has ended
    open_ = np.ones(len(rest), dtype=bool)
    while open_.any():
        bits = rest & 31
        rest = rest >> 5
        # The sign is the highest bit of the last group, so the rest must agree with it.
        more = rest != np.where(bits & 16, -1, 0)
        characters.append(np.where(open_, bits + 32 * more + 48, 0).astype(np.uint8))
        open_ = open_ & more
    text = np.stack(characters, axis=1)  # [n, groups]
    return text[text > 0].tobytes().decode("ascii")
