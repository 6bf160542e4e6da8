"""Results of whole pipelines compared, on the model that ships.

Our kernels behind a PyTorch detector, with the same weights in PyTorch on the CPU and in ONNX
Runtime; a frame in host memory with one in device memory; a CUDA graph with a plain run.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import condinst_infer
from condinst_infer import checkpoint
from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.cuda.stream import Stream
from condinst_infer.model.condinst import CondInst
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.geometry import network_size
from condinst_infer.processing.preprocess import resize
from condinst_infer.profiling.gpu.checks import Check, sentence
from condinst_infer.profiling.gpu.scenes import torch_place
from condinst_infer.profiling.gpu.timing import close_quietly
from condinst_infer.results.instances import Instances
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.pytorch import TorchSession
from condinst_infer.runtimes.pytorch_cuda import TorchContext, TorchDetector
from condinst_infer.verification.compare import report_on

DATA = Path(condinst_infer.__file__).parent / "data"
KERNEL = "pipeline"  # what these checks name in the place of one kernel
_PHOTOGRAPH = "nuclei.jpg"
# for the CPU; 126 locations, so that fewer slots hold all there is
_SMALL: dict[str, Any] = {"short_side": 64, "max_detections": 20, "pre_nms_topk": 100}
_SMALL_FRAME = (slice(200, 264), slice(300, 380))  # of the photograph, with some nuclei
_PLAIN_RUNS = 2  # of one size; after the second, the work is recorded


def pipeline_checks(device: Device, small: bool) -> Iterator[Check | dict[str, Any]]:
    """Compare results; a comparison that can't be made gives a row with its error."""
    frame, changes = cv2.imread(str(DATA / _PHOTOGRAPH)), {}
    assert frame is not None
    if small:
        frame, changes = np.ascontiguousarray(frame[_SMALL_FRAME]), _SMALL
    model = checkpoint.load(DATA / "nuclei.safetensors").eval()
    model.config = override(model.config, **changes)
    # as large as the network wants it: the CPU resizes otherwise, by up to 1 of 255
    frame = resize(frame, network_size((frame.shape[0], frame.shape[1]), model.config.input))
    for compare in (_frames, _graph_replay, _torch_on_the_cpu, _onnxruntime):
        name = f"{compare.__doc__}".rstrip(".")
        try:
            yield from compare(device, model, frame)
        except Exception as error:  # the others may work
            yield {"kernel": KERNEL, "case": name, "error": sentence(error)}


def _frames(device: Device, model: CondInst, frame: np.ndarray) -> Iterator[Check]:
    """A frame in host memory beside one in device memory."""
    stream = Stream(device)
    try:
        with _on_gpu(device, TorchDetector(model, torch_place(device))) as pipeline:
            pipeline(frame)  # the network's later runs are a graph
            expected = pipeline(frame)
            pipeline(frame[::-1])  # nothing of the first is left
            found = pipeline(InDeviceMemory(stream.array(frame)))
    finally:
        close_quietly(stream)
    yield _equal("a frame in device memory", found, expected, "one in host memory")


def _graph_replay(device: Device, model: CondInst, frame: np.ndarray) -> Iterator[Check]:
    """A CUDA graph of everything after the network beside a plain run."""
    other = np.ascontiguousarray(frame[::-1])
    with _on_gpu(device, TorchDetector(model, torch_place(device))) as pipeline:
        first, expected = pipeline(frame), pipeline(other)
    if len(first) == len(expected) and np.array_equal(first.masks, expected.masks):
        raise RuntimeError("both frames give the same masks, so the comparison shows nothing")
    detector = KeptOutputs(TorchDetector(model, torch_place(device)))
    with _on_gpu(device, detector) as pipeline:
        for _ in range(_PLAIN_RUNS):
            pipeline(frame)
        recorded = detector.enqueued
        pipeline(other)  # resized and replayed, after the network's outputs of the first frame
        detector.renew()
        found = pipeline(other)
    if detector.enqueued != recorded:
        raise RuntimeError("the driver refuses to record the kernels, so nothing was replayed")
    yield _equal("replay of a CUDA graph", found, expected, "a plain run")


def _torch_on_the_cpu(device: Device, model: CondInst, frame: np.ndarray) -> Iterator[Check]:
    """The GPU beside the same weights in PyTorch on the CPU."""
    with _on_gpu(device, TorchDetector(model, torch_place(device))) as pipeline:
        found = pipeline(frame)
    with Pipeline(TorchSession(model)) as pipeline:
        yield from _near(found, pipeline(frame), "PyTorch on the CPU")


def _onnxruntime(device: Device, model: CondInst, frame: np.ndarray) -> Iterator[Check]:
    """The GPU beside the exported file in ONNX Runtime on the CPU."""
    if importlib.util.find_spec("onnxruntime") is None:
        return
    with _on_gpu(device, TorchDetector(model, torch_place(device))) as pipeline:
        found = pipeline(frame)
    session = OrtSession(DATA / "nuclei.onnx")
    session.metadata = replace(session.metadata, config=_sized(session.metadata.config, model))
    with Pipeline(session) as pipeline:
        yield from _near(found, pipeline(frame), "ONNX Runtime on the CPU")


def _sized(config: CondInstConfig, model: CondInst) -> CondInstConfig:
    """`config` of the exported file with the input size of `model`; the file takes any."""
    return replace(config, input=model.config.input)


def _equal(case: str, found: Instances, expected: Instances, against: str) -> Check:
    """How many values differ: all boxes, scores, labels and pixels have to be equal."""
    _some(found, expected)
    if len(found) != len(expected):
        return Check(KERNEL, case, float("nan"), 0, against)
    wrong = sum(
        int((getattr(found, name) != getattr(expected, name)).sum())
        for name in ("boxes", "scores", "labels", "masks")
    )
    return Check(KERNEL, f"{case}, {len(expected)} instances", wrong, 0, against)


def _near(found: Instances, expected: Instances, against: str) -> Iterator[Check]:
    """Instances without a partner, and how far boxes, scores and masks of partners are apart."""
    _some(found, expected)
    for row in report_on([(_outputs(found), _outputs(expected))], "fp32").rows:
        case = f"{len(expected)} instances: {row.stage} {row.unit}".strip()
        yield Check(KERNEL, case, row.difference, row.limit, against)


def _some(found: Instances, expected: Instances) -> None:
    if not len(found) or not len(expected):
        raise RuntimeError(f"nothing to compare: {len(found)} and {len(expected)} instances")


def _outputs(instances: Instances) -> dict[str, np.ndarray]:
    """`instances` of one image as a graph would put them out, masks in original pixels."""
    names = ("boxes", "scores", "labels", "masks")
    arrays = {name: getattr(instances, name)[None] for name in names}
    return {"num_detections": np.array([len(instances)]), **arrays}


@contextmanager
def _on_gpu(device: Device, session: Any) -> Iterator[Pipeline]:
    """A pipeline of our kernels around `session`; `device` stays open."""
    with Pipeline(CudaRunner(session, Device(device.index))) as pipeline:
        yield pipeline


class InDeviceMemory:
    """A frame of which a pipeline learns nothing but `__cuda_array_interface__`."""

    def __init__(self, array: DeviceArray) -> None:
        self._array, self.shape = array, array.shape
        self.__cuda_array_interface__ = array.__cuda_array_interface__


class KeptOutputs:
    """A detector that runs once and leaves its outputs where they are.

    After the first run it puts nothing on the stream, so that all the rest can be recorded.
    """

    capturable = True

    def __init__(self, detector: TorchDetector) -> None:
        self._detector, self.metadata = detector, detector.metadata
        self.enqueued = 0
        self.renew: Callable[[], None] = lambda: None  # run it on the canvas as it is now

    def context(self) -> "_KeptContext":
        return _KeptContext(self, self._detector.context())

    def release(self, context: "_KeptContext") -> None:
        self._detector.release(context.context)

    def close(self) -> None:
        self._detector.close()


class _KeptContext:
    """The outputs of one canvas."""

    def __init__(self, owner: KeptOutputs, context: TorchContext) -> None:
        self._owner, self.context = owner, context
        self._have: tuple[int, ...] = ()

    def enqueue(
        self, feeds: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: Stream
    ) -> None:
        self._owner.enqueued += 1
        places = tuple(array.pointer for array in outputs.values())
        if places == self._have:
            return

        def run() -> None:
            self.context.enqueue(feeds, outputs, stream)
            stream.synchronize()

        self._have, self._owner.renew = places, run
        run()
