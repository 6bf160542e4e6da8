"""The server on its way to the end: half uploads, work in flight, idle clients."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from condinst_infer.serving.http import server as module
from tests.support.http_server import GOOD, Held, serving
from tests.support.raw_http import read_reply, request
from tests.support.serve_process import ENDED, process


def half_upload(address: tuple[str, int]) -> socket.socket:
    """A client whose upload has begun."""
    client = socket.create_connection(address, 20)
    client.sendall(request(b"", "Expect: 100-continue", length=len(GOOD)))
    assert client.recv(100).startswith(b"HTTP/1.1 100")
    client.sendall(GOOD[:50])
    return client


def test_half_an_upload_is_given_a_moment_and_work_all_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "UPLOAD_S", 0.2)
    with serving(pipeline := Held()) as door, ThreadPoolExecutor(1) as pool:
        work = pool.submit(door.post, content=GOOD)
        assert pipeline.called.wait(20)
        with half_upload(door.address) as half, half_upload(door.address) as whole:
            door.server.should_exit = True  # what a signal does
            whole.sendall(GOOD[50:])
            reply = read_reply(half)
            assert reply.status == 503 and "the server ends" in reply.text
            assert reply.head["connection"] == "close" and reply.head["retry-after"] == "1"
            assert not work.done() and door.thread.is_alive()
            pipeline.free.set()
            assert work.result().status_code == read_reply(whole).status == 200
        door.thread.join(20)
        assert not door.thread.is_alive()


@pytest.mark.slow
def test_a_signal_ends_a_process_with_half_uploads_within_seconds(bright_model: Path) -> None:
    with process(bright_model) as (server, port):
        address = ("127.0.0.1", port)
        with half_upload(address) as half, half_upload(address) as whole, httpx.Client() as kept:
            assert kept.get(f"http://127.0.0.1:{port}/health").status_code == 200
            with socket.create_connection(address, 20) as dripping:
                dripping.sendall(b"POST /predict HTTP/1.1\r\nHost")
                start = time.monotonic()
                server.terminate()
                assert dripping.recv(100) == b""
            whole.sendall(GOOD[50:])
            assert read_reply(whole).status == 200
            assert read_reply(half).status == 503
            assert server.wait(20) == 143
            assert 0.9 < time.monotonic() - start < 10  # 1.9 s where nothing else runs
        assert server.stderr is not None and server.stderr.read() == ENDED
