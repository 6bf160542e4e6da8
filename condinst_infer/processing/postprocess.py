"""From a network's outputs to an Instances: score and class filters, boxes, native-size masks."""

import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from condinst_infer.config.model import CondInstConfig, Size
from condinst_infer.errors import ConfigError, SessionError
from condinst_infer.processing.paste import paste
from condinst_infer.results.crop import CroppedMask, boxes_from_crops
from condinst_infer.results.instances import Instances

Classes = int | str | Sequence[int | str]


class Found(NamedTuple):
    """What a runner made of a batch of images on one canvas."""

    outputs: Mapping[str, np.ndarray]  # of the full graph; without masks where there are crops
    crops: Sequence[Sequence[CroppedMask]] | None = None  # native-size, of each image's slots
    on_device: Sequence[Mapping[str, Any]] | None = None  # see Instances.on_device
    owners: Sequence[np.ndarray] | None = None  # see `merge`; of slots


def instances_from_outputs(
    outputs: Mapping[str, np.ndarray],
    index: int,
    *,
    net_size: Size,
    image: Any,
    config: CondInstConfig,
    crops: Sequence[CroppedMask] | None = None,
    on_device: Mapping[str, Any] | None = None,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    classes: Classes | None = None,
) -> Instances:
    """The instances of one image of a batch, in original pixels, best score first.

    Args:
        outputs: of the full graph: num_detections [N], boxes [N, K, 4] in network pixels, scores
            [N, K], labels [N, K], masks [N, K, h, w] at the mask stride.
        index: which of the N images.
        net_size: (height, width) of its network image without padding.
        image: the original, BGR uint8 [H, W, 3]; kept in the result if in host memory, not copied.
        config: of the model that computed the outputs.
        crops: native-size masks of the used slots; None makes them of `masks`.
        on_device: for the field of this name.
        score_threshold: lowest reported score to keep; None keeps all.
        max_detections: how many of the survivors to keep; None keeps all.
        classes: class indices or names to keep; None keeps all.

    Raises:
        ConfigError: an option is out of range or below what the model reports.
        SessionError: the outputs are not finite or out of range, so the runtime is broken.
    """
    check_options(config, score_threshold, max_detections)
    size = (image.shape[0], image.shape[1])
    boxes, scores, labels = _slots(outputs, index, config, net_size, size)
    pasted = partial(paste, stride=config.mask.mask_stride, net_size=net_size, image_size=size)
    if config.detect.nms == "mask":
        if crops is None:  # scores fall: those above the threshold come first
            crops = pasted(outputs["masks"][index][: (scores >= (score_threshold or 0)).sum()])
        boxes = boxes_from_crops(crops, len(scores))
    kept = _kept(boxes, scores, score_threshold)
    if classes is not None:
        kept = kept[np.isin(labels[kept], labels_from_classes(classes, config.class_names))]
    kept = kept[:max_detections]
    if crops is None:
        masks = outputs["masks"][index]
        crops = pasted([masks[i] for i in kept])  # views: fancy indexing would copy every mask
    else:
        crops = [crops[i] for i in kept]
    return Instances(
        boxes=boxes[kept],
        scores=scores[kept],
        labels=labels[kept],
        names=tuple(config.class_names[i] for i in labels[kept]),
        crops=crops,
        image_size=size,
        category_ids=config.category_ids,
        image=image if isinstance(image, np.ndarray) else None,
        on_device=on_device,
    )


def kept_slots(
    outputs: Mapping[str, np.ndarray],
    index: int,
    *,
    net_size: Size,
    image_size: Size,
    config: CondInstConfig,
    score_threshold: float,
    crops: Sequence[CroppedMask] = (),
) -> np.ndarray:
    """The slots `instances_from_outputs` makes instances of, in order; mask NMS needs the crops."""
    boxes, scores, _ = _slots(outputs, index, config, net_size, image_size)
    if config.detect.nms == "mask":
        boxes = boxes_from_crops(crops, len(scores))
    return _kept(boxes, scores, score_threshold)


def _kept(boxes: np.ndarray, scores: np.ndarray, score_threshold: float | None) -> np.ndarray:
    """The slots with a box of some area and enough score."""
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return np.flatnonzero(keep if score_threshold is None else keep & (scores >= score_threshold))


def check_options(
    config: CondInstConfig, score_threshold: float | None, max_detections: int | None
) -> None:
    """ConfigError for a score threshold or a count that this model can't honour."""
    if score_threshold is not None:
        if not 0 <= score_threshold <= 1:  # also refuses NaN
            raise ConfigError(f"score_threshold is {score_threshold}; it must be from 0 to 1.")
        floor = config.reported_floor
        if score_threshold < floor - 1e-6:  # a floor copied from a message has six digits
            raise ConfigError(
                f"score_threshold {score_threshold} is below {floor:.6f}, the lowest score this "
                "model reports. Export it again with a lower --score-threshold: "
                "condinst export MODEL.safetensors -o MODEL.onnx --score-threshold T"
            )
    whole = isinstance(max_detections, (int, np.integer))
    if max_detections is not None and (not whole or max_detections < 1):
        raise ConfigError(f"max_detections is {max_detections}; it must be a whole number >= 1.")


def labels_from_classes(classes: Classes, class_names: Sequence[str]) -> list[int]:
    """Class indices for `classes`, each an index or a name; ConfigError for an unknown one."""
    labels = []
    for item in [classes] if isinstance(classes, (int, str)) else classes:
        if isinstance(item, str):
            found = [i for i, name in enumerate(class_names) if name == item]
            if not found:
                near = difflib.get_close_matches(item, class_names, 3)
                hint = f"; did you mean {' or '.join(near)}?" if near else "."
                raise ConfigError(f"this model has no class {item!r}{hint}")
            labels += found
        elif 0 <= item < len(class_names):
            labels.append(int(item))
        else:
            raise ConfigError(
                f"this model has no class {item}; indices go from 0 to {len(class_names) - 1}."
            )
    return labels


def _slots(
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
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise SessionError(
            "the model put out boxes or scores that are not finite. "
            "Compare the file with its checkpoint: condinst compare MODEL.safetensors MODEL.onnx"
        )
    if count and not 0 <= labels.min() <= labels.max() < len(config.class_names):
        raise SessionError(
            f"the model put out labels from {labels.min()} to {labels.max()}; "
            f"it has {len(config.class_names)} classes."
        )
    (height, width), (net_height, net_width) = image_size, net_size
    ratio = np.array([width / net_width, height / net_height] * 2, dtype=np.float32)
    limit = np.array([width, height] * 2, dtype=np.float32)
    return np.clip(boxes * ratio, 0, limit), scores, labels
