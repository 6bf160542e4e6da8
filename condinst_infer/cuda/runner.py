"""The stages around a network whose data stay on the GPU: frame up once, one small copy back."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from condinst_infer.config.model import PanopticConfig, Size
from condinst_infer.cuda.arrays import device_array
from condinst_infer.cuda.canvas import Canvas, DeviceSession
from condinst_infer.cuda.driver import Device, Stream
from condinst_infer.errors import InputError
from condinst_infer.processing.batching import is_device_array
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.postprocess import BatchOutputs
from condinst_infer.processing.preprocess import read_image

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

    def image(self, source: Any, max_pixels: int) -> Any:
        """`source` itself if it lies in device memory, else as BGR uint8 [H, W, 3]."""
        if not is_device_array(source):
            return read_image(source, max_pixels=max_pixels)
        array, _ = device_array(source, "the image")
        height, width, _ = array.shape
        if height * width > max_pixels:
            raise InputError(
                f"the image has {width} x {height} pixels, more than the limit of {max_pixels}."
            )
        return source

    def run(
        self, batch: Sequence[PlacedImage], panoptic: PanopticConfig | None = None
    ) -> BatchOutputs:
        """Boxes, scores, labels and native-size masks of images on one canvas.

        With thresholds to merge by, and a panoptic model, also the owners of their pixels.
        """
        buffers = self._take()
        try:
            return buffers.canvas(batch).run(batch, panoptic)
        finally:
            self._give_back(buffers)

    def network(self, batch: Sequence[PlacedImage]) -> None:
        """Wait for the network alone, on what the last `run` of this batch left on the device.

        It tells how much of a run the network is; two calls must not overlap.
        """
        buffers = self._take()
        try:
            buffers.canvas(batch).network(batch)
        finally:
            self._give_back(buffers)

    def close(self) -> None:
        """Free memory, engine and kernels; a second call does nothing."""
        with self._changed:
            everything, self._all, self._idle = self._all, [], []
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
            buffers = _StreamBuffers(self.session, self._stream or self._device.stream())
            self._all.append(buffers)
            return buffers

    def _give_back(self, buffers: "_StreamBuffers") -> None:
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

    def close(self) -> None:
        for canvas in self._canvases.values():
            canvas.close()
        self._stream.close()
