"""The torch meaning of every operation between raw head outputs and masks.

Three of them, `class_nms`, `mask_nms` and `dynamic_mask_head`, become custom-domain nodes of the
ONNX graph; the same nouns name their function bodies, plugins and kernels.
"""

from condinst_infer.ops.aligned_bilinear import aligned_bilinear
from condinst_infer.ops.candidates import (
    Candidates,
    best_candidates,
    places_from_locations,
    select_candidates,
)
from condinst_infer.ops.class_nms import class_nms
from condinst_infer.ops.conv_at_locations import conv_at_locations
from condinst_infer.ops.dynamic_mask_head import (
    CANDIDATE_MASK_HEAD,
    dynamic_mask_head,
    mask_logits,
    mask_logits_by_grouped_conv,
    split_params,
)
from condinst_infer.ops.mask_nms import boxes_from_masks, mask_nms

__all__ = [
    "CANDIDATE_MASK_HEAD",
    "Candidates",
    "aligned_bilinear",
    "best_candidates",
    "boxes_from_masks",
    "class_nms",
    "conv_at_locations",
    "dynamic_mask_head",
    "mask_logits",
    "mask_logits_by_grouped_conv",
    "mask_nms",
    "places_from_locations",
    "select_candidates",
    "split_params",
]
