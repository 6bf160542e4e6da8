"""Runners: open a model file in a runtime, and the work around the session on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from condinst_infer.config.model import PanopticConfig
from condinst_infer.config.validation import DeviceName, parse_device
from condinst_infer.contract.metadata import Metadata, file_sha256
from condinst_infer.contract.model_file import ModelFile, kind_of
from condinst_infer.errors import ConfigError, SessionError, require
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.postprocess import BatchOutputs
from condinst_infer.processing.preprocess import (
    ChannelOrder,
    ImageSource,
    read_image,
    resize,
    stack_images,
)

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


def check_whole_graph(metadata: Metadata) -> None:
    """SessionError if a file does not put out instances."""
    if metadata.graph != "full":
        raise SessionError(
            f"this file holds the {metadata.graph} cut, which stops before NMS. "
            "Export the whole model: condinst export MODEL.safetensors -o MODEL.onnx --graph full"
        )


class CpuRunner:
    """Everything around a session on the CPU; the session may run where it wants."""

    def __init__(self, session: "Session") -> None:
        check_whole_graph(session.metadata)
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
        """The graph's outputs for images of one canvas; masks are pasted later."""
        return BatchOutputs(self.session.run(self.feeds(batch)))

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
        return CpuRunner(_torch_session(path, device, threads))
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
    """ONNX Runtime up to NMS, our kernels after it, all on one stream."""
    from condinst_infer.cuda.driver import Device
    from condinst_infer.cuda.runner import CudaRunner
    from condinst_infer.cuda.stream import Stream
    from condinst_infer.runtimes.ort import OrtSession

    device = Device(index)
    stream = Stream(device)
    on_gpu: dict[str, Any] = {"device": "cuda", "device_index": index, "stream": stream.handle}
    try:
        session = OrtSession(path, threads=threads, **on_gpu)
        if session.metadata.graph != "detector":
            raise SessionError(
                f"{path} holds the whole model; on a GPU our kernels do what follows the detector. "
                "Export that cut: condinst export MODEL.safetensors -o MODEL.onnx --graph detector"
            )
    except BaseException:
        stream.close()
        raise
    return CudaRunner(session, device, stream)


def _torch_session(path: Path, device: str | None, threads: int | None) -> "Session":
    if device not in (None, "cpu"):
        raise SessionError(
            f"a .safetensors file runs on the CPU only, not on {device!r}. Export it first: "
            f"condinst export {path} -o {path.with_suffix('.onnx')}"
        )
    for module in ("torch", "safetensors"):
        require(module, "export")
    from condinst_infer import checkpoint
    from condinst_infer.runtimes.pytorch import TorchSession

    digest = file_sha256(path) if path.is_file() else ""  # `load` says what is wrong
    return TorchSession(checkpoint.load(path), checkpoint_sha256=digest, threads=threads)
