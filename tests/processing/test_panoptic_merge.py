"""The panoptic merge against its torch twin."""

from typing import Any

import numpy as np
import pytest
import torch

from condinst_infer.errors import SessionError
from condinst_infer.ops.panoptic import panoptic_merge, semantic_logits
from condinst_infer.processing import panoptic_merge as merging
from condinst_infer.processing.panoptic_merge import merge, semantic_labels
from condinst_infer.processing.paste import paste
from condinst_infer.results.crop import CroppedMask
from tests.support.masks import assert_equal_labels, logits_of, smooth_masks

CASES = [  # cells of the semantic map (h, w), network image, original
    ((24, 32), (90, 121), (177, 301)),
    ((24, 32), (96, 128), (96, 128)),
    ((24, 32), (90, 121), (60, 77)),  # shrinks
    ((24, 32), (65, 97), (640, 31)),
    ((24, 32), (96, 1), (1, 1)),
    ((8, 8), (1, 32), (1, 900)),
    ((200, 272), (800, 1067), (120, 161)),
]


@pytest.mark.parametrize("many", [0.0, 2.0])  # all pixels at once, or one by one
@pytest.mark.parametrize("kind", ["smooth", "noise", "spikes"])
@pytest.mark.parametrize(("cells", "net_size", "image_size"), CASES)
def test_semantic_labels_equal_dense_upsampling(
    cells, net_size, image_size, kind, many, monkeypatch
):
    monkeypatch.setattr(merging, "_MANY", many)
    semantic = logits_of(kind, 7, cells)
    labels = semantic_labels(semantic, net_size=net_size, image_size=image_size)
    assert labels.dtype == np.uint8 and labels.shape == image_size
    assert_equal_labels(labels, semantic, net_size, image_size)


@pytest.mark.parametrize("many", [0.0, 2.0])
def test_ties_go_to_the_lower_class(many, monkeypatch):
    monkeypatch.setattr(merging, "_MANY", many)
    semantic = logits_of("ties", 5, (12, 20))
    sizes: dict[str, Any] = {
        "net_size": (48, 80),
        "image_size": (48, 80),
    }  # weights of eighths: sums are exact
    labels = semantic_labels(semantic, **sizes)
    logits = semantic_logits(torch.from_numpy(semantic), **sizes)
    tied = (logits == logits.amax(0)).sum(0).numpy() > 1
    assert tied.mean() > 0.02
    assert np.array_equal(labels, logits.numpy().argmax(0))


def test_pixels_that_are_not_needed_change_no_other() -> None:
    semantic = logits_of("noise", 7, (24, 32))
    sizes: dict[str, Any] = {"net_size": (90, 121), "image_size": (177, 301)}
    every = semantic_labels(semantic, **sizes)
    for share in (0.0, 0.02, 0.5):
        needed = np.random.default_rng(0).random(every.shape) < share
        labels = semantic_labels(semantic, needed=needed, **sizes)
        assert np.array_equal(labels[needed], every[needed])


def test_255_classes_have_labels_of_their_own() -> None:
    semantic = np.zeros((255, 4, 64), np.float32)
    semantic[np.arange(255), np.arange(255) // 64, np.arange(255) % 64] = 1
    labels = semantic_labels(semantic, net_size=(16, 256), image_size=(16, 256))
    assert labels[1::4, 1::4].ravel().tolist()[:255] == list(range(255))


def test_float16_logits_are_those_values() -> None:
    semantic = logits_of("smooth", 7, (24, 32)).astype(np.float16)
    sizes: dict[str, Any] = {"net_size": (90, 121), "image_size": (177, 301)}
    expected = semantic_labels(semantic.astype(np.float32), **sizes)
    assert np.array_equal(semantic_labels(semantic, **sizes), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_logits_that_are_not_finite_are_refused(value, dtype) -> None:
    semantic = np.zeros((3, 8, 8), dtype)
    semantic[2, 3, 4] = value
    with pytest.raises(SessionError, match="not finite"):
        semantic_labels(semantic, net_size=(32, 32), image_size=(32, 32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("count", [0, 1, 12])
@pytest.mark.parametrize(("cells", "net_size", "image_size"), CASES[:5])
def test_merge_equals_its_torch_twin(cells, net_size, image_size, count, dtype):
    masks = smooth_masks(np.random.default_rng(count), count, *cells).astype(dtype)
    semantic = logits_of("smooth", 7, cells).astype(dtype)
    sizes: dict[str, Any] = {"net_size": net_size, "image_size": image_size}
    crops = paste(masks, stride=4, **sizes)
    labels = semantic_labels(semantic, **sizes)
    dropped = []
    for overlap in (0.0, 0.4, 1.0):
        for area in (0, 100, 10**9):
            rules = {"overlap_threshold": overlap, "stuff_area_limit": area}
            tensors = torch.from_numpy(masks), torch.from_numpy(semantic)
            expected = panoptic_merge(*tensors, stride=4, **sizes, **rules).numpy()
            owners = merge(crops, labels, **rules)
            assert owners.dtype == np.uint16
            # a mask's pixel or a label on the edge may go either way; here none do
            assert np.array_equal(owners, expected)
        things = np.unique(owners)
        dropped.append(count - (things[things > 0]).size)
    assert count < 12 or dropped[0] >= dropped[1] >= dropped[2]


def crop_of(x1: int, y1: int, x2: int, y2: int) -> CroppedMask:
    return CroppedMask(x1, y1, np.ones((y2 - y1, x2 - x1), bool))


NOTHING = {"labels": np.zeros((10, 20), np.uint8), "stuff_area_limit": 0}


def test_an_instance_that_loses_exactly_the_threshold_stays() -> None:
    first = crop_of(0, 0, 10, 10)
    for lost, owner in ((4, 2), (5, 0)):
        second = crop_of(10 - lost, 0, 20 - lost, 10)
        owners = merge([first, second], overlap_threshold=0.4, **NOTHING)
        assert owners[0, 9] == 1 and owners[0, 10] == owner
    for hundredths in range(101):  # 0.29 * 100 is less than 29 in floating point
        first, second = crop_of(0, 0, hundredths, 1), crop_of(0, 0, 100, 1)
        labels = np.zeros((1, 100), np.uint8)
        share = hundredths / 100
        owners = merge([first, second], labels, overlap_threshold=share, stuff_area_limit=0)
        assert (owners[0, hundredths:] == 2).all()
        if hundredths:
            less = (hundredths - 1) / 100
            owners = merge([first, second], labels, overlap_threshold=less, stuff_area_limit=0)
            assert (owners[0, hundredths:] == 0).all()


def test_a_dropped_instance_hides_nothing() -> None:
    crops = [crop_of(0, 0, 10, 10), crop_of(2, 0, 12, 10), crop_of(10, 0, 12, 10)]
    owners = merge(crops, overlap_threshold=0.4, **NOTHING)
    assert np.unique(owners).tolist() == [0, 1, 3]
    assert (owners[:, 10:12] == 3).all()


def test_hidden_and_empty_instances_own_nothing() -> None:
    empty = CroppedMask(0, 0, np.zeros((0, 0), bool))
    background = CroppedMask(1, 1, np.zeros((3, 3), bool))
    crops = [empty, crop_of(0, 0, 5, 5), background, crop_of(1, 1, 3, 3)]
    for overlap in (0.4, 1.0):
        assert np.unique(merge(crops, overlap_threshold=overlap, **NOTHING)).tolist() == [0, 2]


def test_stuff_below_the_limit_is_void_and_counts_free_pixels_only() -> None:
    labels = np.repeat(np.array([0, 1, 2, 2], np.uint8), 5)[None].repeat(10, 0)  # [10, 20]
    crops = [crop_of(5, 0, 10, 2)]
    for limit, kept in ((0, {2, 3}), (40, {2, 3}), (41, {3}), (100, {3}), (101, set())):
        owners = merge(crops, labels, overlap_threshold=0.4, stuff_area_limit=limit)
        assert set(np.unique(owners).tolist()) == kept | {0, 1}
