"""Checks and times of everything on a GPU that needs no TensorRT.

    python -m benchmarks.gpu

Every kernel beside torch at many sizes, then times of kernels, and of the whole pipeline with a
PyTorch detector. Needs PyTorch with CUDA, numpy, OpenCV, Pillow and cuda-bindings; some minutes.
Writes benchmarks/results/gpu/CARD.json. Without a GPU the same code runs on the CPU at tiny sizes,
and writes nothing unless --output is given: its times mean nothing. Exit status 1 if a check fails.
"""

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_checks import checks
from benchmarks.gpu_times import (
    time_mask_heads,
    time_merge,
    time_nms,
    time_paste,
    time_preprocess,
)
from benchmarks.torch_detector import TorchDetector
from benchmarks.trained_statistics import with_trained_statistics
from condinst_infer.config.presets import preset
from condinst_infer.contract.tensors import contract_outputs, output_shapes
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.runner import DeviceRunner
from condinst_infer.model.condinst import CondInst
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.geometry import placement
from condinst_infer.profiling.environment import environment, write_result
from condinst_infer.system.timing import summary

RESULTS = Path(__file__).parent / "results" / "gpu"


def time_pipeline(
    device: Device, name: str, image_size: tuple[int, int], repeats: int, **changes: Any
) -> dict[str, Any]:
    """A host frame in, native masks in host memory out; the detector alone beside it."""
    torch.manual_seed(0)
    session = TorchDetector(with_trained_statistics(CondInst(preset(name, **changes))), "fp16")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (image_size[0] // 8, image_size[1] // 8, 3), np.uint8)
    frame = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    found, times = 0, []
    alone = time_detector(device, session, image_size, repeats)
    with Pipeline(DeviceRunner(session, device)) as pipeline:
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


def measurements(device: Device, *, small: bool) -> list[dict[str, Any]]:
    """All times; `small` sizes for the CPU."""
    stream = device.stream()
    if small:
        tiny = {"short_side": 64, "long_side": 96, "max_detections": 5}
        found = [
            time_mask_heads(stream, 2, 9, 11, 1),
            time_nms(stream, 2, 20, 5, 1),
            time_preprocess(stream, (48, 64), (24, 32), 1),
            time_paste(stream, 2, (9, 11), (40, 50), 1),
            time_merge(stream, 2, 4, (9, 11), (40, 50), 1),
            time_pipeline(device, "condinst_nano", (48, 64), 1, **tiny),
        ]
    else:
        found = [
            time_mask_heads(stream, 100, 64, 88, 50),
            time_mask_heads(stream, 100, 100, 168, 50),
            time_nms(stream, 1, 1000, 100, 50),
            time_nms(stream, 5, 1000, 100, 50),
            time_preprocess(stream, (480, 640), (512, 683), 50),
            time_preprocess(stream, (1080, 1920), (414, 736), 50),
            time_paste(stream, 100, (128, 172), (480, 640), 50),
            time_paste(stream, 100, (104, 184), (1080, 1920), 50),
            time_merge(stream, 100, 54, (104, 184), (1080, 1920), 50),
            time_pipeline(device, "condinst_rt_r50_shtw", (480, 640), 100),
            time_pipeline(device, "condinst_rt_r50_shtw", (1080, 1920), 100),
            time_pipeline(device, "condinst_r50", (480, 640), 50),
        ]
    stream.close()
    return found


def main() -> int:
    """Check, measure, print, write; 1 if a check failed."""
    parser = argparse.ArgumentParser(description="kernels and pipeline on a GPU")
    parser.add_argument("--output", type=Path, help="JSON file (default: results/gpu/CARD.json)")
    options = parser.parse_args()
    small = not torch.cuda.is_available()
    if small:
        from engines import shim

        print("no GPU: tiny sizes on the CPU, times mean nothing", file=sys.stderr)
        shim.load()
    device = Device()
    card = re.sub(r"\W+", "-", device.name.lower()).strip("-")
    output = options.output or (None if small else RESULTS / f"{card}.json")
    stream, found = device.stream(), []
    for check in checks(stream, small=small):
        found.append(check)
        if not check.ok:
            print(f"FAILED {check}", flush=True)
    stream.close()
    failed = sum(not check.ok for check in found)
    print(f"{len(found)} checks, {failed} failed", flush=True)
    result: dict[str, Any] = {
        "device": device.name,
        "compute_capability": device.compute_capability,
        "driver_cuda": device.driver_version,
        "torch_cuda": torch.version.cuda,
        "environment": environment(),
        "checks": [check._asdict() | {"ok": check.ok} for check in found],
        "results": [],
    }
    if output:
        write_result(output, result)  # whatever happens to the times
    for measured in measurements(device, small=small):
        times = measured["times_ms"]
        beside = ", ".join(f"{name} {t['p50'] * 1000:.0f}" for name, t in times.items())
        print(f"{measured['what']}: {beside} us", flush=True)
        result["results"].append(measured)
    if output:
        write_result(output, result)
        print(f"-> {output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
