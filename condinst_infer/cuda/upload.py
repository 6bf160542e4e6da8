"""Frames of the host on their way to the device."""

from typing import Any

import numpy as np

from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.stream import Stream

_PIECE = 1 << 20  # bytes: copied in 0.1 ms, while the one before crosses the bus


class FrameUpload:
    """One frame after the other, into the same device memory.

    The driver copies pinned memory without help; what lies elsewhere goes through two pinned
    pieces in turn, so that reading it and sending it overlap.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._frame = stream.empty((0,), np.uint8)
        self._pieces: list[tuple[np.ndarray, Any]] = []  # memory, and the mark behind its copy
        self._turn = 0

    def run(self, frame: np.ndarray) -> DeviceArray:
        """The copy of `frame`, uint8 [H, W, 3], there when the stream has come to it.

        `frame` must not change before.
        """
        if self._frame.nbytes < frame.nbytes:
            self._stream.free(self._frame)
            self._frame = self._stream.empty((0,), np.uint8)  # if there is no room for more
            larger = self._stream.empty((frame.nbytes,), np.uint8)
            self._stream.free(self._frame)
            self._frame = larger
        target = self._frame.view(frame.shape)
        if frame.flags.c_contiguous and self._stream.device.is_pinned(frame.ctypes.data):
            self._stream.upload(target, frame)
        else:
            self._in_pieces(frame, target)
        return target

    def _in_pieces(self, frame: np.ndarray, target: DeviceArray) -> None:
        row = frame.shape[1] * frame.shape[2]
        if not self._pieces or self._pieces[0][0].nbytes < row:
            for memory, _ in self._pieces:
                self._stream.free_pinned(memory)
            self._pieces = [
                (self._stream.allocate_pinned((max(_PIECE, row),), np.uint8), self._stream.event())
                for _ in range(2)
            ]
        rows = self._pieces[0][0].nbytes // row
        for top in range(0, frame.shape[0], rows):
            memory, mark = self._pieces[self._turn]
            self._turn = 1 - self._turn
            part = frame[top : top + rows]
            self._stream.wait_until(mark)
            piece = memory[: part.nbytes].reshape(part.shape)
            piece[...] = part
            self._stream.upload(target.view(part.shape, offset_bytes=top * row), piece)
            self._stream.mark(mark)

    def close(self) -> None:
        """Free the memory."""
        self._stream.free(self._frame)
        for memory, _ in self._pieces:
            self._stream.free_pinned(memory)
