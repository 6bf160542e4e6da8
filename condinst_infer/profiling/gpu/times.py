"""Times of single kernels on a GPU beside torch's own way."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from condinst_infer import ops
from condinst_infer.cuda import kernels
from condinst_infer.cuda.download import expected_words
from condinst_infer.cuda.driver import Stream
from condinst_infer.ops.panoptic import panoptic_merge
from condinst_infer.processing.geometry import canvas_size
from condinst_infer.profiling.gpu import kernel_costs
from condinst_infer.profiling.gpu.checks import candidates, head_inputs
from condinst_infer.profiling.gpu.kernel_costs import PAPER_HEAD, KernelCost
from condinst_infer.profiling.gpu.panoptic_checks import RULES, MergeScene
from condinst_infer.profiling.gpu.scenes import (
    mask_scene,
    stuff_scene,
    tensor_from,
    torch_probabilities,
)
from condinst_infer.system.timing import summary

LAUNCHES = 20  # of a kernel in one graph, so that starting it costs nothing
HALF = np.dtype(np.float16)


def time_launch(stream: Stream, launch: Callable[[], None], repeats: int) -> dict[str, float]:
    """Milliseconds of one launch on the device: a graph of many, timed with events."""
    launch()  # loads the kernel, which a recording must not
    graph = stream.graph(lambda: [launch() for _ in range(LAUNCHES)][0])
    times = []
    for turn in range(repeats + 2):
        elapsed = stream.milliseconds(graph.launch) / LAUNCHES
        if turn > 1:
            times.append(elapsed)
    graph.close()
    return summary(times)


def time_torch(function: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds of a torch function, with events where there is a GPU."""
    times = []
    for turn in range(repeats + 2):
        if torch.cuda.is_available():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            elapsed = start.elapsed_time(end)
        else:
            begin = time.perf_counter()
            function()
            elapsed = (time.perf_counter() - begin) * 1000
        if turn > 1:
            times.append(elapsed)
    return summary(times)


def row(what: str, ours: dict[str, float], needs: KernelCost, **beside: Any) -> dict[str, Any]:
    """One result: our time, what had to be done in it, and what stands beside it."""
    seconds = ours["p50"] / 1000
    return {
        "what": what,
        "times_ms": {"ours": ours, **beside},
        "bytes": needs.bytes,
        "operations": needs.operations,
        "gb_per_s": needs.bytes / seconds / 1e9,
        "gflop_per_s": needs.operations / seconds / 1e9,
    }


def time_mask_heads(stream: Stream, k: int, h: int, w: int, repeats: int) -> dict[str, Any]:
    """Mask heads in float16 beside grouped convolution, upsampling and sigmoid in torch."""
    made = head_inputs(1, k, h, w, **PAPER_HEAD)
    made |= {name: made[name].half() for name in ("features", "params")}
    arrays = [stream.array(value.numpy()) for value in made.values()]
    out = stream.empty((1, k, 2 * h, 2 * w), HALF)
    launch = kernels.dynamic_mask_head(1, k, h, w, stride=8, factor=2, **PAPER_HEAD, dtype=HALF)
    features, params, centres, sizes, _ = (tensor_from(array) for array in arrays)

    def usual() -> torch.Tensor:
        logits = ops.mask_logits_by_grouped_conv(
            features, params, centres, sizes, stride=8, **PAPER_HEAD
        )
        return ops.aligned_bilinear(logits, 2).sigmoid()

    ours = time_launch(stream, lambda: stream.launch(launch, arrays, [out]), repeats)
    needs = kernel_costs.dynamic_mask_head(1, k, h, w, 2, 2)
    beside = {"torch grouped convolution": time_torch(usual, repeats)}
    return row(f"{k} mask heads on {h}x{w} features, float16", ours, needs, **beside)


def time_nms(stream: Stream, runs: int, t: int, k: int, repeats: int) -> dict[str, Any]:
    arrays = [stream.array(a) for a in candidates(1, runs, t, 80)]
    out = [stream.empty((1, k), np.int32), stream.empty((1,), np.int32)]
    launch = kernels.class_nms(1, runs * t, runs=runs, max_detections=k, iou_threshold=0.6)
    ours = time_launch(stream, lambda: stream.launch(launch, arrays, out), repeats)
    return row(
        f"class NMS, {runs} x {t} candidates to {k}", ours, kernel_costs.class_nms(1, runs * t, k)
    )


def time_preprocess(
    stream: Stream, size: tuple[int, int], net_size: tuple[int, int], repeats: int
) -> dict[str, Any]:
    frame = stream.array(np.full((*size, 3), 7, np.uint8))
    canvas = canvas_size(net_size, 32)
    out = stream.empty((*canvas, 3), np.uint8)
    launch = kernels.preprocess(pitch=3 * size[1], size=size, net_size=net_size, canvas=canvas)
    ours = time_launch(stream, lambda: stream.launch(launch, [frame], [out]), repeats)
    what = f"resize {size[0]}x{size[1]} to {net_size[0]}x{net_size[1]}"
    return row(what, ours, kernel_costs.preprocess(size, net_size, canvas))


def time_paste(
    stream: Stream, k: int, shape: tuple[int, int], image_size: tuple[int, int], repeats: int
) -> dict[str, Any]:
    """Packed native masks beside upsampling of whole frames in torch, both on the device."""
    net_size = (4 * shape[0], 4 * shape[1])
    masks = stream.array(mask_scene(k, shape, image_size).astype(HALF))
    count, used = stream.array(np.array([k], np.int32)), stream.empty((1,), np.int32)
    capacity = expected_words(k, image_size) * 2
    crops = stream.empty((k, kernels.CROP_FIELDS), np.int32)
    bits = stream.empty((capacity,), np.uint32)
    sizes: dict[str, Any] = {
        "k": k,
        "shape": shape,
        "stride": 4,
        "net_size": net_size,
        "image_size": image_size,
        "dtype": HALF,
    }

    def launch() -> None:
        stream.fill(used, 0)
        boxes = kernels.mask_boxes(**sizes, capacity=capacity)
        stream.launch(boxes, [masks, count], [crops, used])
        stream.launch(kernels.paste(**sizes), [masks, crops], [bits])

    tensor = tensor_from(masks)

    def usual() -> torch.Tensor:
        return torch_probabilities(tensor, 4, net_size, image_size) > 0.5

    ours = time_launch(stream, launch, repeats)
    needs = kernel_costs.paste(k, shape, int(stream.numpy(used)[0]) * 32, 2)
    beside = {"torch whole frames": time_torch(usual, repeats)}
    what = f"paste {k} masks {shape[0]}x{shape[1]} to {image_size[0]}x{image_size[1]}, packed"
    return row(what, ours, needs, **beside)


def time_merge(
    stream: Stream,
    k: int,
    classes: int,
    shape: tuple[int, int],
    image_size: tuple[int, int],
    repeats: int,
) -> dict[str, Any]:
    """The merge of pasted masks and logits, with the copy of its owners, beside the torch twin."""
    sizes = {"net_size": (4 * shape[0], 4 * shape[1]), "image_size": image_size}
    masks = mask_scene(k, shape, image_size).astype(HALF)
    semantic = stuff_scene(cells=shape, classes=classes).astype(HALF)
    made = MergeScene(stream, masks, semantic, **sizes)
    ours = time_launch(stream, made.merge, repeats)
    tensors = tensor_from(made.masks), tensor_from(made.semantic)[0]

    def usual() -> torch.Tensor:
        return panoptic_merge(*tensors, stride=4, **sizes, **RULES)

    needs = kernel_costs.panoptic(classes, shape, image_size, made.words * 32)
    beside = {"torch whole frames": time_torch(usual, repeats)}
    height, width = image_size
    what = f"panoptic merge of {k} masks and {classes} classes, {height}x{width}, to host memory"
    return row(what, ours, needs, **beside)
