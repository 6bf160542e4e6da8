"""Panoptic merge of instances and stuff: ours beside the usual torch operations.

    python -m benchmarks.panoptic_merge

800x1088 network input, masks and semantic logits at stride 4, original 480x640. Inside the time:
from probabilities and logits in memory to the owner of every pixel. Needs the `train` extra.
"""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.harness import component_parser
from condinst_infer.processing.panoptic_merge import add_stuff, owners_of_things, semantic_labels
from condinst_infer.processing.paste import paste
from condinst_infer.profiling.environment import environment, write_result
from condinst_infer.profiling.gpu.scenes import (
    CELLS,
    CLASSES,
    IMAGE_SIZE,
    NET_SIZE,
    STRIDE,
    mask_scene,
    stuff_scene,
    torch_probabilities,
)
from condinst_infer.system.timing import summary, time_interleaved

OVERLAP, AREA_LIMIT = 0.4, 4096
RESULT = Path(__file__).parent / "results" / "panoptic_merge.json"
CASES = {  # instances, whether the logits are noise
    "100 instances": (100, False),
    "no instance": (0, False),
    "100 instances, noise for logits": (100, True),
    "no instance, noise for logits": (0, True),
}


def ours(masks: np.ndarray, semantic: np.ndarray) -> np.ndarray:
    """Owners uint16 [H, W], as the pipeline makes them."""
    crops = paste(masks, stride=STRIDE, net_size=NET_SIZE, image_size=IMAGE_SIZE)
    things = owners_of_things(crops, IMAGE_SIZE, OVERLAP)
    labels = semantic_labels(semantic, net_size=NET_SIZE, image_size=IMAGE_SIZE, needed=things == 0)
    return add_stuff(things, labels, len(crops), AREA_LIMIT)


def torch_logits(semantic: Tensor) -> Tensor:
    """Native-size logits [C, H, W]."""
    size = [STRIDE * side for side in CELLS]
    x = interpolate(semantic[None], size=size, mode="bilinear", align_corners=False)
    x = x[..., : NET_SIZE[0], : NET_SIZE[1]]
    return interpolate(x, size=IMAGE_SIZE, mode="bilinear", align_corners=False)[0]


def in_torch(masks: Tensor, semantic: Tensor) -> Tensor:
    """The same as `ours`, dense: every mask and every class at full size, then a loop."""
    labels = torch_logits(semantic).argmax(0)
    owners = torch.zeros(IMAGE_SIZE, dtype=torch.int64)
    dense = torch_probabilities(masks) > 0.5 if len(masks) else masks
    for number, mask in enumerate(dense, 1):
        area = mask.sum().item()
        if area == 0:
            continue
        taken = mask & (owners > 0)
        if taken.sum().item() <= OVERLAP * area:
            owners[mask & ~taken] = number
    free = owners == 0
    for label in labels.unique().tolist():
        mask = free & (labels == label)
        if label > 0 and mask.sum().item() >= AREA_LIMIT:
            owners[mask] = len(masks) + label
    return owners


def measure(name: str, repeats: int) -> dict[str, object]:
    """Times of both for one case, their ratio, and the pixels that differ."""
    count, noise = CASES[name]
    masks, semantic = mask_scene(count), stuff_scene(noise)
    tensors = torch.from_numpy(masks), torch.from_numpy(semantic)
    expected = in_torch(*tensors).numpy()
    differs = ours(masks, semantic) != expected
    best = torch_logits(tensors[1]).topk(2, dim=0).values.numpy()
    gaps = ((best[0] - best[1]) / np.abs(best[0]))[differs]
    times = time_interleaved(
        {"ours": partial(ours, masks, semantic), "torch": partial(in_torch, *tensors)},
        repeats=repeats,
        warmup=2,
    )
    summaries = {side: summary(values) for side, values in times.items()}
    return {
        "what": f"panoptic merge, {CLASSES} classes, {name}, {CELLS[0]}x{CELLS[1]} to "
        f"{IMAGE_SIZE[0]}x{IMAGE_SIZE[1]}",
        "against": "masks and logits at full size in torch, and a loop",
        "times_ms": summaries,
        "ratio": summaries["torch"]["p50"] / summaries["ours"]["p50"],
        "pixels": int(expected.size),
        "pixels_of_things": int(((expected > 0) & (expected <= count)).sum()),
        "pixels_differing": int(differs.sum()),
        "largest_gap_of_best_logits_there": float(gaps.max(initial=0.0)),
    }


def main() -> None:
    """Measure, print one line per case, write the result."""
    parser = component_parser(__doc__, RESULT, repeats=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    results = []
    for name in CASES:
        result = measure(name, options.repeats)
        times = result["times_ms"]
        assert isinstance(times, dict)
        print(
            f"{name}: ours {times['ours']['p50']:.2f} ms, torch {times['torch']['p50']:.1f} ms, "
            f"ratio {result['ratio']:.1f}, {result['pixels_differing']} pixels differ"
        )
        results.append(result)
    report = {"threads": options.threads, "results": results, "environment": environment()}
    write_result(options.output, report)


if __name__ == "__main__":
    main()
