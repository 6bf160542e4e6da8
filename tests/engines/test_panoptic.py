"""The kernels of panoptic.cu against `merge`, which they repeat on the device."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from condinst_infer.config.presets import preset
from condinst_infer.cuda import kernels
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.stream import Stream
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.panoptic_merge import add_stuff, owners_of_things, semantic_labels
from condinst_infer.processing.paste import paste
from condinst_infer.processing.postprocess import BatchOutputs, select_slots
from tests.support.masks import assert_equal_labels, logits_of, smooth_masks

Size = tuple[int, int]  # (height, width)
DTYPES = [np.float32, np.float16]


class Case(NamedTuple):
    """Sizes of one merge; masks and logits have the same cells."""

    shape: Size
    net_size: Size
    image_size: Size


CASES = [
    Case((1, 1), (4, 4), (1, 1)),
    Case((8, 8), (1, 32), (1, 97)),
    Case((5, 7), (20, 28), (31, 33)),
    Case((8, 16), (31, 50), (97, 64)),
    Case((33, 65), (132, 260), (47, 64)),  # shrinks
    Case((24, 32), (90, 121), (61, 127)),
]


def packed(stream: Stream, masks: np.ndarray, count: DeviceArray, case: Case, capacity: int):
    """Crops and bits of `masks` as the kernels of paste.cu write them."""
    k = len(masks)
    sizes = {"k": k, "stride": 4, "dtype": masks.dtype, **case._asdict()}
    on_device = stream.array(masks)
    crops, bits = stream.empty((k, 5), np.int32), stream.empty((max(capacity, 1),), np.uint32)
    used = stream.array(np.zeros(1, np.int32))
    boxes = kernels.mask_boxes(**sizes, capacity=capacity)
    stream.launch(boxes, [on_device, count], [crops, used])
    stream.launch(kernels.paste(**sizes), [on_device, crops], [bits])
    return crops, bits


def things_on(
    stream: Stream,
    masks: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    count: int,
    case: Case,
    overlap_threshold: float,
    score_threshold: float = 0.5,
    capacity: int = 10**5,
    check_boxes: bool = True,
) -> DeviceArray:
    """What owners_of_things puts out, uint16 [H, W]."""
    height, width = case.image_size
    counted = stream.array(np.full(1, count, np.int32))
    crops, bits = packed(stream, masks, counted, case, capacity)
    taken = stream.array(np.zeros((height, -(-width // 32) + 1), np.uint32))
    owners = stream.array(np.zeros(case.image_size, np.uint16))
    launch = kernels.owners_of_things(
        k=len(masks),
        net_size=case.net_size,
        image_size=case.image_size,
        score_threshold=score_threshold,
        overlap_threshold=overlap_threshold,
        check_boxes=check_boxes,
    )
    inputs = [bits, crops, counted, stream.array(boxes), stream.array(scores)]
    stream.launch(launch, inputs, [taken, owners])
    found, bits_of_owners = stream.numpy(owners), stream.numpy(taken)
    flat = np.unpackbits(bits_of_owners.view(np.uint8), bitorder="little")
    flat = flat.reshape(height, -1)
    assert np.array_equal(flat[:, :width], found > 0) and not flat[:, width:].any()
    return owners


def stuff_on(
    stream: Stream, owners: DeviceArray, semantic: np.ndarray, k: int, case: Case, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """What add_stuff and drop_small_stuff make of `owners`, and the areas of classes."""
    areas = stream.array(np.zeros(len(semantic), np.int32))
    sizes = {"k": k, "net_size": case.net_size, "image_size": case.image_size}
    launch = kernels.add_stuff(**sizes, shape=semantic.shape, dtype=semantic.dtype)
    stream.launch(launch, [stream.array(semantic)], [areas, owners])
    launch = kernels.drop_small_stuff(k=k, image_size=case.image_size, stuff_area_limit=limit)
    stream.launch(launch, [areas], [owners])
    return stream.numpy(owners), stream.numpy(areas)


def slots_of(k: int, case: Case, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [k, 4], some without area in the image, and falling scores [k]."""
    random = np.random.default_rng(seed)
    height, width = case.net_size
    boxes = np.tile(np.array([0, 0, width, height], np.float32), (k, 1))
    boxes[3::4] = [[-9, 0, 0, height]]
    boxes[6::7] = [[0, height, width, height + 9]]
    return boxes, np.sort(random.uniform(0.3, 1, k).astype(np.float32))[::-1].copy()


def expected_things(masks, boxes, scores, count, case, overlap_threshold, score_threshold=0.5):
    """The same from `merge`, of the slots that `instances_from_outputs` keeps."""
    outputs = {
        "num_detections": np.array([count], np.int32),
        "boxes": boxes[None],
        "scores": scores[None],
        "labels": np.zeros((1, len(scores)), np.int32),
    }
    sizes = {"net_size": case.net_size, "image_size": case.image_size}
    image = np.zeros((*case.image_size, 3), np.uint8)
    placed = PlacedImage(image, case.net_size, case.net_size)
    batch = BatchOutputs(outputs)
    kept = select_slots(batch, 0, placed, preset("condinst_nano"), score_threshold)
    crops = paste([masks[slot] for slot in kept], stride=4, **sizes)
    numbers = np.concatenate([[0], kept + 1]).astype(np.uint16)
    return numbers[owners_of_things(crops, case.image_size, overlap_threshold)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_things_equal_those_of_the_cpu(stream: Stream, case: Case, dtype):
    masks = smooth_masks(np.random.default_rng(1), 12, *case.shape).astype(dtype)
    masks[1::2, :, : case.shape[1] // 3] = 0  # crops begin within a word of the image
    boxes, scores = slots_of(12, case)
    owned = set()
    for count, overlap in ((12, 0.0), (12, 0.4), (12, 1.0), (9, 0.4), (1, 0.4), (0, 0.4)):
        what = masks, boxes, scores, count, case, overlap
        owners = stream.numpy(things_on(stream, *what))
        assert np.array_equal(owners, expected_things(*what))
        owned |= set(np.unique(owners).tolist())
    assert case.shape[0] < 20 or len(owned) > 4


def test_an_instance_may_lose_the_threshold_but_not_more(stream: Stream):
    case = Case((1, 100), (4, 400), (1, 100))  # a pixel is a cell
    boxes = np.tile(np.array([0, 0, 400, 4], np.float32), (3, 1))
    scores = np.full(3, 0.9, np.float32)
    for hundredths in (0, 1, 29, 40, 58, 99, 100):  # 0.29 * 100 is less than 29
        masks = np.zeros((3, 1, 100), np.float32)
        masks[0, :, :hundredths] = masks[1] = masks[2, :, 99:] = 1
        for less in (0, 1):
            share = max(hundredths - less, 0) / 100
            what = masks, boxes, scores, 3, case, share
            owners = stream.numpy(things_on(stream, *what))
            assert np.array_equal(owners, expected_things(*what))
            dropped = less == 1 and hundredths > 0
            assert (owners[:, hundredths:99] == (0 if dropped else 2)).all()


def test_scores_count_from_the_threshold_on(stream: Stream):
    case = CASES[2]
    masks = np.ones((3, *case.shape), np.float32)
    masks[0] = 0  # empty
    boxes, _ = slots_of(3, case)
    for threshold in (0.45, 0.5, 0.9):
        exact = np.float32(threshold)
        for score, owner in ((exact, 2), (np.nextafter(exact, np.float32(0)), 0)):
            scores = np.array([0.95, score, 0.1], np.float32)
            what = masks, boxes, scores, 3, case, 0.4, threshold
            owners = stream.numpy(things_on(stream, *what))
            assert (owners == owner).all() and np.array_equal(owners, expected_things(*what))


def test_instances_without_a_place_are_left_out(stream: Stream):
    """The canvas merges again when it has made room."""
    case = CASES[5]
    masks = smooth_masks(np.random.default_rng(1), 12, *case.shape)
    boxes, scores = slots_of(12, case)
    owners = things_on(stream, masks, boxes, scores, 12, case, 0.4, capacity=0)
    assert not stream.numpy(owners).any()


def test_boxes_count_only_where_the_network_has_some(stream: Stream):
    case = CASES[2]
    masks, boxes = np.ones((1, *case.shape), np.float32), np.zeros((1, 4), np.float32)
    scores = np.ones(1, np.float32)
    for check, owner in ((True, 0), (False, 1)):
        owners = things_on(stream, masks, boxes, scores, 1, case, 0.4, check_boxes=check)
        assert (stream.numpy(owners) == owner).all()


@pytest.mark.parametrize("kind", ["smooth", "noise"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_stuff_equals_that_of_the_cpu(stream: Stream, case: Case, dtype, kind):
    classes, k = 6, 9
    semantic = logits_of(kind, classes, case.shape).astype(dtype)
    random = np.random.default_rng(0)
    things = np.where(random.random(case.image_size) < 0.3, 4, 0).astype(np.uint16)
    sizes: dict[str, Any] = {"net_size": case.net_size, "image_size": case.image_size}
    labels = semantic_labels(semantic, **sizes)
    owners, areas = stuff_on(stream, stream.array(things), semantic, k, case, 0)
    assert (owners[things > 0] == 4).all()
    found = np.where(things > 0, labels, np.maximum(owners.astype(int) - k, 0)).astype(np.uint8)
    assert_equal_labels(found, semantic.astype(np.float32), **sizes)
    assert (found != labels).sum() <= 1e-3 * labels.size
    counted = np.bincount(found[things == 0], minlength=classes)
    assert areas[0] == 0 and np.array_equal(areas[1:], counted[1:])
    for limit in (int(areas.max()), int(areas.max()) + 1, 2**40):
        expected = add_stuff(things, found, k, limit)
        owners, _ = stuff_on(stream, stream.array(things), semantic, k, case, limit)
        assert np.array_equal(owners, expected)


def test_ties_go_to_the_lower_class_here_too(stream: Stream):
    case = Case((12, 20), (48, 80), (48, 80))  # weights of eighths: sums are exact
    semantic = logits_of("ties", 5, case.shape)
    labels = semantic_labels(semantic, net_size=case.net_size, image_size=case.image_size)
    things = stream.array(np.zeros(case.image_size, np.uint16))
    owners, _ = stuff_on(stream, things, semantic, 0, case, 0)
    assert np.array_equal(owners, labels)


def test_all_negative_logits_have_a_best_class(stream: Stream):
    case = CASES[2]
    semantic = np.full((255, *case.shape), -7, np.float32)
    semantic[254] = -5
    things = stream.array(np.zeros(case.image_size, np.uint16))
    owners, areas = stuff_on(stream, things, semantic, 512, case, 0)
    assert (owners == 512 + 254).all() and areas[254] == owners.size
