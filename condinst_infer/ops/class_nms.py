"""Class-aware greedy non-maximum suppression that returns indices."""

import torch
from torch import Tensor

from condinst_infer.ops.onnx_nodes import custom_node, is_exporting


def class_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou_threshold: float,
    max_detections: int,
    runs: int = 1,
) -> tuple[Tensor, Tensor]:
    """Indices of the boxes that greedy NMS keeps, best score first.

    A box suppresses those of its own class that overlap it by more than `iou_threshold`. It stops
    at `max_detections`: later boxes can't change earlier ones. Ties go to the lower slot.

    Args:
        boxes: float32 [N, M, 4], xyxy.
        scores: float32 [N, M]; a score <= 0 is an empty slot.
        labels: int32 [N, M].
        runs: M consists of this many runs of equal length, falling within each; a kernel may merge
            them, the result does not depend on it.

    Returns:
        keep int32 [N, K], -1 in unused slots, and count int32 [N].
    """
    if is_exporting():
        attributes = {
            "iou_threshold": [iou_threshold],
            "max_detections": [max_detections],
            "runs": [runs],
        }
        batch = boxes.shape[0]
        outputs = [(torch.int32, (batch, max_detections)), (torch.int32, (batch,))]
        keep, count = custom_node("ClassNMS", (boxes, scores, labels), attributes, outputs)
        return keep, count
    x1, y1, x2, y2 = boxes.unbind(2)  # [N, M]
    areas = (x2 - x1) * (y2 - y1)
    slots = torch.arange(boxes.shape[1], device=boxes.device)
    keep = []
    for _ in range(max_detections):
        best = scores.argmax(1, keepdim=True)  # [N, 1]
        real = scores.gather(1, best) > 0
        keep.append(torch.where(real, best, -1))
        left, top = torch.maximum(x1, x1.gather(1, best)), torch.maximum(y1, y1.gather(1, best))
        right = torch.minimum(x2, x2.gather(1, best))
        bottom = torch.minimum(y2, y2.gather(1, best))
        overlap = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
        iou = overlap / (areas + areas.gather(1, best) - overlap)
        gone = (iou > iou_threshold) & (labels == labels.gather(1, best)) | (slots == best)
        scores = torch.where(gone, -1.0, scores)
    kept = torch.cat(keep, 1).int()  # [N, K]
    return kept, (kept >= 0).sum(1, dtype=torch.int32)
