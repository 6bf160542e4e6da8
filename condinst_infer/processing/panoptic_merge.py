"""Panoptic merge: the instance or stuff class that owns every pixel of an image."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from condinst_infer.config.model import MILLION, SEMANTIC_STRIDE, Size
from condinst_infer.errors import SessionError
from condinst_infer.processing.geometry import sample_positions
from condinst_infer.results.crop import CroppedMask

_MIXED = 255  # no class: the cells a pixel reads differ in theirs
_TAPS = 3  # cells an output reads: two network pixels, on both sides of a cell's centre or of none
_WINDOW = np.ones((_TAPS, _TAPS), np.uint8)
_MANY = 0.15  # share of the pixels from which on it is faster to do all
_STEP = 32  # outputs of one product: longer ones multiply mostly zeros


def merge(
    crops: Sequence[CroppedMask],
    labels: np.ndarray,
    *,
    overlap_threshold: float,
    stuff_area_limit: int,
) -> np.ndarray:
    """The owner of every pixel: 0 is void, 1 to K the instance, K + c the stuff class c.

    Args:
        crops: masks of K instances in original pixels, best score first.
        labels: uint8 [H, W], stuff classes from 1; 0 is what is no stuff.
        overlap_threshold: 0 to 1; an instance that loses more of its area is dropped.
        stuff_area_limit: stuff classes of fewer pixels are void.

    Returns:
        uint16 [H, W].
    """
    owners = owners_of_things(crops, labels.shape, overlap_threshold)  # pyright: ignore
    return add_stuff(owners, labels, len(crops), stuff_area_limit)


def owners_of_things(
    crops: Sequence[CroppedMask], image_size: Size, overlap_threshold: float
) -> np.ndarray:
    """The instance that owns each pixel, counted from 1, or 0: uint16 [H, W].

    A pixel goes to the first instance that claims it and is not dropped.
    """
    owners = np.zeros(image_size, np.uint16)
    limit = round(overlap_threshold * MILLION)
    for number, crop in enumerate(crops, 1):
        height, width = crop.shape
        region = owners[crop.y : crop.y + height, crop.x : crop.x + width]
        free = crop.mask & (region == 0)
        area, left = crop.area, np.count_nonzero(free)
        if (area - left) * MILLION <= limit * area:
            region[free] = number
    return owners


def add_stuff(owners: np.ndarray, labels: np.ndarray, k: int, stuff_area_limit: int) -> np.ndarray:
    """`owners` [H, W] of `k` instances, its free pixels given to the stuff in `labels` [H, W]."""
    stuff = np.where(owners == 0, labels, np.uint8(0))
    areas = np.bincount(stuff.ravel(), minlength=256)
    numbers = np.where(areas >= stuff_area_limit, np.arange(len(areas)) + k, 0).astype(np.uint16)
    numbers[0] = 0
    return owners + numbers[stuff]


def semantic_labels(
    semantic: np.ndarray, *, net_size: Size, image_size: Size, needed: np.ndarray | None = None
) -> np.ndarray:
    """The best class of every pixel of an image, uint8 [H, W].

    Equal to: half-pixel bilinear upsampling of the logits to the padded canvas, crop to
    `net_size`, half-pixel bilinear to `image_size`, the first of the largest classes. All but the
    last is one linear operator per axis. Where all cells that a pixel reads have the same best
    class, so has the pixel: its logits are a weighted mean of theirs.

    Args:
        semantic: logits of the padded canvas, float32 or float16 [C, h, w], C at most 255.
        net_size: (height, width) of the network image without padding.
        image_size: (height, width) of the original image.
        needed: bool [H, W], the pixels that are read; None needs all. Others hold anything.

    Raises:
        SessionError: there are logits that are not finite, so the runtime is broken.
    """
    rows = _axis(semantic.shape[1], net_size[0], image_size[0])
    columns = _axis(semantic.shape[2], net_size[1], image_size[1])
    logits = semantic.astype(np.float32, copy=False)
    labels = _common_labels(_cell_labels(logits), rows, columns)
    mixed = labels == _MIXED
    y, x = np.nonzero(mixed if needed is None else mixed & needed)
    if len(y) > labels.size * _MANY:
        return _all_labels(logits, rows, columns)
    if len(y):
        labels[y, x] = _labels_at(logits, rows, columns, y, x)
    return labels


def _cell_labels(logits: np.ndarray) -> np.ndarray:
    """The first of the largest classes of each cell, uint8 [h, w], from float32 [C, h, w]."""
    best = logits.max(0)
    if not np.isfinite(best).all():
        raise SessionError(
            "the model put out semantic logits that are not finite. "
            "Compare the file with its checkpoint: condinst compare MODEL.safetensors MODEL.onnx"
        )
    # six times faster than argmax, which goes along the first axis cell by cell
    ranks = np.arange(255, 255 - len(logits), -1, dtype=np.uint8)[:, None, None]
    return 255 - ((logits == best).view(np.uint8) * ranks).max(0)


class _LogitAxis(NamedTuple):
    """Cells to original pixels along one axis."""

    cells: np.ndarray  # intp [_TAPS, outputs]; those of no weight are some other of the same output
    weights: np.ndarray  # float32 [_TAPS, outputs]
    blocks: list[tuple[int, int, np.ndarray]]  # cells and weights [outputs, cells] of `_STEP` each


@lru_cache(maxsize=32)
def _axis(cells: int, net: int, outputs: int) -> _LogitAxis:
    """The operator from `cells` cells through `net` network pixels to `outputs` pixels."""
    low, high, part = _between(net, outputs)
    first, second, share = _between(cells, SEMANTIC_STRIDE * cells)
    base = first[low]
    weights = np.zeros((_TAPS, outputs), np.float32)
    every = np.arange(outputs)
    for pixel, weight in ((low, 1 - part), (high, part)):
        np.add.at(weights, (first[pixel] - base, every), weight * (1 - share[pixel]))
        np.add.at(weights, (second[pixel] - base, every), weight * share[pixel])
    places = np.where(weights > 0, np.arange(_TAPS)[:, None], weights.argmax(0))
    matrix = np.zeros((outputs, cells), np.float32)
    np.add.at(matrix, (every, base + places), weights)
    blocks = []
    for start in range(0, outputs, _STEP):
        read = (base + places)[:, start : start + _STEP]
        a, b = int(read.min()), int(read.max()) + 1
        blocks.append((a, b, np.ascontiguousarray(matrix[start : start + _STEP, a:b])))
    return _LogitAxis(base + places, weights, blocks)


def _between(inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two inputs that each output lies between, and the part of the second."""
    place = sample_positions(inputs, outputs)
    low = place.astype(np.intp)
    return low, np.minimum(low + 1, inputs - 1), place - low


def _common_labels(cell_labels: np.ndarray, rows: _LogitAxis, columns: _LogitAxis) -> np.ndarray:
    """The label that all cells of a pixel have, or `_MIXED`: uint8 [H, W]."""
    labels = cell_labels
    for axis, operator in ((1, columns), (0, rows)):
        one, two, three = (labels.take(cells, axis=axis) for cells in operator.cells)
        labels = np.where((one == two) & (one == three), one, np.uint8(_MIXED))
    return labels


def _labels_at(
    logits: np.ndarray, rows: _LogitAxis, columns: _LogitAxis, y: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """The first of the largest classes at `n` pixels (y, x): uint8 [n]."""
    # the cells that each pixel reads, and their weights, [n, _TAPS * _TAPS]
    width = logits.shape[2]
    down, across = rows.cells.T[y] * width, columns.cells.T[x]  # [n, _TAPS]
    cells = (down[:, :, None] + across[:, None]).reshape(len(y), -1)
    weights = (rows.weights.T[y][:, :, None] * columns.weights.T[x][:, None]).reshape(cells.shape)
    top_left = cells.min(1)
    # A pixel reads a 3x3 window. A class whose window maximum is below another class's window
    # minimum cannot win there: skip it.
    lower_bound = np.full(logits.shape[1:], -np.inf, np.float32)
    for plane in logits:
        np.maximum(lower_bound, cv2.erode(plane, _WINDOW, anchor=(0, 0)), out=lower_bound)
    labels, best_so_far = np.zeros(len(y), np.uint8), np.full(len(y), -np.inf, np.float32)
    for c, plane in enumerate(logits):
        can_win = cv2.dilate(plane, _WINDOW, anchor=(0, 0)) >= lower_bound
        candidates = np.flatnonzero(can_win.ravel().take(top_left))
        read = plane.ravel().take(cells.take(candidates, 0))
        values = np.einsum("nt,nt->n", read, weights.take(candidates, 0))
        # keep what is better than the classes before
        better = values > best_so_far.take(candidates)
        labels[candidates[better]], best_so_far[candidates[better]] = c, values[better]
    return labels


def _all_labels(logits: np.ndarray, rows: _LogitAxis, columns: _LogitAxis) -> np.ndarray:
    """The first of the largest classes of every pixel, uint8 [H, W]."""
    size = rows.cells.shape[1], columns.cells.shape[1]
    labels, best = np.zeros(size, np.uint8), np.full(size, -np.inf, np.float32)
    for c, values in enumerate(logits):
        wide = np.concatenate([values[:, a:b] @ weights.T for a, b, weights in columns.blocks], 1)
        found = np.concatenate([weights @ wide[a:b] for a, b, weights in rows.blocks])
        better = (found > best).view(np.uint8)
        np.maximum(labels, np.multiply(better, c, out=better), out=labels)  # c only rises
        np.maximum(best, found, out=best)
    return labels
