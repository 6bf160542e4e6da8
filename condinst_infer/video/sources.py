"""Frames of a video file, a camera, a network stream or a folder of images, one after another."""

import logging
import math
import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from condinst_infer.config.validation import check_whole
from condinst_infer.errors import InputError
from condinst_infer.processing.image_files import files_below
from condinst_infer.processing.preprocess import IMAGE_SUFFIXES, check_size, read_image
from condinst_infer.system.paths import (
    Unreadable,
    check_readable_file,
    check_utf8_name,
    exists,
    is_folder,
    shown,
)

VIDEO_SUFFIXES = (
    *(".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"),
)
FIRST_PAUSE = 1.0  # seconds before the first attempt; each further one waits twice as long
LONGEST_PAUSE = 30.0
OPEN_TIMEOUT_MS = 10_000
READ_TIMEOUT_MS = 5_000  # without a frame, a network stream counts as broken off
PATIENCE = 100  # frames in a row that can't be decoded, where it is unknown how many there are
FALLBACK_FPS = 25.0  # of sources that don't say; RTSP often says 90000, its clock

_CAMERA = r"(?:camera:)?([0-9]{1,4})"
_DEVICE = re.compile(r"/dev/video[0-9]+")  # a camera, on Linux
_log = logging.getLogger(__name__)

StreamSource = int | str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a source."""

    index: int  # from 0; frames that were left out count too
    seconds: (
        float | None
    )  # place in a video; of a live source since its first frame; of images None
    image: NDArray[np.uint8]  # BGR [H, W, 3]
    path: Path | None  # of the file, in a folder of images

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        origin = "" if self.path is None else f", {self.path}"
        time = "" if self.seconds is None else f", at {self.seconds:.3f} s"
        return f"<Frame {self.index}: {width} x {height} pixels{time}{origin}>"


class Folder:
    """All images below a folder, sorted by path."""

    live, fps = False, None
    skipped = reconnected = 0

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.name, self._max_pixels = str(path), max_pixels
        problems: list[Unreadable] = []
        self._files = files_below(path, IMAGE_SUFFIXES, problems)
        if problems and not self._files:
            raise InputError(problems[0].error)
        for problem in problems:
            _log.warning("%s", problem.error)
        if not self._files:
            raise InputError(f"there are no images ({', '.join(IMAGE_SUFFIXES)}) in {path}.")
        self.count = len(self._files)
        self.index, self.broken = -1, len(problems)
        self.stopped = threading.Event()

    def grab(self) -> bool:
        """Go on to the next file; see `Capture.grab`."""
        self.index += 1
        return self.index < self.count and not self.stopped.is_set()

    def retrieve(self) -> Frame | None:
        """Read the file that `grab` came to; see `Capture.retrieve`."""
        path = self._files[self.index]
        try:
            return Frame(self.index, None, read_image(path, max_pixels=self._max_pixels), path)
        except InputError as error:
            self.broken += 1
            _log.warning("%s", error)
            return None

    def close(self) -> None:
        """Nothing is open between two images."""


class Capture:
    """A video file, a camera or a network stream, read by OpenCV.

    Live is what has no end: a camera, or a network stream that does not say how long it is. One
    thread calls the methods; `stopped` may be set by any.

    Args:
        source: path or URL, or the number of a camera.
        name: of the source, for messages.
        reconnect: attempts to open a live source again; 0 takes its end for the end.
    """

    def __init__(self, source: int | str, name: str, *, reconnect: int, max_pixels: int) -> None:
        self._source, self.name, self._reconnect = source, name, reconnect
        self._capture = cv2.VideoCapture()
        if not self._open():
            raise InputError(f"{name} can't be opened: {self._likely_reason()}")
        count = self._get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if count >= 1 else None  # as the file says, or as it estimates
        self.live = self._is_remote() and self.count is None
        fps = self._get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0.1 <= fps <= 1000 else FALLBACK_FPS
        height, width = self._get(cv2.CAP_PROP_FRAME_HEIGHT), self._get(cv2.CAP_PROP_FRAME_WIDTH)
        if height >= 1 and width >= 1:
            check_size((int(height), int(width)), name, max_pixels)
        self.index = -1  # of the frame that `grab` came to
        self.broken = 0  # frames that could not be decoded, or that the file promised
        self.skipped = 0  # frames of a live source that came while all were busy
        self.reconnected = 0
        self.stopped = threading.Event()
        self._start: float | None = None
        self._seconds = 0.0

    def grab(self) -> bool:
        """Go on to the next frame that can be read; False at the end, or once `stopped` is set.

        Raises:
            InputError: a live source broke off and does not come back.
        """
        if not (self._advance() or (self.live and self._reconnect_source())):
            if not self.live and not self.stopped.is_set():
                self._count_missing()
            return False
        now = time.monotonic()
        self._start = now if self._start is None else self._start
        self._seconds = now - self._start if self.live else self._position()
        return True

    def retrieve(self) -> Frame | None:
        """The frame that `grab` came to; None, and counted, if it is broken."""
        done, image = self._capture.retrieve()
        if not done:
            self.broken += 1
            return None
        return Frame(self.index, self._seconds, np.asarray(image, np.uint8), None)

    def close(self) -> None:
        """Let the file or the device go."""
        self._capture.release()

    def _advance(self) -> bool:
        """True if one of the next frames could be read; those before it are counted as broken."""
        patience = PATIENCE if self.count is None else max(1, self.count - self.index - 1)
        give_up = time.monotonic() + READ_TIMEOUT_MS / 1000
        for failed in range(patience):
            if self.stopped.is_set() or (failed and self.live and time.monotonic() > give_up):
                return False
            if self._capture.grab():
                self.broken += failed
                self.index += failed + 1
                return True
        return False

    def _reconnect_source(self) -> bool:
        """True if a live source that broke off gives frames again; False if none are wanted."""
        for attempt in range(self._reconnect):
            pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)
            _log.warning("%s broke off; trying again in %g s", self.name, pause)
            if self.stopped.wait(pause):
                return False
            if self._open() and self._advance():
                self.reconnected += 1
                return True
        if self._reconnect == 0 or self.stopped.is_set():
            return False
        raise InputError(
            f"{self.name} broke off after {self.index + 1} frames and did not come back: "
            f"{self._reconnect} attempts to reconnect failed."
        )

    def _count_missing(self) -> None:
        """Count what a file that ended early promised; small differences are its estimate."""
        missing = (self.count or 0) - self.index - 1
        if missing > max(2, (self.count or 0) // 50):
            self.broken += missing

    def _position(self) -> float:
        """Seconds from the start of a file to this frame."""
        milliseconds = self._get(cv2.CAP_PROP_POS_MSEC)
        return milliseconds / 1000 if milliseconds > 0 else self.index / self.fps

    def _open(self) -> bool:
        self._capture.release()
        if not self._is_remote() or isinstance(self._source, int):
            return self._capture.open(self._source)
        limits = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS)
        limits += (cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS)
        return self._capture.open(self._source, cv2.CAP_ANY, limits)

    def _is_remote(self) -> bool:
        return isinstance(self._source, int) or "://" in self._source

    def _get(self, what: int) -> float:
        value = self._capture.get(what)
        return value if math.isfinite(value) else 0.0

    def _likely_reason(self) -> str:
        if isinstance(self._source, int):
            return "there is no such camera, or another program uses it."
        if self._is_remote():
            return "there is no response, or none that OpenCV reads as video."
        return "OpenCV does not know its format, or it is damaged."


Source = Capture | Folder


def open_source(source: Any, *, reconnect: int, max_pixels: int) -> Source:
    """Open a source of frames.

    Args:
        source: path of a video or of a folder of images, the number of a camera (0, "0" or
            "camera:0") or a URL (rtsp://, http://, ...).
        reconnect: attempts to open a live source again, from 0.
        max_pixels: larger frames are rejected.

    Raises:
        InputError: the source can't be opened.
        ConfigError: `reconnect` is no whole number from 0.
    """
    check_whole(0, reconnect=reconnect)
    if isinstance(source, bool) or not isinstance(source, (int, str, os.PathLike)):
        raise InputError(
            f"the source is a {type(source).__name__}; give a video file, a folder, a camera's "
            "number or a URL."
        )
    if not isinstance(source, int):
        source = os.fspath(source)
        if "://" not in source and is_folder(source):
            return Folder(Path(source), max_pixels)
        camera = re.fullmatch(_CAMERA, source)
        if camera and not exists(source):
            source = int(camera[1])
        else:
            _check_name(source)
    name = display_name(source)
    return Capture(source, name, reconnect=reconnect, max_pixels=max_pixels)


def _check_name(source: str) -> None:
    """InputError for a file that OpenCV can't open, would wait for, or would crash on."""
    check_utf8_name(source, "OpenCV's video reader")  # OpenCV 5 ends the process
    if "\0" in source:
        raise InputError(f"{shown(source)} can't be the name of a file or of a stream.")
    if "://" not in source and not _DEVICE.fullmatch(source):
        check_readable_file(source)


def is_live(source: str) -> bool:
    """True if `source` names a camera or a URL, not a file; images are not read from URLs."""
    if "://" in source:
        return Path(urlsplit(source).path).suffix.lower() not in IMAGE_SUFFIXES
    return re.fullmatch(_CAMERA, source) is not None and not exists(source)


def display_name(source: int | str) -> str:
    """Name of a source in messages and files: a URL without its password and its query."""
    if isinstance(source, int):
        return f"camera:{source}"
    if "://" not in source:
        return source
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
