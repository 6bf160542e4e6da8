"""Cases of the kernels in mask_nms.cu: bits, overlaps, what is kept, and tight boxes."""

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from condinst_infer.cuda import kernels
from condinst_infer.cuda.stream import Stream
from condinst_infer.profiling.gpu.cases import FLOATS, Arrays, KernelCase, launched
from condinst_infer.profiling.gpu.seeded import Seeded, blobs, packed, unpacked

Size = tuple[int, int]  # (height, width)

_SIZES = [  # images, candidates, (height, width) of the masks, for the CPU too
    (1, 1, (1, 1), True),
    (2, 20, (7, 9), True),  # a second tile of pairs, of four rows
    (2, 33, (23, 33), True),  # 759 cells: no whole word, and two chunks of 16 words
    (1, 300, (64, 88), False),
    (2, 512, (25, 42), False),  # a full block
]
_THRESHOLDS = {"iou_threshold": 0.5, "score_threshold": 0.05}


def mask_bits_cases() -> list[KernelCase]:
    return [_bits_case(*size, dtype) for size in _SIZES for dtype in FLOATS]


def mask_ious_cases() -> list[KernelCase]:
    return [_ious_case(*size) for size in _SIZES]


def mask_nms_cases() -> list[KernelCase]:
    """Three kinds, with and without the score's root; more candidates than are kept."""
    return [
        _nms_case(*size, *kind) for size in _SIZES for kind in product(kernels.MASK_NMS, (0, 1))
    ]


def mask_extents_cases() -> list[KernelCase]:
    return [_extents_case(*size, dtype) for size in _SIZES for dtype in FLOATS]


def _ious(bits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float32 [N, C, C]: an earlier one with a later one of its class, else 0."""
    cells, slots = unpacked(bits).astype(np.float32), np.arange(bits.shape[1])
    overlaps = cells @ cells.transpose(0, 2, 1)  # whole numbers, exact below 2^24 cells
    areas = cells.sum(2)
    both = np.maximum(areas[:, :, None] + areas[:, None] - overlaps, np.float32(1))
    rivals = (labels[:, :, None] == labels[:, None]) & (slots[:, None] < slots)
    return np.where(rivals, overlaps / both, np.float32(0))


@lru_cache(maxsize=1)
def _masks(n: int, c: int, size: Size) -> Arrays:
    """masks [N, C, h, w], and labels [N, C]; several cases in a row have the same."""
    labels = Seeded(c).integers(0, 2, (n, c)).astype(np.int32)
    return {"masks": blobs(c, n * c, size).reshape(n, c, *size), "labels": labels}


def _bits_and_areas(masks: np.ndarray) -> Arrays:
    inside = (masks > 0.5).reshape(*masks.shape[:2], -1)
    return {"bits": packed(inside), "areas": inside.sum(2).astype(np.int32)}


def _bits_case(n: int, c: int, size: Size, small: bool, dtype: Any) -> KernelCase:
    cells = size[0] * size[1]

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        launch = kernels.mask_bits(n, c, cells, dtype=np.dtype(dtype))
        outputs = [((n, c, -(-cells // 32)), np.uint32), ((n, c), np.int32)]
        bits, areas = launched(stream, launch, [inputs["masks"].astype(dtype)], outputs)
        return {"bits": bits, "areas": areas}

    return KernelCase(
        name=f"{n} images, {c} of {size}",
        inputs=lambda: _masks(n, c, size),
        run=run,
        expected=lambda inputs: _bits_and_areas(inputs["masks"]),
        twin="numpy",
        dtype=dtype,
        small=small,
        stored=small,
    )


def _ious_case(n: int, c: int, size: Size, small: bool) -> KernelCase:
    words = -(-size[0] * size[1] // 32)

    def inputs() -> Arrays:
        made = _masks(n, c, size)
        return _bits_and_areas(made["masks"]) | {"labels": made["labels"]}

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        launch = kernels.mask_ious(n, c, words)
        return {"ious": launched(stream, launch, inputs.values(), [((n, c, c), np.float32)])[0]}

    return KernelCase(
        name=f"{n} images, {c} of {words} words",
        inputs=inputs,
        run=run,
        expected=lambda given: {"ious": _ious(given["bits"], given["labels"])},
        twin="numpy",
        small=small,
        stored=small,
    )


def _nms_case(n: int, c: int, size: Size, small: bool, kind: str, root: int) -> KernelCase:
    k = max(1, c // 2)

    def inputs() -> Arrays:
        random, made = Seeded(c + 1), _masks(n, c, size)
        # a candidate in nine has no slot, and many have the score of another
        scores = -np.sort(-random.integers(5, 100, (n, c)), axis=1) / 100
        scores[:, c - c // 9 :] = 0
        derived = _bits_and_areas(made["masks"])
        order = 3 * np.tile(np.arange(c, dtype=np.int32), (n, 1)) + 1
        ious = _ious(derived["bits"], made["labels"])
        scores = scores.astype(np.float32)
        return made | {"ious": ious, "scores": scores, "areas": derived["areas"], "order": order}

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        launch = kernels.mask_nms(n, c, k=k, kind=kind, **_THRESHOLDS, score_root=bool(root))
        given = [inputs[name] for name in ("ious", "scores", "areas", "order")]
        outputs = [((n, k), np.int32), ((n, k), np.float32), ((n,), np.int32)]
        keep, scores, count = launched(stream, launch, given, outputs)
        return {"keep": keep, "scores": scores, "count": count}

    def expected(inputs: Arrays) -> Arrays:
        import torch

        from condinst_infer import ops

        given = [torch.from_numpy(inputs[name]) for name in ("masks", "scores", "labels")]
        found = ops.mask_nms(*given, kind=kind, **_THRESHOLDS, max_detections=k)
        keep, scores, count = (tensor.numpy() for tensor in found)
        keep = np.where(keep < 0, -1, 3 * keep + 1)
        return {"keep": keep, "scores": np.sqrt(scores) if root else scores, "count": count}

    return KernelCase(
        name=f"{kind}, {n} images, {c} of {size} to {k}{', root' if root else ''}",
        inputs=inputs,
        run=run,
        expected=expected,
        small=small,
        stored=small or not root,
    )


def _extents_case(n: int, k: int, size: Size, small: bool, dtype: Any) -> KernelCase:
    def inputs() -> Arrays:
        count = np.array([k, 0, 1][:n], np.int32)
        return {"masks": _masks(n, k, size)["masks"], "count": count}

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        launch = kernels.mask_extents(n, k, size, stride=4, dtype=np.dtype(dtype))
        given = [inputs["masks"].astype(dtype), inputs["count"]]
        return {"boxes": launched(stream, launch, given, [((n, k, 4), np.float32)])[0]}

    def expected(inputs: Arrays) -> Arrays:
        import torch

        from condinst_infer import ops

        used = np.arange(k) < inputs["count"][:, None]
        masks = np.where(used[:, :, None, None], inputs["masks"], np.float32(0))
        return {"boxes": ops.boxes_from_masks(torch.from_numpy(masks), 4).numpy()}

    return KernelCase(
        name=f"{n} images, {k} of {size}",
        inputs=inputs,
        run=run,
        expected=expected,
        dtype=dtype,
        small=small,
        stored=small,
    )
