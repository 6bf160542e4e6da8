"""The torch meaning of every operation between raw head outputs and masks.

Two of them, `class_nms` and `dynamic_mask_head`, become custom-domain nodes of the ONNX graph; the
same nouns name their function bodies, plugins and kernels.
"""

from condinst_infer.ops.aligned_bilinear import aligned_bilinear
from condinst_infer.ops.candidates import Candidates, places_from_locations, select_candidates
from condinst_infer.ops.class_nms import class_nms
from condinst_infer.ops.conv_at_locations import conv_at_locations
from condinst_infer.ops.dynamic_mask_head import (
    dynamic_mask_head,
    mask_logits,
    mask_logits_by_grouped_conv,
    split_params,
)

__all__ = [
    "Candidates",
    "aligned_bilinear",
    "class_nms",
    "conv_at_locations",
    "dynamic_mask_head",
    "mask_logits",
    "mask_logits_by_grouped_conv",
    "places_from_locations",
    "select_candidates",
    "split_params",
]
