"""Every location gets the object that the official implementations give it."""

import numpy as np
import pytest
import torch

from condinst_infer.train.targets import (
    GroundTruth,
    Targets,
    assign_targets,
    centreness_targets,
    ground_truth,
)
from tests.support import goldens
from tests.support.goldens import TRAINED_SETS

UNIT_CASES = [
    *(("ta", f"ta{levels}_{kind}") for levels in (3, 5) for kind in ("mask", "nomask")),
    ("ta", "ta5_nocenter"),
    *(("tb", f"tb5_{kind}") for kind in ("mask", "nomask", "nocenter")),
]


def truth_from(masks: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> GroundTruth:
    return ground_truth(
        torch.from_numpy(masks),
        torch.from_numpy(boxes),
        torch.from_numpy(labels),
        mask_stride=4,
        feature_stride=8,
    )


def check_level(ours: Targets, labels: np.ndarray, indices: np.ndarray, reg: np.ndarray) -> None:
    """Assert equality of one level [N, h*w]; `labels` has 80 in the background."""
    np.testing.assert_array_equal(ours.labels, labels)
    np.testing.assert_array_equal(ours.indices, indices)
    np.testing.assert_allclose(ours.distances, reg, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("image", "case"), UNIT_CASES)
def test_targets_of_one_image(image: str, case: str) -> None:
    golden, facts = goldens.arrays("train_unit"), goldens.facts("train_unit")
    height, width = facts[case]["image_hw"]
    masks = goldens.unpacked(golden[f"{image}_masks_packed"], (height, width))
    truth = truth_from(masks, golden[f"{image}_boxes"], golden[f"{image}_classes"])
    strides = facts[case]["strides"]
    shapes = [(-(-height // stride), -(-width // stride)) for stride in strides]
    targets = assign_targets(
        [truth],
        shapes,
        strides,
        num_classes=80,
        sizes_of_interest=[*facts[case]["sizes_of_interest"], 1],  # the last one has no meaning
        radius=0 if case.endswith("nocenter") else 1.5,
        centre_from="mask" if case.endswith("_mask") else "box",
    )
    start = 0
    for level, (rows, columns) in enumerate(shapes):
        own = Targets(*(part[0, start : start + rows * columns] for part in targets))
        parts = [golden[f"{case}_l{level}_{part}"] for part in ("labels", "gt_inds", "reg", "ctr")]
        check_level(own, *parts[:3])
        np.testing.assert_allclose(centreness_targets(own.distances), parts[3], rtol=0, atol=1e-5)
        assert int((own.labels < 80).sum()) == facts[case]["positives"][level]
        start += rows * columns
    assert start == targets.labels.shape[1]


@pytest.mark.parametrize("name", TRAINED_SETS)
def test_targets_of_a_batch(name: str) -> None:
    golden, config = goldens.arrays("train"), goldens.model(name).config
    _, _, height, width = golden["padded_nchw"]
    shapes = [(-(-height // stride), -(-width // stride)) for stride in config.strides]
    truths = goldens.training_truths(config)
    targets = assign_targets(
        truths,
        shapes,
        config.strides,
        num_classes=80,
        sizes_of_interest=config.heads.sizes_of_interest,
    )
    sizes = [rows * columns for rows, columns in shapes]
    levels = zip(*(part.split(sizes, 1) for part in targets), strict=True)
    for level, own in zip(config.heads.head_levels, map(Targets._make, levels), strict=True):
        inds = golden[f"p{level}_gt_inds"].copy()  # the second image counts on from the first
        inds[1, inds[1] >= 0] -= len(truths[0].labels)
        check_level(own, golden[f"p{level}_labels"], inds, golden[f"p{level}_reg_targets"])


def test_masks_and_semantic_map_of_the_training_batch() -> None:
    golden, config = goldens.arrays("train"), goldens.model("C_RT_R50_shtw").config
    truths = goldens.training_truths(config)
    _, rows, columns = golden["gt_masks_stride4_shape"]
    expected = goldens.unpacked(golden["gt_masks_stride4_packed"], (rows, columns))
    np.testing.assert_array_equal(torch.cat([truth.masks for truth in truths]), expected)
    semantic = torch.stack([truth.semantic for truth in truths])
    np.testing.assert_array_equal(semantic, golden["sem_targets_stride8"])


def test_ground_truth_of_two_overlapping_objects() -> None:
    masks = np.zeros((2, 32, 64), np.uint8)
    masks[0, 8:24, 10:31] = 1  # the smaller one
    masks[1, :, 20:60] = 1
    boxes = np.array([[10, 8, 31, 24], [20, 0, 60, 32]], np.float32)
    for order in ([0, 1], [1, 0]):
        truth = truth_from(masks[order], boxes[order], np.array([5, 7])[order])
        assert truth.centres[order].tolist() == [[20, 15.5], [39.5, 15.5]]
        assert truth.semantic.shape == (4, 8)
        assert truth.semantic[1].tolist() == [0, 6, 6, 6, 8, 8, 8, 0]
        assert truth.semantic[0].tolist() == [0, 0, 8, 8, 8, 8, 8, 0]
        assert truth.masks.dtype == torch.bool
        np.testing.assert_array_equal(truth.masks, masks[order][:, 2::4, 2::4])


def test_images_without_objects_are_background() -> None:
    empty = truth_from(np.zeros((0, 64, 96), bool), np.zeros((0, 4), np.float32), np.zeros(0, int))
    assert empty.semantic.shape == (8, 12)
    assert not empty.semantic.any()
    masks = np.zeros((1, 64, 96), bool)
    masks[0, 16:48, 16:48] = True
    some = truth_from(masks, np.array([[16, 16, 48, 48]], np.float32), np.array([2]))
    targets = assign_targets(
        [empty, some, empty], [(8, 12), (4, 6)], (8, 16), num_classes=3, sizes_of_interest=(64, 1)
    )
    assert targets.distances.shape == (3, 120, 4)
    for image in (0, 2):
        assert (targets.labels[image] == 3).all()
        assert (targets.indices[image] == -1).all()
        assert not targets.distances[image].any()
    assert (targets.labels[1] == 2).sum() == (targets.indices[1] == 0).sum() == 9


def test_an_object_without_pixels_is_finite() -> None:
    truth = truth_from(np.zeros((1, 32, 32), bool), np.ones((1, 4), np.float32), np.array([1]))
    assert truth.centres.isfinite().all()
    assert not truth.semantic.any()
