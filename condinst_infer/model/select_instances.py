"""Selection of the kept candidates, by the overlap of boxes or of masks."""

from collections.abc import Callable

import torch
from torch import Tensor

from condinst_infer.config.model import CondInstConfig
from condinst_infer.model.spans import span
from condinst_infer.ops import (
    CANDIDATE_MASK_HEAD,
    Candidates,
    best_candidates,
    class_nms,
    dynamic_mask_head,
    mask_nms,
)

MaskHeads = tuple[Tensor, Tensor, Tensor]  # params [N, K, P], centres [N, K, 2], sizes [N, K]
HeadsAt = Callable[[Tensor], MaskHeads]  # at locations [N, K]


def select_by_boxes(
    candidates: Candidates, heads_at: HeadsAt, config: CondInstConfig
) -> tuple[Candidates, MaskHeads, Tensor]:
    """Select by box NMS: kept candidates in K slots, mask heads, used slots int32 [N]."""
    detect, boxes = config.detect, candidates.boxes
    assert boxes is not None
    with span("ClassNMS", "class_nms"):
        keep, count = class_nms(
            boxes,
            candidates.scores,
            candidates.labels,
            iou_threshold=detect.nms_iou,
            max_detections=detect.max_detections,
            runs=len(config.strides),
        )
    index = keep.clamp(min=0).long()  # [N, K]; empty slots read candidate 0
    kept = Candidates(_rows(boxes, index), *(part.gather(1, index) for part in candidates[1:]))
    return kept, heads_at(kept.locations), count


def select_by_masks(
    candidates: Candidates,
    features: Tensor,
    heads_at: HeadsAt,
    config: CondInstConfig,
    with_flaw: Callable[..., Tensor],
) -> tuple[Candidates, MaskHeads, Tensor]:
    """Select by mask NMS, without boxes: arXiv:2102.03026, section 4.6.

    Its masks are those of the best candidates of all levels, at the stride of `features`. The
    scores are not finite where these are not: `with_flaw` is `Flaw`.
    """
    detect = config.detect
    best = best_candidates(candidates, config.mask_candidates)
    params, centres, sizes = heads_at(best.locations)
    used = (best.scores > 0).sum(1, dtype=torch.int32)
    settings = config.mask_head_settings | {"factor": 1, "node": CANDIDATE_MASK_HEAD}
    with span("CandidateMaskHead", "dynamic_mask_head"):
        masks = dynamic_mask_head(features, params, centres, sizes, used, **settings)
    with span("MaskNMS", "mask_nms"):
        keep, scores, count = mask_nms(
            masks,
            best.scores,
            best.labels,
            kind=detect.mask_nms,
            iou_threshold=detect.nms_iou,
            score_threshold=detect.score_threshold,
            max_detections=detect.max_detections,
        )
    index = keep.clamp(min=0).long()  # [N, K]; empty slots read candidate 0
    # a mask of NaN is empty, and dropped
    scores = with_flaw(scores, candidates.scores, params, features)
    kept = Candidates(None, scores, *(part.gather(1, index) for part in best[2:]))
    return kept, (_rows(params, index), _rows(centres, index), sizes.gather(1, index)), count


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows [N, K, X] of `values` [N, M, X]."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))
