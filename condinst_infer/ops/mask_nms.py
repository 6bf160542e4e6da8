"""Non-maximum suppression by the overlap of masks, and the boxes that masks fill."""

import torch
from torch import Tensor
from torch.nn import functional

from condinst_infer.config.validation import CHOICES
from condinst_infer.ops.onnx_nodes import custom_node, is_exporting

KINDS = CHOICES["mask_nms"]  # the node's attribute is the index


def mask_nms(
    masks: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    kind: str,
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices and scores of the candidates that mask NMS keeps, best score first.

    A mask is the cells above 0.5; a candidate without any is dropped. Only candidates of one class
    suppress each other, and only later ones: ties go to the lower slot.

    * "greedy": dropped if a kept one overlaps it by more than `iou_threshold`.
    * "fast": dropped if any earlier one does, itself dropped or not (arXiv:1904.02689,
      section 3.3, there on boxes).
    * "matrix": nothing but a score is decided: it is multiplied by the least (1 - IoU with an
      earlier one) / (1 - that one's own largest IoU with those before it), and dropped unless
      above `score_threshold` then (arXiv:2003.10152, section 3.2, the linear kernel).

    Args:
        masks: probabilities, [N, C, h, w].
        scores: float32 [N, C], falling; a score <= 0 is an empty slot.
        labels: int32 [N, C].

    Returns:
        keep int32 [N, K], -1 in unused slots; their scores float32 [N, K], 0 in unused slots; and
        count int32 [N].
    """
    if is_exporting():
        attributes = {
            "kind": [KINDS.index(kind)],
            "iou_threshold": [iou_threshold],
            "score_threshold": [score_threshold],
            "max_detections": [max_detections],
        }
        slots = (masks.shape[0], max_detections)
        outputs = [(torch.int32, slots), (torch.float32, slots), (torch.int32, slots[:1])]
        # no plugin: it is no single launch, so TensorRT takes the function body too
        keep, kept, count = custom_node(
            "MaskNMS", (masks, scores, labels), attributes, outputs, plugin=False
        )
        return keep, kept, count
    bits = (masks > 0.5).flatten(2)  # [N, C, h*w]
    alive = (scores > 0) & bits.any(2)
    slots = torch.arange(scores.shape[1], device=scores.device)
    rivals = (labels[:, :, None] == labels[:, None]) & (slots[:, None] < slots)
    ious = torch.where(rivals, _mask_ious(bits), 0.0)  # [N, C, C], an earlier one with a later one
    if kind == "greedy":
        close = ious > iou_threshold
        for slot in slots.tolist():
            alive[:, slot] &= ~(close[:, :, slot] & alive).any(1)
    elif kind == "fast":
        alive &= (ious <= iou_threshold).all(1)
    else:
        own = 1 - ious.amax(1)[:, :, None]  # [N, C, 1]
        # one that another covers wholly is gone: what it overlaps, the other does too
        decay = torch.where(own > 0, (1 - ious) / own, 1.0).amin(1).clamp(max=1)
        scores = scores * decay
        alive &= scores > score_threshold
    scores = functional.pad(torch.where(alive, scores, -1.0), (0, max_detections), value=-1.0)
    kept, keep = (
        found[:, :max_detections] for found in scores.sort(dim=1, descending=True, stable=True)
    )
    real = kept > 0
    keep = torch.where(real, keep, -1).int()
    return keep, torch.where(real, kept, 0.0), real.sum(1, dtype=torch.int32)


def _mask_ious(bits: Tensor) -> Tensor:
    """IoU [N, C, C] of masks bool [N, C, cells]; 0 where both are empty."""
    cells = bits.float()
    overlaps = cells @ cells.transpose(1, 2)  # whole numbers, exact below 2^24 cells
    areas = cells.sum(2)
    return overlaps / (areas[:, :, None] + areas[:, None] - overlaps).clamp(min=1)


def boxes_from_masks(masks: Tensor, stride: int) -> Tensor:
    """The tight boxes of the cells above 0.5, float32 [N, K, 4], xyxy in network pixels.

    Args:
        masks: probabilities, [N, K, h, w]; one without any such cell gives zeros.
        stride: network pixels per cell.
    """
    firsts, ends = [], []
    for length, inside in zip(masks.shape[:1:-1], (masks.amax(2), masks.amax(3)), strict=True):
        cells = torch.arange(length, device=masks.device)
        firsts.append(torch.where(inside > 0.5, cells, length).amin(2))  # [N, K]
        ends.append(torch.where(inside > 0.5, cells + 1, 0).amax(2))
    boxes = torch.stack([*firsts, *ends], 2)
    return torch.where(boxes[:, :, 2:3] > 0, boxes * stride, 0).float()
