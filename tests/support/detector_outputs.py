"""Outputs of detector cuts, and what the package makes of them, for the examples in export."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from condinst_infer.config.class_names import classes_of
from condinst_infer.config.model import CondInstConfig
from condinst_infer.config.presets import preset
from condinst_infer.contract.metadata import Metadata
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.postprocess import BatchOutputs, instances_from_outputs
from condinst_infer.processing.tail import full_from_detector
from condinst_infer.results.instances import Instances
from tests.support.example_instances import mask_from_runs
from tests.support.nms_reference import random_scene
from tests.support.reduced_networks import VARIANTS as NETWORK_VARIANTS
from tests.support.reduced_networks import reduced_network

CANVAS = (96, 160)
NET_SIZES = ((96, 160), (69, 91), (95, 160))  # of three images on the canvas
IMAGE_SIZES = ((61, 203), (1, 89), (131, 7))  # before they were resized
# no field, though it looks like one to a search that ignores quotes
CLASS = 'a "mask_head_depth": 9, \\"nms\\": "mask"'
P2 = {"neck_in_levels": (2, 3, 4, 5), "mask_levels": (2, 3, 4, 5)}
VARIANTS: dict[str, dict[str, Any]] = {
    "nano": {},
    "factor 1, depth 1": {**P2, "mask_stride": 4, "mask_head_depth": 1},
    "factor 4, depth 2": {"mask_stride": 2, "mask_head_depth": 2},
    "depth 4, width 16": {"mask_head_depth": 4, "mask_head_width": 16},
    "absolute": {"coordinates": "absolute", "use_features": False, "score_root": False},
    "no coordinates": {"coordinates": "none"},
    "no features": {"use_features": False, "nms_iou": 0.5},
    "five instances": {"max_detections": 5},
}
NEAR = np.float32(1e-4)  # a pixel may fall on either side where its probability is so near 0.5
NETWORKS = [
    *("condinst_nano", "condinst_r50", "condinst_panoptic_r50", "condinst_rt_dla34"),
    *(name for name in NETWORK_VARIANTS if "mask NMS" not in name),
]


def variant(name: str) -> CondInstConfig:
    """A configuration with three classes."""
    names = classes_of(3) | {"class_names": (CLASS, "b", "c")}
    changes = {"max_detections": 40, **VARIANTS[name], "num_classes": 3, **names}
    return preset("condinst_nano", **changes)


def random_outputs(config: CondInstConfig, seed: int = 0) -> dict[str, Any]:
    """Outputs of a detector cut as tail.py takes them; the last of three images has no candidate.

    Some candidates have no area, some lie in the padding.
    """
    random = np.random.default_rng(seed)
    scene = random_scene(random, batch=3, slots=120, classes=3)
    scores, boxes = scene.scores, scene.boxes / 600 * np.float32(160)
    if seed:  # on a grid: equal scores, and overlaps that are exactly 0.5
        scores, boxes = np.round(scores, 2), np.round(boxes / 8) * 8
    scores[2] = -1
    # the first two overlap by exactly 0.5
    boxes[0, :2], scores[0, :2], scene.labels[0, :2] = [[4, 4, 44, 44], [4, 4, 24, 44]], 0.99, 0
    levels = [(-(-CANVAS[0] // s), -(-CANVAS[1] // s)) for s in config.strides]
    locations = sum(rows * columns for rows, columns in levels)
    cells = [side // config.mask_feature_stride for side in CANVAS]
    spread = config.mask.mask_head_width**-0.5  # logits of a few units in heads of any size
    return {
        "candidate_boxes": boxes,
        "candidate_scores": scores,
        "candidate_labels": scene.labels,
        "candidate_locations": random.integers(0, locations, (3, 120)).astype(np.int32),
        "params_map": random.normal(0, spread, (3, config.num_params, locations)).astype(
            np.float32
        ),
        "mask_features": random.normal(0, 2, (3, config.mask.mask_channels, *cells)).astype(
            np.float32
        ),
        "image_sizes": np.array(NET_SIZES, np.int32),
        "original_sizes": np.array(IMAGE_SIZES, np.int32),
        "metadata": np.array(Metadata(config=config, graph="detector").to_props()["condinst"]),
    }


class Wanted(NamedTuple):
    """What the package finds in one image, and the masks a little lower and a little higher."""

    instances: Instances
    lower: Instances
    higher: Instances


def wanted(outputs: Mapping[str, Any], config: CondInstConfig, index: int) -> Wanted:
    full = full_from_detector(outputs, config)
    net_size, image_size = (
        (int(outputs[name][index][0]), int(outputs[name][index][1]))
        for name in ("image_sizes", "original_sizes")
    )
    placed = PlacedImage(np.zeros((*image_size, 3), np.uint8), net_size, CANVAS)
    shifted = (
        BatchOutputs({**full, "masks": full["masks"] + by}) for by in (np.float32(0), -NEAR, NEAR)
    )
    return Wanted(*(instances_from_outputs(batch, index, placed, config) for batch in shifted))


def assert_same(found: list[dict[str, Any]], wanted: Wanted) -> None:
    """The same instances in the same order; `found` has each mask as `mask` or as runs."""
    instances = wanted.instances
    assert [one["label"] for one in found] == instances.labels.tolist()
    scores = np.array([one["score"] for one in found], np.float32)
    boxes = np.array([one["box"] for one in found], np.float32).reshape(-1, 4)
    np.testing.assert_array_equal(scores, instances.scores)
    np.testing.assert_array_equal(boxes, instances.boxes)
    different = pixels = 0
    for one, mask, lower, higher in zip(
        found, instances.masks, wanted.lower.masks, wanted.higher.masks, strict=True
    ):
        own = one["mask"] if "mask" in one else mask_from_runs(one["segmentation"])
        assert own.shape == mask.shape and not (lower & ~own).any() and not (own & ~higher).any()
        different, pixels = different + (own != mask).sum(), pixels + mask.size
    assert different <= max(1, pixels * 1e-6)  # measured 0


def network_outputs(name: str) -> tuple[dict[str, Any], CondInstConfig]:
    """Outputs of a reduced network's detector cut in torch, for two photographs and no instance."""
    model = reduced_network(name, max_detections=20)
    coarse = np.random.default_rng(0).integers(0, 256, (3, 12, 20, 3)).astype(np.uint8)
    images = torch.from_numpy(coarse.repeat(8, 1).repeat(8, 2))
    sizes = torch.tensor(NET_SIZES, dtype=torch.int32)
    with torch.inference_mode():
        raw = model.heads(images, sizes)
        for level in raw.class_logits:
            level[2] -= 100
        outputs = {k: v.numpy() for k, v in model.before_nms(raw, sizes).items()}
    metadata = Metadata(model.config, graph="detector").to_props()["condinst"]
    sizes_of = {"image_sizes": NET_SIZES, "original_sizes": IMAGE_SIZES}
    extra = {k: np.array(v, np.int32) for k, v in sizes_of.items()}
    return {**outputs, **extra, "metadata": np.array(metadata)}, model.config
