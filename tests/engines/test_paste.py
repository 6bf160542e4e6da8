"""The kernels mask_boxes and paste against `postprocess.paste`, and their bits as crops."""

from typing import NamedTuple

import numpy as np
import pytest

from condinst_infer.cuda import kernels
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.download import crops_from_bits, expected_words
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import SessionError
from condinst_infer.processing.paste import _axis
from condinst_infer.processing.paste import paste as paste_of_the_cpu
from condinst_infer.results.crop import CroppedMask
from condinst_infer.results.rle import rle_from_crop

Size = tuple[int, int]  # (height, width)
DTYPES = [np.float32, np.float16]
UNWRITTEN = 0xFEEDBEEF


class Case(NamedTuple):
    """Sizes of one paste."""

    stride: int
    shape: Size
    net_size: Size
    image_size: Size


CASES = [
    Case(4, (1, 1), (4, 4), (1, 1)),
    Case(8, (1, 1), (3, 8), (31, 33)),
    Case(2, (5, 7), (10, 14), (31, 33)),
    Case(8, (5, 7), (31, 50), (97, 64)),  # padding; two whole words in a row
    Case(4, (33, 65), (132, 260), (97, 64)),  # shrinks
    Case(4, (33, 65), (70, 230), (161, 255)),  # half of the rows are padding
    Case(2, (33, 65), (66, 111), (1, 97)),
    Case(1, (33, 65), (33, 64), (33, 64)),
]


def masks_of(cells: Size, dtype: type) -> np.ndarray:
    """Eight kinds of masks, probabilities [8, h, w]; the last is empty."""
    random = np.random.default_rng(3)
    y, x = np.mgrid[: cells[0], : cells[1]] / np.reshape(cells, (2, 1, 1))
    masks = np.zeros((8, *cells), dtype=dtype)
    masks[0] = random.random(cells)
    masks[1] = random.random(cells) ** 16  # few cells
    masks[2] = 1 / (1 + np.exp(40 * ((x - 0.4) ** 2 + (y - 0.7) ** 2) - 4))
    masks[3] = x  # a cut moves by a pixel for an error in position of 1e-4
    masks[4] = 1
    masks[5, 0, -1] = masks[6, -1, 0] = 1
    return masks


def boxes_of(
    stream: Stream,
    masks: DeviceArray,
    count: DeviceArray,
    case: Case,
    capacity: int,
    used: DeviceArray | None = None,
) -> tuple[DeviceArray, int]:
    """What mask_boxes puts out: crops and used words, with those of earlier launches in `used`."""
    k = masks.shape[0]
    crops = stream.empty((k, 5), np.int32)
    used = used or stream.array(np.zeros(1, np.int32))
    launch = kernels.mask_boxes(k=k, capacity=capacity, dtype=masks.dtype, **case._asdict())
    stream.launch(launch, [masks, count], [crops, used])
    return crops, int(stream.numpy(used)[0])


def bits_of(
    stream: Stream, masks: DeviceArray, crops: DeviceArray, case: Case, words: int
) -> np.ndarray:
    """What paste puts out: uint32 [words], UNWRITTEN where it puts nothing."""
    bits = stream.array(np.full(words, UNWRITTEN, np.uint32))
    launch = kernels.paste(k=masks.shape[0], dtype=masks.dtype, **case._asdict())
    stream.launch(launch, [masks, crops], [bits])
    return stream.numpy(bits)


def pasted(
    stream: Stream, masks: DeviceArray, count: DeviceArray, case: Case
) -> tuple[np.ndarray, np.ndarray]:
    """Crops [K, 5] and bits, in two launches with just the room they need."""
    capacity = boxes_of(stream, masks, count, case, 0)[1]
    assert 0 <= capacity < 10**6
    crops, used = boxes_of(stream, masks, count, case, capacity)
    assert used == capacity
    return stream.numpy(crops), bits_of(stream, masks, crops, case, capacity)


def dense(crops: list[CroppedMask], image_size: Size) -> np.ndarray:
    masks = np.zeros((len(crops), *image_size), dtype=bool)
    for mask, crop in zip(masks, crops, strict=True):
        height, width = crop.mask.shape
        mask[crop.y : crop.y + height, crop.x : crop.x + width] = crop.mask
    return masks


def axes_of(case: Case):
    """Rows and columns as `postprocess` has them."""
    sizes = zip(case.shape, case.net_size, case.image_size, strict=True)
    return [_axis(cells, case.stride, net, outputs) for cells, net, outputs in sizes]


def assert_equal_to_the_cpu(masks: np.ndarray, crops: list[CroppedMask], case: Case) -> None:
    _, _, net_size, image_size = case
    expected = paste_of_the_cpu(masks, stride=case.stride, net_size=net_size, image_size=image_size)
    differs = dense(crops, image_size) != dense(expected, image_size)
    rows, columns = axes_of(case)
    exact = rows.weights.astype(float) @ masks.astype(float) @ columns.weights.T.astype(float)
    # For other float32 roundings of the same sums; here and in 2e8 pixels of larger images none.
    assert (np.abs(exact[differs] - 0.5) < 1e-5).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_paste_equals_that_of_the_cpu(stream: Stream, case: Case, dtype):
    masks = masks_of(case.shape, dtype)
    count = stream.array(np.full(1, len(masks), np.int32))
    crops, bits = pasted(stream, stream.array(masks), count, case)
    found = crops_from_bits(crops, bits)
    areas, rles = [crop.area for crop in found], [rle_from_crop(c, case.image_size) for c in found]
    assert_equal_to_the_cpu(masks, found, case)
    # packed masks rely on bits of 0 beyond the width
    unpacked = [CroppedMask(crop.x, crop.y, crop.mask) for crop in found]
    assert areas == [crop.area for crop in unpacked]
    assert rles == [rle_from_crop(crop, case.image_size) for crop in unpacked]


@pytest.mark.parametrize("case", CASES)
def test_crops_are_the_pixels_that_read_a_cell_above_one_half(stream: Stream, case: Case):
    height, width = case.shape
    single = np.zeros((height, height, width), dtype=np.float32)
    single[range(height), range(height), [7 * i % width for i in range(height)]] = 1
    masks = np.concatenate([masks_of(case.shape, np.float32), single])
    count = stream.array(np.full(1, len(masks), np.int32))
    crops = stream.numpy(boxes_of(stream, stream.array(masks), count, case, 10**6)[0])
    for mask, crop in zip(masks > 0.5, crops, strict=True):
        spans = []
        for axis, cells in zip(axes_of(case)[::-1], (mask.any(0), mask.any(1)), strict=True):
            hit = np.flatnonzero(cells)
            ends = zip(axis.first_cell, axis.stop_cell, strict=True)
            reads = [hit.size and first <= hit[-1] and stop > hit[0] for first, stop in ends]
            spans.append(np.flatnonzero(reads))
        if all(span.size for span in spans):
            assert crop[:2].tolist() == [span[0] for span in spans]
            assert crop[2:4].tolist() == [span.size for span in spans]
        else:
            assert crop.tolist() == [0] * 5


def test_masks_in_the_padding_alone_are_empty(stream: Stream):
    masks = np.zeros((2, 24, 32), dtype=np.float32)
    masks[0, 20:, :] = 1
    masks[1, :, 20:] = 1
    case = Case(4, (24, 32), (40, 40), (80, 80))
    count = stream.array(np.full(1, 2, np.int32))
    crops, used = boxes_of(stream, stream.array(masks), count, case, 1000)
    assert used == 0 and not stream.numpy(crops).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_probability_of_one_half_is_background(stream: Stream, dtype):
    masks = np.full((2, 8, 8), 0.5, dtype=dtype)
    masks[1, 3, 4] = np.nextafter(dtype(0.5), dtype(1))
    case = Case(1, (8, 8), (8, 8), (8, 8))
    crops, bits = pasted(stream, stream.array(masks), stream.array(np.full(1, 2, np.int32)), case)
    assert not crops[0].any()
    assert dense(crops_from_bits(crops, bits), (8, 8))[1].nonzero() == ([3], [4])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_image_of_a_batch_has_its_own_count(stream: Stream, dtype):
    case = Case(4, (5, 7), (18, 28), (31, 70))
    random = np.random.default_rng(1)
    masks = random.random((4, 5, *case.shape)).astype(dtype)
    counts = np.array([[3], [0], [5], [1]], dtype=np.int32)
    on_device, counts_on_device = stream.array(masks), stream.array(counts)
    for i, count in enumerate(counts[:, 0].tolist()):
        crops, bits = pasted(stream, on_device[i], counts_on_device[i], case)
        assert not crops[count:].any()
        found = crops_from_bits(crops[:count], bits)
        assert_equal_to_the_cpu(masks[i, :count], found, case)


def test_no_instances_are_no_crops(stream: Stream):
    masks = stream.empty((0, 5, 7), np.float32)
    count = stream.array(np.zeros(1, np.int32))
    crops, bits = pasted(stream, masks, count, Case(4, (5, 7), (18, 28), (31, 70)))
    assert crops_from_bits(crops, bits) == []


def test_crops_share_the_words_without_gaps(stream: Stream):
    case = CASES[5]
    masks = masks_of(case.shape, np.float32)
    count = stream.array(np.full(1, len(masks), np.int32))
    crops, bits = pasted(stream, stream.array(masks), count, case)
    taken = np.zeros(len(bits), dtype=int)
    for _, _, width, height, offset in crops.tolist():
        per_row = -(-width // 32)
        taken[offset : offset + height * per_row] += 1
        words = bits[offset : offset + height * per_row].reshape(height, per_row)
        assert width % 32 == 0 or not (words[:, -1] >> np.uint32(width % 32)).any()
    assert (taken == 1).all()


def test_crops_beyond_the_capacity_have_no_place(stream: Stream):
    case = CASES[5]
    masks = masks_of(case.shape, np.float32)
    on_device, count = stream.array(masks), stream.array(np.full(1, len(masks), np.int32))
    needed = boxes_of(stream, on_device, count, case, 0)[1]
    capacity = needed // 2
    crops_on_device, used = boxes_of(stream, on_device, count, case, capacity)
    bits = bits_of(stream, on_device, crops_on_device, case, needed)
    crops = stream.numpy(crops_on_device)
    assert used == needed
    assert (bits[capacity:] == UNWRITTEN).all()
    bits = bits[:capacity]
    placed = crops[:, 4] >= 0
    assert 2 <= placed.sum() < len(crops) - 1
    assert (crops[~placed, 2:4] > 0).all()
    found = crops_from_bits(crops[placed], bits)
    assert_equal_to_the_cpu(masks[placed], found, case)
    with pytest.raises(SessionError, match=f"has no place in {capacity} words"):
        crops_from_bits(crops, bits)


def test_a_crop_that_just_fits_has_a_place(stream: Stream):
    masks = stream.array(np.ones((1, 2, 2), np.float32))
    count = stream.array(np.ones(1, np.int32))
    case = Case(4, (2, 2), (8, 8), (9, 33))  # 9 rows of 2 words
    for capacity, offset in ((18, 0), (17, -1), (0, -1)):
        crops, used = boxes_of(stream, masks, count, case, capacity)
        assert stream.numpy(crops).tolist() == [[0, 0, 33, 9, offset]] and used == 18


def test_images_of_a_batch_share_the_words(stream: Stream):
    case = CASES[3]
    masks = stream.array(masks_of(case.shape, np.float32))
    used = stream.array(np.zeros(1, np.int32))
    crops, words = [], 0
    for images in (1, 2, 3):
        count = stream.array(np.full(1, 2 * images, np.int32))
        on_device, words = boxes_of(stream, masks, count, case, 10**6, used)
        crops.append(stream.numpy(on_device))
    full = [crop for crop in np.concatenate(crops).tolist() if crop[2]]
    end = 0
    for _, _, width, height, offset in sorted(full, key=lambda crop: crop[4]):
        assert offset == end
        end += height * -(-width // 32)
    assert end == words


@pytest.mark.parametrize("side", [100_000, 300_000])  # 3e8 and 3e9 words per mask
def test_used_words_do_not_wrap(stream: Stream, side):
    masks = stream.array(np.ones((9, 2, 2), np.float32))
    count = stream.array(np.full(1, 9, np.int32))
    case = Case(4, (2, 2), (8, 8), (side, side))
    limit, used = 2**31 - 256, stream.array(np.zeros(1, np.int32))
    for total in (9 * (limit // 9), limit, limit):
        crops, found = boxes_of(stream, masks, count, case, 2**31 - 1, used)
        assert found == total
        assert (stream.numpy(crops) == [0, 0, side, side, -1]).all()
    small = Case(4, (2, 2), (8, 8), (9, 9))  # would fit between the limit and the capacity
    crops, found = boxes_of(stream, masks, count, small, 2**31 - 1, used)
    assert found == limit and (stream.numpy(crops)[:, 4] == -1).all()


def test_crops_may_lie_in_any_order():
    random = np.random.default_rng(0)
    masks = [random.random(size) > 0.5 for size in ((3, 5), (2, 32), (1, 33), (4, 64))]
    crops, words = np.zeros((6, 5), np.int32), []
    for k in (2, 0, 3, 1):
        mask = masks[k]
        height, width = mask.shape
        rows = np.zeros((height, -(-width // 32) * 32), dtype=bool)
        rows[:, :width] = mask
        crops[k] = (10 * k, k, width, height, sum(map(len, words)))
        words.append(np.packbits(rows, bitorder="little").view("<u4"))
    found = crops_from_bits(crops, np.concatenate(words))
    assert [(crop.x, crop.y) for crop in found] == [
        (0, 0),
        (10, 1),
        (20, 2),
        (30, 3),
        (0, 0),
        (0, 0),
    ]
    for crop, mask in zip(found, masks, strict=False):
        assert crop.mask.dtype == bool and np.array_equal(crop.mask, mask)
    assert found[4].mask.shape == found[5].mask.shape == (0, 0)


@pytest.mark.parametrize("crop", [(33, 2, 1), (33, 2, -1), (33, 3, 0), (-33, 2, 0), (33, -2, 4)])
def test_crop_beyond_the_words_is_refused_before_it_is_read(crop: tuple[int, int, int]):
    width, height, offset = crop
    crops = np.array([[0, 0, 33, 2, 0], [0, 0, width, height, offset]], dtype=np.int32)
    with pytest.raises(SessionError, match=f"mask of {width} x {height} pixels has no place in 4"):
        crops_from_bits(crops, np.zeros(4, np.uint32))


def test_expected_words_hold_a_few_full_masks():
    assert expected_words(3, (10, 33)) == 3 * 10 * 2
    assert expected_words(500, (10, 32)) == 16 * 10
