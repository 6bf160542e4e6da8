"""Runners: open a model file in a runtime, and the work around the session on the CPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from condinst_infer.config.model import PanopticConfig
from condinst_infer.config.validation import DeviceName, parse_device
from condinst_infer.contract.metadata import Metadata, file_sha256
from condinst_infer.contract.model_file import ModelFile, kind_of
from condinst_infer.errors import CheckpointError, ConfigError, SessionError, require
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.postprocess import BatchOutputs
from condinst_infer.processing.preprocess import (
    ChannelOrder,
    ImageSource,
    read_image,
    resize,
    stack_images,
)
from condinst_infer.system.paths import check_readable_file

if TYPE_CHECKING:
    from condinst_infer.contract.session import Session
    from condinst_infer.cuda.runner import CudaRunner

RUNTIMES = ("onnxruntime", "openvino")  # for an .onnx file on the CPU


@runtime_checkable
class Runner(Protocol):
    """A loaded model with everything around it between placed images and outputs."""

    @property
    def metadata(self) -> Metadata: ...
    @property
    def session(self) -> Any: ...
    def image(
        self, source: ImageSource, max_pixels: int, channel_order: ChannelOrder = "bgr"
    ) -> Any: ...
    def run(
        self, batch: Sequence[PlacedImage], panoptic: PanopticConfig | None = None
    ) -> BatchOutputs: ...
    def frame_buffer(self, shape: tuple[int, int, int]) -> np.ndarray: ...
    def close(self) -> None: ...


class CpuRunner:
    """Everything around a session on the CPU; the session may run where it wants.

    What a detector graph leaves out is computed by `processing.tail`.
    """

    def __init__(self, session: "Session") -> None:
        self.metadata = session.metadata
        self.session = session

    def image(
        self, source: ImageSource, max_pixels: int, channel_order: ChannelOrder = "bgr"
    ) -> np.ndarray:
        """`source` as BGR uint8 [H, W, 3]; `channel_order` is that of an array or a tensor."""
        return read_image(source, max_pixels=max_pixels, channel_order=channel_order)

    def run(
        self, batch: Sequence[PlacedImage], panoptic: PanopticConfig | None = None
    ) -> BatchOutputs:
        """Outputs of the full graph for images of one canvas; masks are pasted later."""
        return self.finish(self.session.run(self.feeds(batch)))

    def finish(self, outputs: Mapping[str, np.ndarray]) -> BatchOutputs:
        """Outputs of the full graph from those of the session."""
        if self.metadata.graph == "detector":
            from condinst_infer.processing.tail import full_from_detector

            outputs = full_from_detector(outputs, self.metadata.config)
        return BatchOutputs(outputs)

    def feeds(self, batch: Sequence[PlacedImage]) -> dict[str, np.ndarray]:
        """Inputs of the session; a file of static batch is filled up with black images."""
        canvas = batch[0].canvas
        pixels = [resize(placed.image, placed.net_size) for placed in batch]
        missing = (self.metadata.batch or len(batch)) - len(batch)
        images, image_sizes = stack_images(
            pixels + [np.zeros((*canvas, 3), np.uint8)] * missing, canvas
        )
        return {"images": images, "image_sizes": image_sizes}

    def frame_buffer(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Memory for a frame, uint8 [H, W, 3]; on a CPU any will do."""
        return np.zeros(shape, np.uint8)

    def close(self) -> None:
        """Free the model."""
        self.session.close()


def open_model(
    path: Path,
    device: DeviceName | None,
    threads: int | None,
    *,
    runtime: str | None = None,
    precision: str | None = None,
    workers: int = 1,
) -> "CpuRunner | CudaRunner":
    """Open a model file in the runtime that its suffix and the options say; see `load`."""
    kind = kind_of(path)
    device, index = (None, 0) if device is None else parse_device(device)
    _check_runtime(path, device, runtime, precision)
    if kind is ModelFile.CHECKPOINT:
        return _torch_on_gpu(path, index) if device == "cuda" else _torch_on_cpu(path, threads)
    if kind is ModelFile.ENGINE:
        if device == "cpu":
            raise SessionError(f"{path} runs on a GPU only; run the .onnx it was built from.")
        from condinst_infer.cuda.runner import CudaRunner
        from condinst_infer.runtimes.tensorrt import TrtSession

        session = TrtSession(path, device_index=index)
        return CudaRunner(session, session.device)
    if runtime == "openvino":
        from condinst_infer.runtimes.openvino import OvSession

        return CpuRunner(OvSession(path, precision=precision, threads=threads, workers=workers))
    if device == "cuda":
        return _onnx_on_gpu(path, threads, index)
    from condinst_infer.runtimes.ort import OrtSession

    # calls share what their session adds to the threads they come from
    shared = None if threads is None else 1 + workers * (threads - 1)
    return CpuRunner(OrtSession(path, device=device or "cpu", threads=shared))


def _check_runtime(
    path: Path, device: str | None, runtime: str | None, precision: str | None
) -> None:
    if runtime not in (None, *RUNTIMES):
        raise ConfigError(f"runtime is {runtime!r}; it must be one of {', '.join(RUNTIMES)}.")
    if runtime is not None and not ModelFile.ONNX.matches(path):
        raise ConfigError(f"a runtime is chosen for an .onnx file, not for {path}.")
    if runtime == "openvino" and device not in (None, "cpu"):
        raise SessionError(f"OpenVINO runs on the CPU here, not on {device!r}.")
    if precision is not None and runtime != "openvino":
        raise ConfigError(
            f"precision {precision!r} can be chosen only with runtime 'openvino'; elsewhere a file "
            "runs as it was exported."
        )


def _onnx_on_gpu(path: Path, threads: int | None, index: int) -> "CudaRunner":
    """ONNX Runtime up to NMS, our kernels after it, all on one stream.

    A full file is cut there in memory.
    """
    from condinst_infer.cuda.driver import Device
    from condinst_infer.cuda.runner import CudaRunner
    from condinst_infer.cuda.stream import Stream
    from condinst_infer.runtimes.detector_cut import detector_from_full
    from condinst_infer.runtimes.ort import OrtSession

    device = Device(index)
    graph = detector_from_full(path)
    stream = Stream(device)
    on_gpu: dict[str, Any] = {"device": "cuda", "device_index": index, "stream": stream.handle}
    try:
        session = OrtSession(path, threads=threads, graph=graph, **on_gpu)
    except BaseException:
        stream.close()
        raise
    return CudaRunner(session, device, stream)


def _torch_on_cpu(path: Path, threads: int | None) -> CpuRunner:
    model, digest = _checkpoint(path)
    from condinst_infer.runtimes.pytorch import TorchSession

    return CpuRunner(TorchSession(model, checkpoint_sha256=digest, threads=threads))


def _torch_on_gpu(path: Path, index: int) -> "CudaRunner":
    """PyTorch up to NMS, our kernels after it."""
    from condinst_infer.cuda.driver import Device
    from condinst_infer.cuda.runner import CudaRunner

    device = Device(index)
    require("torch", "export")
    from condinst_infer.runtimes.pytorch_cuda import TorchDetector, cuda_place

    place = cuda_place(index)
    model, digest = _checkpoint(path)
    return CudaRunner(TorchDetector(model, place, checkpoint_sha256=digest), device)


def _checkpoint(path: Path) -> tuple[Any, str]:
    """The network of a checkpoint, and the file's SHA-256."""
    for module in ("torch", "safetensors"):
        require(module, "export")
    from condinst_infer import checkpoint

    check_readable_file(path, CheckpointError)
    digest = file_sha256(path)
    return checkpoint.load(path), digest
