"""Between images and sessions: what loads a model file, and everything around it on the CPU."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from condinst_infer.config.model import PanopticConfig
from condinst_infer.contract.metadata import Metadata, file_sha256
from condinst_infer.contract.session import Session
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.runner import DeviceRunner
from condinst_infer.errors import ConfigError, ModelFileError, SessionError, require
from condinst_infer.processing.geometry import Placed
from condinst_infer.processing.postprocess import Found
from condinst_infer.processing.preprocess import ImageSource, read_image, resize, stacked
from condinst_infer.runtimes.openvino import OvSession
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.tensorrt import TrtSession

RUNTIMES = ("onnxruntime", "openvino")  # of an .onnx file on the CPU


def check_whole_graph(metadata: Metadata) -> None:
    """SessionError if a file does not put out instances."""
    if metadata.graph != "full":
        raise SessionError(
            f"this file holds the {metadata.graph} cut, which stops before NMS. "
            "Export the whole model: condinst export MODEL.safetensors -o MODEL.onnx --graph full"
        )


class HostRunner:
    """Everything around a session on the CPU; the session may run where it wants."""

    def __init__(self, session: Session) -> None:
        check_whole_graph(session.metadata)
        self.metadata = session.metadata
        self.session = session

    def image(self, source: ImageSource, max_pixels: int) -> np.ndarray:
        """`source` as BGR uint8 [H, W, 3]."""
        return read_image(source, max_pixels=max_pixels)

    def run(self, batch: Sequence[Placed], panoptic: PanopticConfig | None = None) -> Found:
        """The graph's outputs for images of one canvas; masks are pasted later."""
        return Found(self.session.run(self.feeds(batch)))

    def feeds(self, batch: Sequence[Placed]) -> dict[str, np.ndarray]:
        """What the session reads; a file of static batch is filled up with black images."""
        canvas = batch[0].canvas
        pixels = [resize(placed.image, placed.net_size) for placed in batch]
        missing = (self.metadata.batch or len(batch)) - len(batch)
        images, image_sizes = stacked(pixels + [np.zeros((*canvas, 3), np.uint8)] * missing, canvas)
        return {"images": images, "image_sizes": image_sizes}

    def close(self) -> None:
        """Free the model."""
        self.session.close()


def runner_from_file(
    path: Path,
    device: str | None,
    threads: int | None,
    *,
    runtime: str | None = None,
    precision: str | None = None,
    workers: int = 1,
) -> HostRunner | DeviceRunner:
    """What runs a model file, by its suffix."""
    suffix = path.suffix.lower()
    _check_runtime(path, device, runtime, precision)
    if suffix == ".onnx":
        if runtime == "openvino":
            return HostRunner(
                OvSession(path, precision=precision, threads=threads, workers=workers)
            )
        if device == "cuda":
            return _onnx_on_gpu(path, threads)
        # calls share what their session adds to the threads they come from
        shared = None if threads is None else 1 + workers * (threads - 1)
        return HostRunner(OrtSession(path, device=device or "cpu", threads=shared))
    if suffix == ".safetensors":
        return HostRunner(_torch_session(path, device, threads))
    if suffix == ".engine":
        if device == "cpu":
            raise SessionError(f"{path} runs on a GPU only; run the .onnx it was built from.")
        session = TrtSession(path)
        return DeviceRunner(session, session.device)
    raise ModelFileError(f"{path} is no model file; it must end in .onnx, .engine or .safetensors.")


def _check_runtime(
    path: Path, device: str | None, runtime: str | None, precision: str | None
) -> None:
    if runtime not in (None, *RUNTIMES):
        raise ConfigError(f"runtime is {runtime!r}; it must be one of {', '.join(RUNTIMES)}.")
    if runtime is not None and path.suffix.lower() != ".onnx":
        raise ConfigError(f"a runtime is chosen for an .onnx file, not for {path}.")
    if runtime == "openvino" and device not in (None, "cpu"):
        raise SessionError(f"OpenVINO runs on the CPU here, not on {device!r}.")
    if precision is not None and runtime != "openvino":
        raise ConfigError(
            f"precision {precision!r} can be chosen only with runtime 'openvino'; elsewhere a file "
            "runs as it was exported."
        )


def _onnx_on_gpu(path: Path, threads: int | None) -> DeviceRunner:
    """ONNX Runtime up to NMS, our kernels after it, all on one stream."""
    device = Device()
    stream = device.stream()
    try:
        session = OrtSession(path, device="cuda", threads=threads, stream=stream.handle)
        if session.metadata.graph != "detector":
            raise SessionError(
                f"{path} holds the whole model; on a GPU our kernels do what follows the detector. "
                "Export that cut: condinst export MODEL.safetensors -o MODEL.onnx --graph detector"
            )
    except BaseException:
        stream.close()
        raise
    return DeviceRunner(session, device, stream)


def _torch_session(path: Path, device: str | None, threads: int | None) -> Session:
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
