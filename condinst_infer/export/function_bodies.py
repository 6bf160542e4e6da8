"""Function bodies of the custom-domain nodes, in standard ONNX operations.

A runtime without the plugin runs these. They are written for one config, because a body can't
branch on attributes; a test compares body, attributes and the torch meaning in `ops`.
"""

from collections.abc import Iterable

import onnx

from condinst_infer.config.model import CondInstConfig
from condinst_infer.export.dynamic_mask_head import candidate_mask_head, dynamic_mask_head
from condinst_infer.export.mask_nms import mask_nms
from condinst_infer.export.unrolled_class_nms import unrolled_class_nms
from condinst_infer.ops.onnx_nodes import DOMAIN

OPSET = 19

# a step keeps one box of each image; after the last box of the fullest image the loop ends. Boxes
# without area count as tiny: the 0 / 0 of two of them is NaN, which OpenVINO takes for greater
_CLASS_NMS = """
ClassNMS <iou_threshold, max_detections, runs, plugin_namespace, aot>
(boxes, scores, labels) => (keep, count)
{{
  four = Constant <value = int64[4] {{1, 1, 1, 1}}> ()
  x1, y1, x2, y2 = Split <axis = 2> (boxes, four)
  last = Constant <value = int64[1] {{2}}> ()
  left = Squeeze (x1, last)
  top = Squeeze (y1, last)
  right = Squeeze (x2, last)
  bottom = Squeeze (y2, last)
  width = Sub (right, left)
  height = Sub (bottom, top)
  raw_area = Mul (width, height)
  tiny = Constant <value = float {{1e-30}}> ()
  area = Max (raw_area, tiny)
  zero_axis = Constant <value = int64[1] {{0}}> ()
  one = Constant <value = int64[1] {{1}}> ()
  shape = Shape (scores)
  slots_shape = Gather <axis = 0> (shape, one)
  slots_end = Squeeze (slots_shape)
  zero_int = Constant <value_int: int = 0> ()
  one_int = Constant <value_int: int = 1> ()
  slots = Range (zero_int, slots_end, one_int)
  nothing = Constant <value_int: int = -1> ()
  zero = Constant <value = float {{0}}> ()
  gone_score = Constant <value = float {{-1}}> ()
  threshold = Constant <value = float {{{iou_threshold}}}> ()
  steps = Constant <value_int: int = {max_detections}> ()
  true = Cast <to = 9> (one_int)
  batch = Shape <start = 0, end = 1> (scores)
  steps_shape = Unsqueeze (steps, zero_axis)
  keep_shape = Concat <axis = 0> (batch, steps_shape)
  none_kept = Expand (nothing, keep_shape)
  kept_slots = Range (zero_int, steps, one_int)
  scores_left, keep_64 = Loop (steps, true, scores, none_kept) <body = step
    (int64 i, bool go, float[n, m] alive, int64[n, k] kept)
    => (bool go_on, float[n, m] still_alive, int64[n, k] still_kept)
    {{
      best = ArgMax <axis = 1, keepdims = 1> (alive)
      best_score = GatherElements <axis = 1> (alive, best)
      real = Greater (best_score, zero)
      here = Equal (kept_slots, i)
      taken = And (here, real)
      still_kept = Where (taken, best, kept)
      best_left = GatherElements <axis = 1> (left, best)
      best_top = GatherElements <axis = 1> (top, best)
      best_right = GatherElements <axis = 1> (right, best)
      best_bottom = GatherElements <axis = 1> (bottom, best)
      best_area = GatherElements <axis = 1> (area, best)
      best_label = GatherElements <axis = 1> (labels, best)
      inner_left = Max (left, best_left)
      inner_top = Max (top, best_top)
      inner_right = Min (right, best_right)
      inner_bottom = Min (bottom, best_bottom)
      inner_w = Sub (inner_right, inner_left)
      inner_h = Sub (inner_bottom, inner_top)
      clamped_w = Max (inner_w, zero)
      clamped_h = Max (inner_h, zero)
      overlap = Mul (clamped_w, clamped_h)
      both = Add (area, best_area)
      union = Sub (both, overlap)
      iou = Div (overlap, union)
      close = Greater (iou, threshold)
      same = Equal (labels, best_label)
      suppressed = And (close, same)
      self = Equal (slots, best)
      gone = Or (suppressed, self)
      still_alive = Where (gone, gone_score, alive)
      most = ReduceMax <keepdims = 0> (best_score)
      go_on = Greater (most, zero)
    }}>
  keep = Cast <to = 6> (keep_64)
  zero_32 = Cast <to = 6> (zero_int)
  is_kept = GreaterOrEqual (keep, zero_32)
  kept_32 = Cast <to = 6> (is_kept)
  count = ReduceSum <keepdims = 0> (kept_32, one)
}}
"""


def functions(
    config: CondInstConfig, *, static_batch: int | None = None
) -> list[onnx.FunctionProto]:
    """The bodies of NMS and `DynamicMaskHead` for `config`.

    NMS is `ClassNMS`, or `CandidateMaskHead` and `MaskNMS` where it goes by masks.

    Args:
        static_batch: images per run of bodies without Loop and If; None gives bodies that take any.
    """
    loop_free = static_batch is not None
    texts = [dynamic_mask_head(config, loop_free=loop_free)]
    if config.detect.nms == "mask":
        texts += [candidate_mask_head(config, loop_free=loop_free), mask_nms(config, static_batch)]
    elif static_batch is not None:
        texts.append(unrolled_class_nms(config, static_batch))
    else:
        texts.append(
            _CLASS_NMS.format(
                iou_threshold=f"{config.detect.nms_iou:.9g}",
                max_detections=config.detect.max_detections,
            )
        )
    opsets = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>'
    bodies = [onnx.parser.parse_function(f"{opsets}\n{text}") for text in texts]
    for body in bodies:
        _name(body.node, body.name)
    return bodies


def _name(nodes: Iterable[onnx.NodeProto], body: str) -> None:
    """Name each node, also those inside of others, after its body and its first output."""
    for node in nodes:
        node.name = f"{body}/{node.output[0]}"
        for attribute in node.attribute:
            _name(attribute.g.node, body)
