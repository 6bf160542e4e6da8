"""The image in a request, and what else a form holds; larger ones are not read to their end."""

import re
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from starlette.requests import Request

from condinst_infer.errors import InputError
from condinst_infer.processing.image_header import CostError
from condinst_infer.processing.preprocess import image_from_file, size_from_file
from condinst_infer.serving.http.failures import Rejection
from condinst_infer.serving.http.form import Part, parts_of_form
from condinst_infer.serving.http.parameters import FORM, PANOPTIC, PREDICT, Given, shown

NAME = "the upload"  # what messages call the image
_IMAGES = ("image", "file")  # fields that are an image without a file name too
_SEND = "send one file: curl -F image=@photo.jpg"
_TEXT = re.compile(rb"[\t\r\n -~]+")
_ASCII_SIGNATURE = re.compile(rb"P[1-7]|GIF8|BM|RIFF|II|MM")  # of image files
_KNOWN = {*PREDICT, *PANOPTIC}


class Upload(NamedTuple):
    """Content of a request."""

    data: bytes  # an image file
    given: list[Given]  # parameters in a form


async def read_upload(request: Request, max_bytes: int) -> Upload:
    """The upload of a request: its body, or the one image of a form.

    A body that is no form is an image whatever its Content-Type says: `curl --data-binary` calls
    it application/x-www-form-urlencoded.

    Raises:
        Rejection: it is too large, compressed, empty, malformed or not an image.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Rejection(
            415, f"Content-Encoding {shown(encoding)} can't be read; send the file as it is."
        )
    length = request.headers.get("content-length", "0")
    if int(length) > max_bytes:  # h11 lets digits of ASCII pass alone
        raise _too_large(max_bytes)
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() == "multipart/form-data":
        body = await _read_body(request, max_bytes, b"\r\n")
        upload = _upload_of_form(parts_of_form(kind, body))
    else:
        upload = Upload(await _read_body(request, max_bytes), [])
    if not upload.data:
        raise Rejection(400, f"{NAME} is empty (0 bytes); send an image file.")
    _reject_text(upload.data)
    return upload


def decode_image(data: bytes, max_pixels: int) -> np.ndarray:
    """The image in `data`, BGR uint8 [H, W, 3]; Refused if there is none or it is too large."""
    try:
        height, width = size_from_file(BytesIO(data), NAME)
        if height * width > max_pixels:
            raise too_many_pixels(height, width, max_pixels)
        return image_from_file(BytesIO(data), NAME, max_pixels=max_pixels)
    except InputError as error:
        raise unreadable(error) from None


def unreadable(error: InputError) -> Rejection:
    """The response to an image that can't be decoded, or only with too much work."""
    return Rejection(413 if isinstance(error, CostError) else 400, str(error))


def too_many_pixels(height: int, width: int, max_pixels: int) -> Rejection:
    """The response to an image that is too large."""
    return Rejection(
        413,
        f"{NAME} has {width} x {height} = {height * width} pixels; "
        f"this server takes at most {max_pixels}.",
    )


def _too_large(max_bytes: int) -> Rejection:
    return Rejection(413, f"{NAME} is too large; this server takes at most {max_bytes} bytes.")


async def _read_body(request: Request, max_bytes: int, start: bytes = b"") -> bytes:
    chunks, size = [start], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _upload_of_form(parts: Sequence[Part]) -> Upload:
    """The one image among the fields of a form, and the parameters."""
    images = [part.data for part in parts if _is_image(part)]
    given = [Given(part.name, part.text(), FORM) for part in parts if not _is_image(part)]
    if len(images) > 1:
        raise Rejection(400, f"the form holds {len(images)} images; {_SEND}")
    if not images or not images[0]:
        names = ", ".join(shown(part.name) for part in parts)
        raise Rejection(400, f"the form holds no image ({names or 'no fields'}); {_SEND}")
    return Upload(images[0], given)


def _is_image(part: Part) -> bool:
    """True for a file, unless it comes as a parameter, and for the field of an image."""
    return part.name in _IMAGES or (part.filename is not None and part.name not in _KNOWN)


def _reject_text(data: bytes) -> None:
    """Rejection for what is text, such as the name of a file in place of the file, or JSON."""
    if _TEXT.fullmatch(data[:64]) and not _ASCII_SIGNATURE.match(data):
        text = shown(data[:64].decode())
        raise Rejection(400, f"{NAME} is not an image but text, {text}; {_SEND}")
