"""Small image files that take long to decode, or much memory; none is a photograph."""

import io
import struct
import zlib

from PIL import Image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """The file that Pillow writes of `image`."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A grey progressive JPEG whose AC scans say in a few bytes each that nothing changes."""
    frame = struct.pack(">BHHBBBB", 8, side, side, 1, 1, 0x11, 0)
    # one symbol, of one bit: a run of 2^14 to 2^15 - 1 blocks without coefficients
    runs = bytes([0x10, 1, *[0] * 15, 0xE0])
    end_of_bands = -(-(((side + 7) // 8) ** 2) // 0x7FFF)
    code = "0" + "1" * 14  # the symbol, and 14 bits more
    bits = code * end_of_bands
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    scan = _segment(0xDA, bytes([1, 1, 0x00, 1, 63, 0x00])) + coded
    return b"".join([
        b"\xff\xd8",
        _segment(0xDB, bytes([0, *[1] * 64])),
        _segment(0xC2, frame),
        _segment(0xC4, bytes([0x00, 1, *[0] * 15, 0x00])),
        _segment(0xC4, runs),
        _segment(0xDA, bytes([1, 1, 0x00, 0, 0, 0x00])),
        bytes(-(-((side + 7) // 8) ** 2 // 8)),
        scan * scans,
        b"\xff\xd9",
    ])  # fmt: skip


def jpeg_of_segments(number: int, content: bytes = b"", marker: int = 0xFE) -> bytes:
    """A JPEG with that many comments, or other segments, before its pixels."""
    plain = encoded(Image.new("L", (8, 8)), "JPEG")
    return plain[:2] + _segment(marker, content) * number + plain[2:]


def jpeg_of_padding(number: int) -> bytes:
    """A JPEG with bytes of 255 before a marker."""
    plain = encoded(Image.new("L", (8, 8)), "JPEG")
    return plain[:2] + b"\xff" * number + plain[2:]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png_of_chunks(chunks: bytes, width: int = 8, height: int = 8) -> bytes:
    """A black PNG with `chunks` before its pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height), 9)
    return b"".join([
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", head),
        chunks,
        chunk(b"IDAT", rows),
        chunk(b"IEND", b""),
    ])  # fmt: skip


def exif_of_overlaps(entries: int, length: int) -> bytes:
    """An Exif block whose entries all have the whole block as their value."""
    start = b"II*\0" + struct.pack("<IH", 8, entries)
    size = len(start) + 12 * entries + 4
    tags = [struct.pack("<HHII", 0x4000 + k, 7, max(length, size), 0) for k in range(entries)]
    return (start + b"".join(tags) + bytes(4)).ljust(length, b"\0")


def gif_of_comments(number: int, content: bytes, blocks: int = 1) -> bytes:
    """A GIF with that many comments before its picture, `content` again and again in each."""
    plain = encoded(Image.new("P", (8, 8)), "GIF")
    start = 13 + (3 << ((plain[10] & 7) + 1) if plain[10] & 128 else 0)
    comment = b"!\xfe" + (bytes([len(content)]) + content) * blocks + b"\0"
    return plain[:start] + comment * number + plain[start:]


def tiff(entries: list[tuple[int, int, int, int]], content: bytes = b"", after: int = 0) -> bytes:
    """A TIFF of one directory: (tag, type, count, value or offset), then `content`."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + directory + struct.pack("<I", after) + content


def bmp_of_runs(width: int, height: int, runs: bytes) -> bytes:
    """A run-length encoded BMP of 8 bits."""
    palette = bytes(range(4)) * 256
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return struct.pack("<2sIII", b"BM", 54 + 1024 + len(runs), 0, 54 + 1024) + head + palette + runs


def tiff_of_strips(side: int, strips: int, compression: int, data: bytes, **extra: int) -> bytes:
    """A grey TIFF whose strips are all the same bytes, `data`.

    Args:
        extra: tags by their number, as `t322=16`, with one value each.
    """
    single = {256: side, 257: side, 258: 8, 259: compression, 262: 1, 277: 1}
    single |= {278: -(-side // strips)} | {int(tag[1:]): value for tag, value in extra.items()}
    tables = 8 + 2 + 12 * (len(single) + 2) + 4
    content = struct.pack(f"<{strips}I", *[tables + 8 * strips] * strips)
    content += struct.pack(f"<{strips}I", *[len(data)] * strips)
    places = [tables, tables + 4 * strips]
    if strips == 1:
        places = [tables + 8, len(data)]
    kinds = (324, 325) if "t322" in extra else (273, 279)
    entries = [(tag, 4, 1, value) for tag, value in single.items()]
    entries += [(kind, 4, strips, place) for kind, place in zip(kinds, places, strict=True)]
    return tiff(entries, content + data)


def animation(kind: str, frames: int, side: int = 16, **options) -> bytes:
    """An animation of grey frames, no two neighbours alike."""
    images = [Image.new("L", (side, side), 60 + 90 * (k % 2)).convert("RGB") for k in range(frames)]
    return encoded(images[0], kind, save_all=True, append_images=images[1:], **options)


def jp2_of_layers(layers: int, side: int = 64) -> bytes:
    """A JPEG 2000 codestream that claims many quality layers."""
    plain = encoded(Image.new("L", (side, side), 9), "JPEG2000", no_jp2=True)
    style = plain.index(b"\xff\x52")  # COD: length, style, progression, layers
    return plain[: style + 6] + struct.pack(">H", layers) + plain[style + 8 :]
