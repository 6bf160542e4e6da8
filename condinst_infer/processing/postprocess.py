"""Outputs of a network become Instances: filters, boxes, scores and native-size masks."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from condinst_infer.config.model import CondInstConfig, Size
from condinst_infer.errors import SessionError
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.options import Filter
from condinst_infer.processing.paste import paste
from condinst_infer.results.crop import CroppedMask, boxes_from_crops
from condinst_infer.results.instances import Instances

_LARGEST_PROBABILITY = 1.001  # with what rounding adds
_LARGEST_BITS = 0x3C01  # of float16, the number after 1


class BatchOutputs(NamedTuple):
    """Outputs of a runner for a batch of images on one canvas."""

    outputs: Mapping[str, np.ndarray]  # of the full graph; without masks where there are crops
    crops: Sequence[Sequence[CroppedMask]] | None = None  # native-size, of each image's slots
    on_device: Sequence[Mapping[str, Any]] | None = None  # see Instances.on_device
    owners: Sequence[np.ndarray] | None = None  # see `merge`; numbered by slots


def instances_from_outputs(
    batch: BatchOutputs,
    index: int,
    placed: PlacedImage,
    config: CondInstConfig,
    filter_: Filter = Filter(),  # noqa: B008 - frozen
) -> Instances:
    """The instances of one image of a batch, in original pixels, best score first.

    Args:
        batch: outputs of the full graph: num_detections [N], boxes [N, K, 4] in network pixels,
            scores [N, K], labels [N, K], masks [N, K, h, w] at the mask stride; or the masks as
            crops already.
        index: which of the N images.
        placed: the image, which is kept in the result if it is in host memory, and its sizes.
        config: of the model that computed the outputs.
        filter_: which instances to keep.

    Raises:
        SessionError: the outputs are not finite or out of range, so the runtime is broken.
    """
    size, image = placed.image_size, placed.image
    boxes, scores, labels = _used_slots(batch.outputs, index, config, placed.net_size, size)
    stride = config.mask.mask_stride
    paste_slots = partial(paste, stride=stride, net_size=placed.net_size, image_size=size)
    crops = None if batch.crops is None else batch.crops[index]
    if config.detect.nms == "mask":
        if crops is None:  # scores fall: those above the threshold come first
            count = (scores >= (filter_.score_threshold or 0)).sum()
            crops = paste_slots(batch.outputs["masks"][index][:count])
        boxes = boxes_from_crops(crops, len(scores))
    kept = _select(boxes, scores, filter_.score_threshold)
    if filter_.labels is not None:
        kept = kept[np.isin(labels[kept], filter_.labels)]
    kept = kept[: filter_.max_detections]
    if crops is None:
        masks = batch.outputs["masks"][index]
        crops = paste_slots([masks[i] for i in kept])  # views: fancy indexing copies every mask
    else:
        crops = [crops[i] for i in kept]
    return Instances(
        boxes=boxes[kept],
        scores=scores[kept],
        labels=labels[kept],
        crops=crops,
        image_size=size,
        class_names=config.class_names,
        category_ids=config.category_ids,
        image=image if isinstance(image, np.ndarray) else None,
        on_device=None if batch.on_device is None else batch.on_device[index],
    )


def select_slots(
    batch: BatchOutputs,
    index: int,
    placed: PlacedImage,
    config: CondInstConfig,
    score_threshold: float,
) -> np.ndarray:
    """The slots `instances_from_outputs` makes instances of, in order; mask NMS needs the crops."""
    boxes, scores, _ = _used_slots(batch.outputs, index, config, placed.net_size, placed.image_size)
    if config.detect.nms == "mask":
        boxes = boxes_from_crops(() if batch.crops is None else batch.crops[index], len(scores))
    return _select(boxes, scores, score_threshold)


def _select(boxes: np.ndarray, scores: np.ndarray, score_threshold: float | None) -> np.ndarray:
    """The slots with a box of some area and enough score."""
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return np.flatnonzero(keep if score_threshold is None else keep & (scores >= score_threshold))


def not_finite(what: str) -> SessionError:
    """The error of outputs, such as "masks", that hold NaN or infinity."""
    return SessionError(
        f"the model put out {what} that are not finite. "
        "Check its weights: condinst info MODEL.onnx --verify"
    )


def holds_nan(masks: np.ndarray) -> bool:
    """True if NaN or infinity is among probabilities, float32 or float16 of any shape.

    The largest is NaN where one is; of halves it is found as integers, 15 times faster.
    """
    if masks.dtype == np.float16:
        largest = masks.view(np.uint16).max(initial=0)  # bits of a negative number are larger still
        return bool(largest > _LARGEST_BITS) and not np.isfinite(masks).all()
    return not masks.max(initial=0) <= _LARGEST_PROBABILITY


def _used_slots(
    outputs: Mapping[str, np.ndarray],
    index: int,
    config: CondInstConfig,
    net_size: Size,
    image_size: Size,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Native boxes, scores and labels in the used slots of image `index`, checked."""
    count = int(outputs["num_detections"][index])
    slots = outputs["scores"].shape[1]
    if not 0 <= count <= slots:
        raise SessionError(f"the model reports {count} detections in {slots} slots.")
    boxes, scores, labels = (outputs[n][index, :count] for n in ("boxes", "scores", "labels"))
    # where a broken network finds nothing, the scores of all slots, the unused ones too, are NaN
    broken = slots and not np.isfinite(outputs["scores"][index]).any()
    if broken or not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise not_finite("boxes or scores")
    if "masks" in outputs and holds_nan(outputs["masks"][index, :count]):
        raise not_finite("masks")
    if count and not 0 <= labels.min() <= labels.max() < len(config.class_names):
        raise SessionError(
            f"the model put out labels from {labels.min()} to {labels.max()}; "
            f"it has {len(config.class_names)} classes."
        )
    (height, width), (net_height, net_width) = image_size, net_size
    ratio = np.array([width / net_width, height / net_height] * 2, dtype=np.float32)
    limit = np.array([width, height] * 2, dtype=np.float32)
    return np.clip(boxes * ratio, 0, limit), scores, labels
