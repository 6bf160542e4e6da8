"""The process that decodes images for `condinst serve`, one after the other, from stdin to stdout.

    python -m condinst_infer.serving.http.decoding_process MAX_PIXELS LIMIT_S

It says `READY`. Of each request, it reads `REQUEST` and the file, and writes `RESULT` and the
pixels or a text. It ends with its stdin, or where one image takes longer than the limit, also
without whoever started it.
"""

import os
import signal
import struct
import sys
from io import BytesIO
from typing import BinaryIO

from condinst_infer.errors import InputError
from condinst_infer.processing.image_header import CostError
from condinst_infer.processing.preprocess import image_from_file, size_from_file

REQUEST = struct.Struct("<Q")  # bytes of the file
RESULT = struct.Struct("<BQQ")
IMAGE, TOO_LARGE, TEXT = range(3)  # with height and width; the same; its bytes and HTTP status
READY = b"ready"
PIXEL_BYTES = 48  # address space for a pixel while it is decoded; WebP and AVIF take 35
_SPARE_BYTES = 1 << 29
_NAME = "the upload"


def main() -> None:
    """Decode until stdin ends."""
    max_pixels, limit_s = int(sys.argv[1]), float(sys.argv[2])
    requests, results = _own_streams()
    _limit_memory(PIXEL_BYTES * max_pixels + _SPARE_BYTES)
    results.write(READY)
    results.flush()
    while head := requests.read(REQUEST.size):
        data = requests.read(REQUEST.unpack(head)[0])
        _set_alarm(limit_s + 1)
        for part in _result(data, max_pixels):
            results.write(part)
        results.flush()
        _set_alarm(0)


def _result(data: bytes, max_pixels: int) -> "list[bytes | memoryview]":
    """Parts of the result: its head, and the pixels or the text."""
    try:
        height, width = size_from_file(BytesIO(data), _NAME)
        if height * width > max_pixels:
            return [RESULT.pack(TOO_LARGE, height, width)]
        image = image_from_file(BytesIO(data), _NAME, max_pixels=max_pixels)
    except InputError as error:
        text = str(error).encode()
        status = 413 if isinstance(error, CostError) else 400
        return [RESULT.pack(TEXT, len(text), status), text]
    return [RESULT.pack(IMAGE, *image.shape[:2]), image.data.cast("B")]


def _own_streams() -> tuple[BinaryIO, BinaryIO]:
    """Stdin and stdout, which no library can then read or write."""
    requests, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    return requests, results


def _limit_memory(more: int) -> None:
    """Let the process have `more` bytes beside those that it has, where the system can count."""
    try:
        import resource
        from pathlib import Path

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # not Linux: the limit of time is left
        return
    soft = pages * resource.getpagesize() + more
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _set_alarm(seconds: float) -> None:
    """End the process in so many seconds, from within any library; 0 takes that back."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
