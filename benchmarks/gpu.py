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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_checks import candidates, checks, head_inputs
from benchmarks.paste import scene, torch_probabilities
from benchmarks.torch_detector import TorchDetector, busy, tensor_from
from condinst_infer import ops
from condinst_infer.engines import kernels
from condinst_infer.engines.crops import words_expected
from condinst_infer.engines.cuda import Device, Stream
from condinst_infer.engines.device import DeviceRunner
from condinst_infer.machine import environment, write_result
from condinst_infer.model import CondInst
from condinst_infer.pipeline import Pipeline
from condinst_infer.preprocess import canvas_size, placement
from condinst_infer.presets import preset
from condinst_infer.session import contract_outputs, output_shapes
from condinst_infer.timing import summary
from engines import work
from engines.work import PAPER_HEAD, Work

RESULTS = Path(__file__).parent / "results" / "gpu"
LAUNCHES = 20  # of a kernel in one graph, so that starting it costs nothing
HALF = np.dtype(np.float16)


def timed(stream: Stream, launch: Callable[[], None], repeats: int) -> dict[str, float]:
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


def timed_torch(function: Callable[[], object], repeats: int) -> dict[str, float]:
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


def row(what: str, ours: dict[str, float], needs: Work, **beside: Any) -> dict[str, Any]:
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

    ours = timed(stream, lambda: stream.launch(launch, arrays, [out]), repeats)
    needs = work.dynamic_mask_head(1, k, h, w, 2, 2)
    beside = {"torch grouped convolution": timed_torch(usual, repeats)}
    return row(f"{k} mask heads on {h}x{w} features, float16", ours, needs, **beside)


def time_nms(stream: Stream, runs: int, t: int, k: int, repeats: int) -> dict[str, Any]:
    arrays = [stream.array(a) for a in candidates(1, runs, t, 80)]
    out = [stream.empty((1, k), np.int32), stream.empty((1,), np.int32)]
    launch = kernels.class_nms(1, runs * t, runs=runs, max_detections=k, iou_threshold=0.6)
    ours = timed(stream, lambda: stream.launch(launch, arrays, out), repeats)
    return row(f"class NMS, {runs} x {t} candidates to {k}", ours, work.class_nms(1, runs * t, k))


def time_preprocess(
    stream: Stream, size: tuple[int, int], net_size: tuple[int, int], repeats: int
) -> dict[str, Any]:
    frame = stream.array(np.full((*size, 3), 7, np.uint8))
    canvas = canvas_size(net_size, 32)
    out = stream.empty((*canvas, 3), np.uint8)
    launch = kernels.preprocess(pitch=3 * size[1], size=size, net_size=net_size, canvas=canvas)
    ours = timed(stream, lambda: stream.launch(launch, [frame], [out]), repeats)
    what = f"resize {size[0]}x{size[1]} to {net_size[0]}x{net_size[1]}"
    return row(what, ours, work.preprocess(size, net_size, canvas))


def time_paste(
    stream: Stream, k: int, shape: tuple[int, int], image_size: tuple[int, int], repeats: int
) -> dict[str, Any]:
    """Packed native masks beside upsampling of whole frames in torch, both on the device."""
    net_size = (4 * shape[0], 4 * shape[1])
    masks = stream.array(scene(k, shape, image_size).astype(HALF))
    count, used = stream.array(np.array([k], np.int32)), stream.empty((1,), np.int32)
    capacity = words_expected(k, image_size) * 2
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

    ours = timed(stream, launch, repeats)
    needs = work.paste(k, shape, int(stream.numpy(used)[0]) * 32, 2)
    beside = {"torch whole frames": timed_torch(usual, repeats)}
    what = f"paste {k} masks {shape[0]}x{shape[1]} to {image_size[0]}x{image_size[1]}, packed"
    return row(what, ours, needs, **beside)


def time_pipeline(
    device: Device, name: str, image_size: tuple[int, int], repeats: int, **changes: Any
) -> dict[str, Any]:
    """A host frame in, native masks in host memory out; the detector alone beside it."""
    torch.manual_seed(0)
    session = TorchDetector(busy(CondInst(preset(name, **changes))), "fp16")
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
