"""Results as a pipeline gives them."""

from dataclasses import replace

import numpy as np

from condinst_infer.config.model import override
from condinst_infer.config.presets import preset
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.panoptic import panoptic_from_outputs
from condinst_infer.processing.postprocess import BatchOutputs
from condinst_infer.results.crop import CroppedMask
from condinst_infer.results.instances import Instances
from condinst_infer.results.panoptic import PanopticSegmentation

CONFIG = override(
    preset("condinst_nano"),
    neck_in_levels=(2, 3, 4, 5),
    stuff_names=("sky", "sea"),
    stuff_ids=(187, 155),
    num_classes=2,
    class_names=("cat", "dog"),
    category_ids=(17, 18),
    max_detections=5,
)
SIZE = (64, 96)
RULES = replace(CONFIG.panoptic, stuff_area_limit=0)


def segmented(**changes) -> PanopticSegmentation:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    owners = changes.pop("owners", None)
    batch = BatchOutputs(
        changes.pop("outputs", outputs()), owners=None if owners is None else [owners]
    )
    options = {"config": CONFIG, "settings": RULES} | changes
    return panoptic_from_outputs(batch, 0, PlacedImage(image, SIZE, SIZE), **options)


def instances(masks: np.ndarray, image: np.ndarray | None = None) -> Instances:
    count = len(masks)
    return Instances(
        boxes=np.tile(np.array([1, 2, 11.5, 22], dtype=np.float32), (count, 1)),
        scores=np.linspace(0.9, 0.5, count, dtype=np.float32),
        labels=np.arange(count, dtype=np.int32) % 2,
        crops=[tight(mask) for mask in masks],
        image_size=(int(masks.shape[1]), int(masks.shape[2])),
        class_names=("cat", "dog"),
        category_ids=(17, 18),
        image=image,
    )


def outputs() -> dict[str, np.ndarray]:
    """Of a graph on a 64x96 canvas: slots 0 to 3 are in use, 1 has no box and 3 little score."""
    masks = np.zeros((1, 5, 16, 24), np.float32)
    masks[0, :2, 2:8, :8] = masks[0, 2, 2:8, 5:8] = masks[0, 2, 10:14, 10:20] = 1
    masks[0, 3, :, :] = 1
    boxes = np.tile(np.array([0, 0, 50, 50], np.float32), (1, 5, 1))
    boxes[0, 1, 2] = 0
    semantic = np.zeros((1, 3, 16, 24), np.float32)
    semantic[0, 1, :8] = semantic[0, 2, 8:] = semantic[0, 0, :, 20:] = 5
    semantic[0, :, 12:, 20:] = [[[9]], [[0]], [[0]]]
    semantic[0, 1, :8, 20:] = semantic[0, 2, 8:12, 20:] = 0
    return {
        "num_detections": np.array([4], np.int32),
        "boxes": boxes,
        "scores": np.array([[0.9, 0.8, 0.7, 0.4, 0]], np.float32),
        "labels": np.array([[1, 0, 0, 1, -1]], np.int32),
        "masks": masks,
        "semantic": semantic,
    }


def tight(mask: np.ndarray) -> CroppedMask:
    """The crop of a dense mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return CroppedMask(0, 0, np.zeros((0, 0), dtype=bool))
    y, x = int(rows[0]), int(columns[0])
    return CroppedMask(x, y, mask[y : rows[-1] + 1, x : columns[-1] + 1])
