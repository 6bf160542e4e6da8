"""Native-size masks of 100 instances: `postprocess.paste` beside the usual torch operations.

    python -m benchmarks.paste

800x1088 network input, mask stride 4, original 480x640. Inside the time: from probabilities in
memory to boolean masks (ours: tight crops; torch: dense). Needs the `train` extra.
"""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.harness import component_parser
from condinst_infer.processing.paste import paste
from condinst_infer.profiling.environment import environment, write_result
from condinst_infer.profiling.gpu.scenes import (
    CELLS,
    IMAGE_SIZE,
    NET_SIZE,
    STRIDE,
    dense,
    mask_scene,
    torch_probabilities,
)
from condinst_infer.system.timing import summary, time_interleaved

RESULT = Path(__file__).parent / "results" / "paste.json"


def measure(count: int, repeats: int, threads: int) -> dict[str, object]:
    """One result: times of both, their ratio, and the pixels that differ."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    masks = mask_scene(count)
    tensor = torch.from_numpy(masks)
    ours = partial(paste, masks, stride=STRIDE, net_size=NET_SIZE, image_size=IMAGE_SIZE)
    probabilities = torch_probabilities(tensor).numpy()
    reference = probabilities > 0.5
    differs = dense(ours()) != reference
    distance = np.abs(probabilities[differs] - 0.5).max(initial=0.0)
    del probabilities
    times = time_interleaved(
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
    parser = component_parser(__doc__, RESULT, repeats=15)
    parser.add_argument("--count", type=int, default=100, help="instances (default: 100)")
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
