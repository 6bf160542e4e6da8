"""Uploads as hostile and careless clients send them: kinds of bodies, forms, lengths, methods."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from condinst_infer.pipeline import Pipeline
from condinst_infer.serving.http import protocol
from tests.support.fake_session import FakeSession
from tests.support.http_server import GOOD, Running, serving
from tests.support.raw_http import (
    BOUNDARY,
    FORM_TYPE,
    exchange,
    form,
    part,
    read_reply,
    request,
)

IMAGE = part("image", GOOD, filename="a.png")
NO_BOUNDARY = "multipart/form-data"
ENCODING, MIXED = "Content-Transfer-Encoding", "Content-Type: multipart/mixed; boundary=b"
CHUNKED = b"POST %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def door() -> Iterator[Running]:
    with serving(Pipeline(FakeSession()), max_bytes=50_000, max_pixels=10_000) as running:
        yield running


def chunks(size: int, path: bytes = b"/predict", extension: bytes = b"") -> bytes:
    """GOOD as a body of chunks."""
    parts = [GOOD[at : at + size] for at in range(0, len(GOOD), size)]
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(one), extension, one) for one in parts)
    return CHUNKED % path + body + b"0\r\n\r\n"


def of_form(*parts: bytes, kind: str = FORM_TYPE, end: str = "--") -> bytes:
    """A request with a form."""
    return request(form(*parts, end=end), f"Content-Type: {kind}")


@pytest.mark.parametrize(
    "kind",
    [
        *("application/octet-stream", "image/png", "image/jpeg", "image/no-such", "text/plain"),
        *("application/x-www-form-urlencoded", "application/json; charset=utf-16", "", ";;;=,\xff"),
        *("multipart/mixed; boundary=x", "multipart/form-data-not", "IMAGE/PNG"),
    ],
)
def test_a_body_is_an_image_by_its_first_bytes(door: Running, kind: str) -> None:
    assert exchange(door.address, request(GOOD, f"Content-Type: {kind}")).status == 200
    assert exchange(door.address, request(GOOD)).status == 200
    wrong = exchange(door.address, request(b"\0no image", f"Content-Type: {kind}"))
    assert wrong.status == 400 and "is not an image" in wrong.text


@pytest.mark.parametrize(
    "sent",
    [
        of_form(IMAGE),
        of_form(part("image", GOOD)),  # curl -F 'image=<street.png'
        of_form(part("file", GOOD)),
        of_form(part("anything", GOOD, filename="")),
        of_form(IMAGE, part("classes", b"person\r\n")),
        of_form(part("image", GOOD, more="Content-Type: image/png\r\nX: y\r\n")),
        of_form(IMAGE, kind=f'Multipart/Form-Data; charset=idna; Boundary="{BOUNDARY}"'),
        of_form(part('ima\\"ge', GOOD, filename='\\"; name=classes; x=\\"')),
        request(b"preamble\r\n" + form(IMAGE) + b"epilogue", f"Content-Type: {FORM_TYPE}"),
        of_form(part("image", GOOD + f"\r\n--{BOUNDARY}x\r\n".encode())),  # part of the file
        chunks(10),
        chunks(1000, extension=b";a=b"),
        request(GOOD, "Content-Encoding: identity"),
    ],
)
def test_forms_and_bodies_that_hold_an_image(door: Running, sent: bytes) -> None:
    reply = exchange(door.address, sent)
    assert reply.status == 200 and b'"masks"' in reply.body


@pytest.mark.parametrize(
    ("status", "words", "sent"),
    [
        (400, "not an image but text, 'street.jpg'", request(b"street.jpg")),
        (400, 'not an image but text, \'{"image"', request(b'{"image": "x"}')),
        (400, "not an image but text, 'street.jpg'", of_form(part("image", b"street.jpg"))),
        (400, "not an image but text", request(form(IMAGE))),
        (415, "Content-Encoding 'gzip'", request(GOOD, "Content-Encoding: gzip")),
        (400, "no image ('img')", of_form(part("img", GOOD))),
        (400, "no image (no fields)", of_form()),
        (400, "no image ('image')", of_form(part("image", b"", filename=""))),
        (400, "holds 2 images", of_form(IMAGE, part("other", GOOD, filename="b"))),
        (422, "'classes' is a parameter", of_form(IMAGE, part("classes", GOOD, filename="b"))),
        (422, "no parameter 'clases'", of_form(IMAGE, part("clases", b"1"))),
        (400, "'classes' has more than 4096 bytes", of_form(IMAGE, part("classes", bytes(4097)))),
        (400, "more than 16 fields", of_form(*[part("x", b"")] * 400)),
        (400, "ends in the middle", of_form(IMAGE, end="")),
        (400, "ends in the middle", request(form(IMAGE)[:50], f"Content-Type: {FORM_TYPE}")),
        (
            400,
            "'other' of its Content-Type is not in it",
            of_form(IMAGE, kind=f"{FORM_TYPE[:29]}=other"),
        ),
        (400, "has no boundary", of_form(IMAGE, kind=NO_BOUNDARY)),
        (400, "has no boundary", of_form(IMAGE, kind=f"{NO_BOUNDARY}; boundary=")),
        (400, "not one of 1 to 70", of_form(IMAGE, kind=f"{FORM_TYPE}{'x' * 70}")),
        (400, "not one of 1 to 70", of_form(IMAGE, kind=f"{NO_BOUNDARY}; boundary=\xff")),
        (400, "not in it", request(b"x", f"Content-Type: {FORM_TYPE}")),
        (400, "no end, or more than", of_form(part("image", GOOD, more=f"X: {9000 * 'y'}\r\n"))),
        (400, "no end, or more than", of_form(b"Content-Disposition: form-data")),
        (400, "has no headers", of_form(b"\r\n" + GOOD)),
        (400, "'\\x1b[31m' is no header", of_form(b"\x1b[31m\r\n\r\n" + GOOD)),
        (400, "has no name", of_form(b"Content-Disposition: form-data\r\n\r\n" + GOOD)),
        (
            400,
            "encoded as 'base64'",
            of_form(part("image", GOOD, more="Content-Transfer-Encoding: base64\r\n")),
        ),
        (
            400,
            "a form of its own",
            of_form(part("image", GOOD, more="Content-Type: multipart/mixed\r\n")),
        ),
    ],
)
def test_what_holds_no_image_is_said(door: Running, status: int, words: str, sent: bytes) -> None:
    reply = exchange(door.address, sent)
    assert reply.status == status and words in reply.text
    assert "\n" not in reply.text and len(reply.text) < 300


def test_ten_thousand_parts_are_refused_soon() -> None:
    with serving(Pipeline(FakeSession())) as door:
        start = time.monotonic()
        for body in (of_form(*[part("x", b"y")] * 10_000), of_form(b"\r\n-" * 5_000_000)):
            assert exchange(door.address, body).status == 400
        assert time.monotonic() - start < 5  # 0.1 s where nothing else runs


@pytest.mark.parametrize(
    ("status", "words", "sent"),
    [
        (400, "conflicting Content-Length", request(GOOD, "Content-Length: 3")),
        (400, "bad Content-Length", request(GOOD, length=-1)),
        (400, "bad Content-Length", request(GOOD, length=10**30)),
        (413, "at most 50000 bytes", request(GOOD, length=10**18)),
        (400, "damaged", request(GOOD, length=50)),
        (400, "illegal chunk header", CHUNKED % b"/predict" + b"zz\r\n"),
        (400, "illegal chunk header", CHUNKED % b"/predict" + b"5\r\nabcde\r\nzz\r\n"),
        (400, "illegal chunk header", CHUNKED % b"/predict" + b"-1\r\nabcde\r\n"),
        (501, "Transfer-Encoding", request(GOOD, "Transfer-Encoding: gzip")),
        (431, "headers are too large", request(GOOD, *["X: " + 1000 * "y"] * 2000)),
        (400, "illegal request line", b"nonsense\r\n\r\n"),
        (400, "illegal request line", b"\x16\x03\x01\x02\0\x01\xfc\x03\x03\r\n\r\n"),  # TLS
        (400, "illegal header line", request(GOOD, "\x1b[31m: y")),
        (400, "illegal request line", request(GOOD, path="/\x00")),
    ],
)
def test_what_is_no_http_is_one_sentence_too(
    door: Running, status: int, words: str, sent: bytes
) -> None:
    reply = exchange(door.address, sent)
    assert reply.status == status and words in reply.text
    assert len(reply.text) < 100 and reply.head["content-type"] == "application/json"


def test_a_bad_chunk_after_the_response_ends_the_connection_alone(
    door: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LINGER_S", 1)
    with socket.create_connection(door.address, 20) as client:
        client.sendall(
            b"POST /nothing HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n"
        )
        assert read_reply(client).status == 404
        client.sendall(b"azz\r\n")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):  # closed at once, it could lose a response
            client.recv(1)
        client.sendall(b"more")
        client.settimeout(20)
        assert client.recv(1 << 16) == b""
    assert caplog.messages == ["Invalid HTTP request received."]


def test_what_is_not_wanted_is_not_asked_for(door: Running) -> None:
    """Expect: 100-continue, which curl sends before large uploads."""
    with socket.create_connection(door.address, 20) as client:
        client.sendall(request(b"", "Expect: 100-continue", length=len(GOOD)))
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(GOOD)
        assert b'"masks"' in read_reply(client).body
    for length, path in ((50_001, "/predict"), (9, "/predict?output=x")):
        with socket.create_connection(door.address, 20) as client:
            client.sendall(request(b"", "Expect: 100-continue", length=length, path=path))
            assert client.recv(1000).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/openapi.json"])
def test_a_head_is_that_of_a_get_without_its_body(door: Running, path: str) -> None:
    get = exchange(door.address, request(b"", method="GET", path=path))
    head = exchange(door.address, request(b"", method="HEAD", path=path))
    assert (get.status, head.status, head.body) == (200, 200, b"") and get.body
    vary = {"date", "content-length"} if path == "/metrics" else {"date"}
    assert {n: v for n, v in head.head.items() if n not in vary} == {
        n: v for n, v in get.head.items() if n not in vary
    }
    assert int(head.head["content-length"]) > 0


def test_each_path_has_its_methods(door: Running) -> None:
    allowed = {
        "/": "GET, HEAD, OPTIONS",
        "/health": "GET, HEAD, OPTIONS",
        "/predict": "OPTIONS, POST",
    }
    for path, allow in allowed.items():
        options = exchange(door.address, request(b"", method="OPTIONS", path=path))
        assert (options.status, options.body, options.head["allow"]) == (204, b"", allow)
        for method in {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "FOO"}:
            if method in allow:
                continue
            reply = exchange(door.address, request(b"", method=method, path=path))
            assert reply.status == 405 and reply.head["allow"] == allow
            assert method == "HEAD" or f"takes {allow.split(', ')[-1][:3]}" in reply.text.replace(
                "GET", "OPT"
            )
    counts = door.metrics()
    assert counts['condinst_requests_total{path="/health",status="405"}'] > 0


def test_pages_of_other_origins_may_read_where_they_are_named() -> None:
    def origin(reply: httpx.Response) -> str | None:
        return reply.headers.get("access-control-allow-origin")

    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    for origins, names in (
        ([], {"https://a.example": None, "null": None}),
        (
            ["https://a.example", "http://b:1"],
            {
                "https://a.example": "https://a.example",
                "http://b:1": "http://b:1",
                "http://b": None,
                "null": None,
            },
        ),
        (["*"], {"https://a.example": "*", "null": "*"}),
    ):
        with serving(Pipeline(FakeSession()), origins=origins) as door:
            for name, expected in names.items():
                head: Any = {"origin": name}
                assert origin(door.post(content=GOOD, headers=head)) == expected
                assert origin(door.post(content=b"x", headers=head)) == expected
                reply = httpx.options(f"{door.url}/predict", headers=head | asked)
                assert origin(reply) == expected
                assert reply.status_code == (200 if expected else 400 if origins else 204)
            assert not origin(door.post(content=GOOD)) or origins == ["*"]
