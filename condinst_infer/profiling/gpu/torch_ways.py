"""The same work in PyTorch, as it is usually written: what stands beside our times.

Only this file of the times imports torch; it is imported where torch is.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from condinst_infer.profiling.gpu.timing import Measure

_PIXELS_AT_ONCE = 1 << 26  # of a paste: 256 MB of float32
_WARM_UP = 3  # calls before a graph is recorded; PyTorch asks for some


def time_eager(function: Callable[[], object]) -> Measure:
    """Milliseconds of a call, between two events where there is a GPU."""

    def measure() -> float:
        with torch.inference_mode():
            if not torch.cuda.is_available():
                begin = time.perf_counter()
                function()
                return (time.perf_counter() - begin) * 1000
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            return start.elapsed_time(end)

    return measure


def time_graph(function: Callable[[], object]) -> Measure:
    """Milliseconds of a call that is replayed as a CUDA graph, without the work of the host."""
    if not torch.cuda.is_available():
        return time_eager(function)
    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function()
    keep: list[Any] = [graph, outputs]  # the graph writes to their memory
    return time_eager(lambda: keep[0].replay())


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Indices that greedy NMS within classes keeps, best score first, as torchvision's.

    Boxes of a class are moved away from those of others. A box is kept unless an earlier kept one
    overlaps it; that is repeated for all boxes at once until nothing changes.

    Args:
        boxes: [M, 4], xyxy.
        scores, labels: [M].
    """
    moved = boxes + (labels * (boxes.max() + 1))[:, None] if len(boxes) else boxes
    order = scores.argsort(descending=True, stable=True)
    moved = moved[order]
    areas = (moved[:, 2:] - moved[:, :2]).prod(1)
    low = torch.maximum(moved[:, None, :2], moved[:, :2])
    high = torch.minimum(moved[:, None, 2:], moved[:, 2:])
    overlaps = (high - low).clamp(min=0).prod(2)
    ious = overlaps / (areas[:, None] + areas - overlaps)
    close = (ious > iou_threshold).triu(1)  # [M, M], an earlier one with a later one
    kept = torch.ones_like(order, dtype=torch.bool)
    for _ in range(len(order)):  # as often as one suppresses one that suppresses another
        now = ~(close & kept[:, None]).any(0)
        if torch.equal(now, kept):
            break
        kept = now
    return order[kept]


def nms_name_and_function() -> tuple[str, Callable[..., Tensor]]:
    """torchvision's NMS where it is installed, `batched_nms` elsewhere."""
    try:
        from torchvision.ops import batched_nms as theirs  # pyright: ignore
    except Exception:  # missing, or made for another torch
        return "torch greedy NMS", batched_nms
    return "torchvision batched_nms", theirs


def pasted_by_grid_sample(
    masks: Tensor, stride: int, net_size: tuple[int, int], image_size: tuple[int, int]
) -> Tensor:
    """Masks bool [K, H, W] in original pixels, sampled from probabilities [K, h, w] in one step.

    Our paste interpolates to network pixels first, so that borders differ by fractions of a pixel.
    """
    axes = []
    for cells, net, side in zip(masks.shape[1:], net_size, image_size, strict=True):
        pixel = (torch.arange(side, device=masks.device) + 0.5) * net / side - 0.5
        cell = (pixel - stride // 2) / stride
        axes.append(2 * cell / max(1, cells - 1) - 1)
    y, x = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([x, y], 2)[None]  # [1, H, W, 2]
    step = max(1, _PIXELS_AT_ONCE // (image_size[0] * image_size[1]))
    pieces = [
        grid_sample(
            part[:, None].float(),
            grid.expand(len(part), -1, -1, -1),
            mode="bilinear",
            padding_mode="border",
            align_corners=True,
        )[:, 0]
        > 0.5
        for part in masks.split(step)
    ]
    return torch.cat(pieces)
