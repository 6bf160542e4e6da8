"""What the door does when it is full, late or failing: places, time-outs, memory, disk."""

import gc
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from condinst_infer.errors import SessionError
from condinst_infer.pipeline import Pipeline
from condinst_infer.serving.http.responses import PredictRequest
from condinst_infer.serving.http.upload import Upload
from tests.support.fake_session import FakeSession
from tests.support.http_server import GOOD, Held, png, serving
from tests.support.raw_http import read_reply
from tests.support.waiting import eventually


def test_nothing_is_written_to_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    noise = np.random.default_rng(0).integers(0, 255, (800, 800, 3), np.uint8)
    with serving(Pipeline(FakeSession())) as door:
        assert len(png(noise)) > 1_500_000
        assert door.post(files={"image": png(noise)}).status_code == 200


def test_a_full_queue_says_come_again() -> None:
    with serving(pipeline := Held(), queue=3) as door, ThreadPoolExecutor(3) as pool:
        taken = [pool.submit(door.post, content=GOOD)]
        assert pipeline.called.wait(20)  # now the queue is empty, and only grows
        taken += [pool.submit(door.post, content=GOOD) for _ in range(2)]
        eventually(lambda: len(door.door.batcher) == 2)
        assert door.metrics()["condinst_queue_images"] == 2
        full = door.post(content=GOOD)
        assert full.status_code == 503 and full.headers["retry-after"] == "1"
        assert "busy with 3 requests" in full.json()["error"]
        assert httpx.get(f"{door.url}/health").status_code == 200
        pipeline.free.set()
        assert [one.result().status_code for one in taken] == [200] * 3
        assert door.post(content=GOOD).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    with serving(pipeline := Held(), timeout_s=1.5) as door, ThreadPoolExecutor(2) as pool:
        late = [pool.submit(door.post, content=GOOD) for _ in range(2)]
        for one in late:
            assert one.result().status_code == 504 and "1.5 s" in one.result().json()["error"]
        assert len(door.door.batcher) == 0  # what nobody waits for isn't done
        pipeline.free.set()
        assert door.post(content=GOOD).status_code == 200
        assert pipeline.calls == [1, 1]


def test_what_nobody_waits_for_any_more_is_not_done() -> None:
    with serving(pipeline := Held()) as door, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(door.post, content=GOOD)
        assert pipeline.called.wait(20)
        with socket.create_connection(door.address, 20) as leaving:
            head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(GOOD)}\r\n\r\n"
            leaving.sendall(head.encode() + GOOD)
            eventually(lambda: len(door.door.batcher) == 1)
        eventually(lambda: len(door.door.batcher) == 0)
        pipeline.free.set()
        assert busy.result().status_code == door.post(content=GOOD).status_code == 200
        assert pipeline.calls == [1, 1]


def test_an_upload_that_takes_too_long_is_given_up() -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf"
    with serving(Pipeline(FakeSession()), timeout_s=0.3, queue=1) as door:
        with socket.create_connection(door.address, 20) as slow:
            slow.sendall(head)
            reply = read_reply(slow)
            assert reply.status == 408 and "longer than 0.3 s" in reply.text
            assert reply.head["connection"] == "close"
            slow.sendall(b"more")  # and the response is not lost by it
            assert slow.recv(100) == b""
        with socket.create_connection(door.address, 20) as gone:
            gone.sendall(head)
        eventually(lambda: door.post(content=GOOD).status_code == 200)  # its place is free


def test_a_failure_of_ours_is_a_500_without_a_traceback() -> None:
    class Broken(Pipeline):
        def __call__(self, source: Any, **options: Any) -> Any:
            raise errors.pop()

    errors = [ZeroDivisionError("secret"), SessionError("the GPU is gone.")]
    with serving(Broken(FakeSession())) as door:
        said = door.post(content=GOOD)
        assert said.status_code == 500 and said.json() == {"error": "the GPU is gone."}
        unsaid = door.post(content=GOOD)
        assert unsaid.status_code == 500 and "log says why" in unsaid.json()["error"]
        assert "secret" not in unsaid.text and "Traceback" not in unsaid.text
        counts = door.metrics()
        assert counts['condinst_requests_total{path="/predict",status="500"}'] == 2


def test_no_upload_is_kept_whatever_became_of_it() -> None:
    """Not even until the garbage collector comes: it counts objects, not megabytes."""
    with (
        serving(pipeline := Held(), timeout_s=1.5, max_bytes=900) as door,
        ThreadPoolExecutor(2) as pool,
    ):
        gc.collect()
        gc.disable()
        try:
            late = [pool.submit(door.post, content=GOOD) for _ in range(2)]
            assert [one.result().status_code for one in late] == [504, 504]
            # the type, since `isinstance` asks the object, and some warn when they are asked
            assert [one for one in gc.get_objects() if type(one) is PredictRequest]  # it is in work
            pipeline.free.set()
            for data, status in ((GOOD, 200), (GOOD[:80], 400), (bytes(9), 400), (bytes(999), 413)):
                assert door.post(content=data).status_code == status
            assert door.post("/predict?output=overlay", content=GOOD).status_code == 200
            kinds = (PredictRequest, Upload)
            eventually(lambda: not [one for one in gc.get_objects() if type(one) in kinds])
        finally:
            gc.enable()
