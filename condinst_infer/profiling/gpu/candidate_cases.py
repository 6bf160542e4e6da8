"""Cases of the kernels that choose and gather candidates: class_nms and select."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from condinst_infer.cuda import kernels
from condinst_infer.cuda.stream import Stream
from condinst_infer.profiling.gpu.cases import FLOATS, Arrays, KernelCase, launched
from condinst_infer.profiling.gpu.seeded import Seeded

_NMS_IOU = 0.6
_STRIDES, _INTEREST = (7, 16, 32, 64), (64, 128, 256, 512)  # 7: half a stride is rounded down


def crowd(n: int, runs: int, t: int, classes: int, heap: int, grid: bool, seed: int = 0) -> Arrays:
    """boxes [N, M, 4], scores [N, M], labels [N, M] in heaps of `heap` boxes on average.

    Heaps are of very unequal numbers, so that some are first seen late. Scores fall within each
    run. One slot in eight is empty, one box in 64 has no area. With `grid` there are equal
    scores, equal boxes, and overlaps of exactly 0.5 and 0.6.
    """
    random, m = Seeded(seed), runs * t
    heaps = max(1, m // heap)
    which = heaps * random.integers(0, 1024, (m,)) ** 4 // 1024**4
    middle = random.steps(0, 600, (n, heaps, 2))[:, which]
    middle += random.steps(-3, 3, middle.shape)
    extent = random.steps(24, 90, (n, heaps, 2))[:, which]
    extent = np.maximum(extent + random.steps(-3, 3, middle.shape), 1)
    boxes = np.concatenate([middle - extent / 2, middle + extent / 2], 2)
    scores = random.integers(1, 1000, (n, runs, t)) / 1000
    if grid:
        boxes, scores = np.round(boxes / 24) * 24, np.ceil(scores * 10) / 10
    flat = random.integers(0, 64, (n, m)) == 0
    boxes[:, :, 2] = np.where(flat, boxes[:, :, 0], boxes[:, :, 2])
    scores[random.integers(0, 8, scores.shape) == 0] = -1
    scores = -np.sort(-scores, 2).reshape(n, m)
    labels = random.integers(0, classes, scores.shape)
    return {
        "boxes": boxes.astype(np.float32),
        "scores": scores.astype(np.float32),
        "labels": labels.astype(np.int32),
    }


def class_nms_cases() -> list[KernelCase]:
    """Crowded scenes: of several chunks of candidates, with ties, of all sizes that fit."""
    return [
        _nms_case(1, 1, 1, 1, 1, 1),
        _nms_case(2, 3, 37, 20, 2, 9),
        _nms_case(2, 3, 37, 20, 2, 9, offset=4),  # TensorRT may place boxes so
        _nms_case(1, 4, 64, 40, 1, 12, grid=True),
        _nms_case(1, 3, 800, 280, 1, 12),  # three chunks of 1024; each has something to keep
        _nms_case(1, 5, 1000, 100, 80, 50, small=False),
        _nms_case(4, 5, 1000, 512, 1, 12, small=False),
        _nms_case(3, 3, 1000, 100, 3, 30, grid=True, small=False),
        _nms_case(1, 5, 1024, 512, 1, 10, small=False),  # kernels.MAX_CANDIDATES, MAX_DETECTIONS
    ]


def _nms_case(
    n: int,
    runs: int,
    t: int,
    k: int,
    classes: int,
    heap: int,
    grid: bool = False,
    small: bool = True,
    offset: int = 0,
) -> KernelCase:
    settings = {"runs": runs, "max_detections": k, "iou_threshold": _NMS_IOU}

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        launch = kernels.class_nms(n, runs * t, **settings)
        outputs = [((n, k), np.int32), ((n,), np.int32)]
        keep, count = launched(stream, launch, inputs.values(), outputs, offset)
        return {"keep": keep, "count": count}

    def expected(inputs: Arrays) -> Arrays:
        import torch

        from condinst_infer import ops

        found = ops.class_nms(*map(torch.from_numpy, inputs.values()), **settings)
        return {"keep": found[0].numpy(), "count": found[1].numpy()}

    what = f"{n} images, {runs} runs of {t} to {k}, {classes} classes, heaps of {heap}"
    return KernelCase(
        name=what + ", ties" * grid + f", {offset} bytes behind" * bool(offset),
        inputs=lambda: crowd(n, runs, t, classes, heap, grid),
        run=run,
        expected=expected,
        small=small,
    )


def select_cases() -> list[KernelCase]:
    """Gathering by numbers and strides that divide nothing, with and without the score's root."""
    shapes = [(5, 7), (3, 4), (2, 2), (1, 1)]
    sizes = [(1, 1, 1, 1, shapes[:1]), (3, 10, 40, 169, shapes), (2, 3, 5, 301, shapes[:2])]
    large = [(2, 100, 1000, 169, [(100, 168), (50, 84), (25, 42), (13, 21)])]
    return [
        _select_case(*size, root, dtype, size in sizes)
        for size in (*sizes, *large)
        for root in (True, False)
        for dtype in FLOATS
    ]


def _select_inputs(n: int, k: int, m: int, p: int, shapes: Sequence[tuple[int, int]]) -> Arrays:
    """Inputs in the order of the kernel's."""
    random, a = Seeded(k), sum(h * w for h, w in shapes)
    count = np.array([min(k, m), 0, min(1, k)][:n], np.int32)
    keep = np.full((n, k), -1, np.int32)
    for row, used in zip(keep, count, strict=True):
        row[:used] = random.permutation(m)[:used]
    first = np.cumsum([0, *(h * w for h, w in shapes)])
    levels = [(first[i], w, _STRIDES[i], _INTEREST[i]) for i, (_, w) in enumerate(shapes)]
    return {
        "keep": keep,
        "count": count,
        "boxes": random.steps(-50, 900, (n, m, 4)),
        "scores": random.steps(-0.5, 1, (n, m)),  # below 0 counts as 0
        "labels": random.integers(0, 80, (n, m)).astype(np.int32),
        "locations": random.integers(0, a, (n, m)).astype(np.int32),
        "params": random.steps(-4, 4, (n, p, a)),
        "levels": np.array(levels, np.int32),
    }


def _select_case(
    n: int,
    k: int,
    m: int,
    p: int,
    shapes: Sequence[tuple[int, int]],
    root: bool,
    dtype: Any,
    small: bool,
) -> KernelCase:
    a = sum(h * w for h, w in shapes)

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        sizes: dict[str, Any] = {"k": k, "m": m, "p": p, "a": a, "levels": len(shapes)}
        launch = kernels.select(n, **sizes, score_root=root, dtype=np.dtype(dtype))
        outputs = {
            "boxes": ((n, k, 4), np.float32),
            "scores": ((n, k), np.float32),
            "labels": ((n, k), np.int32),
            "params": ((n, k, p), dtype),
            "centres": ((n, k, 2), np.float32),
            "sizes": ((n, k), np.float32),
        }
        given = inputs | {"params": inputs["params"].astype(dtype)}
        found = launched(stream, launch, given.values(), list(outputs.values()))
        return dict(zip(outputs, found, strict=True))

    def expected(inputs: Arrays) -> Arrays:
        import torch

        from condinst_infer import ops

        keep, count, boxes, scores, labels, places, params = map(
            torch.from_numpy, list(inputs.values())[:-1]
        )
        index = keep.clamp(min=0).long()  # [N, K]
        at = places.gather(1, index)
        steps = _STRIDES[: len(shapes)], _INTEREST[: len(shapes)]
        centres, sizes = ops.places_from_locations(at, shapes, *steps)
        chosen = scores.gather(1, index).clamp(min=0).numpy()
        rows = params.gather(2, at.long()[:, None].expand(-1, p, -1)).transpose(1, 2)
        values = {
            "boxes": boxes.gather(1, index[:, :, None].expand(-1, -1, 4)).numpy(),
            "scores": np.sqrt(chosen) if root else chosen,  # torch's may be off in the last bit
            "labels": labels.gather(1, index).numpy(),
            "params": rows.numpy(),
            "centres": centres.numpy(),
            "sizes": sizes.numpy(),
        }
        real = np.arange(k) < count.numpy()[:, None]  # [N, K]
        return {
            name: np.where(
                real.reshape(n, k, *[1] * (value.ndim - 2)), value, -1 if name == "labels" else 0
            ).astype(value.dtype)
            for name, value in values.items()
        }

    return KernelCase(
        name=f"{n} images, {k} slots of {m}, {p} parameters{', root' if root else ''}",
        inputs=lambda: _select_inputs(n, k, m, p, shapes),
        run=run,
        expected=expected,
        dtype=dtype,
        small=small,
        stored=small,
    )
