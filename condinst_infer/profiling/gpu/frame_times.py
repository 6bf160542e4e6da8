"""Times of the kernels that read a frame or write in its size, with torch's way beside them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from condinst_infer.cuda import kernels
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.stream import Stream
from condinst_infer.processing.geometry import canvas_size
from condinst_infer.profiling.gpu import kernel_costs
from condinst_infer.profiling.gpu.panoptic_checks import RULES, MergeScene
from condinst_infer.profiling.gpu.scenes import (
    mask_scene,
    stuff_scene,
    tensor_from,
    torch_probabilities,
)
from condinst_infer.profiling.gpu.timing import Case, Prepared, Row, rows, torch_is_here

HALF = np.dtype(np.float16)
_STRIDE = 4
Size = tuple[int, int]


def preprocess_times(device: Device, small: bool) -> Iterator[Row]:
    """A frame resized and padded."""
    sizes = [((48, 64), (24, 32))]
    if not small:
        sizes = [((480, 640), (512, 683)), ((1080, 1920), (414, 736)), ((2160, 3840), (414, 736))]
    cases = [
        Case(f"resize {a}x{b} to {c}x{d}", None, partial(_preprocess, (a, b), (c, d)))
        for (a, b), (c, d) in sizes
    ]
    yield from rows(device, small, cases)


def paste_times(device: Device, small: bool) -> Iterator[Row]:
    """Packed masks in original pixels, beside whole frames and grid_sample in torch."""
    sizes: list[tuple[int, Size, Size]] = [(2, (9, 11), (40, 50))]
    if not small:
        sizes = [(k, (128, 172), (480, 640)) for k in (1, 100, 500)]
        sizes.append((100, (104, 184), (1080, 1920)))
    cases = [
        Case(
            f"paste {k} masks {h}x{w} to {image[0]}x{image[1]}, packed",
            k,
            partial(_paste, device, k, (h, w), image),
        )
        for k, (h, w), image in sizes
    ]
    yield from rows(device, small, cases)


def panoptic_times(device: Device, small: bool) -> Iterator[Row]:
    """The merge of pasted masks and logits, with the copy of its owners, beside the torch twin."""
    sizes: list[tuple[int, int, Size, Size]] = [(2, 4, (9, 11), (40, 50))]
    if not small:
        sizes = [(k, 54, (128, 172), (480, 640)) for k in (1, 100, 500)]
        sizes.append((100, 54, (104, 184), (1080, 1920)))
    cases = [
        Case(
            f"panoptic merge of {k} masks and {classes} classes, {image[0]}x{image[1]}, to host "
            "memory",
            k,
            partial(_panoptic, device, k, classes, shape, image),
        )
        for k, classes, shape, image in sizes
    ]
    yield from rows(device, small, cases)


def _preprocess(size: Size, net_size: Size, stream: Stream) -> Prepared:
    canvas = canvas_size(net_size, 32)
    frame = stream.array(np.full((*size, 3), 7, np.uint8))
    image = stream.empty((*canvas, 3), np.uint8)
    launch = kernels.preprocess(pitch=3 * size[1], size=size, net_size=net_size, canvas=canvas)
    cost = kernel_costs.preprocess(size, net_size, canvas)
    return Prepared(lambda: stream.launch(launch, [frame], [image]), cost)


def _paste(device: Device, k: int, shape: Size, image_size: Size, stream: Stream) -> Prepared:
    net_size = (_STRIDE * shape[0], _STRIDE * shape[1])
    masks = stream.array(mask_scene(k, shape, image_size).astype(HALF))
    count, used = stream.array(np.array([k], np.int32)), stream.empty((1,), np.int32)
    capacity = k * image_size[0] * -(-image_size[1] // 32)
    crops = stream.empty((k, kernels.CROP_FIELDS), np.int32)
    bits = stream.empty((capacity,), np.uint32)
    sizes: dict[str, Any] = {
        "k": k, "shape": shape, "stride": _STRIDE, "net_size": net_size, "image_size": image_size,
        "dtype": HALF,
    }  # fmt: skip
    boxes = kernels.mask_boxes(**sizes, capacity=capacity)

    def launch() -> None:
        stream.fill(used, 0)
        stream.launch(boxes, [masks, count], [crops, used])
        stream.launch(kernels.paste(**sizes), [masks, crops], [bits])

    beside = {}
    if torch_is_here(device):
        from condinst_infer.profiling.gpu import torch_ways

        x, where = tensor_from(masks), (_STRIDE, net_size, image_size)
        beside = {
            "torch grid_sample": lambda: torch_ways.time_eager(
                lambda: torch_ways.pasted_by_grid_sample(x, *where)
            ),
            "torch whole frames": lambda: torch_ways.time_eager(
                lambda: torch_probabilities(x, *where) > 0.5
            ),
        }
    launch()
    words = int(stream.numpy(used)[0])
    cost = kernel_costs.paste(k, shape, words * 32, HALF.itemsize)
    return Prepared(launch, cost, beside)


def _panoptic(
    device: Device, k: int, classes: int, shape: Size, image_size: Size, stream: Stream
) -> Prepared:
    sizes: dict[str, Any] = {
        "net_size": (_STRIDE * shape[0], _STRIDE * shape[1]), "image_size": image_size
    }  # fmt: skip
    masks = mask_scene(k, shape, image_size).astype(HALF)
    semantic = stuff_scene(cells=shape, classes=classes).astype(HALF)
    scene = MergeScene(stream, masks, semantic, **sizes)
    beside = {}
    if torch_is_here(device):
        from condinst_infer.ops.panoptic import panoptic_merge
        from condinst_infer.profiling.gpu import torch_ways

        given = tensor_from(scene.masks), tensor_from(scene.semantic)[0]
        beside["torch whole frames"] = lambda: torch_ways.time_eager(
            lambda: panoptic_merge(*given, stride=_STRIDE, **sizes, **RULES)
        )
    cost = kernel_costs.panoptic(classes, shape, image_size, scene.words * 32)
    return Prepared(scene.merge, cost, beside)
