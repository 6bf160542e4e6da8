"""Checks and times of everything on a GPU that needs no TensorRT.

    python -m benchmarks.gpu.pipelines

The kernels' checks and times (condinst_infer.profiling.gpu.run), then the whole pipeline with a
PyTorch detector. Needs PyTorch with CUDA, numpy, OpenCV, Pillow and cuda-bindings; some minutes.
Writes benchmarks/results/gpu/CARD.json. Without a GPU the same code runs on the CPU at tiny sizes,
and writes nothing unless --output is given: its times mean nothing. Exit status 1 if a check fails.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.torch_baseline import TorchDetector
from benchmarks.trained_statistics import with_trained_statistics
from condinst_infer.config.presets import preset
from condinst_infer.contract.tensors import contract_outputs, output_shapes
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.model.condinst import build_condinst
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.geometry import placement
from condinst_infer.profiling.gpu import run
from condinst_infer.system.timing import summary

RESULTS = Path(__file__).parents[1] / "results" / "gpu"


def pipeline_times(device: Device, *, small: bool) -> list[dict[str, Any]]:
    """Time whole pipelines; `small` sizes for the CPU."""
    if small:
        tiny = {"short_side": 64, "long_side": 96, "max_detections": 5}
        return [time_pipeline(device, "condinst_nano", (48, 64), 1, **tiny)]
    return [
        time_pipeline(device, "condinst_rt_r50_shtw", (480, 640), 100),
        time_pipeline(device, "condinst_rt_r50_shtw", (1080, 1920), 100),
        time_pipeline(device, "condinst_r50", (480, 640), 50),
    ]


def time_pipeline(
    device: Device, name: str, image_size: tuple[int, int], repeats: int, **changes: Any
) -> dict[str, Any]:
    """A host frame in, native masks in host memory out; the detector alone beside it."""
    torch.manual_seed(0)
    session = TorchDetector(
        with_trained_statistics(build_condinst(preset(name, **changes))), "fp16"
    )
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (image_size[0] // 8, image_size[1] // 8, 3), np.uint8)
    frame = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    found, times = 0, []
    alone = time_detector(device, session, image_size, repeats)
    with Pipeline(CudaRunner(session, device)) as pipeline:
        for turn in range(repeats + 4):
            start = time.perf_counter()
            found = len(pipeline(frame))
            elapsed = (time.perf_counter() - start) * 1000
            if turn > 3:
                times.append(elapsed)
    return {
        "what": f"{name}, {image_size[0]}x{image_size[1]} host frame to native masks in host "
        f"memory, PyTorch detector in float16, {found} instances",
        "times_ms": {"ours": summary(times), "the detector alone": alone},
    }


def time_detector(
    device: Device, session: TorchDetector, image_size: tuple[int, int], repeats: int
) -> dict[str, float]:
    """Milliseconds of the network alone on the device."""
    metadata, stream = session.metadata, device.stream()
    net_size, canvas = placement(image_size, metadata.config.input, None)
    shapes = output_shapes(metadata, 1, canvas)
    outputs = {
        name: stream.empty(shapes[name], spec.dtype)
        for name, spec in contract_outputs(metadata).items()
    }
    feeds = {
        "images": stream.array(np.full((1, *canvas, 3), 99, np.uint8)),
        "image_sizes": stream.array(np.array([net_size], np.int32)),
    }
    context = session.context()
    times = [
        stream.milliseconds(lambda: context.enqueue(feeds, outputs, stream))
        for _ in range(repeats + 2)
    ]
    stream.close()
    return summary(times[2:])


def main() -> int:
    """Check and measure; 1 if a check failed."""
    return run.main((run.kernel_times, pipeline_times), RESULTS)


if __name__ == "__main__":
    sys.exit(main())
