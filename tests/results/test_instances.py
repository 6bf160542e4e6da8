"""Instances: masks, COCO run lengths, conversions."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from condinst_infer.errors import InputError
from condinst_infer.results.crop import CroppedMask
from condinst_infer.results.instances import CROWD
from condinst_infer.results.rle import compress_counts, rle_from_crop
from tests.support.results import instances, tight


def masks_of(kind: str, random: np.random.Generator, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    if kind == "noise":
        return random.random((height, width)) < random.random()
    if kind == "full height":
        a, b = sorted(random.integers(0, width + 1, 2))
        mask[:, a:b] = True
        mask[:, : a // 2] = random.random((height, a // 2)) < 0.9
    elif kind == "pixel":
        mask[random.integers(height), random.integers(width)] = True
    elif kind == "full":
        mask[:] = True
    elif kind == "corner":
        mask[height // 2 :, width // 2 :] = True
    elif kind == "blob":
        y, x = np.mgrid[:height, :width]
        cy, cx, r = random.uniform(0, height), random.uniform(0, width), random.uniform(1, height)
        mask = (y - cy) ** 2 + (x - cx) ** 2 < r * r
    return mask


KINDS = ["noise", "full height", "pixel", "full", "corner", "blob", "empty"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (37, 53), (480, 640)])
def test_rle_equals_pycocotools(kind, size):
    random = np.random.default_rng(1)
    for _ in range(20 if size[0] < 100 else 2):
        mask = masks_of(kind, random, *size)
        expected: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        found = rle_from_crop(tight(mask), size)
        assert found == {"size": list(size), "counts": expected["counts"].decode()}


def test_rle_of_a_crop_with_margins_is_the_same():
    mask = masks_of("blob", np.random.default_rng(4), 60, 70)
    whole = CroppedMask(0, 0, mask)
    assert rle_from_crop(whole, (60, 70)) == rle_from_crop(tight(mask), (60, 70))


def test_compressed_counts_of_large_runs():
    # A 100-megapixel image: runs beyond 16 bits, falling and rising.
    counts = [33_000_000, 1, 40_000_000, 20_000_000, 15, 16, 6_999_968]
    text = compress_counts(counts)
    found = coco_mask.area({"size": [10_000, 10_000], "counts": text.encode()})
    assert found == 1 + 20_000_000 + 16


def test_masks_are_dense_and_made_once():
    random = np.random.default_rng(2)
    masks = np.stack([masks_of(kind, random, 30, 40) for kind in KINDS])
    result = instances(masks)
    assert result.masks.dtype == bool and (result.masks == masks).all()
    assert result.masks is result.masks


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own decode
def test_coco_entries():
    masks = np.stack([masks_of("blob", np.random.default_rng(k), 30, 40) for k in range(3)])
    result = instances(masks)
    entries = result.to_coco(image_id=7)
    assert [entry["category_id"] for entry in entries] == [17, 18, 17]
    assert entries[0]["image_id"] == 7 and entries[0]["bbox"] == [1, 2, 10.5, 20]
    assert entries[2]["score"] == 0.5
    rles: Any = [entry["segmentation"] for entry in entries]
    assert rles == result.rle()
    decoded = coco_mask.decode(rles)
    assert (decoded.transpose(2, 0, 1).astype(bool) == masks).all()


def test_supervision_detections():
    masks = np.stack([masks_of("blob", np.random.default_rng(k), 30, 40) for k in range(3)])
    found = instances(masks).to_supervision()
    assert found.xyxy.shape == (3, 4) and np.array_equal(np.asarray(found.mask), masks)
    assert found.class_id is not None and found.class_id.tolist() == [0, 1, 0]
    assert list(found.data["class_name"]) == ["cat", "dog", "cat"]


def test_no_instances_keep_the_rank_everywhere():
    image = np.full((30, 40, 3), 9, dtype=np.uint8)
    result = instances(np.zeros((0, 30, 40), dtype=bool), image)
    assert len(result) == 0 and result.masks.shape == (0, 30, 40)
    assert result.rle() == [] and result.to_coco(1) == []
    found = result.to_supervision()
    assert len(found) == 0 and found.xyxy.shape == (0, 4)
    assert np.asarray(found.mask).shape == (0, 30, 40)
    plotted = result.plot(boxes=True)
    assert (plotted == image).all() and plotted is not image


def test_plot_draws_on_a_copy_of_the_image():
    image = np.full((60, 80, 3), 9, dtype=np.uint8)
    masks = np.zeros((1, 60, 80), dtype=bool)
    masks[0, 20:50, 20:60] = True
    result = instances(masks, image)
    assert (result.plot() != 9).any() and (image == 9).all()
    other = np.full((60, 80, 3), 200, dtype=np.uint8)
    assert (result.plot(other, labels=False)[0, 0] == 200).all()


@pytest.mark.parametrize("count", [CROWD, CROWD + 1])
def test_a_crowd_has_no_labels_unless_asked_for(count: int):
    masks = np.zeros((count, 120, 160), dtype=bool)
    masks[:, 50:70, 60:90] = True
    result = instances(masks, np.zeros((120, 160, 3), dtype=np.uint8))
    labelled, plain = result.plot(labels=True), result.plot(labels=False)
    assert (labelled != plain).any()
    assert (result.plot() == (plain if count > CROWD else labelled)).all()


def test_plot_without_a_fitting_image_is_refused():
    result = instances(np.ones((1, 30, 40), dtype=bool))
    with pytest.raises(InputError, match="keeps no image"):
        result.plot()
    with pytest.raises(InputError, match=r"uint8 \(30, 40, 3\)"):
        result.plot(np.zeros((40, 30, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="float64"):
        result.plot(np.zeros((30, 40, 3)))
