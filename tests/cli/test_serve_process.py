"""`condinst serve` as a process on bad days: signals, hanging workers, lost streams and files."""

import os
import shutil
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support.command_line import Run, assert_refused
from tests.support.http_server import GOOD
from tests.support.serve_process import (
    ENDED,
    ENVIRONMENT,
    command,
    free_port,
    process,
    wait_for_status,
)
from tests.support.waiting import eventually

LOADS_FOR_EVER = """
import threading
import condinst_infer.cli.serve as verb
verb.load = lambda *_, **__: threading.Event().wait()
"""
HANGS = """
import threading
from condinst_infer.pipeline import Pipeline
Pipeline.__call__ = lambda *_, **__: threading.Event().wait()
Pipeline.close = Pipeline.__call__  # as a runtime that waits for its calls
"""
HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
SIGNALS = [
    (signal.SIGTERM, signal.SIGTERM),
    pytest.param(signal.SIGINT, signal.SIGINT, marks=pytest.mark.long),
    pytest.param(signal.SIGINT, signal.SIGTERM, marks=pytest.mark.long),
]
pytestmark = pytest.mark.slow


def post(port: int) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{port}/predict", content=GOOD, timeout=30)


def ended(server: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit status of a server, and what it wrote to stderr."""
    status = server.wait(20)
    assert server.stderr is not None
    return status, server.stderr.read()


@pytest.mark.parametrize(("first", "second"), SIGNALS)
def test_a_second_signal_ends_it_at_once(
    bright_model: Path, first: signal.Signals, second: signal.Signals
) -> None:
    with process(bright_model) as (server, port):
        idle = socket.create_connection(("127.0.0.1", port), 20)
        busy = socket.create_connection(("127.0.0.1", port), 20)
        with idle, busy:
            busy.sendall(HEAD)
            assert busy.recv(100).startswith(b"HTTP/1.1 100")
            server.send_signal(first)
            assert idle.recv(100) == b""  # it stops, and waits for the upload
            server.send_signal(second)
            assert ended(server) == (128 + second, "")
            with suppress(ConnectionResetError):
                assert busy.recv(100) == b""


def test_a_server_that_loads_has_its_port_and_ends_on_a_signal(
    condinst: Run, bright_model: Path
) -> None:
    port = free_port()
    words = command(bright_model, "--port", port, first=LOADS_FOR_EVER)
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        try:
            wait_for_status(port, "loading")
            assert_refused(condinst("serve", bright_model, "--port", port), "in use")
            server.terminate()
            text = "condinst: interrupted; the model was loading.\n"
            assert ended(server) == (143, text)
        finally:
            server.kill()


def test_of_two_servers_that_start_together_one_serves(bright_model: Path) -> None:
    port = free_port()
    words = command(bright_model, "--port", port)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes) as one, subprocess.Popen(words, **pipes) as other:
        try:
            eventually(lambda: one.poll() or other.poll(), pause=0.05)
            loser, winner = (one, other) if one.returncode else (other, one)
            wait_for_status(port, "ok")
            status, text = ended(loser)
            assert status == 2 and text.startswith(f"condinst: port {port} of 127.0.0.1 can't be")
            assert text.count("\n") == 1
            winner.terminate()
            assert ended(winner) == (143, ENDED)
        finally:
            one.kill()
            other.kill()


def test_a_hanging_worker_ends_the_process(bright_model: Path) -> None:
    words = ("--workers", 1, "--timeout", 0.5)
    with process(bright_model, *words, first=HANGS) as (server, port):
        assert post(port).status_code == 504
        status, text = ended(server)
        assert status == 1 and text.count("\n") == 1
        assert text.startswith("condinst: 1 of 1 workers hang: no result of the model within 1 s.")


def test_a_hanging_worker_does_not_keep_a_signal_waiting(bright_model: Path) -> None:
    words = ("--workers", 1, "--timeout", 2)
    with (
        process(bright_model, *words, first=HANGS) as (server, port),
        ThreadPoolExecutor(1) as pool,
    ):
        request = pool.submit(post, port)
        eventually(lambda: b"condinst_batch_images_count 1.0" in _metrics(port), pause=0.05)
        server.terminate()
        assert request.result().status_code == 504  # the one in flight is answered
        assert ended(server) == (143, ENDED)


def _metrics(port: int) -> bytes:
    return httpx.get(f"http://127.0.0.1:{port}/metrics").content


@pytest.mark.parametrize(
    ("redirections", "said"),
    [
        (">&- 2>&- <&-", ""),
        (">/dev/full 2>&1", ""),
        (">/dev/full", "condinst: condinst_nano is at http://127.0.0.1:"),
        pytest.param("2>/dev/full", "", marks=pytest.mark.long),
        pytest.param(">&-", ENDED, marks=pytest.mark.long),
        pytest.param("2>&-", "", marks=pytest.mark.long),
        pytest.param("| true", ENDED, marks=pytest.mark.long),
        pytest.param("2>&1 | sleep 1000", "", marks=pytest.mark.long),  # a pipe that fills up
    ],
)
def test_streams_that_are_closed_or_full_end_nothing(
    bright_model: Path, tmp_path: Path, redirections: str, said: str
) -> None:
    port, errors = free_port(), tmp_path / "errors"
    words = [*command(bright_model, "--port", port), "--workers", "1"]
    # the process of the server tells its number, since that of a pipeline's end is another
    script = f'echo $$ > pid; exec "$@" {redirections}'
    if "|" in redirections:
        left, _, right = redirections.partition("|")
        script = f'sh -c \'echo $$ > pid; exec "$@" {left}\' sh "$@" | {right}'
    with errors.open("w") as file:
        shell = subprocess.Popen(
            ["sh", "-c", script, "sh", *words],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_for_status(port, "ok")
        for _ in range(2500 if "sleep" in redirections else 3):  # each is a line in the log
            with socket.create_connection(("127.0.0.1", port), 20) as bad:
                bad.sendall(b"nonsense\r\n\r\n")
                bad.recv(1000)
        assert post(port).status_code == 200
        server = int((tmp_path / "pid").read_text())
        for number in range(3):  # nothing else has the number of a standard stream
            assert not Path(f"/proc/{server}/fd/{number}").readlink().name.startswith("socket")
        os.kill(server, signal.SIGTERM)
        if "|" in redirections:
            eventually(lambda: not Path(f"/proc/{server}").exists(), pause=0.05)
        else:
            assert shell.wait(20) == 143
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    text = errors.read_text()
    assert "Traceback" not in text and "Exception" not in text
    assert said in text


def test_a_folder_and_a_model_file_that_go_away_change_nothing(
    bright_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    model = folder / "model.onnx"
    shutil.copy(bright_model, model)
    with process(Path("model.onnx"), cwd=folder, env=ENVIRONMENT) as (server, port):
        before = post(port)
        assert before.status_code == 200
        with model.open("r+b") as file:  # in place, as cp does it
            file.truncate(0)
        assert post(port).content == before.content
        model.unlink()
        model.write_bytes(b"another")
        assert post(port).content == before.content
        shutil.rmtree(folder)
        assert post(port).content == before.content
        overlay = httpx.post(f"http://127.0.0.1:{port}/predict?output=overlay", content=GOOD)
        assert overlay.status_code == 200
        assert httpx.get(f"http://127.0.0.1:{port}/health").json()["status"] == "ok"
        server.terminate()
        assert ended(server) == (143, ENDED)
