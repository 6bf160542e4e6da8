"""Function body of `DynamicMaskHead`: the steps of `ops.dynamic_mask_head` in standard operations.

A `Loop` goes through the slots of every image in small groups, so that what lies between two steps
stays in the cache; an `If` leaves out the groups that no instance of their image uses. The body
without a loop does the same products for all slots at once.
"""

from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.export import aligned_bilinear
from condinst_infer.ops.dynamic_mask_head import ABSOLUTE_SCALE, CANDIDATE_MASK_HEAD

AT_ONCE = 7  # most mask heads of one step: 8 x 64 x 88 floats of each are 180 KB
UNUSED = -10000.0  # logit of a slot that holds nothing: its sigmoid is 0 in every precision


def candidate_mask_head(config: CondInstConfig, *, loop_free: bool = False) -> str:
    """Text of the body of `CandidateMaskHead`: the same for all candidates of mask NMS, factor 1.

    A file holds one body of a name, so a second node needs another one.
    """
    stride, slots = config.mask_feature_stride, config.mask_candidates
    config = override(config, nms="box", mask_stride=stride, max_detections=slots)
    return dynamic_mask_head(config, CANDIDATE_MASK_HEAD, loop_free=loop_free)


def dynamic_mask_head(
    config: CondInstConfig, name: str = "DynamicMaskHead", *, loop_free: bool = False
) -> str:
    """Text of the body for `config`; a body can't branch on attributes."""
    layers, factor, slots = config.mask_layers, config.mask_factor, config.detect.max_detections
    # all groups alike, for there is one loop; a prime number of slots goes one by one
    group = max(size for size in range(1, AT_ONCE + 1) if slots % size == 0)
    group = slots if loop_free else group
    return "\n".join(
        [
            f"{name} <stride, factor, depth, width, channels, coordinates, use_features, "
            "plugin_namespace, aot> (features, params, centres, sizes, count) => (masks)",
            "{",
            *(f"i{i} = Constant <value = int64[1] {{{i}}}> ()" for i in range(4)),
            "s0 = Constant <value_int: int = 0> ()",
            "s1 = Constant <value_int: int = 1> ()",
            "fill = Constant <value = int64[1] {-1}> ()",
            "zero = Constant <value = float {0}> ()",
            "one = Constant <value = float {1}> ()",
            f"unused = Constant <value = float {{{UNUSED}}}> ()",
            "shape = Shape (features)",
            "batch = Gather <axis = 0> (shape, i0)",
            "rows = Gather <axis = 0> (shape, i2)",
            "columns = Gather <axis = 0> (shape, i3)",
            # half precision can't hold the folded coordinates
            "params32 = Cast <to = 1> (params)",
            "features32 = Cast <to = 1> (features)",
            f"all_slots = Constant <value_int: int = {slots}> ()",
            "slots = Range (s0, all_slots, s1)",
            "count64 = Cast <to = 7> (count)",
            "count_column = Unsqueeze (count64, i1)",
            "real = Less (slots, count_column)",
            "real3 = Unsqueeze (real, i2)",
            "real_params = Where (real3, params32, zero)",
            *_split_params(layers),
            *_coordinates(config),
            *_first_layer(layers, group, flat=loop_free),
            *_later_layers(layers, group),
            *_inputs(config),
            f"group = Constant <value = int64[1] {{{group}}}> ()",
            f"kept = {'Mul (batch, group)' if loop_free else 'Identity (group)'}",
            *(aligned_bilinear.blocks(factor) if factor > 1 else _AS_THEY_ARE),
            *(_all_at_once(config) if loop_free else _loop(config, slots // group)),
            *_masks(config),
            "}",
        ]
    )


def _split_params(layers: tuple[tuple[int, int], ...]) -> list[str]:
    """Weights w<i> [N, K, out, in] and biases b<i> [N, K, out] of each layer.

    The last bias of a slot that holds nothing makes its logits `UNUSED`: the weights are 0.
    """
    last = len(layers) - 1
    lengths = [*(o * i for o, i in layers), *(o for o, _ in layers)]
    names = [f"w{i}_flat" for i in range(last + 1)] + [f"b{i}" for i in range(last)] + ["b_raw"]
    lines = [
        f"lengths = Constant <value = int64[{len(lengths)}] {{{', '.join(map(str, lengths))}}}> ()",
        f"{', '.join(names)} = Split <axis = 2> (real_params, lengths)",
        f"b{last} = Where (real3, b_raw, unused)",
    ]
    for i, (out, into) in enumerate(layers):
        lines += [
            f"w{i}_shape = Constant <value = int64[4] {{0, 0, {out}, {into}}}> ()",
            f"w{i} = Reshape (w{i}_flat, w{i}_shape)",
        ]
    return lines


def _coordinates(config: CondInstConfig) -> list[str]:
    """xy [N, 2, h, w] in pixels; w0_folded and b0_folded, the first layer as applied to them."""
    stride, (_, into) = config.mask_feature_stride, config.mask_layers[0]
    if config.mask.coordinates == "none":
        return ["w0_folded = Identity (w0)", "b0_folded = Identity (b0)"]
    lines = [
        f"stride = Constant <value = float {{{stride}}}> ()",
        f"half = Constant <value = float {{{stride // 2}}}> ()",
        "grid_shape = Concat <axis = 0> (batch, i1, rows, columns)",
    ]
    for axis, length in (("x", "columns"), ("y", "rows")):
        lines += [
            f"{axis}_end = Squeeze ({length})",
            f"{axis}_range = Range (s0, {axis}_end, s1)",
            f"{axis}_float = Cast <to = 1> ({axis}_range)",
            f"{axis}_scaled = Mul ({axis}_float, stride)",
            f"{axis}_pixels = Add ({axis}_scaled, half)",
        ]
    lines += [
        "y_column = Unsqueeze (y_pixels, i1)",
        "x_grid = Expand (x_pixels, grid_shape)",
        "y_grid = Expand (y_column, grid_shape)",
        "xy = Concat <axis = 1> (x_grid, y_grid)",
        f"w0_parts = Constant <value = int64[2] {{2, {into - 2}}}> ()",
        "w0_xy, w0_features = Split <axis = 3> (w0, w0_parts)" if into > 2 else
        "w0_xy = Identity (w0)",
    ]  # fmt: skip
    if config.mask.coordinates == "relative":
        lines += [
            "i23 = Constant <value = int64[2] {2, 3}> ()",
            "sizes4 = Unsqueeze (sizes, i23)",
            "w0_scaled = Div (w0_xy, sizes4)",
            "w0_pixel = Neg (w0_scaled)",
            "centres4 = Unsqueeze (centres, i2)",
            "w0_centre = Mul (w0_scaled, centres4)",
            "b0_centre = ReduceSum <keepdims = 0> (w0_centre, i3)",
            "b0_folded = Add (b0, b0_centre)",
        ]
    else:
        lines += [
            f"absolute = Constant <value = float {{{ABSOLUTE_SCALE}}}> ()",
            "w0_pixel = Div (w0_xy, absolute)",
            "b0_folded = Identity (b0)",
        ]
    parts = "w0_pixel, w0_features" if into > 2 else "w0_pixel"
    return [*lines, f"w0_folded = Concat <axis = 3> ({parts})"]


def _first_layer(layers: tuple[tuple[int, int], ...], kept: int, *, flat: bool) -> list[str]:
    """w0_groups [N*K/kept, kept, out, in + 1]: bias in the last column, one product for a group.

    With `flat` it is [N*K/kept, kept*out, in + 1].
    """
    out, into = layers[0]
    shape = (
        f"3] {{-1, {kept * out}, {into + 1}}}" if flat else f"4] {{-1, {kept}, {out}, {into + 1}}}"
    )
    return [
        "b0_column = Unsqueeze (b0_folded, i3)",
        "w0_biased = Concat <axis = 3> (w0_folded, b0_column)",
        f"w0_groups_shape = Constant <value = int64[{shape}> ()",
        "w0_groups = Reshape (w0_biased, w0_groups_shape)",
        *([f"out0 = Constant <value = int64[1] {{{out}}}> ()"] if flat else []),
    ]


def _later_layers(layers: tuple[tuple[int, int], ...], kept: int) -> list[str]:
    """Weights w<i>_groups [N*K/kept, kept, out, in], limit<i> or the last bias beside them.

    Bias and ReLU are one pass over the cells: relu(x + b) = max(x, -b) + b, and the b that is
    left over is added to the next layer's bias, as the product with its weights.
    """
    lines, last = [], len(layers) - 1
    for i, (out, into) in enumerate(layers[1:], 1):
        lines += [
            f"w{i}_groups_shape = Constant <value = int64[4] {{-1, {kept}, {out}, {into}}}> ()",
            f"w{i}_groups = Reshape (w{i}, w{i}_groups_shape)",
            f"b{i}_groups_shape = Constant <value = int64[4] {{-1, {kept}, {out}, 1}}> ()",
            f"b{i}_groups = Reshape (b{i}, b{i}_groups_shape)",
        ]
        if i == 1:
            lines.append("bias1 = Identity (b1_groups)")
        else:
            lines += [
                f"left{i} = MatMul (w{i}_groups, bias{i - 1})",
                f"bias{i} = Add (b{i}_groups, left{i})",
            ]
        if i < last:
            lines.append(f"limit{i} = Neg (bias{i})")
    return lines


def _inputs(config: CondInstConfig) -> list[str]:
    """x_map [N, in + 1, h, w]: coordinates, features, and ones for the bias."""
    inputs = ["xy"] if config.mask.coordinates != "none" else []
    inputs += ["features32"] if config.mask.use_features else []
    return [
        "ones_shape = Concat <axis = 0> (batch, i1, rows, columns)",
        "ones = Expand (one, ones_shape)",
        f"x_map = Concat <axis = 1> ({', '.join([*inputs, 'ones'])})",
        f"in_rows = Constant <value = int64[1] {{{config.mask_layers[0][1] + 1}}}> ()",
    ]


_AS_THEY_ARE = (  # factor 1: x_in and up_shape, as in `aligned_bilinear.blocks`
    "x_shape = Concat <axis = 0> (batch, in_rows, fill)",
    "x_in = Reshape (x_map, x_shape)",
    "cells = Mul (rows, columns)",
    "up_shape = Concat <axis = 0> (kept, i1, cells)",
)


def _loop(config: CondInstConfig, groups: int) -> list[str]:
    """stacked, from a step for each group of each image that puts out its upsampled logits."""
    factor, slots = config.mask_factor, config.detect.max_detections
    dims = "kept, one, cells" if factor == 1 else "blocks, outs"
    firsts = ", ".join(str(group * slots // groups) for group in range(groups))
    return [
        f"firsts = Constant <value = int64[1, {groups}] {{{firsts}}}> ()",
        "used_groups = Less (firsts, count_column)",
        "used = Reshape (used_groups, fill)",
        f"groups = Constant <value_int: int = {groups}> ()",
        "images = Squeeze (batch)",
        "steps = Mul (images, groups)",
        "all_steps = Range (s0, steps, s1)",
        "image_of_step = Div (all_steps, groups)",
        "true = Cast <to = 9> (s1)",
        "stacked = Loop (steps, true) <body = step",
        f"  (int64 i, bool go) => (bool go_on, float[{dims}] of_group)",
        "  {",
        "    is_used = Gather <axis = 0> (used, i)",
        "    of_group = If (is_used) <",
        f"      then_branch = heads () => (float[{dims}] up) {{",
        *(f"        {line}" for line in _step(config)),
        "      },",
        f"      else_branch = nothing () => (float[{dims}] empty) {{",
        f"        empty = ConstantOfShape <value = float[1] {{{UNUSED}}}> (up_shape)",
        "      }>",
        "    go_on = Identity (go)",
        "  }>",
    ]


def _masks(config: CondInstConfig) -> list[str]:
    """masks [N, K, factor*h, factor*w] from `stacked`.

    The sigmoid comes last, for all at once: the node that makes the output need not copy it.
    """
    factor, slots = config.mask_factor, config.detect.max_detections
    return [
        "logits = CastLike (stacked, features)",
        f"up_by = Constant <value = int64[4] {{1, 1, {factor}, {factor}}}> ()",
        f"all_slots1 = Constant <value = int64[1] {{{slots}}}> ()",
        "small_shape = Concat <axis = 0> (batch, all_slots1, rows, columns)",
        "masks_shape = Mul (small_shape, up_by)",
        "logits4 = Reshape (logits, masks_shape)",
        "masks = Sigmoid (logits4)",
    ]


def _all_at_once(config: CondInstConfig) -> list[str]:
    """stacked, the upsampled logits of every slot."""
    last = len(config.mask_layers) - 1
    lines = [
        "x0_flat = MatMul (w0_groups, x_in)",  # [N, K*out, cells]
        f"x0_relu = {'Relu' if last else 'Identity'} (x0_flat)",
        "x0_shape = Concat <axis = 0> (batch, group, out0, fill)",
        "x0 = Reshape (x0_relu, x0_shape)",
    ]
    for i in range(1, last + 1):
        lines.append(f"x{i}_product = MatMul (w{i}_groups, x{i - 1})")  # [N, K, out, cells]
        bound = f"Max (x{i}_product, limit{i})" if i < last else f"Add (x{i}_product, bias{i})"
        lines.append(f"x{i} = {bound}")
    if config.mask_factor == 1:
        return [*lines, f"stacked = Identity (x{last})"]
    return [*lines, *aligned_bilinear.upsample_nodes(f"x{last}", "stacked")]


def _step(config: CondInstConfig) -> list[str]:
    """up [up_shape], the upsampled logits of group `i`.

    No node here reads a constant from outside: onnxslim copies those into the branch, where
    TensorRT takes them for other tensors.
    """
    last = len(config.mask_layers) - 1
    lines = [
        "image = Gather <axis = 0> (image_of_step, i)",
        "x = Gather <axis = 0> (x_in, image)",
        "w0_step = Gather <axis = 0> (w0_groups, i)",
        "x0_product = MatMul (w0_step, x)",  # [kept, out, cells]
        f"x0 = {'Relu' if last else 'Identity'} (x0_product)",
    ]
    for i in range(1, last + 1):
        lines += [
            f"w{i}_step = Gather <axis = 0> (w{i}_groups, i)",
            f"x{i}_product = MatMul (w{i}_step, x{i - 1})",
        ]
        if i < last:
            lines += [
                f"limit{i}_step = Gather <axis = 0> (limit{i}, i)",
                f"x{i} = Max (x{i}_product, limit{i}_step)",
            ]
        else:
            lines += [
                f"bias_step = Gather <axis = 0> (bias{i}, i)",
                f"x{i} = Add (x{i}_product, bias_step)",
            ]
    if config.mask_factor == 1:
        return [*lines, f"up = Identity (x{last})"]
    return [*lines, *aligned_bilinear.upsample_nodes(f"x{last}", "up")]
