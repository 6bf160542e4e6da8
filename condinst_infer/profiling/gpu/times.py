"""Times of the kernels between a network and its masks, with torch's own way beside them.

Each function gives the rows of one group; a group runs in a process of its own. Those of frames
and of masks in original pixels are in frame_times.py.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from condinst_infer.config.model import mask_layers
from condinst_infer.cuda import kernels
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.stream import Stream
from condinst_infer.profiling.gpu import kernel_costs
from condinst_infer.profiling.gpu.frame_times import panoptic_times, paste_times, preprocess_times
from condinst_infer.profiling.gpu.kernel_costs import PAPER_HEAD
from condinst_infer.profiling.gpu.scenes import tensor_from
from condinst_infer.profiling.gpu.timing import Case, Prepared, Row, rows, torch_is_here

__all__ = [
    "mask_head_times",
    "mask_nms_times",
    "nms_times",
    "panoptic_times",
    "paste_times",
    "preprocess_times",
    "select_times",
]

HALF = np.dtype(np.float16)
PARAMS = sum(o * i + o for o, i in mask_layers(**PAPER_HEAD))
_NMS_IOU = 0.6
_CLASSES = 80
_CROWD = 20  # boxes around one centre


def nms_times(device: Device, small: bool) -> Iterator[Row]:
    """Class NMS in few and many candidates, spread and crowded, beside greedy NMS in torch."""
    sizes = [(2, 20, 5, "spread"), (2, 20, 5, "crowded")]
    if not small:
        sizes = [
            (1, 1000, 100, "spread"), (5, 1000, 100, "spread"), (5, 1000, 100, "crowded"),
            (5, 1000, 100, "empty"), (5, 1000, 1, "spread"), (5, 1000, 500, "spread"),
            (5, 1000, 500, "crowded"),
        ]  # fmt: skip
    cases = []
    for runs, t, k, kind in sizes:
        what = f"class NMS, {runs} x {t} candidates to {k}, {kind}"
        cases.append(
            Case(what, 0 if kind == "empty" else k, partial(_nms, device, runs, t, k, kind))
        )
    yield from rows(device, small, cases)


def mask_head_times(device: Device, small: bool) -> Iterator[Row]:
    """Mask heads in float16 beside grouped convolution, upsampling and sigmoid in torch."""
    sizes = [(2, 2, 9, 11)]
    if not small:
        sizes = [(0, 100, 64, 88), (1, 1, 64, 88), (100, 100, 64, 88), (500, 500, 64, 88)]
        sizes.append((100, 100, 100, 168))
    cases = [
        Case(
            f"mask heads, {used} in {k} slots, on {h}x{w} features, float16",
            used,
            partial(_mask_heads, device, used, k, h, w),
        )
        for used, k, h, w in sizes
    ]
    yield from rows(device, small, cases)


def mask_nms_times(device: Device, small: bool) -> Iterator[Row]:
    """Mask NMS from probabilities to what is kept, beside the same in torch."""
    sizes = [("greedy", 12, 5, (7, 9))]
    if not small:
        sizes = [("greedy", c, 100, (64, 88)) for c in (1, 100, 300, 500)]
        sizes += [(kind, 300, 100, (64, 88)) for kind in ("fast", "matrix")]
    cases = [
        Case(
            f"mask NMS, {kind}, {c} masks {h}x{w} to {k}, float16",
            c,
            partial(_mask_nms, device, kind, c, k, (h, w)),
        )
        for kind, c, k, (h, w) in sizes
    ]
    yield from rows(device, small, cases)


def select_times(device: Device, small: bool) -> Iterator[Row]:
    """The rows that NMS kept, gathered from the candidates and the map of parameters."""
    sizes = [(2, 40, (48, 64))] if small else [(k, 5000, (512, 704)) for k in (1, 100, 500)]
    cases = [
        Case(f"select {k} of {m} candidates, float16", k, partial(_select, device, k, m, canvas))
        for k, m, canvas in sizes
    ]
    yield from rows(device, small, cases)


def box_scene(
    runs: int, t: int, kind: str, classes: int = _CLASSES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """boxes float32 [1, M, 4], scores float32 [1, M] falling in each run, labels int32 [1, M].

    Args:
        kind: "spread" boxes seldom suppress each other; "crowded" ones of two classes lie in heaps
            of much the same boxes, and most are suppressed; "empty" has no candidate above 0.
    """
    rng, m = np.random.default_rng(seed), runs * t
    centres = rng.uniform(0, 700, (m, 2))
    extents = np.exp(rng.uniform(2, 4.5, (m, 2)))
    if kind == "crowded":
        heap, classes = rng.integers(0, max(1, m // _CROWD), m), min(classes, 2)
        extents = extents[heap] * rng.normal(1, 0.05, (m, 2))
        centres = centres[heap] + rng.normal(0, 0.05, (m, 2)) * extents
    boxes = np.concatenate([centres - extents / 2, centres + extents / 2], 1)
    scores = -np.sort(-rng.uniform(0.05, 1, (runs, t)), 1).reshape(m)
    if kind == "empty":
        scores = np.full(m, -1.0)
    labels = rng.integers(0, classes, m)
    return (
        boxes[None].astype(np.float32),
        scores[None].astype(np.float32),
        labels[None].astype(np.int32),
    )


def _nms(device: Device, runs: int, t: int, k: int, kind: str, stream: Stream) -> Prepared:
    arrays = [stream.array(array) for array in box_scene(runs, t, kind)]
    outputs = [stream.empty((1, k), np.int32), stream.empty((1,), np.int32)]
    settings: dict[str, Any] = {"max_detections": k, "iou_threshold": _NMS_IOU}
    launch = kernels.class_nms(1, runs * t, runs=runs, **settings)
    beside = {}
    if kind != "empty" and torch_is_here(device):
        from condinst_infer.profiling.gpu import torch_ways

        boxes, scores, labels = (tensor_from(array)[0] for array in arrays)
        name, nms = torch_ways.nms_name_and_function()
        beside[name] = lambda: torch_ways.time_eager(
            lambda: nms(boxes, scores, labels, _NMS_IOU)[:k]
        )
    cost = kernel_costs.class_nms(1, runs * t, 0 if kind == "empty" else k)
    return Prepared(lambda: stream.launch(launch, arrays, outputs), cost, beside)


def head_inputs(stream: Stream, used: int, k: int, h: int, w: int) -> list[DeviceArray]:
    """features, params, centres, sizes and count of one image, in float16 where they may be."""
    rng = np.random.default_rng(0)
    return [
        stream.array(rng.normal(size=(1, PAPER_HEAD["channels"], h, w)).astype(HALF)),
        stream.array((0.5 * rng.normal(size=(1, k, PARAMS))).astype(HALF)),
        stream.array((rng.uniform(size=(1, k, 2)) * [8 * w, 8 * h]).astype(np.float32)),
        stream.array((2.0 ** rng.integers(6, 11, (1, k))).astype(np.float32)),
        stream.array(np.array([used], np.int32)),
    ]


def _mask_heads(device: Device, used: int, k: int, h: int, w: int, stream: Stream) -> Prepared:
    arrays = head_inputs(stream, used, k, h, w)
    masks = stream.empty((1, k, 2 * h, 2 * w), HALF)
    launch = kernels.dynamic_mask_head(1, k, h, w, stride=8, factor=2, **PAPER_HEAD, dtype=HALF)
    beside = {}
    if used and torch_is_here(device):
        from condinst_infer import ops
        from condinst_infer.profiling.gpu import torch_ways

        inputs = [tensor_from(array) for array in arrays[:4]]

        def usual() -> Any:
            logits = ops.mask_logits_by_grouped_conv(*inputs, stride=8, **PAPER_HEAD)
            return ops.aligned_bilinear(logits, 2).sigmoid()

        beside = {
            "torch grouped convolution": lambda: torch_ways.time_eager(usual),
            "torch grouped convolution, CUDA graph": lambda: torch_ways.time_graph(usual),
        }
    cost = kernel_costs.dynamic_mask_head(1, used, h, w, 2, HALF.itemsize, slots=k)
    return Prepared(lambda: stream.launch(launch, arrays, [masks]), cost, beside)


def _mask_nms(
    device: Device, kind: str, c: int, k: int, size: tuple[int, int], stream: Stream
) -> Prepared:
    rng, cells = np.random.default_rng(3), size[0] * size[1]
    middle, reach = rng.uniform(0, 1, (c, 2, 1, 1)) * np.array(size)[:, None, None], size[0] / 4
    y, x = np.mgrid[: size[0], : size[1]]
    inside = np.hypot(y - middle[:, 0], x - middle[:, 1]) < reach  # [C, h, w]
    scores = -np.sort(-rng.uniform(0.05, 1, (1, c)), 1).astype(np.float32)
    masks = stream.array(np.where(inside, 0.9, 0.1)[None].astype(HALF))
    given = [stream.array(scores), stream.array(rng.integers(0, 2, (1, c), dtype=np.int32))]
    bits = stream.empty((1, c, -(-cells // 32)), np.uint32)
    areas, ious = stream.empty((1, c), np.int32), stream.empty((1, c, c), np.float32)
    order = stream.array(np.arange(c, dtype=np.int32)[None])
    kept = [stream.empty((1, k), np.int32), stream.empty((1, k), np.float32)]
    kept.append(stream.empty((1,), np.int32))
    settings: dict[str, Any] = {"kind": kind, "iou_threshold": 0.5, "score_threshold": 0.05}
    nms = kernels.mask_nms(1, c, k=k, **settings, score_root=False)

    def launch() -> None:
        stream.launch(kernels.mask_bits(1, c, cells, dtype=HALF), [masks], [bits, areas])
        stream.launch(kernels.mask_ious(1, c, bits.shape[2]), [bits, areas, given[1]], [ious])
        stream.launch(nms, [ious, given[0], areas, order], kept)

    beside = {}
    if torch_is_here(device):
        from condinst_infer import ops
        from condinst_infer.profiling.gpu import torch_ways

        inputs = [tensor_from(array) for array in (masks, *given)]
        beside["torch mask NMS"] = lambda: torch_ways.time_eager(
            lambda: ops.mask_nms(*inputs, **settings, max_detections=k)
        )
    return Prepared(launch, kernel_costs.mask_nms(1, c, k, cells, HALF.itemsize), beside)


def _select(device: Device, k: int, m: int, canvas: tuple[int, int], stream: Stream) -> Prepared:
    rng, strides = np.random.default_rng(1), (8, 16, 32, 64, 128)
    levels, locations = [], 0
    for stride in strides:
        rows_, columns = (-(-side // stride) for side in canvas)
        levels.append((locations, columns, stride, 8 * stride))
        locations += rows_ * columns
    runs = 5 if m % 5 == 0 else 1
    inputs = [
        stream.array(rng.permutation(m)[None, :k].astype(np.int32)),
        stream.array(np.array([k], np.int32)),
        *(stream.array(array) for array in box_scene(runs, m // runs, "spread")),
        stream.array(rng.integers(0, locations, (1, m)).astype(np.int32)),
        stream.array(rng.normal(size=(1, PARAMS, locations)).astype(HALF)),
        stream.array(np.array(levels, np.int32)),
    ]
    outputs = [
        stream.empty((1, k, *rest), kind)
        for rest, kind in (
            ((4,), np.float32), ((), np.float32), ((), np.int32), ((PARAMS,), HALF),
            ((2,), np.float32), ((), np.float32),
        )
    ]  # fmt: skip
    sizes: dict[str, Any] = {"k": k, "m": m, "p": PARAMS, "a": locations, "levels": len(strides)}
    launch = kernels.select(1, **sizes, score_root=True, dtype=HALF)
    cost = kernel_costs.select(1, k, PARAMS, HALF.itemsize)
    return Prepared(lambda: stream.launch(launch, inputs, outputs), cost)
