"""HTTP as bytes on a connection: what a hostile client writes, and what it gets."""

import json
import socket
from contextlib import suppress
from typing import Any, NamedTuple

from tests.support.http_server import GOOD

BOUNDARY = "boundary-of-the-form"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


class Reply(NamedTuple):
    """A response; `text` is that of its error."""

    status: int
    head: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The sentence of an error response."""
        error: dict[str, Any] = json.loads(self.body)
        assert list(error) == ["error"]
        return error["error"]


def part(name: str, data: bytes, *, filename: str | None = None, more: str = "") -> bytes:
    """One field of a form; `more` are headers."""
    file = "" if filename is None else f'; filename="{filename}"'
    head = f'Content-Disposition: form-data; name="{name}"{file}\r\n{more}\r\n'
    return head.encode() + data


def form(*parts: bytes, end: str = "--") -> bytes:
    """The body of a form of FORM_TYPE."""
    start = f"--{BOUNDARY}\r\n".encode()
    body = b"".join(start + each + b"\r\n" for each in parts)
    return body + f"--{BOUNDARY}{end}\r\n".encode()


def request(
    body: bytes = GOOD,
    *headers: str,
    path: str = "/predict",
    method: str = "POST",
    length: int | None = None,
) -> bytes:
    """A request; `length` is what it says of its body."""
    number = len(body) if length is None else length
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: a",
        "Connection: close",
        f"Content-Length: {number}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def exchange(address: tuple[str, int], sent: bytes) -> Reply:
    """The response to a request."""
    with socket.create_connection(address, 20) as client:
        with suppress(OSError):  # it may be refused before its end
            client.sendall(sent)
        return read_reply(client, head_alone=sent.startswith(b"HEAD "))


def read_reply(client: socket.socket, *, head_alone: bool = False) -> Reply:
    """The next response on a connection, which is there as a whole before that is closed."""
    reply = Reply(100, {}, b"")
    with client.makefile("rb") as file:
        while reply.status == 100:
            status = int(file.readline().split()[1])
            lines = iter(lambda: file.readline().decode("latin-1").rstrip("\r\n"), "")
            head = {line.partition(":")[0].lower(): line.partition(": ")[2] for line in lines}
            length = 0 if head_alone else int(head.get("content-length", 0))
            reply = Reply(status, head, file.read(length))
            assert len(reply.body) == length
    return reply
