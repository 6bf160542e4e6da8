"""Function body of `ClassNMS` without a loop: as many steps, one after the other, as slots."""

from condinst_infer.config.model import CondInstConfig

# the corners and the label, each with its negative, so that one Max gives both inner corners: what
# a side and its negative add up to is minus the width, minus the height, and -1 in the same class.
# Their product is minus the overlap. The IoU is positive again: MNN orders negative ones wrongly.
_START = """
ClassNMS <iou_threshold, max_detections, runs, plugin_namespace, aot>
(boxes, scores, labels) => (keep, count)
{{
  i0 = Constant <value = int64[1] {{0}}> ()
  i1 = Constant <value = int64[1] {{1}}> ()
  i2 = Constant <value = int64[1] {{2}}> ()
  minus_i1 = Constant <value = int64[1] {{-1}}> ()
  zero_int = Constant <value_int: int = 0> ()
  one_int = Constant <value_int: int = 1> ()
  nothing = Constant <value_int: int = -1> ()
  zero = Constant <value = float {{0}}> ()
  one = Constant <value = float {{1}}> ()
  tiny = Constant <value = float {{1e-30}}> ()
  gone_score = Constant <value = float {{-1}}> ()
  threshold = Constant <value = float {{{iou_threshold}}}> ()
  four = Constant <value = int64[4] {{1, 1, 1, 1}}> ()
  six = Constant <value = int64[1] {{6}}> ()
  halves = Constant <value = int64[2] {{3, 3}}> ()
  x1, y1, x2, y2 = Split <axis = 2> (boxes, four)
  left = Squeeze (x1, i2)
  top = Squeeze (y1, i2)
  right = Squeeze (x2, i2)
  bottom = Squeeze (y2, i2)
  width = Sub (right, left)
  height = Sub (bottom, top)
  raw_area = Mul (width, height)
  area = Max (raw_area, tiny)
  minus_area = Neg (area)
  label = Cast <to = 1> (labels)
  minus_right = Neg (right)
  minus_bottom = Neg (bottom)
  minus_label = Neg (label)
  below_label = Sub (minus_label, one)
  left3 = Unsqueeze (left, i0)
  top3 = Unsqueeze (top, i0)
  label3 = Unsqueeze (label, i0)
  right3 = Unsqueeze (minus_right, i0)
  bottom3 = Unsqueeze (minus_bottom, i0)
  below3 = Unsqueeze (below_label, i0)
  sides = Concat <axis = 0> (left3, top3, label3, right3, bottom3, below3)
  sides_shape = Concat <axis = 0> (six, minus_i1)
  all_sides = Reshape (sides, sides_shape)
  minus_areas = Reshape (minus_area, minus_i1)
  slots_shape = Shape <start = 1, end = 2> (scores)
  slots_end = Squeeze (slots_shape)
  slots = Range (zero_int, slots_end, one_int)
  alive0 = Identity (scores)
"""
_OF_IMAGES = """
  images_end = Constant <value_int: int = {batch}> ()
  images = Range (zero_int, images_end, one_int)
  first_slots = Mul (images, slots_end)
  first_slot = Unsqueeze (first_slots, i1)
"""
_BEST = """
  best{i} = ArgMax <axis = 1, keepdims = 1> (alive{i})
  score{i} = ReduceMax <keepdims = 1> (alive{i}, i1)
"""
_NEXT = """
  at{i} = {at}
  best_sides{i} = Gather <axis = 1> (all_sides, at{i})
  inner{i} = Max (sides, best_sides{i})
  low{i}, high{i} = Split <axis = 0> (inner{i}, halves)
  extent{i} = Add (low{i}, high{i})
  shared{i} = Min (extent{i}, zero)
  minus_overlap{i} = ReduceProd <keepdims = 0> (shared{i}, i0)
  best_minus_area{i} = Gather <axis = 0> (minus_areas, at{i})
  minus_both{i} = Add (minus_area, best_minus_area{i})
  minus_union{i} = Sub (minus_both{i}, minus_overlap{i})
  iou{i} = Div (minus_overlap{i}, minus_union{i})
  close{i} = Greater (iou{i}, threshold)
  self{i} = Equal (slots, best{i})
  gone{i} = Or (close{i}, self{i})
  alive{next} = Where (gone{i}, gone_score, alive{i})
"""
_END = """
  best = Concat <axis = 1> ({best})
  best_score = Concat <axis = 1> ({score})
  real = Greater (best_score, zero)
  keep_64 = Where (real, best, nothing)
  keep = Cast <to = 6> (keep_64)
  real_32 = Cast <to = 6> (real)
  count = ReduceSum <keepdims = 0> (real_32, i1)
}}
"""


def unrolled_class_nms(config: CondInstConfig, batch: int) -> str:
    """Text of the body for `config` and `batch` images: what the loop keeps, tie for tie."""
    detect, steps = config.detect, range(config.detect.max_detections)
    parts = [_START.format(iou_threshold=f"{detect.nms_iou:.9g}")]
    if batch > 1:
        parts.append(_OF_IMAGES.format(batch=batch))
    for i in steps:
        at = f"Add (best{i}, first_slot)" if batch > 1 else f"Identity (best{i})"
        parts.append(_BEST.format(i=i))
        if i < steps[-1]:
            parts.append(_NEXT.format(i=i, at=at, next=i + 1))
    names = {name: ", ".join(f"{name}{i}" for i in steps) for name in ("best", "score")}
    return "".join([*parts, _END.format(**names)])
