"""Function bodies of the custom-domain nodes, in standard ONNX operations.

A runtime without the plugin runs these. They are written for one config, because a body can't
branch on attributes; a test compares body, attributes and the torch meaning in `ops`.
"""

import onnx

from condinst_infer.config import CondInstConfig
from condinst_infer.ops.custom import DOMAIN
from condinst_infer.ops.dynamic_mask_head import ABSOLUTE_SCALE

OPSET = 19

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
    layers, stride = config.mask_layers, config.mask_feature_stride
    lines = [
        f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>',
        "DynamicMaskHead <stride, factor, depth, width, channels, coordinates, use_features, "
        "plugin_namespace, aot> (features, params, centres, sizes, count) => (masks)",
        "{",
        "i0 = Constant <value = int64[1] {0}> ()",
        "i1 = Constant <value = int64[1] {1}> ()",
        "i2 = Constant <value = int64[1] {2}> ()",
        "i3 = Constant <value = int64[1] {3}> ()",
        "minus1 = Constant <value = int64[1] {-1}> ()",
        "s0 = Constant <value_int: int = 0> ()",
        "s1 = Constant <value_int: int = 1> ()",
        "shape = Shape (features)",
        "batch = Gather <axis = 0> (shape, i0)",
        "rows = Gather <axis = 0> (shape, i2)",
        "columns = Gather <axis = 0> (shape, i3)",
        "params_shape = Shape (params)",
        "kept = Gather <axis = 0> (params_shape, i1)",
        # half precision can't hold the folded coordinates
        "params32 = Cast <to = 1> (params)",
        "features32 = Cast <to = 1> (features)",
        # unused slots are emptied here, where they are small, and multiplied by zero at the end:
        # a Where over all masks takes three times as long as the product
        "kept_scalar = Squeeze (kept)",
        "slots = Range (s0, kept_scalar, s1)",
        "count64 = Cast <to = 7> (count)",
        "count_column = Unsqueeze (count64, i1)",
        "real = Less (slots, count_column)",
        "real3 = Unsqueeze (real, i2)",
        "zero = Constant <value = float {0}> ()",
        "real_params = Where (real3, params32, zero)",
        *_split_params(layers),
    ]
    inputs = []
    first = "w0"
    if config.mask.coordinates != "none":
        lines += _coordinates(stride, layers[0], config.mask.coordinates)
        inputs.append("xy")
        first = "w0_folded"
    else:
        lines.append("b0_folded = Identity (b0)")
    if config.mask.use_features:
        lines += [
            f"flat_shape = Constant <value = int64[3] {{0, {config.mask.mask_channels}, -1}}> ()",
            "flat = Reshape (features32, flat_shape)",
        ]
        inputs.append("flat")
    inputs.append("ones")  # the first bias is a column of weights: one pass over [K*out, h*w] less
    out, into = layers[0]
    lines += [
        "cells = Mul (rows, columns)",
        "ones_shape = Concat <axis = 0> (batch, i1, cells)",
        "one = Constant <value = float {1}> ()",
        "ones = Expand (one, ones_shape)",
        "b0_last = Unsqueeze (b0_folded, i3)",
        f"w0_biased = Concat <axis = 3> ({first}, b0_last)",
        f"x_in = Concat <axis = 1> ({', '.join(inputs)})",  # [N, in + 1, h*w]
        f"w0_shape = Constant <value = int64[3] {{0, -1, {into + 1}}}> ()",
        "w0_rows = Reshape (w0_biased, w0_shape)",  # [N, K*out, in + 1]
        "x0_flat = MatMul (w0_rows, x_in)",
        f"x0_out = Constant <value = int64[1] {{{out}}}> ()",
        "x0_shape = Concat <axis = 0> (batch, kept, x0_out, minus1)",
        # ReLU before the Reshape, so that a runtime can do it in place
        "x0_relu = Relu (x0_flat)" if len(layers) > 1 else "x0_relu = Identity (x0_flat)",
        "x0 = Reshape (x0_relu, x0_shape)",  # [N, K, out, h*w]
    ]
    for i in range(1, len(layers)):
        lines += [
            f"x{i}_product = MatMul (w{i}, x{i - 1})",
            f"b{i}_column = Unsqueeze (b{i}, i3)",
            f"x{i}_sum = Add (x{i}_product, b{i}_column)",
            f"x{i} = {'Relu' if i < len(layers) - 1 else 'Identity'} (x{i}_sum)",
        ]
    lines += [
        "logits_shape = Concat <axis = 0> (batch, kept, rows, columns)",
        f"logits = Reshape (x{len(layers) - 1}, logits_shape)",
        *_upsampled(config.mask_factor),
        "probabilities = Sigmoid (upsampled)",
        "last_two = Constant <value = int64[2] {2, 3}> ()",
        "real4 = Unsqueeze (real, last_two)",
        # cast before the product: a cast that is the output stays a copy even from float to float
        "cast_probabilities = CastLike (probabilities, features)",
        "cast_real = CastLike (real4, features)",
        "masks = Mul (cast_probabilities, cast_real)",
        "}",
    ]
    return "\n".join(lines)


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
    out, into = layer
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
    features = into - 2
    split = [
        f"w0_parts = Constant <value = int64[2] {{2, {features}}}> ()",
        "w0_xy, w0_features = Split <axis = 3> (w0, w0_parts)",
    ]
    join = ["w0_folded = Concat <axis = 3> (w0_pixel, w0_features)"]
    if features == 0:
        split, join = ["w0_xy = Identity (w0)"], ["w0_folded = Identity (w0_pixel)"]
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
        *split,
        *fold,
        *join,
    ]


def _upsampled(factor: int) -> list[str]:
    """Aligned bilinear: pad by a cell, asymmetric Resize, cut the shifted window out."""
    if factor == 1:
        return ["upsampled = Identity (logits)"]
    start = factor - factor // 2
    return [
        "pads = Constant <value = int64[8] {0, 0, 1, 1, 0, 0, 1, 1}> ()",
        'padded = Pad <mode = "edge"> (logits, pads)',
        f"scales = Constant <value = float[4] {{1, 1, {factor}, {factor}}}> ()",
        'resized = Resize <mode = "linear", coordinate_transformation_mode = "asymmetric"> '
        "(padded, , scales)",
        f"start = Constant <value = int64[2] {{{start}, {start}}}> ()",
        f"factor2 = Constant <value = int64[2] {{{factor}, {factor}}}> ()",
        "size = Concat <axis = 0> (rows, columns)",
        "up_size = Mul (size, factor2)",
        "end = Add (start, up_size)",
        "axes = Constant <value = int64[2] {2, 3}> ()",
        "upsampled = Slice (resized, start, end, axes)",
    ]
