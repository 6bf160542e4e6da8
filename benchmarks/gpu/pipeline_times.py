"""Times of whole pipelines on a GPU with a PyTorch detector, after their results were compared."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.pipeline_checks import InDeviceMemory, pipeline_checks
from benchmarks.trained_statistics import with_trained_statistics
from condinst_infer.config.model import override
from condinst_infer.config.presets import preset
from condinst_infer.contract.tensors import contract_outputs, output_shapes
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.cuda.stream import Stream
from condinst_infer.model.condinst import CondInst, build_condinst
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.geometry import placement
from condinst_infer.profiling.gpu.checks import Check, sentence
from condinst_infer.profiling.gpu.scenes import torch_place
from condinst_infer.profiling.gpu.timing import OURS, Row, close_quietly, interleaved, warm_up
from condinst_infer.runtimes.pytorch_cuda import TorchDetector

REPEATS, WARM_UP_TURNS = 100, 4  # from the third run of a size on, all is one CUDA graph
BUDGET_S = 8.0  # of one case
Size = tuple[int, int]


def pipeline_times(device: Device, small: bool) -> Iterator[Check | Row]:
    """Compare the results of whole pipelines, then time them; `small` sizes for the CPU."""
    yield from pipeline_checks(device, small)
    if small:
        cases = {"condinst_nano": [((48, 64), 5)]}
    else:
        warm_up(device)
        cases = {
            "condinst_rt_r50_shtw": [
                ((480, 640), 100), ((480, 640), 1), ((480, 640), 500), ((1080, 1920), 100)
            ],
            "condinst_r50": [((480, 640), 100)],
        }  # fmt: skip
    for name, sizes in cases.items():
        model = _model(name, small)
        for image_size, most in sizes:
            what = f"{name}, {image_size[0]}x{image_size[1]} frame, at most {most} instances"
            try:
                yield time_pipeline(device, model, image_size, most, what, small)
            except Exception as error:  # the next case may work
                yield {"what": what, "instances": most, "error": sentence(error)}


def _model(name: str, small: bool) -> CondInst:
    """A network of made-up weights that fills every slot."""
    torch.manual_seed(0)
    changes = {"short_side": 64, "long_side": 96} if small else {}
    return with_trained_statistics(build_condinst(preset(name, **changes)))


def time_pipeline(
    device: Device, model: CondInst, image_size: Size, most: int, what: str, small: bool
) -> Row:
    """A frame in, native masks in host memory out; the detector alone beside it."""
    model.config = override(model.config, max_detections=most)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (image_size[0] // 8, image_size[1] // 8, 3), np.uint8)
    frame = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    precision = "fp32" if small else "fp16"  # a CPU is slow in float16
    session = TorchDetector(model, torch_place(device), precision=precision)
    stream = Stream(device)
    pipeline = Pipeline(CudaRunner(session, Device(device.index)))
    try:
        on_device = InDeviceMemory(stream.array(frame))
        found = len(pipeline(frame))
        ways = {
            OURS: _elapsed(partial(pipeline, frame)),
            "a frame in device memory": _elapsed(partial(pipeline, on_device)),
            "the detector alone": _detector(session, stream, image_size),
        }
        turns = (1, 1) if small else (REPEATS, WARM_UP_TURNS)
        times, errors = interleaved(ways, turns[0], BUDGET_S, turns[1])
    finally:
        pipeline.close()
        close_quietly(stream)
    row: Row = {
        "what": f"{what}: from host memory to native masks in host memory, PyTorch detector in "
        f"{precision}, {found} instances",
        "instances": found,
        "times_ms": times,
    }
    return row | ({"failed": errors} if errors else {})


def _elapsed(work: Callable[[], Any]) -> Callable[[], float]:
    """Milliseconds of a call by the host's clock."""

    def measure() -> float:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1000

    return measure


def _detector(session: TorchDetector, stream: Stream, image_size: Size) -> Callable[[], float]:
    """Milliseconds of the network alone on the device; all it needs is prepared here."""
    metadata = session.metadata
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
    work = partial(context.enqueue, feeds, outputs, stream)
    for _ in range(2):
        work()  # the second time it becomes a graph
    stream.synchronize()
    return partial(stream.milliseconds, work)
