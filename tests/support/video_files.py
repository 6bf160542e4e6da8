"""Videos of a bright square that moves, and a server that streams one and can be killed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

FPS, STEP, SIDE = 12.5, 4, 32
SIZE = (96, 160)  # height, width
CODECS = {".mp4": "mp4v", ".avi": "MJPG"}

# multipart JPEG; arguments: frames of one connection, frames a second, whether to hang after them
_SERVER = """
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import cv2
from tests.support.video_files import picture

frames, pause, hang = int(sys.argv[1]), 1 / float(sys.argv[2]), sys.argv[3] == "hang"

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in range(frames):
            data = cv2.imencode(".jpg", picture(number))[1].tobytes()
            head = f"--frame\\r\\nContent-Type: image/jpeg\\r\\nContent-Length: {len(data)}"
            self.wfile.write(head.encode() + b"\\r\\n\\r\\n" + data + b"\\r\\n")
            self.wfile.flush()
            time.sleep(pause)
        time.sleep(1000 if hang else 0)

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_port, flush=True)
server.serve_forever()
"""


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Frame `number`: the left edge of the square is at STEP * number, then from the start."""
    image = np.zeros((*size, 3), np.uint8)
    x = left_edge(number)
    image[32 : 32 + SIDE, x : x + SIDE] = 255
    return image


def left_edge(number: int) -> int:
    return STEP * number % (SIZE[1] - SIDE)


def write_video(path: Path, frames: int = 30, size: tuple[int, int] = SIZE) -> Path:
    """An .mp4 or .avi of `frames` frames at FPS."""
    code = cv2.VideoWriter.fourcc(*CODECS[path.suffix])
    writer = cv2.VideoWriter(str(path), code, FPS, size[::-1])
    assert writer.isOpened()
    for number in range(frames):
        writer.write(picture(number, size))
    writer.release()
    return path


def break_frames(path: Path, numbers: range) -> None:
    """Spoil the JPEG data of some frames of an .avi."""
    data = bytearray(path.read_bytes())
    start = data.index(b"movi")
    for number in range(numbers.stop):
        start = data.index(b"00dc", start + 4)
        if number in numbers:
            data[start + 8 : start + 208] = bytes(200)
    path.write_bytes(data)


def truncate(path: Path, part: float) -> None:
    """Keep only the first `part` of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    """All frames of a video, and its frames per second."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        done, image = capture.read()
        if not done:
            return frames, capture.get(cv2.CAP_PROP_FPS)
        frames.append(image)


@contextmanager
def streaming(
    frames: int, fps: float, *, hang: bool = False
) -> Iterator[tuple[str, subprocess.Popen]]:
    """The URL of a running stream, and the process to kill."""
    words = [sys.executable, "-c", _SERVER, str(frames), str(fps), "hang" if hang else "end"]
    here = str(Path(__file__).parents[2])
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=here) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/square.mjpg", process
        finally:
            process.kill()
