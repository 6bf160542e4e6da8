"""Pasting: masks at network resolution become masks of the original image."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from condinst_infer.config.model import Size
from condinst_infer.processing.geometry import sample_positions
from condinst_infer.results.crop import CroppedMask, tight_box

# Bounds of one product. Longer steps multiply mostly zeros; more results at once and BLAS splits
# them over threads, which takes 50 times longer while another library keeps the cores busy.
_ROWS_AT_ONCE, _COLUMNS_AT_ONCE, _RESULTS_AT_ONCE = 24, 64, 16_384


_HALF_BITS = 0x3800  # 0.5 in float16


_HALF = np.float32(0.5)


def paste(
    masks: np.ndarray | Sequence[np.ndarray], *, stride: int, net_size: Size, image_size: Size
) -> list[CroppedMask]:
    """Native-size masks of instances, each cut out tightly.

    Equal to: aligned-bilinear upsampling by `stride`, crop to `net_size`, half-pixel bilinear to
    `image_size`, > 0.5. All steps before the last are linear and act on each axis alone, so they
    are one banded matrix per axis, and a pixel can exceed 0.5 only where a cell it reads does.

    Args:
        masks: probabilities of the padded canvas, float32 or float16 [K, h, w]; K may be 0.
        stride: network pixels per mask cell.
        net_size: (height, width) of the network image without padding.
        image_size: (height, width) of the original image.

    Returns:
        K crops in original pixels.
    """
    return [_paste_one(mask, stride, net_size, image_size) for mask in masks]


def _paste_one(mask: np.ndarray, stride: int, net_size: Size, image_size: Size) -> CroppedMask:
    """One mask [h, w] of `paste`."""
    if mask.dtype == np.float16:  # as integers, positive halves keep their order: 15 times faster
        above = mask.view(np.int16) > _HALF_BITS
    else:
        above = mask > _HALF
    left, top, width, height = tight_box(above)
    if not width:
        return _EMPTY
    rows = _axis(mask.shape[0], stride, net_size[0], image_size[0])
    columns = _axis(mask.shape[1], stride, net_size[1], image_size[1])
    y0, y1 = rows.first_output[top], rows.stop_output[top + height - 1]
    x0, x1 = columns.first_output[left], columns.stop_output[left + width - 1]
    if y0 >= y1 or x0 >= x1:  # all of it lies in the padding
        return _EMPTY
    r0, r1 = rows.first_cell[y0], rows.stop_cell[y1 - 1]
    cells = mask[r0:r1].astype(np.float32, copy=False)
    inside = _down(_across(cells, columns, x0, x1), rows, y0, y1) > _HALF
    x, y, width, height = tight_box(inside)
    if not width:
        return _EMPTY
    return CroppedMask(x0 + x, y0 + y, inside[y : y + height, x : x + width])


def _across(cells: np.ndarray, columns: "_MaskAxis", x0: int, x1: int) -> np.ndarray:
    """Output columns x0 to x1 of mask rows `cells` [r, w]."""
    if x1 - x0 <= _COLUMNS_AT_ONCE:
        c0, c1 = columns.first_cell[x0], columns.stop_cell[x1 - 1]
        return cells[:, c0:c1] @ columns.transposed[c0:c1, x0:x1]
    wide = np.empty((len(cells), x1 - x0), dtype=np.float32)
    step = max(1, min(_COLUMNS_AT_ONCE, _RESULTS_AT_ONCE // len(cells)))
    for a in range(x0, x1, step):
        b = min(a + step, x1)
        c0, c1 = columns.first_cell[a], columns.stop_cell[b - 1]
        np.matmul(cells[:, c0:c1], columns.transposed[c0:c1, a:b], out=wide[:, a - x0 : b - x0])
    return wide


def _down(wide: np.ndarray, rows: "_MaskAxis", y0: int, y1: int) -> np.ndarray:
    """Output rows y0 to y1 of `wide` [r, x1 - x0], whose first row is the first cell they read."""
    r0, width = rows.first_cell[y0], wide.shape[1]
    step = max(1, min(_ROWS_AT_ONCE, _RESULTS_AT_ONCE // width))
    if y1 - y0 <= step:
        return rows.weights[y0:y1, r0 : r0 + len(wide)] @ wide
    native = np.empty((y1 - y0, width), dtype=np.float32)
    for a in range(y0, y1, step):
        b = min(a + step, y1)
        c0, c1 = rows.first_cell[a], rows.stop_cell[b - 1]
        np.matmul(rows.weights[a:b, c0:c1], wide[c0 - r0 : c1 - r0], out=native[a - y0 : b - y0])
    return native


_EMPTY = CroppedMask(0, 0, np.zeros((0, 0), dtype=bool))


class _MaskAxis(NamedTuple):
    """Mask cells to original pixels along one axis."""

    weights: np.ndarray  # float32 [outputs, cells], two neighbouring non-zeros per row
    transposed: np.ndarray  # the same, contiguous [cells, outputs]: a third faster to multiply by
    first_cell: list[int]  # per output: the cells it reads
    stop_cell: list[int]
    first_output: list[int]  # per cell: the outputs that read it
    stop_output: list[int]


@lru_cache(maxsize=32)
def _axis(cells: int, stride: int, net: int, outputs: int) -> _MaskAxis:
    """The operator from `cells` mask cells through `net` network pixels to `outputs` pixels."""
    pixel = sample_positions(net, outputs)
    # The upsampled mask is linear between network pixels (cell centres lie on them), so reading
    # it between two of them is reading the small mask once.
    cell = np.clip((pixel - np.float32(stride // 2)) / np.float32(stride), 0, cells - 1)
    low = cell.astype(np.intp)
    high = np.minimum(low + 1, cells - 1)
    part = cell - low
    weights = np.zeros((outputs, cells), dtype=np.float32)
    np.add.at(weights, (np.arange(outputs), low), 1 - part)
    np.add.at(weights, (np.arange(outputs), high), part)
    first, stop, every = low, high + 1, np.arange(cells)
    return _MaskAxis(
        weights,
        np.ascontiguousarray(weights.T),
        first.tolist(),
        stop.tolist(),
        np.searchsorted(stop, every, side="right").tolist(),
        np.searchsorted(first, every, side="right").tolist(),
    )
