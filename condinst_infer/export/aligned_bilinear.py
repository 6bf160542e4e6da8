"""Aligned bilinear upsampling inside a function body, as one small matrix for each axis.

Output j of `ops.aligned_bilinear` lies between two cells. So a block of cells, with the one before
it and from factor 3 on the one after it, times a constant matrix is that block upsampled: half the
time of `Pad`, `Resize` and `Slice`. Blocks are of 8 cells; of 4 or 1 where a side is no multiple.
"""


def blocks(factor: int) -> list[str]:
    """x_in [N, in + 1, cells] from x_map [N, in + 1, rows, columns], and what `upsampled` needs.

    The cells beside a block of columns are copied here, where there are few channels.
    """
    both = factor > 2
    return [
        f"factor = Constant <value = int64[1] {{{factor}}}> ()",
        f"factor_float = Constant <value = float {{{factor}}}> ()",
        f"first_at = Constant <value = float {{{(factor - factor // 2) / factor:.9g}}}> ()",
        f"beside = Constant <value = int64[1] {{{1 + both}}}> ()",
        *(f"i{i} = Constant <value = int64[1] {{{i}}}> ()" for i in (4, 8)),
        *_axis("row", "rows", outs_first=True),
        *_axis("column", "columns", outs_first=False),
        "row_starts2 = Unsqueeze (row_starts, i1)",
        "row_tap_from = Sub (row_tap, s1)",
        "row_cells = Add (row_starts2, row_tap_from)",
        "row_least = Max (row_cells, s0)",
        "row_inside = Min (row_least, row_last)",
        "row_index = Reshape (row_inside, fill)",
        "column_minus = Sub (column_starts, s1)",
        "column_before = Max (column_minus, s0)",
        "before = Gather <axis = 3> (x_map, column_before)",
        "before5 = Unsqueeze (before, i4)",
        *(_AFTER if both else ()),
        "column_blocks_shape = Concat <axis = 0> (batch, in_rows, rows, fill, column_block)",
        "column_blocks = Reshape (x_map, column_blocks_shape)",
        f"x_blocks = Concat <axis = 4> (before5, column_blocks{', after5' if both else ''})",
        "x_shape = Concat <axis = 0> (batch, in_rows, fill)",
        "x_in = Reshape (x_blocks, x_shape)",
        "blocks_in_row = Div (columns, column_block)",
        "wide = Mul (blocks_in_row, column_taps)",
        "logits_shape = Concat <axis = 0> (kept, rows, wide)",
        "row_blocks_shape = Concat <axis = 0> (fill, row_taps, wide)",
        "up_rows = Mul (rows, factor)",
        "up_blocks_of_one = Mul (up_rows, blocks_in_row)",
        "up_blocks = Mul (up_blocks_of_one, kept)",
        "taps_shape = Concat <axis = 0> (up_blocks, column_taps)",
        "up_shape = Concat <axis = 0> (up_blocks, column_outs)",
    ]


_AFTER = (
    "column_plus = Add (column_starts, column_block)",
    "column_after = Min (column_plus, column_last)",
    "after = Gather <axis = 3> (x_map, column_after)",
    "after5 = Unsqueeze (after, i4)",
)


def upsample_nodes(source: str, result: str) -> list[str]:
    """<result> [up_shape], the logits <source> [kept, 1, cells] upsampled, in the order of x_in."""
    return [
        f"logits_map = Reshape ({source}, logits_shape)",
        "row_taps_all = Gather <axis = 1> (logits_map, row_index)",
        "row_blocks = Reshape (row_taps_all, row_blocks_shape)",
        "tall = MatMul (row_matrix, row_blocks)",
        "column_taps_all = Reshape (tall, taps_shape)",
        f"{result} = MatMul (column_taps_all, column_matrix)",
    ]


def _axis(axis: str, length: str, *, outs_first: bool) -> list[str]:
    """<axis>_matrix [outs, taps] or [taps, outs] of a block, and <axis>_starts of the blocks.

    The weight of a cell is one minus its distance from the output, if that is positive.
    """
    tap, out = ("i0", "i1") if outs_first else ("i1", "i0")
    return [
        f"{axis}_of4 = Mod ({length}, i4)",
        f"{axis}_is4 = Equal ({axis}_of4, i0)",
        f"{axis}_small = Where ({axis}_is4, i4, i1)",
        f"{axis}_of8 = Mod ({length}, i8)",
        f"{axis}_is8 = Equal ({axis}_of8, i0)",
        f"{axis}_block = Where ({axis}_is8, i8, {axis}_small)",
        f"{axis}_taps = Add ({axis}_block, beside)",
        f"{axis}_outs = Mul ({axis}_block, factor)",
        f"{axis}_end = Squeeze ({length})",
        f"{axis}_last = Sub ({axis}_end, s1)",
        f"{axis}_step = Squeeze ({axis}_block)",
        f"{axis}_starts = Range (s0, {axis}_end, {axis}_step)",
        f"{axis}_tap_end = Squeeze ({axis}_taps)",
        f"{axis}_tap = Range (s0, {axis}_tap_end, s1)",
        f"{axis}_tap_float = Cast <to = 1> ({axis}_tap)",
        f"{axis}_tap2 = Unsqueeze ({axis}_tap_float, {tap})",
        f"{axis}_out_end = Squeeze ({axis}_outs)",
        f"{axis}_out = Range (s0, {axis}_out_end, s1)",
        f"{axis}_out_float = Cast <to = 1> ({axis}_out)",
        f"{axis}_out_scaled = Div ({axis}_out_float, factor_float)",
        f"{axis}_out_tap = Add ({axis}_out_scaled, first_at)",
        f"{axis}_out2 = Unsqueeze ({axis}_out_tap, {out})",
        f"{axis}_gap = Sub ({axis}_out2, {axis}_tap2)",
        f"{axis}_distance = Abs ({axis}_gap)",
        f"{axis}_nearness = Sub (one, {axis}_distance)",
        f"{axis}_matrix = Relu ({axis}_nearness)",
    ]
