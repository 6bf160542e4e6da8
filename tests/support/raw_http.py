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


def exchange(address: tuple[str, int], *pieces: bytes) -> Reply:
    """The response to a request, sent in pieces; the client reads to the end of the connection."""
    with socket.create_connection(address, 20) as client:
        for piece in pieces:
            client.sendall(piece)
        return read_reply(client)


def read_reply(client: socket.socket) -> Reply:
    """The response on a connection, read to the end of that."""
    data = b""
    with suppress(ConnectionResetError):
        while received := client.recv(1 << 16):
            data += received
    return parsed(data)


def parsed(data: bytes) -> Reply:
    """A response from its bytes, without those of 100 Continue."""
    while data.startswith(b"HTTP/1.1 100"):
        data = data.partition(b"\r\n\r\n")[2]
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    return Reply(int(first.split()[1]), {name.lower(): value for name, _, value in pairs}, body)
