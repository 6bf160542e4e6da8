"""A TensorBoard file, written where its values come up: an error is raised there and then.

The writer of tensorboard has a thread, and prints a traceback of it where the disk is full.
"""

import itertools
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from condinst_infer.errors import InputError, require

_NUMBERS = itertools.count()


class EventFile:
    """Numbers and pictures of a run.

    Args:
        run: folder of the run, made if missing.
        start: iterations done; what another file has of later ones, TensorBoard hides.

    Raises:
        InputError: the file can't be written; so do all methods.
    """

    def __init__(self, run: Path, start: int) -> None:
        require("tensorboard", "train")
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        events: Any = event_pb2  # made as the module is imported, which type checkers can't see
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self.path = run / f"events.out.tfevents.{name}"
        with self._errors():
            run.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("xb")
        self._records = RecordWriter(self._file)
        session = events.SessionLog(status=events.SessionLog.START)
        self._add(file_version="brain.Event:2")
        self._add(step=start + 1, session_log=session)

    def scalar(self, name: str, value: float, iteration: int) -> None:
        """Add one number of one iteration."""
        value = self._summary.Value(tag=name, simple_value=value)
        self._add(step=iteration, summary=self._summary(value=[value]))

    def picture(self, name: str, bgr: np.ndarray, iteration: int) -> None:
        """Add one picture, uint8 [H, W, 3], of one iteration."""
        height, width = bgr.shape[:2]
        png = cv2.imencode(".png", bgr)[1].tobytes()
        image = self._summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=png
        )
        value = self._summary.Value(tag=name, image=image)
        self._add(step=iteration, summary=self._summary(value=[value]))

    def flush(self) -> None:
        """Write what is waiting."""
        with self._errors():
            self._file.flush()

    def close(self) -> None:
        """Write what is waiting, and close the file."""
        with self._errors():
            self._file.close()

    def _add(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        with self._errors():
            self._records.write(event.SerializeToString())

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path} can't be written: {error.strerror}.") from None
