"""Masks that are kept as bits give what the same masks give as pixels."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from condinst_infer.results import crop as crop_file
from condinst_infer.results.crop import CroppedMask, boxes_from_crops
from condinst_infer.results.polygons import polygons_from_crop
from condinst_infer.results.rle import rle_from_crop
from condinst_infer.serving.c_api import _parts
from tests.support.results import instances

SIZES = [(1, 1), (1, 40), (40, 1), (3, 7), (3, 8), (2, 9), (5, 31), (5, 32), (5, 33), (9, 64)]
SIZES += [(7, 65), (37, 53)]
RESULTS: dict[str, Callable[[CroppedMask], Any]] = {
    "shape": lambda crop: crop.shape,
    "area": lambda crop: crop.area,
    "bits": lambda crop: (crop.bits.dtype, crop.bits.tolist()),
    "box": lambda crop: boxes_from_crops([crop], 1).tolist(),
    "text": repr,
    "rle": lambda crop: rle_from_crop(crop, (50, 80)),
    "dense": lambda crop: crop.dense((50, 80)).tolist(),
    "polygons": lambda crop: str(polygons_from_crop(crop)),
    "mask": lambda crop: (crop.mask.dtype, crop.mask.shape, crop.mask.tolist()),
}


def packed(crop: CroppedMask, unit: int) -> CroppedMask:
    """The same crop as bits, in rows of whole `unit` bits as `np.packbits` or `paste` have them."""
    height, width = crop.mask.shape
    rows = np.zeros((height, -(-width // unit) * unit), bool)
    rows[:, :width] = crop.mask
    bits = np.packbits(rows, axis=1, bitorder="little")
    return CroppedMask.from_bits(crop.x, crop.y, bits, width)


def masks_of(size: tuple[int, int]) -> list[np.ndarray]:
    """Noise, few pixels, all, none, one pixel in each corner, a frame, a lattice of columns."""
    random, (height, width) = np.random.default_rng(7), size
    frame = np.ones(size, bool)
    frame[1:-1, 1:-1] = False
    masks = [random.random(size) < share for share in (0.5, 0.9, 0.03)]
    masks += [
        np.ones(size, bool),
        np.zeros(size, bool),
        frame,
        np.arange(width) % 3 < [[2]] * height,
    ]
    for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        masks.append(np.zeros(size, bool))
        masks[-1][y, x] = True
    return masks


@pytest.mark.parametrize("unit", [8, 32])
@pytest.mark.parametrize("size", SIZES)
def test_packed_pixels_give_what_pixels_give(size: tuple[int, int], unit: int) -> None:
    for mask in masks_of(size):
        crop = CroppedMask(11, 6, mask)
        for name, result in RESULTS.items():
            expected, bits = result(crop), packed(crop, unit)
            assert result(bits) == expected, name
            assert bits.mask.flags.c_contiguous and bits.mask is bits.mask
            assert result(bits) == expected, f"{name} after the mask was read"


def test_an_empty_mask_has_no_bits() -> None:
    empty = CroppedMask(0, 0, np.zeros((0, 0), bool))
    for unit in (8, 32):
        bits = packed(empty, unit)
        assert all(result(bits) == result(empty) for result in RESULTS.values())


@pytest.mark.parametrize("unit", [8, 32])
@pytest.mark.parametrize("size", SIZES)
def test_rle_of_bits_equals_pycocotools(size: tuple[int, int], unit: int) -> None:
    height, width = size
    for top, left, bottom, right in ((0, 0, 0, 0), (0, 5, 0, 2), (3, 0, 4, 0), (2, 9, 1, 40)):
        image_size = (top + height + bottom, left + width + right)
        for mask in masks_of(size):
            dense = np.zeros(image_size, np.uint8, order="F")
            dense[top : top + height, left : left + width] = mask
            expected: Any = coco_mask.encode(dense)
            found = rle_from_crop(packed(CroppedMask(left, top, mask), unit), image_size)
            assert found == {"size": list(image_size), "counts": expected["counts"].decode()}


def test_bits_beyond_the_first_and_last_column_of_a_row_are_other_pixels() -> None:
    # columns 31 and 32 lie in two words, 7 and 8 in two bytes; nothing may cross over
    for column in (0, 7, 8, 15, 31, 32, 63, 64):
        mask = np.zeros((4, 70), bool)
        mask[1:3, column] = True
        bits = packed(CroppedMask(2, 5, mask), 32)
        assert boxes_from_crops([bits], 1).tolist() == [[column + 2, 6, column + 3, 8]]
        assert bits.dense((10, 80)).nonzero()[1].tolist() == [column + 2] * 2


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, replace, lambda crop: pickle.loads(pickle.dumps(crop))]
)
def test_copies_stay_packed(again: Callable[[CroppedMask], CroppedMask]) -> None:
    mask = masks_of((37, 53))[0]
    crop = packed(CroppedMask(3, 4, mask), 32)
    found = again(crop)
    assert isinstance(found._pixels, tuple) and (found.x, found.y) == (3, 4)
    assert np.array_equal(found.mask, mask) and isinstance(crop._pixels, tuple)


def test_a_pickle_of_bits_holds_that_part_alone() -> None:
    frame = np.zeros((1000, 200), np.uint8)
    crop = CroppedMask.from_bits(0, 0, frame[:50], 1600)
    assert 50 * 200 < len(pickle.dumps(crop)) < 50 * 200 + 1000


def test_what_needs_no_pixels_leaves_them_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = instances(np.stack(masks_of((37, 53))))
    bits = replace(pixels, crops=[packed(crop, 32) for crop in pixels.crops])
    before = [pixels.rle(), pixels.areas.tolist(), pixels.to_json(), pixels.rows()]
    parts = [_parts(pixels, mask_format) for mask_format in (0, 2)]
    monkeypatch.delattr(crop_file, "_unpack")
    assert [bits.rle(), bits.areas.tolist(), bits.to_json(), bits.rows()] == before
    for mask_format, expected in zip((0, 2), parts, strict=True):
        found = _parts(bits, mask_format)
        assert found.masks == expected.masks and np.array_equal(found.crops, expected.crops)
    with pytest.raises(NameError, match="_unpack"):
        assert bits.masks.any()


def test_supervision_gets_masks_that_stay_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = instances(np.stack(masks_of((37, 53))))
    bits = replace(pixels, crops=[packed(crop, 32) for crop in pixels.crops])
    monkeypatch.delattr(crop_file, "_unpack")
    found = bits.to_supervision(compact=True)
    assert np.array_equal(np.asarray(found.mask), np.stack(masks_of((37, 53))))


def test_pixels_that_a_caller_changes_are_the_mask() -> None:
    for crop in (CroppedMask(0, 0, np.ones((4, 40), bool)), packed_ones()):
        crop.mask[:, 3:] = False
        assert crop.area == 12 and boxes_from_crops([crop], 1).tolist() == [[0, 0, 3, 4]]
        assert crop.dense((4, 40)).sum() == 12
        assert rle_from_crop(crop, (4, 40)) == rle_from_crop(CroppedMask(0, 0, crop.mask), (4, 40))


def packed_ones() -> CroppedMask:
    return packed(CroppedMask(0, 0, np.ones((4, 40), bool)), 32)
