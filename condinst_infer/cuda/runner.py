"""The stages around a network whose data stay on the GPU: frame up once, one small copy back."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from condinst_infer.config.model import PanopticConfig, Size
from condinst_infer.cuda.arrays import DeviceArray, device_array
from condinst_infer.cuda.canvas import Canvas, DeviceSession
from condinst_infer.cuda.driver import Device, DriverError
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import InputError
from condinst_infer.processing.arrays import not_uint8
from condinst_infer.processing.batching import is_device_array
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.postprocess import BatchOutputs
from condinst_infer.processing.preprocess import (
    ChannelOrder,
    check_channel_order,
    is_tensor,
    read_image,
)

_T = TypeVar("_T")
_CANVASES = 4  # kept at once on a stream; each holds buffers, and a context with its memory


class CudaRunner:
    """Everything around an engine on the GPU; safe to call from several threads.

    Every call takes a stream of its own, with its buffers and contexts. They are made when all
    are busy, and used again.

    Args:
        session: the engine, a full graph or a detector; the runner owns it from now on.
        device: the GPU it is on; its kernels are unloaded in the end.
        stream: the only one the session can use; calls wait for each other then.
    """

    def __init__(
        self, session: DeviceSession, device: Device, stream: Stream | None = None
    ) -> None:
        self.metadata = session.metadata
        self.session, self._device = session, device
        self._stream = stream
        self._all: list[_StreamBuffers] = []
        self._idle: list[_StreamBuffers] = []
        self._changed = threading.Condition()
        self._closed = False

    def image(self, source: Any, max_pixels: int, channel_order: ChannelOrder = "bgr") -> Any:
        """`source` itself if it lies in device memory as BGR, else as BGR uint8 [H, W, 3].

        An RGB image in device memory is copied to the host and turned there: kernels read BGR.
        """
        if not is_device_array(source):
            return read_image(source, max_pixels=max_pixels, channel_order=channel_order)
        check_channel_order(channel_order)
        if is_tensor(source) and str(source.dtype) != "torch.uint8":
            raise not_uint8(source)
        array, _ = device_array(source, "the image")
        height, width, _ = array.shape
        if height * width > max_pixels:
            raise InputError(
                f"the image has {width} x {height} pixels, more than the limit of {max_pixels}."
            )
        with self._device.current():
            self._check_gpu(array.pointer)
            if channel_order == "bgr":
                return source
            buffers = self._take()
            try:
                rgb = buffers.host_copy(source)
            except BaseException:
                buffers.clear()
                raise
            finally:
                self._give_back(buffers)
        return read_image(rgb, max_pixels=max_pixels, channel_order="rgb")

    def _check_gpu(self, pointer: int) -> None:
        """InputError if an image at `pointer` is not on this runner's GPU."""
        ours, found = self._device.index, self._device.gpu_of(pointer)
        if found is None:
            raise InputError(
                "the image is not where it says: the driver knows no memory at its address. "
                "Has it been freed?"
            )
        if found != ours:
            raise InputError(
                f"the image lies on GPU {found} and the model on GPU {ours}. Copy it there, with "
                f"PyTorch: image.to('cuda:{ours}')"
            )

    def frame_buffer(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Page-locked memory for a frame, uint8 [H, W, 3], which the GPU reads without help."""
        return self._device.pinned(shape, np.uint8)

    def run(
        self, batch: Sequence[PlacedImage], panoptic: PanopticConfig | None = None
    ) -> BatchOutputs:
        """Boxes, scores, labels and native-size masks of images on one canvas.

        With thresholds to merge by, and a panoptic model, also the owners of their pixels.
        """
        with self._device.current():
            try:
                return self._on_stream(lambda canvas: canvas.run(batch, panoptic), batch)
            except DriverError as error:
                if not error.out_of_memory:
                    raise
            self._free_idle()  # for other images; they are made again
            return self._on_stream(lambda canvas: canvas.run(batch, panoptic), batch)

    def network(self, batch: Sequence[PlacedImage]) -> None:
        """Wait for the network alone, on what the last `run` of this batch left on the device.

        It tells how much of a run the network is; two calls must not overlap.
        """
        with self._device.current():
            self._on_stream(lambda canvas: canvas.network(batch), batch)

    def _on_stream(self, work: Callable[[Canvas], _T], batch: Sequence[PlacedImage]) -> _T:
        """The result of `work` on a canvas of `batch`; a canvas that fails is not kept."""
        buffers = self._take()
        try:
            return work(buffers.canvas(batch))
        except BaseException:
            buffers.clear()
            raise
        finally:
            self._give_back(buffers)

    def close(self) -> None:
        """Free memory, engine and kernels; a second call does nothing."""
        with self._changed:
            everything, self._all, self._idle = self._all, [], []
            self._closed = True
        with self._device.current():
            for buffers in everything:
                buffers.close()
            if self._stream is not None:
                self._stream.close()
            self.session.close()
            self._device.close()

    def _take(self) -> "_StreamBuffers":
        with self._changed:
            while not self._idle and self._stream is not None and self._all:
                self._changed.wait()
            if self._idle:
                return self._idle.pop()
            buffers = _StreamBuffers(self.session, self._stream or Stream(self._device))
            self._all.append(buffers)
            return buffers

    def _free_idle(self) -> None:
        """Free the buffers that no call uses."""
        with self._changed:
            for buffers in self._idle:
                buffers.clear()

    def _give_back(self, buffers: "_StreamBuffers") -> None:
        if self._closed:  # a call after `close`, which the session refuses
            return buffers.close()
        with self._changed:
            self._idle.append(buffers)
            self._changed.notify()


class _StreamBuffers:
    """One stream, and the buffers of the canvases that were last on it."""

    def __init__(self, session: DeviceSession, stream: Stream) -> None:
        self._session, self._stream = session, stream
        self._canvases: OrderedDict[tuple[int, Size], Canvas] = OrderedDict()

    def canvas(self, batch: Sequence[PlacedImage]) -> Canvas:
        """The one of this batch, made if it is new."""
        slots = self._session.metadata.batch or len(batch)
        key = (slots, batch[0].canvas)
        if key not in self._canvases:
            if len(self._canvases) == _CANVASES:
                self._canvases.popitem(last=False)[1].close()
            self._canvases[key] = Canvas(self._session, self._stream, *key)
        self._canvases.move_to_end(key)
        return self._canvases[key]

    def host_copy(self, source: Any) -> np.ndarray:
        """uint8 [H, W, 3] in device memory as an array of the host."""
        array, pitch = device_array(source, "the image")
        height, width, channels = array.shape
        used = (height - 1) * pitch + width * channels  # bytes: the last row may end the memory
        self._stream.wait_for(source)
        flat = self._stream.numpy(DeviceArray(array.pointer, (used,), array.dtype, source))
        return np.ndarray(array.shape, np.uint8, flat, 0, (pitch, channels, 1))

    def clear(self) -> None:
        """Free all but the stream, whatever state it is in."""
        while self._canvases:
            self._canvases.popitem()[1].abandon()
        self._stream.free_all()

    def close(self) -> None:
        self.clear()
        self._stream.close()
