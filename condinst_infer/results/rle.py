"""COCO run-length encoding of one mask, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from condinst_infer.config.model import Size
from condinst_infer.results.crop import CroppedMask, tight_box

MAX_PIXELS = 1 << 30  # of an image, as OpenCV reads
MAX_CHARACTERS = 7  # of a run, each with five bits; a run of MAX_PIXELS and its sign have 32


def rle_from_crop(crop: CroppedMask, image_size: Size) -> dict[str, Any]:
    """The compressed COCO RLE of a mask, equal to `pycocotools.mask.encode` of the dense one."""
    height, width = image_size
    counts = _run_lengths(_column_major_changes(crop, height), height * width)
    return {"size": [height, width], "counts": compress_counts(counts)}


def _column_major_changes(crop: CroppedMask, height: int) -> np.ndarray:
    """Where runs start and stop, down the columns of the whole image, in order: int64 [2 n].

    A column of full height stops where the next column starts: such a position is there twice.
    """
    bits = crop.bits  # uint8 [h, n], eight columns in a byte
    rows, row_bytes = bits.shape
    # the bits that differ from those above; below the last row all is background
    changed = np.zeros((rows + 1, row_bytes), np.uint8)
    changed[:rows] = bits
    changed[1:] ^= bits
    # row and column of each change
    changed = changed.ravel()
    places = np.flatnonzero(changed != 0)  # few: what follows is about the border alone
    set_bits = np.flatnonzero(np.unpackbits(changed[places], bitorder="little").view(bool))
    places = places[set_bits >> 3]
    row = places // row_bytes
    column = 8 * (places - row * row_bytes) + (set_bits & 7)
    # positions in the image
    changes = (crop.x + column) * height + crop.y + row
    changes.sort()
    return changes


def _run_lengths(changes: np.ndarray, pixels: int) -> np.ndarray:
    """Lengths of alternating background and foreground runs, as COCO counts them: int64 [runs]."""
    twice = changes[1:] == changes[:-1]
    if twice.any():  # the run goes on
        once = np.ones(len(changes), bool)
        once[1:] ^= twice
        once[:-1] ^= twice
        changes = changes[once]
    edges = np.empty(len(changes) + 2, dtype=np.int64)
    edges[0], edges[1:-1], edges[-1] = 0, changes, pixels
    counts = edges[1:] - edges[:-1]
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
    """The mask in a compressed COCO RLE, cut out.

    Raises:
        ValueError: it does not fill its size, or that has more than `MAX_PIXELS`.
    """
    height, width = rle["size"]
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"a mask of {height} x {width} pixels; there may be {MAX_PIXELS}")
    counts = _counts_from_text(rle["counts"], height * width)
    if counts.sum() != height * width:
        raise ValueError(f"counts do not add up to {height} x {width} pixels")
    edges = np.concatenate([[0], np.cumsum(counts)])
    starts, stops = edges[1:-1:2], edges[2::2]
    if not len(starts):
        return CroppedMask(0, 0, np.zeros((0, 0), dtype=bool))
    first, end = int(starts[0]) // height, -(-int(stops[-1]) // height)  # columns
    toggles = np.zeros((end - first) * height + 1, dtype=np.int8)
    np.add.at(toggles, starts - first * height, 1)
    np.add.at(toggles, stops - first * height, -1)
    np.cumsum(toggles, out=toggles)  # 0 or 1
    columns = toggles[:-1].view(bool).reshape(end - first, height)
    part = np.ascontiguousarray(columns.T)  # [H, columns]
    x, y, w, h = tight_box(part)
    return CroppedMask(first + x, y, np.ascontiguousarray(part[y : y + h, x : x + w]))


def codes_from_text(text: str | bytes) -> np.ndarray:
    """The six bits of each character of COCO's run lengths, int64 [n].

    Raises:
        ValueError: other characters, a run cut off, or one that no image has.
    """
    if isinstance(text, str) and not text.isascii():
        raise ValueError("counts are no COCO run lengths")
    data = text.encode() if isinstance(text, str) else text
    codes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(~codes & 32)
    if ((codes < 0) | (codes > 63)).any() or (len(codes) and codes[-1] & 32):
        raise ValueError("counts are no COCO run lengths")
    if len(ends) and np.diff(ends, prepend=-1).max() > MAX_CHARACTERS:
        raise ValueError("counts have a run that no image has")
    return codes


def _counts_from_text(text: str, most: int) -> np.ndarray:
    """Run lengths from 0 to `most`, int64 [n], from COCO's text; ValueError if it is damaged."""
    codes = codes_from_text(text)
    counts: list[int] = []
    value = shift = 0
    for code in codes.tolist():
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:  # the sign
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            if not 0 <= counts[-1] <= most:
                raise ValueError(f"counts have a run of {counts[-1]} pixels, not 0 to {most}")
            value = shift = 0
    return np.array(counts, dtype=np.int64)
