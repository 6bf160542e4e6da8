"""`condinst serve`: its options, and that it ends when everyone has an answer."""

import signal
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest

from condinst_infer.contract.metadata import file_sha256
from tests.support.command_line import Run, assert_refused
from tests.support.http_server import Held, picture, png, serving
from tests.support.serve_process import ENDED, process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_answer_in_flight(
    bright_model: Path, number: signal.Signals
) -> None:
    data = png(picture(5))
    head = (
        f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n"
        "Expect: 100-continue\r\n\r\n"
    )
    with process(bright_model, "--workers", "1") as (server, port):
        idle = socket.create_connection(("127.0.0.1", port), 20)
        busy = socket.create_connection(("127.0.0.1", port), 20)
        with closing(idle), closing(busy):
            busy.sendall(head.encode())
            assert busy.recv(100).startswith(b"HTTP/1.1 100")  # so the request is taken
            server.send_signal(number)
            assert idle.recv(100) == b""  # closed: it is shutting down
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.1", port), 20).close()
            busy.sendall(data)
            reply = b""
            while part := busy.recv(65_536):
                reply += part
        assert reply.startswith(b"HTTP/1.1 200") and b'"masks"' in reply
        assert server.wait(20) == 128 + number
        assert server.stderr is not None and server.stderr.read() == ENDED


def test_work_in_the_queue_is_done_before_it_ends() -> None:
    data = png(picture(5))
    with serving(pipeline := Held()) as door:
        with socket.create_connection(door.address, 20) as one:
            one.sendall(
                b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(data)
            )
            one.sendall(data)
            assert pipeline.called.wait(20)
            door.server.should_exit = True  # what a signal does
            door.thread.join(0.3)
            assert door.thread.is_alive()
            pipeline.free.set()
            assert one.recv(100).startswith(b"HTTP/1.1 200")
        door.thread.join(20)
        assert not door.thread.is_alive()


def test_options_reach_the_door(bright_model: Path) -> None:
    import httpx

    words = ("--workers", "1", "--max-bytes", "5000", "--max-pixels", "50", "--batch", "3")
    with process(bright_model, *words) as (_, port):
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health").json()["sha256"] == file_sha256(bright_model)
        assert "5000" in httpx.post(f"{url}/predict", content=bytes(5001)).json()["error"]
        assert "most 50." in httpx.post(f"{url}/predict", content=png(picture(0))).json()["error"]


def test_mistakes_are_one_sentence(
    condinst: Run, bright_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        in_use = condinst("serve", bright_model, "--port", port)
        assert_refused(in_use, f"port {port} of 127.0.0.1", "in use")
    for words, word in (
        ((tmp_path / "no.onnx", "--port", "0"), "does not exist"),
        ((bright_model, "--port", "65536"), "'65536' is not a port"),
        ((bright_model, "--host", "203.0.113.7", "--port", "0"), "203.0.113.7 can't be opened"),
        ((bright_model, "--timeout", "0"), "'0' is not a number above 0"),
        ((bright_model, "--wait-ms", "nan"), "'nan' is not a number above 0"),
        ((bright_model, "--queue", "0"), "whole number >= 1"),
        ((bright_model, "--cors-origin", "a.example"), "'a.example' is not an origin, scheme://"),
        ((bright_model, "--cors-origin", "null"), "'null' is not an origin"),
        ((bright_model, "--cors-origin", "http://*.a"), "'http://*.a' is not an origin"),
        ((bright_model, "--cors-origin", "http://ä"), "is not an origin"),
        ((bright_model, "--cors-origin", "http://a:65536"), "is not an origin"),
        ((bright_model, "--cors-origin", "http://a/b"), "'http://a/b' is not an origin"),
        ((bright_model, "--cors-origin", "http://a\n"), "is not an origin"),
        ((bright_model, "--cors-origin", "http://A"), "by a browser, 'http://a' is"),
        ((bright_model, "--cors-origin", "http://a/"), "by a browser, 'http://a' is"),
        ((bright_model, "--cors-origin", "https://a:443"), "by a browser, 'https://a' is"),
    ):
        assert_refused(condinst("serve", *words), word)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert_refused(condinst("serve", bright_model), "pip install 'condinst-infer[serve]'")
