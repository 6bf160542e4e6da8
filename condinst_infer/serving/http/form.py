"""Forms, multipart/form-data as RFC 7578 has it, taken apart when all of it has come.

Parts are found by a search in the whole body: a parser that goes byte by byte would keep the event
loop from other requests. Text is UTF-8; a charset that the request names is not looked up.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from condinst_infer.serving.http.failures import Rejection
from condinst_infer.serving.http.parameters import shown

_MOST_PARTS = 16
_LONGEST_HEAD = 8192  # bytes, of the headers of a part
_LONGEST_FIELD = 4096  # bytes, of a field that is a parameter
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n\0]*)")
_PARAMETER = re.compile(r';[ \t]*([^\s=;"]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^;"]*))')
_ESCAPED = re.compile(r"\\(.)")
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")


class Part(NamedTuple):
    """A field of a form."""

    name: str
    filename: str | None  # None: a field without a file
    data: bytes

    def text(self) -> str:
        """The value of a field that is a parameter; Rejection if it is none."""
        if self.filename is not None:
            raise Rejection(422, f"{shown(self.name)} is a parameter, and came as a file.")
        if len(self.data) > _LONGEST_FIELD:
            raise Rejection(
                400, f"the field {shown(self.name)} has more than {_LONGEST_FIELD} bytes."
            )
        return self.data.decode(errors="replace")


def parts_of_form(content_type: str, body: bytes) -> list[Part]:
    """The fields of a form, in order.

    Args:
        content_type: the header, with the boundary.
        body: with a line feed (CR LF) of ours before it, so that every boundary has one.

    Raises:
        Rejection: it is malformed, or has more than 16 fields.
    """
    parts = []
    for section in _sections(_boundary(content_type), body):
        if len(parts) == _MOST_PARTS:
            raise _malformed(f"it has more than {_MOST_PARTS} fields")
        parts.append(_part(section))
    return parts


def _malformed(text: str) -> Rejection:
    return Rejection(400, f"the form can't be read: {text}.")


def _parameter(header: str, name: str) -> str | None:
    """A parameter of a header; None where there is none."""
    for key, quoted, bare in _PARAMETER.findall(header):
        if key.lower() == name:
            return _ESCAPED.sub(r"\1", quoted) or bare.strip(" \t")
    return None


def _boundary(content_type: str) -> bytes:
    boundary = _parameter(content_type[:1000], "boundary")
    if not boundary:
        raise _malformed("its Content-Type has no boundary; let the client write that header")
    if not _BOUNDARY.fullmatch(boundary):
        raise _malformed(f"the boundary {shown(boundary)} is not one of 1 to 70 characters")
    return boundary.encode()


def _sections(boundary: bytes, body: bytes) -> Iterator[bytes]:
    """Head and content of each part."""
    # one that is followed by other characters is part of a file
    delimiter = re.compile(rb"\r\n--" + re.escape(boundary) + rb"(--|[ \t]*(?=\r\n))")
    start = None
    for match in delimiter.finditer(body):
        if start is not None:
            yield body[start : match.start()]
        if match[1] == b"--":
            return
        start = match.end() + 2
    where = f"the boundary {shown(boundary.decode())} of its Content-Type"
    raise _malformed(f"{where} is not in it" if start is None else "it ends in the middle")


def _part(section: bytes) -> Part:
    head, blank, _ = section[: _LONGEST_HEAD + 4].partition(b"\r\n\r\n")
    if section.startswith(b"\r\n"):
        raise _malformed("a field has no headers")
    if not blank:
        raise _malformed(f"the headers of a field have no end, or more than {_LONGEST_HEAD} bytes")
    headers: dict[str, str] = {}
    for line in head.split(b"\r\n"):
        match = _HEADER.fullmatch(line)
        if match is None:
            raise _malformed(f"{shown(line.decode(errors='replace'))} is no header of a field")
        headers[match[1].decode().lower()] = match[2].decode(errors="replace")
    disposition = headers.get("content-disposition", "")
    name = _parameter(disposition, "name")
    if name is None:
        raise _malformed("a field has no name, Content-Disposition: form-data; name=...")
    encoding = headers.get("content-transfer-encoding", "binary").lower()
    if encoding not in ("binary", "8bit", "7bit"):
        raise _malformed(f"the field {shown(name)} is encoded as {shown(encoding)}, not binary")
    if headers.get("content-type", "").lower().startswith("multipart/"):
        raise _malformed(f"the field {shown(name)} holds a form of its own")
    return Part(name, _parameter(disposition, "filename"), section[len(head) + 4 :])
