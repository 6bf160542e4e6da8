"""Launch geometry of the CUDA kernels in engines/src: one function per kernel, for everyone.

The plugin, the runtime and the tests launch what these functions return. Sizes may be numbers or
TensorRT's symbolic dimensions; only +, * and // are used on them.
"""

import struct
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from condinst_infer.config import mask_layers
from condinst_infer.config_rules import CHOICES
from condinst_infer.errors import ConfigError

Dim = Any  # int, or a symbolic dimension of TensorRT
COORDINATES = CHOICES["coordinates"]  # scalar `coordinates` is the index

MAX_CANDIDATES = 5120  # of class_nms: what 48 KB of shared memory hold
MAX_DETECTIONS = 512
TILE_ROWS, TILE_COLUMNS = 8, 32  # of dynamic_mask_head and preprocess: one thread per cell
PASTE_BLOCKS = 32  # per instance: a mask as large as the image keeps 256 warps busy
CROP_FIELDS = 5  # x, y, width, height in pixels, offset in words
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
    """The shipped PTX of engines/src/`source`.cu."""
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
    """What NMS kept, gathered from the outputs of a `detector` graph.

    keep [N, K], count [N], candidate_boxes [N, M, 4], candidate_scores [N, M], candidate_labels
    [N, M], candidate_locations [N, M], params_map [N, P, A] of `dtype`, levels int32 [L, 4] (first
    location, columns, stride, size of interest) -> boxes [N, K, 4], scores [N, K], labels [N, K],
    params [N, K, P], centres [N, K, 2], sizes [N, K].
    """
    scalars = (k, m, p, a, levels, int(score_root))
    return Launch("select", f"select_{_suffix(dtype)}", (k, n, 1), 128, scalars)


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


def _tiles(size: Dim, tile: int) -> Dim:
    return (size + (tile - 1)) // tile


def _suffix(dtype: np.dtype) -> str:
    return _SUFFIXES[np.dtype(dtype)]


def _bits(value: float) -> int:
    """The int32 with the bits of the float32 `value`: plugins pass whole numbers only."""
    return struct.unpack("<i", struct.pack("<f", value))[0]
