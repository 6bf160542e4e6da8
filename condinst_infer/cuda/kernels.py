"""Launch geometry of the CUDA kernels in engines/kernels: one function per kernel, for everyone.

The plugin, the runtime and the tests launch what these functions return. Sizes may be numbers or
TensorRT's symbolic dimensions; only +, * and // are used on them.
"""

import struct
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from condinst_infer.config.model import MILLION, mask_layers
from condinst_infer.config.validation import CHOICES
from condinst_infer.errors import ConfigError

Dim = Any  # int, or a symbolic dimension of TensorRT
COORDINATES = CHOICES["coordinates"]  # scalar `coordinates` is the index
MASK_NMS = CHOICES["mask_nms"]  # scalar `kind` is the index

MAX_CANDIDATES = 5120  # of class_nms: what 48 KB of shared memory hold
MAX_DETECTIONS = 512
TILE_ROWS, TILE_COLUMNS = 8, 32  # of dynamic_mask_head and preprocess: one thread per cell
PAIR_TILE = 16  # candidates along a side of a tile of mask_ious
PASTE_BLOCKS = 32  # per instance: a mask as large as the image keeps 256 warps busy
CROP_FIELDS = 5  # x, y, width, height in pixels, offset in words
_LARGEST = 2**31 - 1
_THREADS = TILE_ROWS * TILE_COLUMNS  # 256
_SUFFIXES = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16"}


class Launch(NamedTuple):
    """One kernel launch but for its pointers: inputs, then `scalars`, then outputs."""

    source: str  # stem of the .cu and of the .ptx file
    kernel: str  # entry point
    grid: tuple[Dim, Dim, Dim]
    block: int  # threads
    scalars: tuple[Dim, ...]  # int32 each


def ptx(source: str) -> str:
    """The shipped PTX of engines/kernels/`source`.cu."""
    return resources.files("condinst_infer").joinpath("data", "ptx", f"{source}.ptx").read_text()


def class_nms(n: Dim, m: Dim, *, runs: int, max_detections: int, iou_threshold: float) -> Launch:
    """boxes [N, M, 4], scores [N, M], labels [N, M] -> keep [N, K], count [N].

    Raises:
        ConfigError: more candidates or detections than a block holds.
    """
    if isinstance(m, int) and m > MAX_CANDIDATES:
        raise ConfigError(
            f"there are {m} candidates per image; the NMS kernel takes {MAX_CANDIDATES}. "
            "Lower pre_nms_topk."
        )
    if max_detections > MAX_DETECTIONS:
        raise ConfigError(
            f"max_detections is {max_detections}; the NMS kernel takes {MAX_DETECTIONS}."
        )
    scalars = (m, runs, max_detections, _bits(iou_threshold))
    return Launch("class_nms", "class_nms", (n, 1, 1), 1024, scalars)


def select(
    n: int, *, k: int, m: int, p: int, a: int, levels: int, score_root: bool, dtype: np.dtype
) -> Launch:
    """Launch that gathers the rows NMS kept from the outputs of a `detector` graph.

    keep [N, K], count [N], candidate_boxes [N, M, 4], candidate_scores [N, M], candidate_labels
    [N, M], candidate_locations [N, M], params_map [N, P, A] of `dtype`, levels int32 [L, 4] (first
    location, columns, stride, size of interest) -> boxes [N, K, 4], scores [N, K], labels [N, K],
    params [N, K, P], centres [N, K, 2], sizes [N, K].
    """
    scalars = (k, m, p, a, levels, int(score_root))
    return Launch("select", f"select_{_suffix(dtype)}", (k, n, 1), 128, scalars)


def mask_bits(n: int, c: int, cells: int, *, dtype: np.dtype) -> Launch:
    """masks [N, C, cells] -> bits uint32 [N, C, ceil(cells / 32)], areas int32 [N, C]."""
    return Launch("mask_nms", f"mask_bits_{_suffix(dtype)}", (n * c, 1, 1), _THREADS, (cells,))


def mask_ious(n: int, c: int, words: int) -> Launch:
    """bits uint32 [N, C, words], areas [N, C], labels [N, C] -> ious float32 [N, C, C].

    Of each candidate, a row, with the later ones of its class; 0 for all other pairs.
    """
    tiles = _tiles(c, PAIR_TILE)
    return Launch("mask_nms", "mask_ious", (tiles, tiles, n), PAIR_TILE**2, (c, words))


def mask_nms(
    n: int,
    c: int,
    *,
    k: int,
    kind: str,
    iou_threshold: float,
    score_threshold: float,
    score_root: bool,
) -> Launch:
    """Launch of mask NMS over C candidates in falling score.

    ious [N, C, C], scores [N, C], areas [N, C], order int32 [N, C] (what to call each) -> keep
    [N, K], scores [N, K], count [N].

    Raises:
        ConfigError: more candidates than a block has threads.
    """
    if c > MAX_DETECTIONS:
        raise ConfigError(
            f"there are {c} candidates for mask NMS; its kernel takes {MAX_DETECTIONS}. "
            "Lower mask_nms_candidates."
        )
    scalars = (c, k, MASK_NMS.index(kind), _bits(iou_threshold), _bits(score_threshold))
    return Launch("mask_nms", "mask_nms", (n, 1, 1), MAX_DETECTIONS, (*scalars, int(score_root)))


def mask_extents(n: int, k: int, shape: tuple[int, int], *, stride: int, dtype: np.dtype) -> Launch:
    """masks [N, K, h, w], count [N] -> boxes [N, K, 4]: around the cells above 0.5, in pixels."""
    name = f"mask_extents_{_suffix(dtype)}"
    return Launch("mask_nms", name, (k, n, 1), _THREADS, (*shape, stride))


def dynamic_mask_head(
    n: Dim,
    k: Dim,
    h: Dim,
    w: Dim,
    *,
    stride: int,
    factor: int,
    depth: int,
    width: int,
    channels: int,
    coordinates: str,
    use_features: bool,
    dtype: np.dtype,
) -> Launch:
    """features [N, C, h, w], params [N, K, P], centres [N, K, 2], sizes [N, K], count [N] -> masks.

    Two sizes of the kernel: activations of up to 8 channels (the papers'), or up to 16.
    """
    settings = {
        "depth": depth,
        "width": width,
        "channels": channels,
        "coordinates": coordinates,
        "use_features": use_features,
    }
    inputs = mask_layers(**settings)[0][1]
    size = 8 if width <= 8 and inputs <= 10 else 16
    grid = (n * k, _tiles(h, TILE_ROWS), _tiles(w, TILE_COLUMNS))  # x may pass 65,535
    scalars = (k, h, w, stride, factor, depth, width, channels)
    scalars += (COORDINATES.index(coordinates), int(use_features))
    name = f"dynamic_mask_head_{size}_{_suffix(dtype)}"
    return Launch("dynamic_mask_head", name, grid, _THREADS, scalars)


def preprocess(
    *, pitch: int, size: tuple[int, int], net_size: tuple[int, int], canvas: tuple[int, int]
) -> Launch:
    """frame uint8 [h, w, 3] with `pitch` bytes a row -> image uint8 [H, W, 3], resized and padded.

    Args:
        size, net_size, canvas: (height, width) of the frame, of its resized copy, of the image.
    """
    grid = (_tiles(canvas[1], TILE_COLUMNS), _tiles(canvas[0], TILE_ROWS), 1)
    return Launch("preprocess", "preprocess", grid, _THREADS, (pitch, *size, *net_size, *canvas))


def mask_boxes(
    *,
    k: int,
    shape: tuple[int, int],
    stride: int,
    net_size: tuple[int, int],
    image_size: tuple[int, int],
    capacity: int,
    dtype: np.dtype,
) -> Launch:
    """masks [K, h, w], count [1] -> crops int32 [K, 5], used int32 [1].

    A crop is the part of the original image that `paste` has to look at, and where in `bits` it
    goes. Launches that share `bits` share `used`, which is 0 before the first: so many words are
    needed. Crops past `capacity` words get no place (offset -1).
    """
    scalars = (*shape, stride, *net_size, *image_size, capacity)
    return Launch("paste", f"mask_boxes_{_suffix(dtype)}", (k, 1, 1), _THREADS, scalars)


def paste(
    *,
    k: int,
    shape: tuple[int, int],
    stride: int,
    net_size: tuple[int, int],
    image_size: tuple[int, int],
    dtype: np.dtype,
) -> Launch:
    """masks [K, h, w], crops int32 [K, 5] -> bits uint32 [capacity].

    One bit per pixel of each crop, lowest first, rows padded to whole words.
    """
    scalars = (*shape, stride, *net_size, *image_size)
    return Launch("paste", f"paste_{_suffix(dtype)}", (PASTE_BLOCKS, k, 1), _THREADS, scalars)


def owners_of_things(
    *,
    k: int,
    net_size: tuple[int, int],
    image_size: tuple[int, int],
    score_threshold: float,
    overlap_threshold: float,
    check_boxes: bool,
) -> Launch:
    """bits, crops int32 [K, 5], count [1], boxes [K, 4], scores [K] -> taken, owners.

    taken is uint32 [H, ceil(W / 32) + 1], owners uint16 [H, W], both 0 before: the slot from 1 of
    the instance that owns a pixel, as in `merge.owners_of_things`. With `check_boxes`, instances
    whose box is empty in the image are left out, as `instances_from_outputs` does.
    """
    (height, width), (net_height, net_width) = image_size, net_size
    ratios = (_bits(width / net_width), _bits(height / net_height))
    shares = (_bits(score_threshold), round(overlap_threshold * MILLION))
    scalars = (k, height, width, *ratios, *shares, int(check_boxes))
    return Launch("panoptic", "owners_of_things", (1, 1, 1), 1024, scalars)


def add_stuff(
    *,
    k: int,
    shape: tuple[int, ...],
    net_size: tuple[int, int],
    image_size: tuple[int, int],
    dtype: np.dtype,
) -> Launch:
    """semantic [C, h, w] -> areas int32 [C], owners uint16 [H, W].

    Free pixels become K + c of stuff class c. areas are 0 before, owners those of things.
    """
    grid = (_tiles(image_size[1], TILE_COLUMNS), _tiles(image_size[0], TILE_ROWS), 1)
    scalars = (*shape, *net_size, *image_size, k)
    return Launch("panoptic", f"add_stuff_{_suffix(dtype)}", grid, _THREADS, scalars)


def drop_small_stuff(*, k: int, image_size: tuple[int, int], stuff_area_limit: int) -> Launch:
    """areas int32 [C] -> owners uint16 [H, W], stuff of fewer pixels void."""
    pixels = image_size[0] * image_size[1]
    limit = min(stuff_area_limit, _LARGEST)
    grid = (_tiles(pixels, _THREADS), 1, 1)
    return Launch("panoptic", "drop_small_stuff", grid, _THREADS, (pixels, k, limit))


def _tiles(size: Dim, tile: int) -> Dim:
    return (size + (tile - 1)) // tile


def _suffix(dtype: np.dtype) -> str:
    return _SUFFIXES[np.dtype(dtype)]


def _bits(value: float) -> int:
    """The int32 with the bits of the float32 `value`: plugins pass whole numbers only."""
    return struct.unpack("<i", struct.pack("<f", value))[0]
