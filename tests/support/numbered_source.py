"""A source of numbered frames that needs no file and does what a test wants."""

import threading
from typing import Any

import numpy as np

from condinst_infer.video.sources import Frame
from condinst_infer.video.stream import FrameStream
from tests.support.waiting import WAIT


class Numbers:
    """A source of numbered black frames; a live one comes to `pace` and waits for `go`."""

    fps, count, broken, reconnected = 10.0, None, 0, 0

    def __init__(self, frames: int | None = None, *, live: bool = False, pace: int = 0) -> None:
        self.live, self.frames, self.pace = live, frames, pace
        self.index, self.skipped, self.retrieved = -1, 0, 0
        self.stopped, self.reached, self.go = (threading.Event() for _ in range(3))
        self.closed = False

    def grab(self) -> bool:
        if self.pace and self.index + 1 == self.pace:
            self.reached.set()
            assert self.go.wait(WAIT)
        self.index += 1
        return self.index != self.frames and not self.stopped.is_set()

    def retrieve(self) -> Frame:
        self.retrieved += 1
        return Frame(self.index, self.index / 10, np.zeros((8, 8, 3), np.uint8), None)

    def close(self) -> None:
        self.closed = True


def stream_of(source: Any, work: Any, **options: Any) -> FrameStream[Any]:
    return FrameStream(source, work, **options)


def numbers(frames: list[Frame]) -> list[int]:
    return [frame.index for frame in frames]
