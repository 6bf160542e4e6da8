"""COCO run-length encoding of one mask, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from condinst_infer.config.model import Size
from condinst_infer.results.crop import CroppedMask, tight_box


def rle_from_crop(crop: CroppedMask, image_size: Size) -> dict[str, Any]:
    """The compressed COCO RLE of a mask, equal to `pycocotools.mask.encode` of the dense one."""
    height, width = image_size
    starts, stops = _join_touching_runs(*_column_major_runs(crop, height))
    counts = _run_lengths(starts, stops, height * width)
    return {"size": [height, width], "counts": compress_counts(counts)}


def _column_major_runs(crop: CroppedMask, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of the foreground runs that go down the columns of the whole image."""
    rows, columns = crop.mask.shape
    padded = np.zeros((columns, rows + 1), np.uint8)  # a zero below closes the runs of a column
    if crop.mask.size:
        padded[:, :rows] = cv2.transpose(crop.mask.view(np.uint8))
    flat = np.concatenate([[np.uint8(0)], padded.ravel()])
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), rows + 1)
    changes = (crop.x + column) * height + crop.y + row  # positions in the image, column by column
    return changes[::2], changes[1::2]


def _join_touching_runs(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One run in place of two where a column of full height touches the next one."""
    apart = starts[1:] != stops[:-1]
    is_start = np.concatenate([[True], apart])[: len(starts)]
    is_stop = np.concatenate([apart, [True]])[: len(stops)]
    return starts[is_start], stops[is_stop]


def _run_lengths(starts: np.ndarray, stops: np.ndarray, pixels: int) -> np.ndarray:
    """Lengths of alternating background and foreground runs, as COCO counts them."""
    edges = np.empty(2 * len(starts) + 2, dtype=np.int64)
    edges[0], edges[1:-1:2], edges[2:-1:2], edges[-1] = 0, starts, stops, pixels
    counts = np.diff(edges)
    if len(counts) > 1 and counts[-1] == 0:  # COCO writes no empty run at the end
        return counts[:-1]
    return counts


def compress_counts(counts: Sequence[int] | np.ndarray) -> str:
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


def crop_from_rle(rle: Mapping[str, Any]) -> CroppedMask:
    """The mask in a compressed COCO RLE, cut out; ValueError if it does not fill its size."""
    height, width = rle["size"]
    counts = _counts_from_text(rle["counts"])
    if counts.sum() != height * width or (counts < 0).any():
        raise ValueError(f"counts do not add up to {height} x {width} pixels")
    edges = np.concatenate([[0], np.cumsum(counts)])
    starts, stops = edges[1:-1:2], edges[2::2]
    if not len(starts):
        return CroppedMask(0, 0, np.zeros((0, 0), dtype=bool))
    first, end = int(starts[0]) // height, -(-int(stops[-1]) // height)  # columns
    toggles = np.zeros((end - first) * height + 1, dtype=np.int8)
    np.add.at(toggles, starts - first * height, 1)
    np.add.at(toggles, stops - first * height, -1)
    columns = np.cumsum(toggles[:-1], dtype=np.int8).astype(bool).reshape(end - first, height)
    part = np.ascontiguousarray(columns.T)  # [H, columns]
    x, y, w, h = tight_box(part)
    return CroppedMask(first + x, y, np.ascontiguousarray(part[y : y + h, x : x + w]))


def _counts_from_text(text: str) -> np.ndarray:
    """Run lengths, int64 [n], from COCO's text; ValueError if it is damaged."""
    codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if ((codes < 0) | (codes > 63)).any() or (len(codes) and codes[-1] & 32):
        raise ValueError("counts are no COCO run lengths")
    counts: list[int] = []
    value = shift = 0
    for code in codes.tolist():
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:  # the sign
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return np.array(counts, dtype=np.int64)
