"""The server around the application: its port, while it loads, and when a worker hangs."""

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from condinst_infer.cli import serve as verb
from condinst_infer.errors import ConfigError
from condinst_infer.pipeline import Pipeline
from condinst_infer.serving.http import server as module
from condinst_infer.serving.http.app import HttpApp
from condinst_infer.serving.http.limits import ServerLimits
from condinst_infer.serving.http.server import Ending, HttpServer, bind
from tests.support.command_line import Run, assert_refused
from tests.support.fake_session import FakeSession
from tests.support.http_server import GOOD, Held, Running, png, serving
from tests.support.raw_http import read_reply, request
from tests.support.waiting import eventually

UNKNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("host", "port", "call", "raises", "words"),
    [
        ("127.0.0.1", 80, "bind", error(errno.EACCES), "of 127.0.0.1 can't be opened: Permission"),
        ("203.0.113.7", 0, "", None, "203.0.113.7 can't be opened: Cannot assign"),
        ("::1", 0, "socket", error(errno.EAFNOSUPPORT), "::1 can't be opened: Address family"),
        ("::1", 0, "bind", error(errno.EADDRNOTAVAIL), "::1 can't be opened: Cannot assign"),
        ("no.example", 0, "getaddrinfo", UNKNOWN, "no.example can't be opened: Name or service"),
        ("a..b", 0, "", None, "a..b can't be opened: not a host name"),
        (70 * "x", 0, "", None, "x can't be opened: not a host name"),
        ("127.0.0.1", 0, "bind", error(errno.EADDRINUSE), "can't be opened: Address already in"),
        ("127.0.0.1", 0, "listen", error(errno.EADDRINUSE), "can't be opened: Address already in"),
        ("127.0.0.1", 0, "socket", error(errno.EMFILE), "can't be opened: Too many open files"),
    ],
)
def test_a_port_that_cannot_be_opened_is_one_sentence_and_nothing_is_loaded(
    condinst: Run,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    port: int,
    call: str,
    raises: Exception | None,
    words: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        assert raises is not None
        raise raises

    with monkeypatch.context() as patch:
        patch.setattr(verb, "load", lambda *_, **__: pytest.fail("it loads"))
        if call in ("bind", "listen"):
            patch.setattr(socket.socket, call, fail)
        elif call:
            patch.setattr(socket, call, fail)
        ran = condinst("serve", "nuclei", "--host", host, "--port", port)
    assert_refused(ran, f"port {port} of ", words, "Choose others: --host, --port")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_two_servers_cannot_have_one_port(host: str) -> None:
    """Bound only, they could, both: SO_REUSEADDR is set."""
    with bind(host, 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of {host} .* in use"):
            bind(host, port)
    with bind(host, port):  # at once again, though connections of before may linger
        pass


def test_requests_are_answered_while_the_model_loads() -> None:
    free, door = threading.Event(), HttpApp(Pipeline(FakeSession()), "0" * 64, ServerLimits())

    def load() -> HttpApp:
        assert free.wait(20)
        return door

    with bind("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = HttpServer(load, 20.0)
        thread = threading.Thread(target=server.serve_until_signal, args=[listener])
        thread.start()
        try:
            health = httpx.get(f"{url}/health")
            assert health.json() == {"status": "loading", "ready": False}
            predict = httpx.post(f"{url}/predict", content=GOOD)
            assert predict.json() == {"error": "the model is loading; try again in a second."}
            for reply in (health, predict, httpx.get(url)):
                assert reply.status_code == 503 and reply.headers["retry-after"] == "1"
            free.set()
            eventually(lambda: httpx.get(f"{url}/health").status_code == 200)
            assert httpx.post(f"{url}/predict", content=GOOD).status_code == 200
        finally:
            free.set()
            server.should_exit = True
            thread.join(20)
            door.close()


def test_loading_that_is_not_over_keeps_no_server_from_ending() -> None:
    free = threading.Event()

    def load() -> HttpApp:
        assert not free.wait(20)
        raise TimeoutError

    with bind("127.0.0.1", 0) as listener:
        server = HttpServer(load, 20.0)
        threading.Timer(0.2, lambda: setattr(server, "should_exit", True)).start()
        assert server.serve_until_signal(listener) == Ending(0, "", threads=True)
    free.set()
    server._loader.join(20)


class Hanging(Held):
    """The first call waits, the others don't."""

    def __call__(self, source: Any, **options: Any) -> Any:
        return (
            Pipeline.__call__(self, source, **options) if self.calls else super().__call__(source)
        )


def test_a_worker_that_hangs_shows_and_then_ends_the_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "HANG", 1000)
    monkeypatch.setattr(module, "_CLOSE_S", 0.01)
    with serving(pipeline := Hanging(), timeout_s=1, workers=2) as door:
        try:
            healthy = httpx.get(f"{door.url}/health")
            assert healthy.status_code == 200
            assert healthy.json().items() >= {"status": "ok", "workers": 2, "hanging": 0}.items()
            assert door.post(content=GOOD).status_code == 504
            health = eventually(lambda: _ill(door.url), pause=0.02)
            told = {"status": "hanging", "ready": False, "workers": 2, "hanging": 1}
            assert health.json().items() >= told.items()
            assert door.post(content=GOOD).status_code == 200  # by the other worker
            assert not caplog.messages
            monkeypatch.setattr(module, "HANG", 1)
            door.thread.join(20)
            assert door.ending == Ending(1, "", threads=True)
            assert len(caplog.messages) == 1
            assert "1 of 2 workers hang: no result of the model within 1 s" in caplog.text
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{door.url}/health")
        finally:
            pipeline.free.set()


def _ill(url: str) -> httpx.Response | None:
    response = httpx.get(f"{url}/health")
    return response if response.status_code == 503 else None


def test_a_pause_of_the_process_is_no_hanging_worker() -> None:
    """As SIGSTOP or a sleeping machine makes one."""
    with serving(pipeline := Held()) as door:
        request = threading.Thread(target=door.post, kwargs={"content": GOOD})
        request.start()
        assert pipeline.called.wait(20)
        door.server._ticked -= 3600
        ticked = door.server._ticked
        eventually(lambda: door.server._ticked > ticked + 1)
        assert httpx.get(f"{door.url}/health").json()["status"] == "ok"
        pipeline.free.set()
        request.join(20)


@pytest.mark.parametrize("head", [b"", b"GET /health HTTP/1.1\r\nHost"])
def test_a_connection_that_sends_no_request_is_closed(head: bytes) -> None:
    with serving(Pipeline(FakeSession()), timeout_s=0.3) as door:
        with socket.create_connection(door.address, 20) as silent:
            silent.sendall(head)
            try:
                assert silent.recv(100) == b""
            except ConnectionResetError:
                pass
        with httpx.Client() as client:  # the one that was kept waits for its next request
            for _ in range(2):
                assert client.get(f"{door.url}/health").status_code == 200


def test_a_head_that_comes_in_byte_by_byte_ends_as_late() -> None:
    head = request(b"", "X: " + 200 * "y", method="GET", path="/health")
    with serving(Pipeline(FakeSession()), timeout_s=0.3) as door:
        with socket.create_connection(door.address, 20) as slow:
            slow.sendall(head.replace(b"Connection: close\r\n", b""))  # the second one drips
            assert read_reply(slow).status == 200
            with pytest.raises(OSError):  # long before it is complete
                for byte in head:
                    slow.sendall(bytes([byte]))
                    time.sleep(0.05)


@contextmanager
def unread(door: Running) -> Iterator[socket.socket]:
    """A client that asks for more than the system's buffers hold, and does not read it."""
    noise = png(np.random.default_rng(0).integers(0, 255, (1800, 1800, 3), np.uint8))
    head = "POST /predict?output=overlay HTTP/1.1\r\nHost: a\r\n"
    door.server.config.timeout_keep_alive = 1
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200_000)
        client.settimeout(20)
        client.connect(door.address)
        client.sendall(f"{head}Content-Length: {len(noise)}\r\n\r\n".encode() + noise)
        name = 'condinst_requests_total{path="/predict",status="200"}'
        eventually(lambda: door.metrics().get(name), pause=0.02)
        yield client


def test_a_response_that_nobody_reads_holds_no_place_and_is_not_kept() -> None:
    with serving(Pipeline(FakeSession()), timeout_s=5, queue=1) as door, unread(door):
        assert [door.post(content=GOOD).status_code for _ in range(2)] == [200, 200]
        assert any(one.transport.get_write_buffer_size() for one in _connections(door))
        door.server._timeout_s = 0.3
        eventually(lambda: not door.server.server_state.connections)


def _connections(door: Running) -> set[Any]:
    return set(door.server.server_state.connections)


@pytest.mark.slow
def test_a_response_that_is_read_slowly_is_kept() -> None:
    with serving(Pipeline(FakeSession()), timeout_s=5) as door, unread(door) as client:
        door.server._timeout_s = 1.5
        size, start = 0, time.monotonic()
        while part := client.recv(100_000):
            size += len(part)
            time.sleep(0.03)
        assert size > 9_000_000 and time.monotonic() - start > 2


def test_a_response_that_nobody_reads_does_not_keep_the_server() -> None:
    with serving(Pipeline(FakeSession())) as door, unread(door):
        door.server._grace_s = 0
        door.server.should_exit = True
        door.thread.join(10)
        assert not door.thread.is_alive()
        assert "gave up 1 request" in door.server._work_left()


def test_what_the_system_refuses_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> HttpApp:
        loop = server.servers[0].get_loop()
        refused = {"message": "socket.accept() failed", "exception": error(errno.EMFILE)}
        mistake = {"message": "a mistake", "exception": ValueError("ours")}
        for context in (refused, refused, mistake):
            loop.call_soon_threadsafe(loop.call_exception_handler, context)
        raise TimeoutError

    with bind("127.0.0.1", 0) as listener:
        server = HttpServer(load, 20.0)
        with pytest.raises(TimeoutError):
            server.serve_until_signal(listener)
    assert caplog.messages == ["socket.accept() failed: Too many open files.", "a mistake"]
    assert [bool(record.exc_info) for record in caplog.records] == [False, True]
