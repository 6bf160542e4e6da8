"""Outputs of a panoptic model become a PanopticSegmentation."""

import numpy as np

from condinst_infer.config.model import CondInstConfig, PanopticConfig
from condinst_infer.errors import ConfigError
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.options import Filter
from condinst_infer.processing.panoptic_merge import add_stuff, owners_of_things, semantic_labels
from condinst_infer.processing.postprocess import (
    BatchOutputs,
    instances_from_outputs,
    select_slots,
)
from condinst_infer.results.crop import tight_box
from condinst_infer.results.instances import Instances
from condinst_infer.results.panoptic import PanopticSegment, PanopticSegmentation


def panoptic_from_outputs(
    batch: BatchOutputs,
    index: int,
    placed: PlacedImage,
    config: CondInstConfig,
    settings: PanopticConfig,
) -> PanopticSegmentation:
    """The panoptic segmentation of one image of a batch.

    Args:
        batch: outputs of the full graph, with semantic [N, C, h, w] or with owners of pixels.
        index, placed, config: as in `instances_from_outputs`.
        settings: `config.panoptic`, with the caller's thresholds.

    Raises:
        ConfigError: the model has no semantic branch.
        SessionError: the outputs are not finite or out of range, so the runtime is broken.
    """
    if not config.is_panoptic:
        raise ConfigError(f"{config.name} has no semantic branch; panoptic presets have one.")
    threshold = settings.instance_threshold
    instances = instances_from_outputs(batch, index, placed, config, Filter(threshold))
    if batch.owners is not None:
        k = batch.outputs["scores"].shape[1]
        numbers = select_slots(batch, index, placed, config, threshold)
        return _segmentation(batch.owners[index], k, numbers, instances, settings)
    k, numbers = len(instances), np.arange(len(instances))
    things = owners_of_things(instances.crops, placed.image_size, settings.overlap_threshold)
    labels = semantic_labels(
        batch.outputs["semantic"][index],
        net_size=placed.net_size,
        image_size=placed.image_size,
        needed=things == 0,
    )
    owners = add_stuff(things, labels, k, settings.stuff_area_limit)
    return _segmentation(owners, k, numbers, instances, settings)


def _segmentation(
    owners: np.ndarray,
    k: int,
    numbers: np.ndarray,
    instances: Instances,
    settings: PanopticConfig,
) -> PanopticSegmentation:
    """The result whose pixels belong to `owners` [H, W], as `merge` numbers them.

    Args:
        k: the number of the last instance in `owners`.
        numbers: int [len(instances)], one less than the number of each in `owners`.
    """
    places = {int(number) + 1: place for place, number in enumerate(numbers)}
    areas = np.bincount(owners.ravel(), minlength=1)
    ids = np.zeros(len(areas), np.int32)
    found = np.flatnonzero(areas[1:]) + 1
    ids[found] = np.arange(1, len(found) + 1)
    segments = []
    for owner in found.tolist():
        corner, size = (0, 0), owners.shape
        if owner <= k:
            place = places[owner]
            crop = instances.crops[place]
            corner, size = (crop.x, crop.y), crop.shape
            label = int(instances.labels[place])
            what = instances.category_ids[label], instances.names[place], True
            score = float(instances.scores[place])
        else:
            place = score = None
            stuff = owner - k - 1
            what = settings.stuff_ids[stuff], settings.stuff_names[stuff], False
        box = _box(owners, owner, corner, size)
        segments.append(
            PanopticSegment(len(segments) + 1, *what, int(areas[owner]), box, score, place)
        )
    return PanopticSegmentation(ids[owners], tuple(segments), instances, instances.image)


def _box(
    owners: np.ndarray, owner: int, corner: tuple[int, int], size: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """The box x1, y1, x2, y2 of the pixels of `owner`, all in the part at `corner` (x, y)."""
    left, top = corner
    part = owners[top : top + size[0], left : left + size[1]]
    x, y, width, height = tight_box(part == owner)
    return left + x, top + y, left + x + width, top + y + height
