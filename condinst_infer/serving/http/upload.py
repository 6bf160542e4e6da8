"""The image in a request, and what else a form holds; larger ones are not read to their end."""

from collections.abc import AsyncGenerator
from io import BytesIO
from typing import NamedTuple

import numpy as np
from python_multipart.exceptions import FormParserError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from condinst_infer.errors import InputError
from condinst_infer.processing.image_header import CostError
from condinst_infer.processing.preprocess import image_from_file, size_from_file
from condinst_infer.serving.http.failures import Rejection

NAME = "the upload"  # what messages call the image
_FIELDS, _FIELD_BYTES = 16, 4096


class Upload(NamedTuple):
    """Content of a request."""

    data: bytes  # an image file
    fields: dict[str, str]  # of a form


async def read_upload(request: Request, max_bytes: int) -> Upload:
    """The upload of a request: its body, or the one file of a form.

    Raises:
        Refused: it is too large, of another media type, empty or malformed.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form = kind == "multipart/form-data"
    if not (form or kind in ("", "application/octet-stream") or kind.startswith("image/")):
        raise Rejection(
            415,
            f"{kind} can't be read; send the image as the body, with Content-Type image/jpeg, "
            "another image/ or application/octet-stream, or in a form, multipart/form-data.",
        )
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    if form:
        upload = await _from_form(request, max_bytes)
    else:
        chunks = [chunk async for chunk in _read_chunks(request, max_bytes)]
        upload = Upload(b"".join(chunks), {})
    if not upload.data:
        raise Rejection(400, f"{NAME} is empty (0 bytes); send an image file.")
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


async def _read_chunks(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


async def _from_form(request: Request, max_bytes: int) -> Upload:
    """The one file of a form, never written to disk, and its other fields."""
    parser = MultiPartParser(
        request.headers,
        _read_chunks(request, max_bytes),
        max_files=1,
        max_fields=_FIELDS,
        max_part_size=_FIELD_BYTES,
    )
    parser.spool_max_size = max_bytes + 1
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        raise Rejection(400, f"the form can't be read: {str(error).rstrip('.')}.") from None
    fields, data = {}, b""
    for name, value in form.multi_items():
        if isinstance(value, str):
            fields[name] = value
        else:
            data = await value.read()
            await value.close()
    if not data:
        raise Rejection(400, "the form holds no image; send one file: curl -F image=@photo.jpg")
    return Upload(data, fields)
