"""Cases of the kernels in panoptic.cu, each given what the one before it should have made."""

from typing import Any

import numpy as np

from condinst_infer.config.model import MILLION
from condinst_infer.cuda import kernels
from condinst_infer.cuda.stream import Stream
from condinst_infer.profiling.gpu.cases import FLOATS, UNDECIDED, Arrays, KernelCase, launched
from condinst_infer.profiling.gpu.seeded import Seeded, blobs, packed, regions, unpacked

Size = tuple[int, int]  # (height, width)

_SCORE, _SHARE = 0.5, 0.4  # thresholds
_NEAR = 1e-4  # where rounding may decide between two classes; logits are up to 8


def owners_of_things_cases() -> list[KernelCase]:
    """Instances over each other; some below the threshold, some without a box or a place."""
    sizes = [(9, (40, 61), True), (3, (1, 97), True), (100, (480, 640), False)]
    sizes += [(100, (1080, 1542), False)]
    return [_things_case(*size, check) for size in sizes for check in (True, False)]


def add_stuff_cases() -> list[KernelCase]:
    """Logits enlarged and shrunk; of the size of the image they have exact ties."""
    sizes = [
        (7, (16, 24), (57, 91), (75, 121), True),
        (5, (12, 20), (48, 80), (48, 80), True),
        (255, (3, 4), (9, 16), (5, 7), True),
        (54, (200, 272), (800, 1067), (480, 640), False),
        (12, (128, 184), (512, 731), (1080, 1542), False),
    ]
    return [_stuff_case(*size, dtype) for size in sizes for dtype in FLOATS]


def drop_small_stuff_cases() -> list[KernelCase]:
    return [
        _small_case(7, 12, (75, 121), True),
        _small_case(0, 254, (9, 31), True),
        _small_case(100, 53, (1080, 1920), False),
    ]


def _things_case(k: int, size: Size, small: bool, check_boxes: bool) -> KernelCase:
    height, width = size

    def inputs() -> Arrays:
        # of the large ones a cell is 4 x 4 pixels
        scale = 1 if small else 4
        masks = blobs(k, k, (-(-height // scale), -(-width // scale))) > 0.5
        masks = masks.repeat(scale, 1).repeat(scale, 2)[:, :height, :width]
        random = Seeded(k)
        crops, words, used = np.zeros((k, kernels.CROP_FIELDS), np.int32), [], 0
        for crop, mask in zip(crops, masks, strict=True):
            y, x = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            if not y.size:
                continue
            part = mask[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
            crop[:] = x[0], y[0], part.shape[1], part.shape[0], used
            words.append(packed(part).ravel())
            used += words[-1].size
        crops[4::9, 4] = -1
        boxes = np.tile(np.array([0, 0, 2 * width, 2 * height], np.float32), (k, 1))
        boxes[2::6, 2] = 0
        boxes[5::9, 1] = 2 * height
        scores = random.steps(0.375, 1, (k,))
        scores[: k // 2] = _SCORE  # just enough
        bits, count = np.concatenate(words), np.array([max(1, k - 1)], np.int32)
        return {"bits": bits, "crops": crops, "count": count, "boxes": boxes, "scores": scores}

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        launch = kernels.owners_of_things(
            k=k,
            net_size=(2 * height, 2 * width),
            image_size=size,
            score_threshold=_SCORE,
            overlap_threshold=_SHARE,
            check_boxes=check_boxes,
        )
        outputs = [np.zeros((height, -(-width // 32) + 1), np.uint32), np.zeros(size, np.uint16)]
        taken, owners = launched(stream, launch, inputs.values(), outputs)
        return {"taken": unpacked(taken), "owners": owners}

    def expected(inputs: Arrays) -> Arrays:
        owners = np.zeros(size, np.uint16)
        for slot in range(int(inputs["count"][0])):
            x, y, w, h, word = inputs["crops"][slot].tolist()
            left, top, right, bottom = np.clip(inputs["boxes"][slot] / 2, 0, [width, height] * 2)
            outside = check_boxes and not (left < right and top < bottom)
            if word < 0 or not w or inputs["scores"][slot] < _SCORE or outside:
                continue
            rows = inputs["bits"][word : word + h * -(-w // 32)].reshape(h, -1)
            mask, region = unpacked(rows)[:, :w], owners[y : y + h, x : x + w]
            free = mask & (region == 0)
            area, left = int(mask.sum()), int(free.sum())
            if (area - left) * MILLION <= round(_SHARE * MILLION) * area:
                region[free] = slot + 1
        taken = np.zeros((height, 32 * (-(-width // 32) + 1)), bool)
        taken[:, :width] = owners > 0
        return {"taken": taken, "owners": owners}

    return KernelCase(
        name=f"{k} masks on {size}{', boxes checked' if check_boxes else ''}",
        inputs=inputs,
        run=run,
        expected=expected,
        twin="numpy",
        small=small,
        stored=small,
    )


def _stuff_case(
    classes: int, shape: Size, net_size: Size, image_size: Size, small: bool, dtype: Any
) -> KernelCase:
    k, sizes = 9, {"net_size": net_size, "image_size": image_size}
    exact = net_size == image_size  # weights of eighths: no sum is rounded, ties are ties

    def inputs() -> Arrays:
        owners = (3 * (blobs(1, 1, image_size)[0] > 0.5)).astype(np.uint16)
        semantic = regions(classes, classes, shape)
        equal = slice(shape[1] // 2)
        semantic[classes - 1, :, equal] = semantic[1, :, equal]
        return {"semantic": semantic, "owners": owners}

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        launch = kernels.add_stuff(k=k, shape=(classes, *shape), dtype=np.dtype(dtype), **sizes)
        outputs = [np.zeros(classes, np.int32), inputs["owners"]]
        given = [inputs["semantic"].astype(dtype)]
        areas, owners = launched(stream, launch, given, outputs)
        counted = np.bincount(np.maximum(owners.ravel().astype(int) - k, 0), minlength=classes)
        counted[0] = 0
        return {"owners": owners, "miscounted": areas - counted[:classes]}

    def expected(inputs: Arrays) -> Arrays:
        import torch

        from condinst_infer.ops.panoptic import semantic_logits

        logits = semantic_logits(torch.from_numpy(inputs["semantic"]), **sizes)
        best, second = logits.topk(2, dim=0).values
        labels = logits.numpy().argmax(0)  # the first of equal ones
        stuff = np.where(labels > 0, labels + k, 0).astype(np.uint16)
        owners = np.where(inputs["owners"] > 0, inputs["owners"], stuff)
        near = (best - second < (0 if exact else _NEAR)).numpy() & (inputs["owners"] == 0)
        wanted = {"owners": owners, f"owners{UNDECIDED}": np.flatnonzero(near)}
        return wanted | {"miscounted": np.zeros(classes, np.int32)}

    return KernelCase(
        name=f"{classes} classes {shape} over {net_size} to {image_size}",
        inputs=inputs,
        run=run,
        expected=expected,
        dtype=dtype,
        small=small,
    )


def _small_case(k: int, classes: int, size: Size, small: bool) -> KernelCase:
    def inputs() -> Arrays:
        random = Seeded(classes)
        owners = random.integers(0, k + classes + 1, size)
        owners[:, : size[1] // 2] = np.minimum(owners[:, : size[1] // 2], k + 3)
        areas = np.bincount(np.maximum(owners.ravel() - k, 0), minlength=classes + 1)
        return {"areas": areas.astype(np.int32), "owners": owners.astype(np.uint16)}

    def limit(areas: np.ndarray) -> int:
        return int(areas[-1])  # the last class has just enough, those of fewer pixels don't

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        settings = {"image_size": size, "stuff_area_limit": limit(inputs["areas"])}
        launch = kernels.drop_small_stuff(k=k, **settings)
        return {"owners": launched(stream, launch, [inputs["areas"]], [inputs["owners"]])[0]}

    def expected(inputs: Arrays) -> Arrays:
        areas, owners = inputs.values()
        stuff = np.maximum(owners.astype(int) - k, 0)
        lost = (stuff > 0) & (areas[stuff] < limit(areas))
        return {"owners": np.where(lost, 0, owners).astype(np.uint16)}

    return KernelCase(
        name=f"{k} instances and {classes} classes on {size}",
        inputs=inputs,
        run=run,
        expected=expected,
        twin="numpy",
        small=small,
        stored=small,
    )
