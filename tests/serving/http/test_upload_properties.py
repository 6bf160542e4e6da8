"""Forms of hostile clients: each is read, or rejected with a status from 400 to 431."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette")

from starlette.requests import Request

from condinst_infer.serving.http.failures import Rejection
from condinst_infer.serving.http.upload import Upload, read_upload
from tests.support.mutations import REPEATABLE, damaged_bytes

MAX_BYTES = 200_000
PART = b'--a\r\nContent-Disposition: form-data; name="%s"%s\r\n%s\r\n%s\r\n'
IMAGE = PART % (b"image", b'; filename="a.png"', b"Content-Type: image/png\r\n", b"\x89PNG" * 9)
FORM = PART % (b"score", b"", b"", b"0.5") + IMAGE + b"--a--\r\n"
TYPES = tuple(
    f"multipart/form-data{rest}"
    for rest in (
        *("; boundary=a", '; boundary="a"', "", "; boundary=", "; boundary=\u00e9", ";"),
        *(f"; boundary={'a' * 70_000}", "; boundary=a; charset=x", "; charset=utf-7; boundary=a"),
        *("; boundary=--", "; boundary*=utf-8''a", "; boundary=\\"),
    )
)
HUGE = (
    IMAGE * 3 + b"--a--\r\n",
    PART % (b"score", b"", b"", b"0.5") * 2000 + b"--a--\r\n",
    PART % (b"x" * 150_000, b"", b"", b"1") + b"--a--\r\n",
    PART % (b"a", b"", b"X: y\r\n" * 20_000, b"1") + b"--a--\r\n",
    PART % (b"a", b"", b"X" * 150_000 + b": y\r\n", b"1") + b"--a--\r\n",
    PART % (b"a", b"", b"", b"1" * 150_000) + b"--a--\r\n",
    b"--a\r\n" * 30_000,
    b"\r\n" * 90_000 + FORM,
    b"--a" + b"-" * 150_000,
)
STATUSES = range(400, 432)


def read(body: bytes, kind: str, pieces: int) -> Upload | Rejection:
    """The upload in a request whose body comes in some pieces."""
    size = max(1, -(-len(body) // pieces))
    chunks = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    messages = iter(
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, 1)
    )

    async def receive() -> Any:
        return next(messages)

    raw = [(b"content-type", kind.encode())]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw}
    try:
        return asyncio.run(read_upload(Request(scope, receive), MAX_BYTES))
    except Rejection as rejection:
        return rejection


def assert_read(end: Upload | Rejection) -> None:
    if isinstance(end, Rejection):
        assert end.status in STATUSES and len(str(end)) < 500
    else:
        assert 0 < len(end.data) <= MAX_BYTES


@pytest.mark.slow
@settings(REPEATABLE, max_examples=2000)
@given(
    st.one_of(st.just(FORM), damaged_bytes(FORM), st.binary(max_size=60)),
    st.one_of(st.just(TYPES[0]), st.sampled_from(TYPES)),
    st.integers(1, 40),
)
def test_a_hostile_form_is_read_or_rejected(body: bytes, kind: str, pieces: int) -> None:
    assert_read(read(body, kind, pieces))


@pytest.mark.parametrize("body", HUGE, ids=lambda body: f"{body[:12]!r}{len(body)}")
def test_a_form_of_many_parts_or_headers_is_rejected_at_once(body: bytes) -> None:
    assert_read(read(body, TYPES[0], 3))


def test_a_whole_form_is_read() -> None:
    upload = read(FORM, TYPES[0], 7)
    assert isinstance(upload, Upload) and upload.data == b"\x89PNG" * 9
