"""Postprocessing: the paste against plain torch, and the filters of detections."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate, pad

from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.errors import ConfigError, SessionError
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.options import filter_for
from condinst_infer.processing.paste import paste
from condinst_infer.processing.postprocess import BatchOutputs, instances_from_outputs
from condinst_infer.results.crop import CroppedMask
from tests.support.masks import smooth_masks


def reference(masks, stride, net_size, image_size):
    """Native-size probabilities [K, H, W], written as the steps are described."""
    height, width = masks.shape[1:]
    x = pad(torch.from_numpy(masks)[:, None], (0, 1, 0, 1), mode="replicate")
    size = (height * stride + 1, width * stride + 1)
    x = interpolate(x, size=size, mode="bilinear", align_corners=True)
    x = pad(x, (stride // 2, 0, stride // 2, 0), mode="replicate")
    x = x[..., : net_size[0], : net_size[1]]
    return interpolate(x, size=image_size, mode="bilinear", align_corners=False)[:, 0].numpy()


def dense(crops: list[CroppedMask], image_size):
    masks = np.zeros((len(crops), *image_size), dtype=bool)
    for mask, crop in zip(masks, crops, strict=True):
        height, width = crop.mask.shape
        mask[crop.y : crop.y + height, crop.x : crop.x + width] = crop.mask
    return masks


CASES = [  # stride, cells (h, w), network image, original
    (4, (24, 32), (90, 121), (177, 301)),
    (4, (24, 32), (96, 128), (96, 128)),
    (4, (24, 32), (90, 121), (60, 77)),
    (4, (24, 32), (65, 97), (640, 31)),
    (8, (12, 16), (90, 121), (333, 500)),
    (2, (48, 64), (81, 128), (120, 190)),
    (1, (64, 96), (50, 96), (77, 64)),
    (4, (200, 336), (800, 1333), (480, 800)),
    (8, (4, 4), (1, 32), (1, 900)),
    (4, (8, 8), (32, 1), (1, 1)),
]


@pytest.mark.parametrize(("stride", "cells", "net_size", "image_size"), CASES)
@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_paste_equals_plain_torch(stride, cells, net_size, image_size, kind):
    random = np.random.default_rng(5)
    masks = smooth_masks(random, 6, *cells)
    if kind == "noise":
        masks = random.random((6, *cells), dtype=np.float32)
    expected = reference(masks, stride, net_size, image_size)
    crops = paste(masks, stride=stride, net_size=net_size, image_size=image_size)
    differs = dense(crops, image_size) != (expected > 0.5)
    # Two orders of the same float32 sums; worst distance from 0.5 seen where they differ: 3e-7.
    assert (np.abs(expected[differs] - 0.5) < 1e-5).all()
    assert differs.sum() <= 1e-4 * differs.size


@pytest.mark.parametrize(("stride", "cells", "net_size", "image_size"), CASES)
def test_paste_reads_the_same_positions_as_torch(stride, cells, net_size, image_size):
    # A cut through a ramp moves by one pixel for a position error of 1e-4; noise hides that.
    ramp = np.linspace(0, 1, cells[1], dtype=np.float32) * np.ones((cells[0], 1), np.float32)
    masks = np.stack([ramp + shift for shift in np.linspace(-0.4, 0.4, 9, dtype=np.float32)])
    expected = reference(masks, stride, net_size, image_size)
    crops = paste(masks, stride=stride, net_size=net_size, image_size=image_size)
    differs = dense(crops, image_size) != (expected > 0.5)
    assert (np.abs(expected[differs] - 0.5) < 1e-5).all()


def test_paste_of_float16_equals_paste_of_the_same_values():
    masks = smooth_masks(np.random.default_rng(2), 8, 24, 32).astype(np.float16)
    masks[0, 3, 3:6] = [0.5, np.nextafter(np.float16(0.5), np.float16(1)), 1]
    options = {"stride": 4, "net_size": (90, 121), "image_size": (177, 301)}
    halves = dense(paste(masks, **options), (177, 301))
    assert halves.any(axis=(1, 2)).sum() >= 6
    assert (halves == dense(paste(masks.astype(np.float32), **options), (177, 301))).all()


def test_crops_are_tight():
    masks = smooth_masks(np.random.default_rng(3), 20, 24, 32)
    crops = paste(masks, stride=4, net_size=(90, 121), image_size=(177, 301))
    filled = [crop.mask for crop in crops if crop.mask.size]
    assert len(filled) > 10
    for mask in filled:
        assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()


def test_mask_in_the_padding_alone_is_empty():
    masks = np.zeros((2, 24, 32), dtype=np.float32)
    masks[0, 20:, :] = 1
    masks[1, :, 20:] = 1
    crops = paste(masks, stride=4, net_size=(40, 40), image_size=(80, 80))
    assert [crop.mask.shape for crop in crops] == [(0, 0), (0, 0)]


def test_probability_of_one_half_is_background():
    half = np.full((1, 8, 8), 0.5, dtype=np.float32)
    assert paste(half, stride=4, net_size=(32, 32), image_size=(32, 32))[0].mask.size == 0
    half[0, 3, 3] = 1
    crop = paste(half, stride=1, net_size=(8, 8), image_size=(8, 8))[0]
    assert (crop.x, crop.y, crop.mask.tolist()) == (3, 3, [[True]])


def test_paste_of_no_masks_is_no_crops():
    empty = np.zeros((0, 24, 32), dtype=np.float32)
    assert paste(empty, stride=4, net_size=(96, 128), image_size=(50, 60)) == []


CONFIG = CondInstConfig()


def outputs(count=4, slots=6):
    """Two images; the second has `count` detections of falling score in a 64x96 network image."""
    boxes = np.zeros((2, slots, 4), dtype=np.float32)
    boxes[1, :count] = [[8 * k, 4, 8 * k + 16, 20] for k in range(count)]
    scores = np.zeros((2, slots), dtype=np.float32)
    scores[1, :count] = 0.9 - 0.1 * np.arange(count)
    labels = np.full((2, slots), -1, dtype=np.int32)
    labels[1, :count] = np.arange(count) % 3
    masks = np.zeros((2, slots, 16, 24), dtype=np.float32)
    for k in range(count):
        masks[1, k, 1:5, 2 * k : 2 * k + 4] = 1
    return {
        "num_detections": np.array([0, count], dtype=np.int32),
        "boxes": boxes,
        "scores": scores,
        "labels": labels,
        "masks": masks,
    }


def instances(data=None, index=1, size=(128, 144), **options):
    image = np.zeros((*size, 3), dtype=np.uint8)
    config = options.pop("config", CONFIG)
    data = outputs() if data is None else data
    placed = PlacedImage(image, (64, 96), (64, 96))
    filter_ = filter_for(config, **options)
    return instances_from_outputs(BatchOutputs(data), index, placed, config, filter_)


def test_boxes_and_masks_are_in_original_pixels():
    result = instances()
    assert result.image_size == (128, 144)
    assert result.boxes.dtype == np.float32 and result.labels.dtype == np.int32
    # (8 * k, 4, 8 * k + 16, 20) times 144 / 96 and 128 / 64
    assert result.boxes[1].tolist() == [12, 8, 36, 40]
    assert result.names == ("person", "bicycle", "car", "person")
    crop = result.crops[1]
    assert abs(crop.x - 12) <= 2 and abs(crop.y - 8) <= 2
    assert abs(crop.mask.shape[0] - 32) <= 4 and abs(crop.mask.shape[1] - 24) <= 4


def test_boxes_are_clipped_and_empty_ones_dropped_before_counting():
    data = outputs()
    data["boxes"][1, 0] = [-50, -9, -2, 30]  # left of the image
    data["boxes"][1, 1] = [90, 50, 120, 90]  # over the lower right corner
    data["boxes"][1, 2] = [5, 5, 5, 30]  # no width
    result = instances(data, max_detections=1)
    assert result.boxes.tolist() == [[135, 100, 144, 128]]
    assert result.scores[0] == data["scores"][1, 1]
    assert len(instances(data)) == 2


def test_no_detections_give_arrays_of_the_right_rank():
    result = instances(index=0)
    assert len(result) == 0 and result.names == () and result.crops == []
    assert result.boxes.shape == (0, 4) and result.scores.shape == (0,)
    assert result.labels.shape == (0,) and result.masks.shape == (0, 128, 144)


def test_result_survives_reuse_of_the_outputs():
    data = outputs()
    result = instances(data)
    before = (result.boxes.copy(), result.scores.copy(), result.masks.copy())
    for array in data.values():
        array.fill(0)
    again = dense(result.crops, result.image_size)
    assert (result.boxes == before[0]).all() and (result.scores == before[1]).all()
    assert (again == before[2]).all() and again.any()


def test_score_threshold_keeps_scores_at_or_above_it():
    data = outputs()
    kept = instances(data, score_threshold=float(data["scores"][1, 1])).scores
    assert kept.tolist() == data["scores"][1, :2].tolist()


def test_score_threshold_below_the_floor_names_the_way_out():
    with pytest.raises(ConfigError, match=r"0\.223607.*--score-threshold"):
        instances(score_threshold=0.1)
    floor_of_message = override(CONFIG, score_threshold=0.03)  # 0.1732051, rounded down
    assert len(instances(score_threshold=0.173205, config=floor_of_message)) == 4
    lower = override(CONFIG, score_threshold=0.001)
    assert len(instances(score_threshold=0.1, config=lower)) == 4


@pytest.mark.parametrize("threshold", [float("nan"), -0.1, 1.5, float("inf")])
def test_score_threshold_out_of_range(threshold):
    with pytest.raises(ConfigError, match="from 0 to 1"):
        instances(score_threshold=threshold)


def test_max_detections_keeps_the_best():
    assert instances(max_detections=2).scores.tolist() == instances().scores[:2].tolist()
    assert len(instances(max_detections=99)) == 4


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_max_detections_out_of_range(count):
    with pytest.raises(ConfigError, match="whole number >= 1"):
        instances(max_detections=count)


@pytest.mark.parametrize("classes", ["person", 0, [0], ["person"], np.array([0]), ("person", 0)])
def test_classes_by_name_or_index(classes):
    assert instances(classes=classes).names == ("person", "person")


def test_several_classes_keep_the_order_of_scores():
    assert instances(classes=["car", "person"]).names == ("person", "car", "person")
    assert len(instances(classes=[])) == 0


def test_unknown_class_names_near_ones():
    with pytest.raises(ConfigError, match="'persn'; did you mean person"):
        instances(classes=["persn"])
    with pytest.raises(ConfigError, match="from 0 to 79"):
        instances(classes=[80])
    with pytest.raises(ConfigError, match="from 0 to 79"):
        instances(classes=[-1])


@pytest.mark.parametrize("name", ["boxes", "scores"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused(name, value):
    data = outputs()
    data[name][1, 3] = value
    with pytest.raises(SessionError, match="not finite"):
        instances(data)
    data = outputs()
    data[name][1, 4] = value  # an unused slot may hold anything
    assert len(instances(data)) == 4


def test_counts_and_labels_out_of_range_are_refused():
    data = outputs()
    data["num_detections"][1] = 7
    with pytest.raises(SessionError, match="7 detections in 6 slots"):
        instances(data)
    data = outputs()
    data["labels"][1, 0] = 80
    with pytest.raises(SessionError, match="it has 80 classes"):
        instances(data)
