"""Decoding of uploads: in the worker's thread, or in a process that is ended at a limit.

The header of an ordinary photograph bounds the work of decoding it, so it is decoded beside the
model, without a copy. All others go to a process: large ones, AVIF, JPEG 2000, animated WebP, TIFF
in rare compressions. What takes too long or too much memory there ends with that process, and no
worker waits for it. Processes are started when the first such image comes, and kept.
"""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from io import BytesIO

import numpy as np

from condinst_infer.errors import InputError
from condinst_infer.processing.image_header import read_header
from condinst_infer.processing.preprocess import format_of
from condinst_infer.serving.http import decoding_process
from condinst_infer.serving.http.failures import Rejection
from condinst_infer.serving.http.upload import NAME, too_many_pixels, unreadable

PROCESSES = 2  # one slow image keeps no other from being decoded
IN_THREAD_PIXELS = 1 << 24  # 17 million; the worst of them, a JPEG of 100 scans, took 1.4 s
_SHARE = 3  # of the time of a request, one part is for decoding


class ImageDecoder:
    """Decodes the images whose header does not bound the work.

    Args:
        max_pixels: larger images are rejected.
        timeout_s: that of requests; a third of it ends a process.
    """

    def __init__(self, max_pixels: int, timeout_s: float) -> None:
        self._max_pixels, self._limit_s = max_pixels, timeout_s / _SHARE
        self._threads = ThreadPoolExecutor(PROCESSES, "condinst-decode")
        self._places = asyncio.Semaphore(PROCESSES)
        self._lock, self._closed = threading.Lock(), False
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()

    @asynccontextmanager
    async def decoded(self, data: bytes) -> AsyncGenerator[bytes | np.ndarray, None]:
        """`data` itself if a worker may decode it, or its image, BGR uint8 [H, W, 3].

        No more than `PROCESSES` such images are in memory: who has one is to keep the context
        until the response is there.
        """
        if is_bounded(data):
            yield data
            return
        async with self._places:
            loop = asyncio.get_running_loop()
            yield await loop.run_in_executor(self._threads, self._decode, data)

    def close(self) -> None:
        """End the processes, also those at work."""
        with self._lock:
            self._closed = True
            busy = self._all.difference(self._idle)
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._idle:
            process.end()
        for process in busy:  # the thread that waits for it ends it
            process.kill()

    def _decode(self, data: bytes) -> np.ndarray:
        """The image in `data`, by a process that has nothing else to do."""
        process = self._take()
        try:
            return process.decode(data)
        except (OSError, Rejection):
            if self._closed:
                raise _ending() from None
            raise
        finally:
            with self._lock:
                keep = process.alive and not self._closed
                if keep:
                    self._idle.append(process)
                else:
                    self._all.discard(process)
            if not keep:
                process.end()

    def _take(self) -> "_Process":
        with self._lock:
            if self._closed:
                raise _ending()
            if self._idle:
                return self._idle.pop()
            process = _Process(self._max_pixels, self._limit_s)
            self._all.add(process)
            return process


def is_bounded(data: bytes) -> bool:
    """True if an image is decoded in some two seconds at most by what its header says.

    Raises:
        Rejection: it is no image, or has too many parts.
    """
    try:
        file = BytesIO(data)
        header = read_header(file, NAME, format_of(file, NAME))
    except InputError as error:
        raise unreadable(error) from None
    return header.bounded and 0 < header.pixels <= IN_THREAD_PIXELS


def _ending() -> Rejection:
    return Rejection(503, "the server is ending.")


class _Process:
    """One process of `decoding_process`, for one image at a time."""

    def __init__(self, max_pixels: int, limit_s: float) -> None:
        self._max_pixels, self._limit_s = max_pixels, limit_s
        self.alive, self._ready = True, False
        # the same modules are found there, and none in the working directory
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", decoding_process.__name__, str(max_pixels), str(limit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": paths},
            start_new_session=True,  # a signal for the server is none for it
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        for stream in (self._stdin, self._stdout):
            _widen(stream.fileno())

    def kill(self) -> None:
        """Kill it; for the thread that reads from it, this is its end."""
        self._process.kill()

    def end(self) -> None:
        """Kill it, if it is still there, and free what it held; nobody may be reading from it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._stdin, self._stdout):
            stream.close()

    def decode(self, data: bytes) -> np.ndarray:
        """The image in `data`, BGR uint8 [H, W, 3]; after some Rejections it is not `alive`."""
        self._wait_until_ready()
        late = threading.Event()
        timer = threading.Timer(self._limit_s, self._end_late, [late])
        timer.daemon = True
        timer.start()
        try:
            self._write(decoding_process.REQUEST.pack(len(data)))
            self._write(data)
            return self._result()
        except (OSError, EOFError):
            self.alive = False
            # it ends itself too, as a precaution, a little later
            if late.is_set():
                text = f"takes longer than {self._limit_s:.3g} s to decode; send a smaller one."
                raise Rejection(413, f"{NAME} {text}") from None
            text = f"{NAME} can't be decoded, it may be damaged: its decoder broke down."
            raise Rejection(400, text) from None
        finally:
            timer.cancel()
            self.alive = self.alive and not late.is_set()

    def _end_late(self, late: threading.Event) -> None:
        late.set()
        self.kill()

    def _wait_until_ready(self) -> None:
        """Wait for a process that was started just now; decoding has its own limit."""
        if self._ready:
            return
        try:
            self._read(len(decoding_process.READY))
        except EOFError:
            self.alive = False
            raise OSError("a process that decodes images ended as it began") from None
        self._ready = True

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._stdin.write(rest) :]

    def _read(self, size: int) -> bytes:
        buffer = bytearray(size)
        self._read_into(memoryview(buffer))
        return bytes(buffer)

    def _read_into(self, buffer: memoryview) -> None:
        while buffer:
            size = self._stdout.readinto(buffer)  # type: ignore[attr-defined]  # a FileIO
            if not size:
                raise EOFError
            buffer = buffer[size:]

    def _result(self) -> np.ndarray:
        kind, first, second = decoding_process.RESULT.unpack(
            self._read(decoding_process.RESULT.size)
        )
        if kind == decoding_process.IMAGE:
            image = np.empty((first, second, 3), np.uint8)
            self._read_into(image.data.cast("B"))
            return image
        if kind == decoding_process.TOO_LARGE:
            raise too_many_pixels(first, second, self._max_pixels)
        raise Rejection(second, self._read(first).decode())


def _widen(pipe: int) -> None:
    """Give a pipe a larger buffer, which halves the time of a transfer; Linux may refuse it."""
    try:
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
    except (ImportError, AttributeError, OSError):
        return
