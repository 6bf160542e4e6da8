"""Function body of `MaskNMS`: the steps of `ops.mask_nms` in standard operations.

Every runtime takes it, TensorRT too: the kernels of engines/kernels/mask_nms.cu are several
launches, and a plugin is one.
"""

from condinst_infer.config.model import CondInstConfig

_OVERLAPS = """
MaskNMS <kind, iou_threshold, score_threshold, max_detections>
(masks, scores, labels) => (keep, kept_scores, count)
{{
  zero = Constant <value = float {{0}}> ()
  half = Constant <value = float {{0.5}}> ()
  one = Constant <value = float {{1}}> ()
  gone = Constant <value = float {{-1}}> ()
  i1 = Constant <value = int64[1] {{1}}> ()
  i2 = Constant <value = int64[1] {{2}}> ()
  zero_int = Constant <value_int: int = 0> ()
  one_int = Constant <value_int: int = 1> ()
  nothing = Constant <value_int: int = -1> ()
  iou_limit = Constant <value = float {{{iou_threshold}}}> ()
  score_limit = Constant <value = float {{{score_threshold}}}> ()
  masks32 = Cast <to = 1> (masks)
  inside = Greater (masks32, half)
  inside32 = Cast <to = 1> (inside)
  flat = Constant <value = int64[3] {{0, 0, -1}}> ()
  bits = Reshape (inside32, flat)
  transposed = Transpose <perm = [0, 2, 1]> (bits)
  overlaps = MatMul (bits, transposed)
  areas = ReduceSum <keepdims = 0> (bits, i2)
  row_areas = Unsqueeze (areas, i2)
  column_areas = Unsqueeze (areas, i1)
  both = Add (row_areas, column_areas)
  unions = Sub (both, overlaps)
  solid_unions = Max (unions, one)
  all_ious = Div (overlaps, solid_unions)
  shape = Shape (scores)
  slots_shape = Gather <axis = 0> (shape, i1)
  end = Squeeze (slots_shape)
  slots = Range (zero_int, end, one_int)
  earlier = Unsqueeze (slots, i1)
  ordered = Less (earlier, slots)
  row_labels = Unsqueeze (labels, i2)
  column_labels = Unsqueeze (labels, i1)
  same = Equal (row_labels, column_labels)
  rivals = And (ordered, same)
  ious = Where (rivals, all_ious, zero)
  scored = Greater (scores, zero)
  solid = Greater (areas, zero)
  real = And (scored, solid)
"""  # ious [N, C, C]: of an earlier candidate, a row, with a later one of its class, a column

# all at once, from what survived the round before: a candidate is decided for good one round after
# the last that could suppress it, so what a round leaves as it was is what greedy NMS keeps
_GREEDY = """
  close = Greater (ious, iou_limit)
  close32 = Cast <to = 1> (close)
  real32 = Cast <to = 1> (real)
  true = Cast <to = 9> (one_int)
  rounds = Add (end, one_int)
  alive32 = Loop (rounds, true, real32) <body = round
    (int64 i, bool go, float[n, m] before) => (bool go_on, float[n, m] after)
    {{
      row = Unsqueeze (before, i1)
      suppressors3 = MatMul (row, close32)
      suppressors = Squeeze (suppressors3, i1)
      free = Less (suppressors, half)
      free32 = Cast <to = 1> (free)
      after = Mul (free32, real32)
      changes = Sub (before, after)
      changed = Abs (changes)
      most_changed = ReduceMax <keepdims = 0> (changed)
      go_on = Greater (most_changed, half)
    }}>
  alive = Greater (alive32, half)
"""

_FAST = """
  worst = ReduceMax <keepdims = 0> (ious, i1)
  free = LessOrEqual (worst, iou_limit)
  alive = And (real, free)
"""

_MATRIX = """
  own_most = ReduceMax <keepdims = 0> (ious, i1)
  own_left = Sub (one, own_most)
  own = Unsqueeze (own_left, i2)
  left = Sub (one, ious)
  covered = LessOrEqual (own, zero)
  divisor = Where (covered, one, own)
  ratios = Div (left, divisor)
  decays = Where (covered, one, ratios)
  least = ReduceMin <keepdims = 0> (decays, i1)
  decay = Min (least, one)
  decayed = Mul (scores, decay)
  above = Greater (decayed, score_limit)
  alive = And (real, above)
  alive_scores = Where (alive, decayed, gone)
  row_scores = Unsqueeze (alive_scores, i2)
  column_scores = Unsqueeze (alive_scores, i1)
  better = Greater (row_scores, column_scores)
  tied = Equal (row_scores, column_scores)
  first_tied = And (tied, ordered)
  ahead = Or (better, first_tied)
  ahead64 = Cast <to = 7> (ahead)
  ranks = ReduceSum <keepdims = 0> (ahead64, i1)
"""

# no two keys are equal, for not every runtime's TopK breaks ties by slot; and there are never fewer
# than it is asked for
_BEST = """
  end32 = Cast <to = 1> (end)
  ranks32 = Cast <to = 1> ({ranks})
  all_keys = Sub (end32, ranks32)
  keys = Where (alive, all_keys, gone)
  most = Constant <value = int64[1] {{{max_detections}}}> ()
  batch = Shape <start = 0, end = 1> (scores)
  more_shape = Concat <axis = 0> (batch, most)
  more = Expand (gone, more_shape)
  enough = Concat <axis = 1> (keys, more)
  best_keys, best_slots = TopK <axis = 1> (enough, most)
"""

_KEPT = """
  found = Greater (best_keys, zero)
  kept_slots = Where (found, best_slots, zero_int)
  slot_scores = GatherElements <axis = 1> ({scores}, kept_slots)
  kept_scores = Where (found, slot_scores, zero)
  keep64 = Where (found, best_slots, nothing)
  keep = Cast <to = 6> (keep64)
  found32 = Cast <to = 6> (found)
  count = ReduceSum <keepdims = 0> (found32, i1)
}}
"""


def _unrolled_greedy(batch: int, steps: int) -> str:
    """best_keys and best_slots [N, K]: a step takes the first candidate left, and what it covers.

    Keys fall from slot to slot, and are 0 for what is gone.
    """
    lines = [
        "close = Greater (ious, iou_limit)",
        "itself = Equal (earlier, slots)",
        "covered = Or (close, itself)",
        "covered32 = Cast <to = 1> (covered)",
        "uncovered = Sub (one, covered32)",
        "minus_one = Constant <value = int64[1] {{-1}}> ()",
        "rows_shape = Concat <axis = 0> (minus_one, slots_shape)",
        "rows = Reshape (uncovered, rows_shape)",
        "end32 = Cast <to = 1> (end)",
        "slots32 = Cast <to = 1> (slots)",
        "all_keys = Sub (end32, slots32)",
        "keys0 = Where (real, all_keys, zero)",
    ]
    if batch > 1:
        lines += [
            f"images_end = Constant <value_int: int = {batch}> ()",
            "images = Range (zero_int, images_end, one_int)",
            "first_rows = Mul (images, end)",
        ]
    for i in range(steps):
        lines += [
            f"best{i} = ArgMax <axis = 1, keepdims = 0> (keys{i})",
            f"key{i} = ReduceMax <keepdims = 0> (keys{i}, i1)",
            f"row{i} = Add (best{i}, first_rows)" if batch > 1 else f"row{i} = Identity (best{i})",
            f"left{i} = Gather <axis = 0> (rows, row{i})",
            f"keys{i + 1} = Mul (keys{i}, left{i})",
        ]
    lines.append(f"by_step = Constant <value = int64[2] {{{{{steps}, {batch}}}}}> ()")
    for name, part in (("keys", "key"), ("slots", "best")):
        parts = ", ".join(f"{part}{i}" for i in range(steps))
        lines += [
            f"all_best_{name} = Concat <axis = 0> ({parts})",
            f"best_{name}_by_step = Reshape (all_best_{name}, by_step)",
            f"best_{name} = Transpose <perm = [1, 0]> (best_{name}_by_step)",
        ]
    return "\n".join(f"  {line}" for line in lines)


_KINDS = {"greedy": _GREEDY, "fast": _FAST, "matrix": _MATRIX}


def mask_nms(config: CondInstConfig, static_batch: int | None = None) -> str:
    """Text of the body for `config`; a body can't branch on attributes.

    Args:
        static_batch: images per run of a body without Loop; None gives a body that takes any.
    """
    detect = config.detect
    steps, best = _KINDS[detect.mask_nms], _BEST
    if detect.mask_nms == "greedy" and static_batch is not None:
        steps, best = _unrolled_greedy(static_batch, detect.max_detections), ""
    return (_OVERLAPS + steps + best + _KEPT).format(
        iou_threshold=f"{detect.nms_iou:.9g}",
        score_threshold=f"{detect.score_threshold:.9g}",
        max_detections=detect.max_detections,
        # without decay, candidates stay in the order they are in
        scores="decayed" if detect.mask_nms == "matrix" else "scores",
        ranks="ranks" if detect.mask_nms == "matrix" else "slots",
    )
