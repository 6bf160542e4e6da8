"""COCO files become checked records; samples vary as asked and their masks stay true."""

import colorsys
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from condinst_infer.config.presets import preset
from condinst_infer.errors import InputError
from condinst_infer.results.crop import CroppedMask, boxes_from_crops
from condinst_infer.train.augment import AugmentConfig, augment
from condinst_infer.train.image_check import check_training_images
from condinst_infer.train.loader import (
    Collate,
    Positions,
    TrainingImages,
    crops_from_masks,
    training_batches,
)
from condinst_infer.train.records import crops_from_record, read_coco
from tests.support.classes import numbered_classes
from tests.support.coco_files import (
    CATEGORIES,
    polygon_from_box,
    rle_from_mask,
    uncompressed,
    write_scenes,
)


def square(size: tuple[int, int] = (20, 30)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[4:12, 5:15] = 1
    return mask


def coco_file(folder: Path, *annotations: dict[str, Any], **changes: Any) -> Path:
    """One 20 x 30 image with `annotations`, and one empty image."""
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), np.zeros((20, 30, 3), np.uint8))
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 20, "width": 30},
            {"id": 8, "file_name": "b.png", "height": 20, "width": 30},
        ],
        "annotations": [
            {"id": 100 + i, "image_id": 7, "category_id": 3, **entry}
            for i, entry in enumerate(annotations)
        ],
        "categories": list(CATEGORIES),
    }
    file = folder / "instances.json"
    file.write_text(json.dumps(content | changes))
    return file


def test_every_kind_of_segmentation_gives_the_same_mask(tmp_path: Path) -> None:
    mask = square()
    file = coco_file(
        tmp_path,
        {"segmentation": polygon_from_box(5, 4, 10, 8)},
        {"segmentation": rle_from_mask(mask), "category_id": 17},
        {"segmentation": uncompressed(mask)},
    )
    data = read_coco(file, tmp_path)
    assert (data.class_names, data.category_ids) == (("disc", "box"), (3, 17))
    (record,) = data.records
    assert [a.label for a in record.annotations] == [0, 1, 0]
    for crop in crops_from_record(record):
        assert (crop.x, crop.y, crop.mask.shape) == (5, 4, (8, 10))
        assert crop.mask.all()


def test_what_can_not_be_trained_on_is_counted(tmp_path: Path) -> None:
    file = coco_file(
        tmp_path,
        {"segmentation": polygon_from_box(5, 4, 10, 8)},
        {"segmentation": uncompressed(square()), "iscrowd": 1},
        {"segmentation": polygon_from_box(5, 4, 0, 8)},
        {"segmentation": rle_from_mask(np.zeros((20, 30)))},
        {"segmentation": []},
    )
    data = read_coco(file, tmp_path)
    assert data.skipped == {
        "crowd regions": 1,
        "objects without area": 3,
        "images without objects": 1,
    }
    assert len(read_coco(file, tmp_path, keep_empty=True).records) == 2


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"segmentation": polygon_from_box(25, 4, 10, 8)}, "it lies outside its image"),
        (
            {"segmentation": rle_from_mask(square((30, 20)))},
            r"its mask is \[30, 20\], its",
        ),
        ({"segmentation": {"size": [20, 30], "counts": [5, 5]}}, "don't add up to 20 x 30"),
        ({"segmentation": 5}, "TypeError"),
        ({"segmentation": "polygon"}, "could not convert"),
        ({"segmentation": [["a", "b"] * 3]}, "could not convert"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "cannot reshape"),
        ({}, r"KeyError\('segmentation'\)"),
        ({"segmentation": [], "category_id": 4}, "category 4 is not in the file"),
        ({"segmentation": [], "image_id": 9}, "image 9 or category 3 is not in the file"),
    ],
)
def test_an_inconsistent_annotation_is_named(
    tmp_path: Path, entry: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=f"annotation 100 can't be used: .*{says}"):
        read_coco(coco_file(tmp_path, entry), tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": 3}, "no list of images"),
        ({"categories": [{"id": 1}]}, "an entry of categories lacks"),
        ({"categories": [*CATEGORIES, CATEGORIES[0]]}, "two categories have the same id"),
        ({"categories": []}, "lists no categories"),
        ({"annotations": []}, "no image to train on"),
        ({"annotations": ["x"]}, "annotation number 1 can't be used"),
    ],
)
def test_a_file_that_is_no_coco_file(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_coco(coco_file(tmp_path, **changes), tmp_path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.json does not exist"):
        read_coco(tmp_path / "none.json", tmp_path)
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_coco(tmp_path / "text.json", tmp_path)
    file = coco_file(tmp_path, {"segmentation": polygon_from_box(5, 4, 10, 8)})
    with pytest.raises(InputError, match="The image folder must be"):
        check_training_images(read_coco(file, tmp_path / "elsewhere"), file)


def scene() -> tuple[np.ndarray, list[CroppedMask]]:
    """A black image of 40 x 60 with three white discs, and their masks."""
    image, crops = np.zeros((40, 60, 3), np.uint8), []
    for x, y, radius in ((12, 10, 6), (40, 25, 9), (58, 38, 5)):
        disc = cv2.circle(np.zeros((40, 60), np.uint8), (x, y), radius, 1, -1)
        image[disc > 0] = 255
        x, y, width, height = cv2.boundingRect(disc)
        crops.append(CroppedMask(x, y, disc[y : y + height, x : x + width].astype(bool)))
    return image, crops


@pytest.mark.parametrize("short_side", [20, 40, 97])
@pytest.mark.parametrize("crop", [0, 33])
def test_masks_follow_their_image_through_every_change(short_side: int, crop: int) -> None:
    settings = AugmentConfig(
        short_sides=(short_side,), vertical_flip=True, rotate=True, crop=crop, colour_jitter=0.0
    )
    image, crops = scene()
    seen = set()
    for seed in range(24):
        varied, masks = augment(image, crops, np.random.default_rng(seed), settings)
        assert masks.shape == (3, *varied.shape[:2])
        if crop:
            assert max(varied.shape[:2]) == min(crop, round(short_side * 1.5))
        # a shrunken image has greys at the edges, so two pixels in a hundred may differ
        assert ((varied[:, :, 0] > 127) == masks.any(0)).mean() > 0.98
        seen.add(varied.tobytes())
    assert len(seen) >= 8  # two mirrors and four rotations, of which some coincide


def test_without_options_only_size_and_side_vary() -> None:
    image, crops = scene()
    settings = AugmentConfig(short_sides=(40,))
    found = {
        augment(image, crops, np.random.default_rng(seed), settings)[0].tobytes()
        for seed in range(12)
    }
    assert found == {image.tobytes(), image[:, ::-1].tobytes()}
    off = AugmentConfig(short_sides=(40,), horizontal_flip=False)
    for seed in range(6):
        varied, masks = augment(image, crops, np.random.default_rng(seed), off)
        assert (varied == image).all()
        assert (masks.any(0) == (image[:, :, 0] > 0)).all()


def test_the_longer_side_is_capped() -> None:
    image, crops = scene()
    settings = AugmentConfig(short_sides=(80,), train_long_side=90)
    varied, _ = augment(image, crops, np.random.default_rng(0), settings)
    assert varied.shape == (60, 90, 3)


def test_colour_jitter_changes_colours_only() -> None:
    image = np.random.default_rng(0).integers(60, 200, (40, 60, 3), np.uint8)
    _, crops = scene()
    plain = AugmentConfig(short_sides=(40,))
    coloured = AugmentConfig(short_sides=(40,), colour_jitter=0.4)
    for seed in range(8):
        same, masks = augment(image, crops, np.random.default_rng(seed), plain)
        varied, same_masks = augment(image, crops, np.random.default_rng(seed), coloured)
        assert (masks == same_masks).all()
        assert (varied != same).any()
    assert image.min() >= 60  # the caller's image is not written to


def test_colour_jitter_draws_brightness_contrast_saturation_and_hue() -> None:
    ramp = np.arange(80, 140, 2)  # grey on the left: it tells brightness and contrast
    image = np.full((40, 60, 3), (80, 110, 150), np.uint8)
    image[:, :30] = ramp[:, None]
    strength, drawn = 0.4, []
    coloured = AugmentConfig(short_sides=(40,), colour_jitter=strength, horizontal_flip=False)
    mean = float(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).mean())
    for seed in range(16):
        varied, _ = augment(image, [], np.random.default_rng(seed), coloured)
        assert (varied[:, :30] == varied[:, :30, :1]).all()  # grey stays grey
        slope, offset = np.polyfit(ramp, varied[0, :30, 0], 1)
        brightness = (slope * mean + offset) / mean
        before = hue_and_saturation(slope * image[0, 45] + offset)
        after = hue_and_saturation(varied[0, 45].astype(float))
        factors = (brightness, slope / brightness, after[1] / before[1])
        drawn.append((*factors, 1 + (after[0] - before[0]) / 36))  # a tenth of 360 degrees
    # measured 0.045 past it: hue is kept in steps of 2 degrees
    assert np.abs(np.array(drawn) - 1).max() < strength + 0.1
    assert (np.ptp(drawn, axis=0) > strength).all()  # of twice as much; measured 0.65 and more


def hue_and_saturation(pixel: np.ndarray) -> tuple[float, float]:
    """Hue in degrees and saturation from 0 to 1 of (blue, green, red)."""
    hue, saturation, _ = colorsys.rgb_to_hsv(*pixel[::-1])
    return 360 * hue, saturation


def test_boxes_are_tight() -> None:
    masks = np.zeros((2, 9, 12), bool)
    masks[0, 2:5, 3:10] = True
    masks[1, 8, 0] = True
    boxes = boxes_from_crops(crops_from_masks(masks), 3)
    assert boxes.tolist() == [[3, 2, 10, 5], [0, 8, 1, 9], [0, 0, 0, 0]]
    assert boxes_from_crops([], 0).shape == (0, 4)


def images_of(tmp_path: Path, **augment: Any) -> TrainingImages:
    file = write_scenes(tmp_path, 6)
    data = read_coco(file, tmp_path / "images")
    return TrainingImages(data, AugmentConfig(**{"short_sides": (64, 96), **augment}), seed=3)


def test_a_pass_shows_every_image_once_in_a_new_order(tmp_path: Path) -> None:
    images = images_of(tmp_path)
    passes = [[images[p].name for p in range(5 * k, 5 * k + 5)] for k in range(6)]
    assert all(sorted(names) == sorted(passes[0]) for names in passes)
    assert len(set(passes[0])) == 5
    assert len({tuple(names) for names in passes}) > 1
    first, again = images[2], images[2]
    assert (first.image == again.image).all()
    assert len({images[2 + 5 * k].image.shape for k in range(8)}) == 2  # sizes are drawn anew


def test_processes_share_what_one_would_see() -> None:
    alone = [p for batch in Positions(3, 7, batch=4, rank=0, processes=1) for p in batch]
    parts = [list(Positions(3, 7, batch=2, rank=rank, processes=2)) for rank in (0, 1)]
    assert alone == [p for pair in zip(*parts, strict=True) for batch in pair for p in batch]


def test_a_batch_has_one_canvas_and_masks_at_the_mask_stride(tmp_path: Path) -> None:
    images = images_of(tmp_path)
    config = preset("condinst_nano", **numbered_classes(2))
    samples = [images[p] for p in range(3)]
    batch = Collate(config)(samples)
    height, width = batch.images.shape[1:3]
    assert height % 32 == width % 32 == 0
    for slot, (sample, truth) in enumerate(zip(samples, batch.truths, strict=True)):
        rows, columns = sample.image.shape[:2]
        assert batch.image_sizes[slot].tolist() == [rows, columns]
        assert (batch.images[slot, :rows, :columns].numpy() == sample.image).all()
        assert truth.masks.shape == (len(sample.masks), height // 4, width // 4)
        sampled = sample.masks[:, 2::4, 2::4]
        assert (truth.masks[:, : sampled.shape[1], : sampled.shape[2]].numpy() == sampled).all()
        assert truth.labels.tolist() == sample.labels.tolist()
        assert (
            truth.boxes.tolist()
            == boxes_from_crops(crops_from_masks(sample.masks), len(sample.masks)).tolist()
        )


def test_worker_processes_give_the_same_batches(tmp_path: Path) -> None:
    images, config = images_of(tmp_path), preset("condinst_nano", **numbered_classes(2))
    found = []
    for workers in (0, 2):
        positions = Positions(1, 4, batch=2, rank=0, processes=1)
        batches = training_batches(images, config, positions, workers=workers)
        found.append([(batch.names, batch.images.numpy()) for batch in batches])
    assert len(found[0]) == 3
    for (names, pixels), (other_names, other_pixels) in zip(*found, strict=True):
        assert names == other_names
        assert (pixels == other_pixels).all()


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path: Path) -> None:
    images = images_of(tmp_path)
    for path in (tmp_path / "images").iterdir():
        cv2.imwrite(str(path), np.zeros((128, 96, 3), np.uint8))
    with pytest.raises(InputError, match="is 96 x 128 pixels, but its annotations say 128 x 96"):
        images[0]
