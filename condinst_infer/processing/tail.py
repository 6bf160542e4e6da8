"""The tail of a network in numpy: outputs of a `detector` graph become those of a `full` graph.

It is the part that no convolution needs: NMS and mask heads. This is the readable reference;
`condinst_infer.ops` is the same in PyTorch and in the exported graph, engines/kernels on a GPU.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from condinst_infer.config.model import ABSOLUTE_SCALE, CondInstConfig, DetectConfig

# BLAS splits a product of more multiplications over threads, which takes 40 times longer while
# the runtime keeps the cores busy
_MULTIPLICATIONS = 262_144
_CELLS = 512  # of all instances at once: their layers stay in the cache


class ImageCandidates(NamedTuple):
    """M candidates of one image; a score <= 0 is an empty slot."""

    boxes: np.ndarray | None  # float32 [M, 4], xyxy in network pixels; None with mask NMS
    scores: np.ndarray  # float32 [M], class * centreness
    labels: np.ndarray  # int32 [M]
    locations: np.ndarray  # int32 [M], index into the A locations of all levels


class MaskHeads(NamedTuple):
    """Mask heads of K locations, as the controller wrote them, or of all A."""

    params: np.ndarray  # float32 or float16 [K, P]: weights of all layers, then their biases
    centres: np.ndarray  # float32 [K, 2], (x, y) in network pixels
    sizes: np.ndarray  # float32 [K], the object size that the level of the location stands for

    def at(self, locations: np.ndarray) -> "MaskHeads":
        """The mask heads of some locations, computed with as float32."""
        params, centres, sizes = (values[locations] for values in self)
        return MaskHeads(params.astype(np.float32), centres, sizes)


def full_from_detector(
    outputs: Mapping[str, np.ndarray], config: CondInstConfig
) -> dict[str, np.ndarray]:
    """The outputs of the full graph from those of the detector graph; export/README.md has both.

    Args:
        outputs: of N images on one canvas.
        config: of the model that computed them.
    """
    features = outputs["mask_features"]  # [N, C, h, w]
    n, k = len(features), config.detect.max_detections
    height, width = (config.mask_factor * side for side in features.shape[2:])
    full = {
        "num_detections": np.zeros(n, np.int32),
        "boxes": np.zeros((n, k, 4), np.float32),
        "scores": np.zeros((n, k), np.float32),
        "labels": np.full((n, k), -1, np.int32),
        "masks": np.zeros((n, k, height, width), features.dtype),
    }
    places = _places(config, (features.shape[2], features.shape[3]))
    by_masks = config.detect.nms == "mask"
    names = (f"candidate_{field}" for field in ImageCandidates._fields)
    columns = [outputs[name] if name in outputs else [None] * n for name in names]
    for i, candidates in enumerate(map(ImageCandidates._make, zip(*columns, strict=True))):
        heads = MaskHeads(outputs["params_map"][i].T, *places)
        with np.errstate(invalid="ignore"):  # of a broken network; what comes out is checked
            found = _instances(candidates, heads, features[i], config)
        count = full["num_detections"][i] = len(found["scores"])
        for name, values in found.items():
            full[name][i, :count] = values
        read = [candidates.scores]
        if by_masks:  # a mask of NaN is empty, and dropped
            real = candidates.locations[candidates.scores > 0]
            read += [heads.params[real], features[i]]
        if not all(np.isfinite(values).all() for values in read):
            full["scores"][i] = np.nan  # or the network would seem to find nothing
    return full | {name: outputs[name] for name in ("semantic",) if name in outputs}


def _places(config: CondInstConfig, cells: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Centres and sizes of `MaskHeads` for all A locations; section 3.2.

    Args:
        cells: (h, w) of the mask features.
    """
    height, width = (config.mask_feature_stride * side for side in cells)  # of the canvas
    centres, sizes = [], []
    for stride, size in zip(config.strides, config.heads.sizes_of_interest, strict=True):
        centres.append(_pixels(-(-height // stride), -(-width // stride), stride).T)
        sizes.append(np.full(len(centres[-1]), size, np.float32))
    return np.concatenate(centres), np.concatenate(sizes)


def _pixels(rows: int, columns: int, stride: int) -> np.ndarray:
    """(x, y) of the centre of every cell in network pixels, float32 [2, rows*columns]."""
    y, x = np.mgrid[:rows, :columns] * stride + stride // 2
    return np.stack([x, y]).reshape(2, -1).astype(np.float32)


def _instances(
    candidates: ImageCandidates, heads: MaskHeads, features: np.ndarray, config: CondInstConfig
) -> dict[str, np.ndarray]:
    """Outputs of the full graph for the instances of one image, best score first."""
    detect = config.detect
    if candidates.boxes is not None:
        kept = class_nms(
            candidates.boxes,
            candidates.scores,
            candidates.labels,
            iou_threshold=detect.nms_iou,
            max_detections=detect.max_detections,
        )
        scores = candidates.scores[kept]
    else:  # journal version, section 4.6: the masks of the best candidates, before upsampling
        best = _falling(candidates.scores)[: config.mask_candidates]
        masks = mask_head(features, heads.at(candidates.locations[best]), config, factor=1)
        order, scores = mask_nms(masks, candidates.scores[best], candidates.labels[best], detect)
        kept = best[order]
    masks = mask_head(
        features, heads.at(candidates.locations[kept]), config, factor=config.mask_factor
    )
    if candidates.boxes is not None:
        boxes = candidates.boxes[kept]
    else:
        boxes = boxes_from_masks(masks, config.mask.mask_stride)
    return {
        "boxes": boxes,
        "scores": np.sqrt(scores) if detect.score_root else scores,
        "labels": candidates.labels[kept],
        "masks": masks,
    }


def _falling(scores: np.ndarray) -> np.ndarray:
    """Slots of the scores above 0 from the best on; ties go to the lower slot."""
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] > 0]


def class_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    iou_threshold: float,
    max_detections: int,
) -> np.ndarray:
    """Slots that greedy NMS keeps, best score first: int [K].

    A box suppresses the later ones of its own class that overlap it by more than `iou_threshold`.
    The arguments are those of `ImageCandidates`.
    """
    order = _falling(scores)
    labels = labels[order]
    x1, y1, x2, y2 = np.ascontiguousarray(boxes[order].T)
    areas = (x2 - x1) * (y2 - y1)
    alive = np.ones(len(order), bool)
    kept: list[int] = []
    for i in range(len(order)):
        if len(kept) == max_detections:  # later boxes can't change earlier ones
            break
        if not alive[i]:
            continue
        kept.append(i)
        width = np.minimum(x2, x2[i]) - np.maximum(x1, x1[i])
        height = np.minimum(y2, y2[i]) - np.maximum(y1, y1[i])
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(invalid="ignore"):  # two boxes without area: 0 / 0 suppresses nothing
            iou = overlap / (areas + areas[i] - overlap)
        alive &= ~((iou > iou_threshold) & (labels == labels[i]))
    return order[kept]


def mask_nms(
    masks: np.ndarray, scores: np.ndarray, labels: np.ndarray, detect: DetectConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates that mask NMS keeps, best score first, and their scores: int and float32 [K].

    A mask is the cells above 0.5; a candidate without any is dropped. Only candidates of one class
    suppress each other, and only later ones.

    * "greedy": dropped if a kept one overlaps it by more than `nms_iou`.
    * "fast": dropped if any earlier one does, itself dropped or not (arXiv:1904.02689,
      section 3.3, there on boxes).
    * "matrix": the score decays by what the earlier ones overlap it, and is compared with
      `score_threshold` then (arXiv:2003.10152, section 3.2, the linear kernel).

    Args:
        masks: probabilities [C, h, w].
        scores: above 0, falling, [C].
        labels: [C].
    """
    count, rows, columns = masks.shape
    bits = _inside(masks).reshape(count, rows * columns)  # [C, h*w]
    alive = np.any(bits, axis=1)
    rivals = np.triu(labels[:, None] == labels, k=1)  # [C, C], an earlier one with a later one
    ious = np.where(rivals, _mask_ious(bits), 0)
    if detect.mask_nms == "greedy":
        close = ious > detect.nms_iou
        for i in range(count):
            alive[i] &= not (close[:, i] & alive).any()
    elif detect.mask_nms == "fast":
        alive &= (ious <= detect.nms_iou).all(axis=0)
    else:
        own = 1 - ious.max(axis=0, initial=0)[:, None]  # [C, 1], of the earlier one
        # one that another covers wholly is gone: what it overlaps, the other does too
        decay = np.divide(1 - ious, own, out=np.ones_like(ious), where=own > 0)
        scores = scores * decay.min(axis=0, initial=1)
        alive &= scores > detect.score_threshold
    kept = _falling(np.where(alive, scores, 0))[: detect.max_detections]
    return kept, scores[kept]


def _inside(masks: np.ndarray) -> np.ndarray:
    """True in the cells of each mask."""
    return masks > 0.5


def _mask_ious(bits: np.ndarray) -> np.ndarray:
    """IoU float32 [C, C] of masks bool [C, cells]; 0 where both are empty."""
    cells = bits.astype(np.float32)
    overlaps = cells @ cells.T  # whole numbers, exact below 2^24 cells
    areas = np.diag(overlaps)
    return overlaps / np.maximum(areas[:, None] + areas - overlaps, 1)


def boxes_from_masks(masks: np.ndarray, stride: int) -> np.ndarray:
    """The tight boxes of the cells above 0.5, float32 [K, 4], xyxy in network pixels.

    Args:
        masks: probabilities [K, h, w]; one without any such cell gives zeros.
        stride: network pixels per cell.
    """
    inside = _inside(masks)  # [K, h, w]
    firsts, ends = [], []
    for cells in (np.any(inside, axis=1), np.any(inside, axis=2)):  # columns, rows
        firsts.append(cells.argmax(axis=1))
        ends.append(
            np.where(np.any(cells, axis=1), cells.shape[1] - cells[:, ::-1].argmax(axis=1), 0)
        )
    return (np.stack([*firsts, *ends], axis=1) * stride).astype(np.float32)


def mask_head(
    features: np.ndarray, heads: MaskHeads, config: CondInstConfig, *, factor: int
) -> np.ndarray:
    """Mask probabilities of each instance, [K, factor*h, factor*w] in the dtype of `features`.

    The logits of `mask_logits`, upsampled by `factor`, then sigmoid.
    """
    _, rows, columns = features.shape
    logits = mask_logits(features, heads, config).reshape(-1, rows, columns)
    masks = np.empty((len(logits), factor * rows, factor * columns), features.dtype)
    for mask, logit in zip(masks, logits, strict=True):
        with np.errstate(over="ignore"):  # far outside: 1 / inf is 0
            mask[...] = 1 / (1 + np.exp(-aligned_bilinear(logit, factor)))
    return masks


def mask_logits(features: np.ndarray, heads: MaskHeads, config: CondInstConfig) -> np.ndarray:
    """Mask logits of each instance, float32 [K, h*w]; positive is foreground.

    The mask FCN head (arXiv:2003.05664, section 3.1): 1x1 convolutions with ReLU between them, on
    the coordinates of each cell and the features of the mask branch [C, h, w].
    """
    channels, rows, columns = features.shape
    features = features.reshape(channels, rows * columns).astype(np.float32)
    pixels = _pixels(rows, columns, config.mask_feature_stride)
    layers = list(_layers(heads.params, config))
    logits = np.empty((len(heads.params), rows * columns), np.float32)
    for cells in _tiles(rows * columns, config):
        x = _inputs(features[:, cells], pixels[:, cells], heads, config)
        for i, (weight, bias) in enumerate(layers):
            x = weight @ (np.maximum(x, 0) if i else x) + bias  # [K, out, cells]
        logits[:, cells] = x[:, 0]
    return logits


def _inputs(
    features: np.ndarray, pixels: np.ndarray, heads: MaskHeads, config: CondInstConfig
) -> np.ndarray:
    """Inputs of the first layer of each mask head, [K, in, cells]; sections 3.1 and 4.2.

    Args:
        features: [C, cells].
        pixels: (x, y) of the cells, [2, cells].
    """
    inputs = []
    if config.mask.coordinates == "relative":
        inputs.append((heads.centres[:, :, None] - pixels) / heads.sizes[:, None, None])
    elif config.mask.coordinates == "absolute":
        inputs.append(np.broadcast_to(pixels / ABSOLUTE_SCALE, (len(heads.sizes), *pixels.shape)))
    if config.mask.use_features:
        inputs.append(np.broadcast_to(features, (len(heads.sizes), *features.shape)))
    return np.concatenate(inputs, axis=1)


def _layers(params: np.ndarray, config: CondInstConfig) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights [K, out, in] and biases [K, out, 1] of each layer from `params` [K, P]."""
    shapes = config.mask_layers
    ends = np.cumsum([outs * ins for outs, ins in shapes] + [outs for outs, _ in shapes])
    parts = np.split(params, ends[:-1], axis=1)
    for (outs, ins), weight, bias in zip(
        shapes, parts[: len(shapes)], parts[len(shapes) :], strict=True
    ):
        yield weight.reshape(-1, outs, ins), bias[:, :, None]


def _tiles(cells: int, config: CondInstConfig) -> Iterator[slice]:
    """Runs of cells that mask heads are computed on at once."""
    step = min(_CELLS, _MULTIPLICATIONS // max(outs * ins for outs, ins in config.mask_layers))
    for start in range(0, cells, step):
        yield slice(start, start + step)


def aligned_bilinear(x: np.ndarray, factor: int) -> np.ndarray:
    """`x` [h, w] upsampled to [factor*h, factor*w].

    Output j is the linear interpolation at input coordinate `(j - factor // 2) / factor`, with the
    border cells repeated: cell i of stride s sits at pixel `s*i + s//2` on every stride.
    """
    if factor == 1:
        return x
    for _ in range(2):  # down the rows, then down the columns
        padded = np.pad(x, ((1, 1), (0, 0)), mode="edge")
        up = np.empty((len(x), factor, x.shape[1]), x.dtype)
        for phase in range(factor):  # outputs factor*i + phase
            place = 1 + (phase - factor // 2) / factor  # in `padded`, of the first of them
            low = int(place)
            a, b = padded[low : low + len(x)], padded[low + 1 : low + 1 + len(x)]
            up[:, phase] = a + (place - low) * (b - a)
        x = up.reshape(-1, x.shape[1]).T
    return x
