"""Images that no worker decodes: in a process, with limits of time and memory."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image

from condinst_infer.pipeline import Pipeline
from condinst_infer.serving.http import decoding, decoding_process
from condinst_infer.serving.http.decoding_process import READY, REQUEST
from condinst_infer.serving.http.failures import Rejection
from tests.support.fake_session import FakeSession
from tests.support.hostile_images import animation, encoded, jpeg_of_scans
from tests.support.http_server import GOOD, Running, picture, serving
from tests.support.waiting import eventually

PHOTO = Image.fromarray(picture(3)[..., ::-1])
COMMAND = [sys.executable, "-m", "condinst_infer.serving.http.decoding_process", "10000000", "0.2"]


def slow(side: int = 2_000) -> bytes:
    """A file of numbers in text, which takes some seconds."""
    return b"P3 %d %d 255\n" % (side, side) + b"1 " * (3 * side * side)


def processes(door: Running) -> list[int]:
    """The numbers of the processes that decode."""
    return [one._process.pid for one in door.door._decoder._all]


@pytest.mark.parametrize(("data", "bounded"), [
    (GOOD, True),
    (encoded(PHOTO, "JPEG", progressive=True), True),
    (encoded(Image.new("1", (6_000, 6_000)), "PNG"), False),
    (encoded(PHOTO, "AVIF"), False),
    (encoded(PHOTO, "JPEG2000"), False),
    (animation("WEBP", 2), False),
    (GOOD[:20], False),
])  # fmt: skip
def test_where_an_image_is_decoded(data: bytes, bounded: bool) -> None:
    assert decoding.is_bounded(data) == bounded


def test_what_is_no_image_goes_nowhere() -> None:
    with pytest.raises(Rejection) as caught:
        decoding.is_bounded(b"text" * 9)
    assert caught.value.status == 400


def test_images_from_a_process_are_those_of_a_thread() -> None:
    binary = encoded(PHOTO, "PPM")
    text = b"P3 %d %d 255\n" % PHOTO.size + b" ".join(b"%d" % v for v in np.asarray(PHOTO).ravel())
    cases: tuple[tuple[bytes, int, str], ...] = (
        (text, 200, ""),
        (b"P3 2000 1000 255\n1", 413, "2000 x 1000 = 2000000 pixels"),
        (b"P3 20 10 255\n1", 400, "can't be decoded"),
        (encoded(PHOTO, "AVIF")[:200], 400, "damaged AVIF"),
        (jpeg_of_scans(64, 200), 413, "101 scans"),
        (encoded(PHOTO, "JPEG2000"), 200, ""),
    )
    with serving(Pipeline(FakeSession()), max_pixels=1_000_000) as door:
        for data, status, words in cases:
            response = door.post(content=data)
            assert response.status_code == status and words in response.text, response.text
        assert door.post(content=text).json() == door.post(content=binary).json()
        assert len(processes(door)) == 1  # it was used for all of them
        kept = list(door.door._decoder._all)
    assert all(one._process.poll() is not None for one in kept)


@pytest.mark.slow
def test_a_slow_image_ends_with_its_process_and_stops_no_other() -> None:
    honest = [GOOD, encoded(PHOTO, "JPEG"), encoded(PHOTO, "JPEG2000"), encoded(PHOTO, "WEBP")]
    with serving(Pipeline(FakeSession()), timeout_s=4.5) as door, ThreadPoolExecutor(12) as pool:
        assert door.post(content=encoded(PHOTO, "AVIF")).status_code == 200  # a process is there
        start = time.monotonic()
        hostile = pool.submit(door.post, content=slow())
        eventually(lambda: not door.door._decoder._idle)  # it is in work
        replies = [pool.submit(door.post, content=honest[k % len(honest)]) for k in range(10)]
        assert [reply.result().status_code for reply in replies] == [200] * 10
        assert not hostile.done()
        assert httpx.get(f"{door.url}/health").json()["status"] == "ok"
        response = hostile.result()
        assert response.status_code == 413 and "takes longer than 1.5 s" in response.text
        assert time.monotonic() - start < 4.5
        assert door.post(content=encoded(PHOTO, "AVIF")).status_code == 200
        # more of them than there are places: each ends, and a photograph needs none
        flood = [pool.submit(door.post, content=slow()) for _ in range(5)]
        for _ in range(5):
            assert door.post(content=GOOD).status_code == 200
        assert {reply.result().status_code for reply in flood} <= {413, 504}
        assert httpx.get(f"{door.url}/health").json()["status"] == "ok"
        eventually(lambda: door.post(content=encoded(PHOTO, "AVIF")).status_code == 200)


@pytest.mark.slow
def test_a_server_that_ends_ends_its_processes() -> None:
    with serving(Pipeline(FakeSession()), timeout_s=30) as door, ThreadPoolExecutor(1) as pool:
        late = pool.submit(httpx.post, f"{door.url}/predict", content=slow(), timeout=30)
        eventually(lambda: processes(door) != [])
        kept = list(door.door._decoder._all)
        door.door._decoder.close()
        assert late.result().status_code == 503
    assert all(one._process.poll() is not None for one in kept)


@pytest.mark.slow
def test_a_process_that_breaks_down_spoils_one_request() -> None:
    with serving(Pipeline(FakeSession()), timeout_s=30) as door, ThreadPoolExecutor(1) as pool:
        broken = pool.submit(door.post, content=slow())
        eventually(lambda: any(one._ready for one in door.door._decoder._all))
        for one in door.door._decoder._all:
            one._process.kill()
        response = broken.result()
        assert response.status_code == 400 and "its decoder broke down" in response.text
        assert door.post(content=encoded(PHOTO, "AVIF")).status_code == 200


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="it has no alarms")
def test_a_process_ends_without_its_server() -> None:
    def started() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.read(len(READY)) == READY
        return process

    with started() as idle:  # closes its stdin
        pass
    assert idle.returncode == 0
    with started() as busy:
        assert busy.stdin is not None
        data = slow()
        busy.stdin.write(REQUEST.pack(len(data)) + data)
        busy.stdin.flush()
    assert busy.returncode == -signal.SIGALRM


MEMORY = """
import io
from PIL import Image
from condinst_infer.serving.http import decoding_process

stream = io.BytesIO()
Image.new("RGB", (4000, 4000)).save(stream, "PNG")
for more, expected in ((400_000_000, "image"), (20_000_000, "memory")):
    decoding_process._limit_memory(more)
    parts = decoding_process._result(stream.getvalue(), 10**8)
    kind = decoding_process.RESULT.unpack(parts[0])[0]
    text = "image" if kind == decoding_process.IMAGE else parts[1].decode()
    assert expected in text, (more, text)
    del parts
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count no address space")
def test_a_process_has_a_limit_of_memory() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_results_of_a_process_as_it_writes_them() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    data = cv2.imencode(".png", image)[1].tobytes()
    head, pixels = decoding_process._result(data, 16)
    assert decoding_process.RESULT.unpack(head) == (decoding_process.IMAGE, 4, 4)
    assert bytes(pixels) == image.tobytes()
    (head,) = decoding_process._result(data, 15)
    assert decoding_process.RESULT.unpack(head) == (decoding_process.TOO_LARGE, 4, 4)
    head, text = decoding_process._result(data[:40], 16)
    assert decoding_process.RESULT.unpack(head) == (decoding_process.TEXT, len(text), 400)
