"""Native-size masks of 100 instances: `postprocess.paste` beside the usual torch operations.

    python -m benchmarks.paste

800x1088 network input, mask stride 4, original 480x640. Inside the time: from probabilities in
memory to boolean masks (ours: tight crops; torch: dense). Needs the `train` extra.
"""

import argparse
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from condinst_infer.processing.paste import paste
from condinst_infer.profiling.environment import environment, write_result
from condinst_infer.results.crop import CroppedMask
from condinst_infer.system.timing import interleaved, summary

NET_SIZE, IMAGE_SIZE, STRIDE, CELLS = (800, 1088), (480, 640), 4, (200, 272)
AREAS = (40, 100_000)  # original pixels, log-uniform: from a distant bottle to a bus
RESULT = Path(__file__).parent / "results" / "paste.json"


def scene(
    count: int,
    cells: tuple[int, int] = CELLS,
    image_size: tuple[int, int] = IMAGE_SIZE,
    seed: int = 0,
) -> np.ndarray:
    """Probabilities float32 [count, *cells] of elliptic objects with wavy, soft borders."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: cells[0], : cells[1]].astype(np.float32)
    pixels = image_size[0] * image_size[1]
    pixels_per_cell = pixels / (cells[0] * cells[1])
    masks = np.empty((count, *cells), dtype=np.float32)
    for mask in masks:
        area = np.exp(random.uniform(*np.log((AREAS[0], min(AREAS[1], pixels))))) / pixels_per_cell
        aspect = np.exp(random.uniform(-0.7, 0.7))
        ry, rx = np.sqrt(area / np.pi * aspect), np.sqrt(area / np.pi / aspect)
        # Most of it inside the picture, so that areas are what AREAS says.
        cy = random.uniform(min(ry, cells[0] / 2), max(cells[0] - ry, cells[0] / 2))
        cx = random.uniform(min(rx, cells[1] / 2), max(cells[1] - rx, cells[1] / 2))
        dy, dx = (y - cy) / ry, (x - cx) / rx
        wave = 1 + 0.1 * np.sin(5 * np.arctan2(dy, dx) + random.uniform(0, 6))
        distance = (wave - np.hypot(dy, dx)) * np.sqrt(ry * rx)  # cells, positive inside
        mask[:] = 1 / (1 + np.exp(np.clip(-2 * distance, -30, 30)))
    return masks


def torch_probabilities(
    masks: torch.Tensor,
    stride: int = STRIDE,
    net_size: tuple[int, int] = NET_SIZE,
    image_size: tuple[int, int] = IMAGE_SIZE,
) -> torch.Tensor:
    """Native-size probabilities [K, H, W] by pad, interpolate, crop and interpolate."""
    height, width = masks.shape[1:]
    x = pad(masks[:, None], (0, 1, 0, 1), mode="replicate")
    size = (height * stride + 1, width * stride + 1)
    x = interpolate(x, size=size, mode="bilinear", align_corners=True)
    x = pad(x, (stride // 2, 0, stride // 2, 0), mode="replicate")
    x = x[..., : net_size[0], : net_size[1]]
    return interpolate(x, size=image_size, mode="bilinear", align_corners=False)[:, 0]


def dense(crops: list[CroppedMask], image_size: tuple[int, int] = IMAGE_SIZE) -> np.ndarray:
    """Boolean masks [K, H, W]."""
    masks = np.zeros((len(crops), *image_size), dtype=bool)
    for mask, crop in zip(masks, crops, strict=True):
        height, width = crop.mask.shape
        mask[crop.y : crop.y + height, crop.x : crop.x + width] = crop.mask
    return masks


def measure(count: int, repeats: int, threads: int) -> dict[str, object]:
    """One result: times of both, their ratio, and the pixels that differ."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    masks = scene(count)
    tensor = torch.from_numpy(masks)
    ours = partial(paste, masks, stride=STRIDE, net_size=NET_SIZE, image_size=IMAGE_SIZE)
    probabilities = torch_probabilities(tensor).numpy()
    reference = probabilities > 0.5
    differs = dense(ours()) != reference
    distance = np.abs(probabilities[differs] - 0.5).max(initial=0.0)
    del probabilities
    times = interleaved(
        {"paste": ours, "torch": lambda: torch_probabilities(tensor) > 0.5},
        repeats=repeats,
        warmup=2,
    )
    summaries = {name: summary(values) for name, values in times.items()}
    areas = reference.sum(axis=(1, 2))
    return {
        "what": f"{count} masks {CELLS[0]}x{CELLS[1]} at stride {STRIDE} to "
        f"{IMAGE_SIZE[0]}x{IMAGE_SIZE[1]}",
        "against": "pad, interpolate, crop, interpolate and threshold in torch",
        "threads": threads,
        "areas_px": {"min": int(areas.min()), "median": float(np.median(areas)),
                     "max": int(areas.max())},
        "times_ms": summaries,
        "ratio": summaries["torch"]["p50"] / summaries["paste"]["p50"],
        "pixels": int(reference.size),
        "pixels_differing": int(differs.sum()),
        "farthest_differing_probability_from_half": float(distance),
        "environment": environment(),
    }  # fmt: skip


def main() -> None:
    """Measure, print one line, write the result."""
    parser = argparse.ArgumentParser(description="paste against torch")
    parser.add_argument("--count", type=int, default=100, help="instances (default: 100)")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs (default: 15)")
    parser.add_argument("--threads", type=int, default=2, help="of both sides (default: 2)")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    options = parser.parse_args()
    result = measure(options.count, options.repeats, options.threads)
    write_result(options.output, result)
    times = result["times_ms"]
    assert isinstance(times, dict)
    print(
        f"paste {times['paste']['p50']:.2f} ms, torch {times['torch']['p50']:.1f} ms, "
        f"ratio {result['ratio']:.1f}, "
        f"{result['pixels_differing']} of {result['pixels']} pixels differ"
    )


if __name__ == "__main__":
    main()
