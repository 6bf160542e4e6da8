"""A video file, written picture by picture."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from condinst_infer.errors import InputError
from condinst_infer.system.outputs import atomic_file
from condinst_infer.system.paths import check_utf8_name

CODEC = "mp4v"  # MPEG-4 part 2: what every build of OpenCV can write


@contextmanager
def video_recorder(path: Path, fps: float) -> Iterator["Recorder"]:
    """A recorder whose file, an .mp4, is at `path` once it is left without an error."""
    with atomic_file(path) as part, recording(part, path, fps) as recorder:
        yield recorder


@contextmanager
def recording(part: Path, path: Path, fps: float) -> Iterator["Recorder"]:
    """A recorder that writes to `part`, whose final name is `path`."""
    recorder = Recorder(part, path, fps)
    try:
        yield recorder
    finally:
        recorder.release()
    recorder.check()


class Recorder:
    """Writes a video in which every picture has its place; gaps show the one before."""

    def __init__(self, part: Path, path: Path, fps: float) -> None:
        self._part, self._path, self._fps = part, path, fps
        self._writer = cv2.VideoWriter()
        self._last: np.ndarray | None = None
        self.written = 0

    def write(self, image: np.ndarray, place: int) -> None:
        """`image` at `place`, from 0; what comes second to a place is left out."""
        if self._last is None:
            self._open(image)
            self._last = image
        if image.shape != self._last.shape:  # a camera that came back with another size
            image = cv2.resize(image, self._last.shape[1::-1])
        while self.written < place:
            self._write(self._last)
        if self.written == place:
            self._write(image)
        self._last = image

    def _write(self, image: np.ndarray) -> None:
        self._writer.write(image)
        self.written += 1

    def _open(self, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        check_utf8_name(self._part, "OpenCV's video writer")  # OpenCV 5 ends the process
        code = cv2.VideoWriter.fourcc(*CODEC)
        if not self._writer.open(str(self._part), code, self._fps, (width, height)):
            raise InputError(
                f"{self._path} can't be written: OpenCV can't encode {width} x {height} at "
                f"{self._fps:g} frames a second."
            )

    def release(self) -> None:
        """Finish the file."""
        self._writer.release()

    def check(self) -> None:
        """InputError if the file lacks what was written: OpenCV's writer reports no error."""
        found = cv2.VideoCapture(str(self._part)).get(cv2.CAP_PROP_FRAME_COUNT)
        if found != self.written:
            raise InputError(
                f"{self._path} can't be written: {max(0, int(found))} of {self.written} frames "
                "are in the file; is the disk full?"
            )
