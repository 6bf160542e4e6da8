"""Function bodies of the custom-domain nodes, in standard ONNX operations.

A runtime without the plugin runs these. They are written for one config, because a body can't
branch on attributes; a test compares body, attributes and the torch meaning in `ops`.
"""

import onnx

from condinst_infer.config import CondInstConfig
from condinst_infer.ops.custom import DOMAIN
from condinst_infer.ops.dynamic_mask_head import ABSOLUTE_SCALE

OPSET = 19
AT_ONCE = 10  # mask heads of one step

_CLASS_NMS = """
<domain: "{domain}", opset_import: ["" : {opset}]>
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
  area = Mul (width, height)
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
  true_int = Constant <value_int: int = 1> ()
  true = Cast <to = 9> (true_int)
  scores_left, picks = Loop (steps, true, scores) <body = step
    (int64 i, bool go, float[n, m] alive) => (bool go_on, float[n, m] still_alive, int64[n] pick)
    {{
      best = ArgMax <axis = 1, keepdims = 1> (alive)
      best_score = GatherElements <axis = 1> (alive, best)
      real = Greater (best_score, zero)
      pick_column = Where (real, best, nothing)
      pick = Squeeze (pick_column, one)
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
      go_on = Identity (go)
    }}>
  picks_last = Transpose <perm = [1, 0]> (picks)
  keep = Cast <to = 6> (picks_last)
  zero_32 = Cast <to = 6> (zero_int)
  is_kept = GreaterOrEqual (keep, zero_32)
  kept_32 = Cast <to = 6> (is_kept)
  count = ReduceSum <keepdims = 0> (kept_32, one)
}}
"""


def functions(config: CondInstConfig) -> list[onnx.FunctionProto]:
    """The bodies of `ClassNMS` and `DynamicMaskHead` for `config`."""
    nms = _CLASS_NMS.format(
        domain=DOMAIN,
        opset=OPSET,
        iou_threshold=f"{config.detect.nms_iou:.9g}",
        max_detections=config.detect.max_detections,
    )
    bodies = [onnx.parser.parse_function(text) for text in (nms, _dynamic_mask_head(config))]
    for body in bodies:
        for node in body.node:
            node.name = f"{body.name}/{node.output[0]}"
    return bodies


def _dynamic_mask_head(config: CondInstConfig) -> str:
    """The steps of `ops.dynamic_mask_head`: folded first layer, batched products, upsampling."""
    layers, count = config.mask_layers, config.detect.max_detections
    groups = [min(AT_ONCE, count - start) for start in range(0, count, AT_ONCE)]
    lines = [
        f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>',
        "DynamicMaskHead <stride, factor, depth, width, channels, coordinates, use_features, "
        "plugin_namespace, aot> (features, params, centres, sizes, count) => (masks)",
        "{",
        *(f"i{i} = Constant <value = int64[1] {{{i}}}> ()" for i in range(4)),
        "s0 = Constant <value_int: int = 0> ()",
        "s1 = Constant <value_int: int = 1> ()",
        "shape = Shape (features)",
        "batch = Gather <axis = 0> (shape, i0)",
        "rows = Gather <axis = 0> (shape, i2)",
        "columns = Gather <axis = 0> (shape, i3)",
        # half precision can't hold the folded coordinates
        "params32 = Cast <to = 1> (params)",
        "features32 = Cast <to = 1> (features)",
        # unused slots are emptied here, where they are small, and multiplied by zero at the end:
        # a Where over all masks takes three times as long as the product
        f"slots_end = Constant <value_int: int = {count}> ()",
        "slots = Range (s0, slots_end, s1)",
        "count64 = Cast <to = 7> (count)",
        "count_column = Unsqueeze (count64, i1)",
        "real = Less (slots, count_column)",
        "real3 = Unsqueeze (real, i2)",
        "zero = Constant <value = float {0}> ()",
        "real_params = Where (real3, params32, zero)",
        *_split_params(layers),
        *_inputs(config),
        "last_two = Constant <value = int64[2] {2, 3}> ()",
        "real4 = Unsqueeze (real, last_two)",
        "real_like = CastLike (real4, features)",
        f"groups = Constant <value = int64[{len(groups)}] {{{', '.join(map(str, groups))}}}> ()",
    ]
    later = [name for i in range(1, len(layers)) for name in (f"w{i}", f"b{i}_column")]
    for name in ("w0_biased", "real_like", *later):
        parts = ", ".join(f"{name}_{g}" for g in range(len(groups)))
        lines.append(f"{parts} = Split <axis = 1> ({name}, groups)")
    for g, kept in enumerate(groups):
        lines += _group(g, kept, config)
    parts = ", ".join(f"masks_{g}" for g in range(len(groups)))
    return "\n".join([*lines, f"masks = Concat <axis = 1> ({parts})", "}"])


def _inputs(config: CondInstConfig) -> list[str]:
    """x_in [N, in + 1, h*w], whose last row is ones, and w0_biased [N, K, out, in + 1]."""
    layers, lines, inputs = config.mask_layers, [], []
    if config.mask.coordinates == "none":
        lines += ["w0_folded = Identity (w0)", "b0_folded = Identity (b0)"]
    else:
        lines += _coordinates(config.mask_feature_stride, layers[0], config.mask.coordinates)
        inputs.append("xy")
    if config.mask.use_features:
        lines += [
            f"flat_shape = Constant <value = int64[3] {{0, {config.mask.mask_channels}, -1}}> ()",
            "flat = Reshape (features32, flat_shape)",
        ]
        inputs.append("flat")
    for i in range(1, len(layers)):
        lines.append(f"b{i}_column = Unsqueeze (b{i}, i3)")
    return [
        *lines,
        "cells = Mul (rows, columns)",
        "ones_shape = Concat <axis = 0> (batch, i1, cells)",
        "one = Constant <value = float {1}> ()",
        "ones = Expand (one, ones_shape)",
        f"x_in = Concat <axis = 1> ({', '.join([*inputs, 'ones'])})",
        "b0_column = Unsqueeze (b0_folded, i3)",
        "w0_biased = Concat <axis = 3> (w0_folded, b0_column)",
    ]


def _group(g: int, kept: int, config: CondInstConfig) -> list[str]:
    """masks_<g> of `kept` instances: few enough that what lies between two steps stays in cache."""
    layers = config.mask_layers
    (out, into), last = layers[0], len(layers) - 1
    lines = [
        f"w0_shape_{g} = Constant <value = int64[3] {{0, {kept * out}, {into + 1}}}> ()",
        f"w0_rows_{g} = Reshape (w0_biased_{g}, w0_shape_{g})",
        f"x0_flat_{g} = MatMul (w0_rows_{g}, x_in)",  # [N, kept*out, h*w]
        # ReLU before the Reshape, so that a runtime can do it in place
        f"x0_relu_{g} = {'Relu' if last else 'Identity'} (x0_flat_{g})",
        f"x0_shape_{g} = Constant <value = int64[4] {{0, {kept}, {out}, -1}}> ()",
        f"x0_{g} = Reshape (x0_relu_{g}, x0_shape_{g})",
    ]
    for i in range(1, len(layers)):
        lines += [
            f"x{i}_product_{g} = MatMul (w{i}_{g}, x{i - 1}_{g})",
            f"x{i}_sum_{g} = Add (x{i}_product_{g}, b{i}_column_{g})",
            f"x{i}_{g} = {'Relu' if i < last else 'Identity'} (x{i}_sum_{g})",
        ]
    return [
        *lines,
        f"kept_{g} = Constant <value = int64[1] {{{kept}}}> ()",
        f"logits_shape_{g} = Concat <axis = 0> (batch, kept_{g}, rows, columns)",
        f"logits_{g} = Reshape (x{last}_{g}, logits_shape_{g})",
        *_upsampled(config.mask_factor, g),
        f"probabilities_{g} = Sigmoid (upsampled_{g})",
        f"cast_{g} = CastLike (probabilities_{g}, features)",
        f"masks_{g} = Mul (cast_{g}, real_like_{g})",
    ]


def _split_params(layers: tuple[tuple[int, int], ...]) -> list[str]:
    """Weights w<i> [N, K, out, in] and biases b<i> [N, K, out] of each layer."""
    lengths = [*(o * i for o, i in layers), *(o for o, _ in layers)]
    names = [*(f"w{i}_flat" for i in range(len(layers))), *(f"b{i}" for i in range(len(layers)))]
    lines = [
        f"lengths = Constant <value = int64[{len(lengths)}] {{{', '.join(map(str, lengths))}}}> ()",
        f"{', '.join(names)} = Split <axis = 2> (real_params, lengths)",
    ]
    for i, (out, into) in enumerate(layers):
        lines += [
            f"w{i}_shape4 = Constant <value = int64[4] {{0, 0, {out}, {into}}}> ()",
            f"w{i} = Reshape (w{i}_flat, w{i}_shape4)",
        ]
    return lines


def _coordinates(stride: int, layer: tuple[int, int], coordinates: str) -> list[str]:
    """xy [N, 2, h*w] in pixels, and first-layer weights and bias folded for them."""
    _, into = layer
    axes = []
    for axis, length in (("x", "columns"), ("y", "rows")):
        axes += [
            f"{axis}_end = Squeeze ({length})",
            f"{axis}_range = Range (s0, {axis}_end, s1)",
            f"{axis}_float = Cast <to = 1> ({axis}_range)",
            f"{axis}_scaled = Mul ({axis}_float, stride)",
            f"{axis}_pixels = Add ({axis}_scaled, half)",
        ]
    fold = [
        f"absolute = Constant <value = float {{{ABSOLUTE_SCALE}}}> ()",
        "w0_pixel = Div (w0_xy, absolute)",
        "b0_folded = Identity (b0)",
    ]
    if coordinates == "relative":
        fold = [
            "sizes4 = Unsqueeze (sizes, i23)",
            "w0_scaled = Div (w0_xy, sizes4)",
            "w0_pixel = Neg (w0_scaled)",
            "centres4 = Unsqueeze (centres, i2)",
            "w0_centre = Mul (w0_scaled, centres4)",
            "b0_centre = ReduceSum <keepdims = 0> (w0_centre, i3)",
            "b0_folded = Add (b0, b0_centre)",
        ]
    split, join = "w0_xy = Identity (w0)", "w0_folded = Identity (w0_pixel)"
    if into > 2:
        split = "w0_xy, w0_features = Split <axis = 3> (w0, w0_parts)"
        join = "w0_folded = Concat <axis = 3> (w0_pixel, w0_features)"
    return [
        f"stride = Constant <value = float {{{stride}}}> ()",
        f"half = Constant <value = float {{{stride // 2}}}> ()",
        "i23 = Constant <value = int64[2] {2, 3}> ()",
        *axes,
        "y_column = Unsqueeze (y_pixels, i1)",
        "grid_shape = Concat <axis = 0> (rows, columns)",
        "x_grid = Expand (x_pixels, grid_shape)",
        "y_grid = Expand (y_column, grid_shape)",
        "grid_flat = Constant <value = int64[3] {1, 1, -1}> ()",
        "x_flat = Reshape (x_grid, grid_flat)",
        "y_flat = Reshape (y_grid, grid_flat)",
        "xy_one = Concat <axis = 1> (x_flat, y_flat)",
        "xy_shape = Concat <axis = 0> (batch, i1, i1)",
        "xy = Expand (xy_one, xy_shape)",
        f"w0_parts = Constant <value = int64[2] {{2, {into - 2}}}> ()",
        split,
        *fold,
        join,
    ]


def _upsampled(factor: int, g: int) -> list[str]:
    """Aligned bilinear: pad by a cell, asymmetric Resize, cut the shifted window out."""
    if factor == 1:
        return [f"upsampled_{g} = Identity (logits_{g})"]
    start = factor - factor // 2
    return [
        f"pads_{g} = Constant <value = int64[8] {{0, 0, 1, 1, 0, 0, 1, 1}}> ()",
        f'padded_{g} = Pad <mode = "edge"> (logits_{g}, pads_{g})',
        f"scales_{g} = Constant <value = float[4] {{1, 1, {factor}, {factor}}}> ()",
        f'resized_{g} = Resize <mode = "linear", coordinate_transformation_mode = "asymmetric"> '
        f"(padded_{g}, , scales_{g})",
        f"start_{g} = Constant <value = int64[2] {{{start}, {start}}}> ()",
        f"factor_{g} = Constant <value = int64[2] {{{factor}, {factor}}}> ()",
        f"size_{g} = Concat <axis = 0> (rows, columns)",
        f"up_size_{g} = Mul (size_{g}, factor_{g})",
        f"end_{g} = Add (start_{g}, up_size_{g})",
        f"axes_{g} = Constant <value = int64[2] {{2, 3}}> ()",
        f"upsampled_{g} = Slice (resized_{g}, start_{g}, end_{g}, axes_{g})",
    ]
