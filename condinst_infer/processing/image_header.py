"""Counting what is in an image file before it is decoded: work that a few bytes can ask for.

A size is checked by `preprocess.check_size`. It bounds neither the passes over the pixels nor the
parts beside them: a JPEG of 1 MB can have 100,000 scans, a PNG of 32 MB 2.7 million chunks. What
is counted here is far above what cameras and programs write. The rest of a format's work is
proportional to its pixels and bytes, apart from those whose `Header` is not `bounded`.
"""

import io
import re
import struct
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from condinst_infer.errors import InputError

MAX_SCANS = 100  # of a JPEG; progressive ones have about 10
MAX_PARTS = 10_000  # segments, blocks or chunks before the pixels; Pillow takes 2 us for each
MAX_CHUNKS = 100_000  # of a PNG; they have 8 kB or more in most
MAX_STRIPS = 1 << 17  # of a TIFF, or tiles
MAX_ENTRIES = 1_000  # of a TIFF's or Exif's directory
MAX_RUN_PIXELS = 1 << 24  # of a BMP in runs, which Pillow decodes in Python
_EXIF_SEGMENTS = 64  # Pillow joins them one by one
_PNM_HEADER = 1 << 16
_SPARE = 1 << 20  # bytes or pixels that a small image may have more than its size explains
_BLOCK = 1 << 20

_SCAN = b"\xff\xda"
# after fill bytes: not a byte of 255 in the data (0), nor a restart
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PNM = re.compile(
    rb"(P\w{1,5})" + _GAP + rb"(\d{1,10})" + _GAP + rb"(\d{1,10})(?:" + _GAP + rb"(\S{1,10})\s)?"
)
_COPIED = {(b"P5", b"255"), (b"P5", b"65535"), (b"P6", b"255")}
_IN_C = {1, 5, 8, 32946, 32773}  # TIFF: none, LZW, deflate (two numbers), PackBits
_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_TIFF_BYTES |= {13: 4, 16: 8, 17: 8, 18: 8}
_WIDTH, _HEIGHT, _COMPRESSION, _STRIPS, _TILES = 256, 257, 259, 273, 324
_TILE_WIDTH, _TILE_HEIGHT, _JPEGS = 322, 323, (6, 7)


class CostError(InputError):
    """An image file that would take too much time or memory to decode."""


class Header(NamedTuple):
    """The work of decoding an image, as far as its header tells."""

    pixels: int  # 0: not known without decoding
    bounded: bool  # True if decoding takes at most some 50 ns for each pixel and each byte


UNKNOWN = Header(0, False)


def read_header(file: BinaryIO, name: str, kind: str) -> Header:
    """The `Header` of an open file of the format `kind`; InputError if it has too many parts.

    Reads only what is before the pixels; `file` is then anywhere.
    """
    reader = _READERS.get(kind)
    if reader is None:
        return UNKNOWN
    file.seek(0)
    try:
        return reader(file, name)
    except (struct.error, IndexError):  # it ends early, which the decoder says in its own words
        return UNKNOWN


def check_content(file: BinaryIO, name: str, kind: str) -> None:
    """InputError if what an open file has after its header would take too many passes."""
    if kind == "JPEG":
        file.seek(0)
        # Only this pair of bytes begins a scan, but it is also in previews and videos behind it.
        if _occurrences(file, _SCAN) > MAX_SCANS:
            file.seek(0)
            _limit(_scans(file.read()), MAX_SCANS, "scans", name)
    elif kind == "PNG":
        file.seek(8)
        for number, _ in enumerate(iter(lambda: _png_chunk(file), b"IEND"), 1):
            _limit(number, MAX_CHUNKS, "chunks", name)
    elif kind == "TIFF":
        file.seek(0)
        tags = _tiff_tags(file, name)
        if tags.first(_COMPRESSION, 1) in _JPEGS:
            strips = max(tags.count(_STRIPS), tags.count(_TILES), 1)
            file.seek(0)
            _limit(_occurrences(file, _SCAN), MAX_SCANS * strips, "scans", name)
    elif kind == "PPM":
        file.seek(0)
        if file.read(2) in (b"P1", b"P2", b"P3"):
            _limit(_occurrences(file, b"#"), MAX_PARTS, "comments", name)


def check_exif(block: bytes, name: str) -> None:
    """InputError if the entries of an Exif block hold the same bytes again and again."""
    prefix = b"Exif\0\0"
    start = len(prefix) if block.startswith(prefix) else 0
    if block[start:].startswith(prefix):
        raise InputError(f"{name} can't be read, it may be damaged: its Exif block begins twice.")
    try:
        _tiff_tags(io.BytesIO(block[start:]), name)
    except (struct.error, IndexError):  # Pillow says that in its own words, or reads no entry
        return


def _limit(number: int, most: int, noun: str, name: str) -> None:
    if number > most:
        raise CostError(
            f"{name} has {number} {noun} or more, and at most {most} are read: decoding them would "
            "take too long. Save it anew with another program."
        )


def _occurrences(file: BinaryIO, pair: bytes) -> int:
    """Count `pair` in the rest of a file."""
    number, last = 0, b""
    while block := file.read(_BLOCK):
        number += (last + block).count(pair)
        last = block[-1:] if len(pair) > 1 else b""
    return number


def _jpeg(file: BinaryIO, name: str) -> Header:
    """Walk the segments before the first scan, as libjpeg and Pillow do."""
    file.seek(2)
    header, exif, pieces = UNKNOWN, b"", 0
    for number in range(1, 2 * MAX_PARTS):  # also of fill bytes and junk between them
        _limit(number, MAX_PARTS, "parts before its pixels", name)
        if file.read(1)[0] != 0xFF:
            continue
        marker = file.read(1)[0]
        if marker == 0xFF:
            file.seek(-1, io.SEEK_CUR)
            continue
        if marker == 0xDA:
            break
        if marker in _STANDALONE or marker == 0:
            continue
        length = struct.unpack(">H", file.read(2))[0] - 2
        length = max(length, 0)
        if marker == 0xE1 or marker in _FRAMES:
            content = file.read(length)
            if marker in _FRAMES:
                height, width = struct.unpack(">HH", content[1:5])
                header = Header(height * width, marker in _HUFFMAN_FRAMES)
            elif content.startswith(b"Exif\0\0"):
                pieces += 1
                _limit(pieces, _EXIF_SEGMENTS, "Exif segments", name)
                exif += content[6:] if exif else content
        else:
            file.seek(length, io.SEEK_CUR)
    check_exif(exif, name)
    return header


def _scans(data: bytes) -> int:
    """The number of scans of a JPEG, to its end or the first one too many."""
    number, place = 0, 2
    while found := _MARKER.search(data, place):
        marker, place = found[1][0], found.end()
        if marker == 0xD9:
            break
        number += marker == 0xDA
        if number > MAX_SCANS:
            break
        if marker not in _STANDALONE:
            place += int.from_bytes(data[place : place + 2], "big")
    return number


def _png_chunk(file: BinaryIO) -> bytes:
    """The kind of the next chunk, which is passed over; IEND at the end of the file."""
    start = file.read(8)
    if len(start) < 8:
        return b"IEND"
    file.seek(int.from_bytes(start[:4], "big") + 4, io.SEEK_CUR)
    return start[4:]


def _png(file: BinaryIO, name: str) -> Header:
    file.seek(16)
    width, height = struct.unpack(">II", file.read(8))
    file.seek(8)
    for number in range(1, 2 * MAX_PARTS):
        _limit(number, MAX_PARTS, "chunks before its pixels", name)
        if _png_chunk(file) in (b"IDAT", b"IEND"):
            break
    return Header(width * height, True)


def _gif(file: BinaryIO, name: str) -> Header:
    """Walk the blocks before the first picture, which may be larger than the screen."""
    start = file.read(13)
    width, height, flags = struct.unpack("<6xHHB2x", start)
    file.seek(13 + (3 << (flags & 7) + 1 if flags & 128 else 0))
    parts = 0
    while (kind := file.read(1)[0]) != 0x2C:
        parts += 1
        _limit(parts, MAX_PARTS, "parts before its pixels", name)
        if kind == 0x3B:
            return UNKNOWN
        if kind == 0x21:
            file.seek(1, io.SEEK_CUR)
            while length := file.read(1)[0]:
                parts += 1
                _limit(parts, MAX_PARTS, "parts before its pixels", name)
                file.seek(length, io.SEEK_CUR)
    left, top, columns, rows = struct.unpack("<HHHH", file.read(8))
    return Header(max(width, left + columns) * max(height, top + rows), True)


def _webp(file: BinaryIO, name: str) -> Header:
    """Bounded if it is one lossy picture, by far the most; others ask for work of their own."""
    start = file.read(30)
    if start[12:16] != b"VP8 " or len(start) < 30:
        return UNKNOWN
    width, height = struct.unpack("<HH", start[26:30])
    return Header((width & 0x3FFF) * (height & 0x3FFF), True)


def _bmp(file: BinaryIO, name: str) -> Header:
    start = file.read(34)
    if struct.unpack("<I", start[14:18])[0] < 40:  # the oldest: no compression
        width, height = struct.unpack("<HH", start[18:22])
        return Header(width * height, True)
    width, height = struct.unpack("<ii", start[18:26])
    pixels = abs(width * height)
    runs = struct.unpack("<I", start[30:34])[0] in (1, 2)
    if runs and (pixels > MAX_RUN_PIXELS or abs(width) > 0xFFFF):
        raise CostError(
            f"{name} is a run-length encoded BMP of {width} x {abs(height)} pixels, and at most "
            f"{MAX_RUN_PIXELS} are read, 65535 of them in a row. Save it as PNG."
        )
    return Header(pixels, not runs)


def _ppm(file: BinaryIO, name: str) -> Header:
    """Bounded if Pillow copies the values; numbers in text and other ranges it goes through."""
    start = file.read(_PNM_HEADER)
    found = _PNM.match(start)
    if found is not None:
        kind, width, height, largest = found.groups()
        return Header(int(width) * int(height), kind == b"P4" or (kind, largest) in _COPIED)
    if len(start) == _PNM_HEADER:
        raise InputError(f"{name} is a damaged PPM file: no size in its first {len(start)} bytes.")
    return UNKNOWN


class _Tags(NamedTuple):
    """The first directory of a TIFF: the number of values and the first value of each tag."""

    values: dict[int, tuple[int, int]]
    unique: bool  # False if a tag is there twice; Pillow and libtiff take different ones then

    def count(self, tag: int) -> int:
        return self.values.get(tag, (0, 0))[0]

    def first(self, tag: int, other: int) -> int:
        return self.values.get(tag, (0, other))[1]


def _tiff_tags(file: BinaryIO, name: str) -> _Tags:
    """Read the first directory; InputError if its values have more bytes than the file explains."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack(order + "H", head[2:4])[0] == 43
    # the number of entries, one entry, its value where it is short
    number, entry, value = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    file.seek(struct.unpack(order + ("8xQ" if big else "4xI"), head[: 16 if big else 8])[0])
    entries = struct.unpack(order + number, file.read(struct.calcsize("<" + number)))[0]
    _limit(entries, MAX_ENTRIES, "entries in its directory", name)
    values, unique, total = {}, True, 0
    entry_bytes = struct.calcsize("<" + entry)
    for _ in range(entries):
        tag, kind, count = struct.unpack(order + entry, file.read(entry_bytes))
        field = file.read(value)
        width = _TIFF_BYTES.get(kind, 1)
        place = struct.unpack(order + ("Q" if big else "I"), field)[0]
        inside = width * count <= value
        total += 0 if inside else max(min(width * count, size - place), 0)
        letter = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind) if inside and count else None
        unique = unique and tag not in values
        values[tag] = count, struct.unpack_from(order + letter, field)[0] if letter else 0
    if total > 4 * size + _SPARE:
        raise CostError(
            f"{name} may be damaged: the entries of its directory hold {total} bytes, and it has "
            f"{size}."
        )
    return _Tags(values, unique)


def _tiff(file: BinaryIO, name: str) -> Header:
    tags = _tiff_tags(file, name)
    width, height = tags.first(_WIDTH, 0), tags.first(_HEIGHT, 0)
    pixels = width * height
    tiles = tags.count(_TILES)
    _limit(max(tags.count(_STRIPS), tiles), MAX_STRIPS, "strips or tiles", name)
    columns, rows = tags.first(_TILE_WIDTH, 0), tags.first(_TILE_HEIGHT, 0)
    if tiles:
        if not (columns and rows):
            raise InputError(f"{name} is a damaged TIFF file: its tiles have no size.")
        area = -(-width // columns) * -(-height // rows) * columns * rows
        if area > 4 * pixels + 16 * _SPARE:
            raise CostError(
                f"{name} has {width} x {height} pixels in tiles of {columns} x {rows}, which would "
                "take too much memory. Save it anew with smaller tiles."
            )
    return Header(pixels, tags.unique and tags.first(_COMPRESSION, 1) in _IN_C)


_READERS: dict[str, Callable[[BinaryIO, str], Header]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "WEBP": _webp,
    "BMP": _bmp,
    "PPM": _ppm,
    "TIFF": _tiff,
}
