"""From a network's outputs to an Instances: score and class filters, boxes, native-size masks."""

import difflib
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import cv2
import numpy as np

from condinst_infer.config.model import CondInstConfig
from condinst_infer.crop import CroppedMask, boxes_from_crops
from condinst_infer.errors import ConfigError, SessionError
from condinst_infer.result import Instances

Size = tuple[int, int]  # (height, width)
Classes = int | str | Sequence[int | str]

# Bounds of one product. Longer steps multiply mostly zeros; more results at once and BLAS splits
# them over threads, which takes 50 times longer while another library keeps the cores busy.
_ROWS_AT_ONCE, _COLUMNS_AT_ONCE, _RESULTS_AT_ONCE = 24, 64, 16_384
_HALF_BITS = 0x3800  # 0.5 in float16
_HALF = np.float32(0.5)


def paste(
    masks: np.ndarray | Sequence[np.ndarray], *, stride: int, net_size: Size, image_size: Size
) -> list[CroppedMask]:
    """Native-size masks of instances, each cut out tightly.

    Equal to: aligned-bilinear upsampling by `stride`, crop to `net_size`, half-pixel bilinear to
    `image_size`, > 0.5. All steps before the last are linear and act on each axis alone, so they
    are one banded matrix per axis, and a pixel can exceed 0.5 only where a cell it reads does.

    Args:
        masks: probabilities of the padded canvas, float32 or float16 [K, h, w]; K may be 0.
        stride: network pixels per mask cell.
        net_size: (height, width) of the network image without padding.
        image_size: (height, width) of the original image.

    Returns:
        K crops in original pixels.
    """
    return [_pasted(mask, stride, net_size, image_size) for mask in masks]


def _pasted(mask: np.ndarray, stride: int, net_size: Size, image_size: Size) -> CroppedMask:
    """One mask [h, w] of `paste`."""
    if mask.dtype == np.float16:  # as integers, positive halves keep their order: 15 times faster
        above = mask.view(np.int16) > _HALF_BITS
    else:
        above = mask > _HALF
    left, top, width, height = cv2.boundingRect(above.view(np.uint8))
    if not width:
        return _EMPTY
    rows = _axis(mask.shape[0], stride, net_size[0], image_size[0])
    columns = _axis(mask.shape[1], stride, net_size[1], image_size[1])
    y0, y1 = rows.first_output[top], rows.stop_output[top + height - 1]
    x0, x1 = columns.first_output[left], columns.stop_output[left + width - 1]
    if y0 >= y1 or x0 >= x1:  # all of it lies in the padding
        return _EMPTY
    r0, r1 = rows.first_cell[y0], rows.stop_cell[y1 - 1]
    cells = mask[r0:r1].astype(np.float32, copy=False)
    inside = _down(_across(cells, columns, x0, x1), rows, y0, y1) > _HALF
    x, y, width, height = cv2.boundingRect(inside.view(np.uint8))
    if not width:
        return _EMPTY
    return CroppedMask(x0 + x, y0 + y, inside[y : y + height, x : x + width])


def _across(cells: np.ndarray, columns: "_Axis", x0: int, x1: int) -> np.ndarray:
    """Output columns x0 to x1 of mask rows `cells` [r, w]."""
    if x1 - x0 <= _COLUMNS_AT_ONCE:
        c0, c1 = columns.first_cell[x0], columns.stop_cell[x1 - 1]
        return cells[:, c0:c1] @ columns.transposed[c0:c1, x0:x1]
    wide = np.empty((len(cells), x1 - x0), dtype=np.float32)
    step = max(1, min(_COLUMNS_AT_ONCE, _RESULTS_AT_ONCE // len(cells)))
    for a in range(x0, x1, step):
        b = min(a + step, x1)
        c0, c1 = columns.first_cell[a], columns.stop_cell[b - 1]
        np.matmul(cells[:, c0:c1], columns.transposed[c0:c1, a:b], out=wide[:, a - x0 : b - x0])
    return wide


def _down(wide: np.ndarray, rows: "_Axis", y0: int, y1: int) -> np.ndarray:
    """Output rows y0 to y1 of `wide` [r, x1 - x0], whose first row is the first cell they read."""
    r0, width = rows.first_cell[y0], wide.shape[1]
    step = max(1, min(_ROWS_AT_ONCE, _RESULTS_AT_ONCE // width))
    if y1 - y0 <= step:
        return rows.weights[y0:y1, r0 : r0 + len(wide)] @ wide
    native = np.empty((y1 - y0, width), dtype=np.float32)
    for a in range(y0, y1, step):
        b = min(a + step, y1)
        c0, c1 = rows.first_cell[a], rows.stop_cell[b - 1]
        np.matmul(rows.weights[a:b, c0:c1], wide[c0 - r0 : c1 - r0], out=native[a - y0 : b - y0])
    return native


_EMPTY = CroppedMask(0, 0, np.zeros((0, 0), dtype=bool))


class _Axis(NamedTuple):
    """Mask cells to original pixels along one axis."""

    weights: np.ndarray  # float32 [outputs, cells], two neighbouring non-zeros per row
    transposed: np.ndarray  # the same, contiguous [cells, outputs]: a third faster to multiply by
    first_cell: list[int]  # per output: the cells it reads
    stop_cell: list[int]
    first_output: list[int]  # per cell: the outputs that read it
    stop_output: list[int]


@lru_cache(maxsize=32)
def _axis(cells: int, stride: int, net: int, outputs: int) -> _Axis:
    """The operator from `cells` mask cells through `net` network pixels to `outputs` pixels."""
    # Positions are rounded as float32 does: the reference computes them so, and at pixel 1000
    # the rounding moves a mask by more than 1e-5.
    scale = np.float32(net) / np.float32(outputs)
    pixel = (np.arange(outputs, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    pixel = np.clip(pixel, np.float32(0), np.float32(net - 1))
    # The upsampled mask is linear between network pixels (cell centres lie on them), so reading
    # it between two of them is reading the small mask once.
    cell = np.clip((pixel - np.float32(stride // 2)) / np.float32(stride), 0, cells - 1)
    low = cell.astype(np.intp)
    high = np.minimum(low + 1, cells - 1)
    part = cell - low
    weights = np.zeros((outputs, cells), dtype=np.float32)
    np.add.at(weights, (np.arange(outputs), low), 1 - part)
    np.add.at(weights, (np.arange(outputs), high), part)
    first, stop, every = low, high + 1, np.arange(cells)
    return _Axis(
        weights,
        np.ascontiguousarray(weights.T),
        first.tolist(),
        stop.tolist(),
        np.searchsorted(stop, every, side="right").tolist(),
        np.searchsorted(first, every, side="right").tolist(),
    )


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
