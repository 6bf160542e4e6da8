"""Small image files that ask for much work: refused at once, or decoded within a budget."""

import io
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from condinst_infer.errors import InputError
from condinst_infer.processing.image_header import CostError, read_header
from condinst_infer.processing.preprocess import format_of, read_image
from tests.support.hostile_images import (
    animation,
    bmp_of_runs,
    chunk,
    encoded,
    exif_of_overlaps,
    gif_of_comments,
    jp2_of_layers,
    jpeg_of_padding,
    jpeg_of_scans,
    jpeg_of_segments,
    png_of_chunks,
    tiff,
    tiff_of_strips,
)

BUDGET_S = 1.0  # for a refusal; the slowest took 0.03 s
ZEROS = zlib.compress(bytes(1 << 16), 9)


def noise(height: int = 40, width: int = 60, channels: int = 3) -> Image.Image:
    """A picture whose pixels are all different."""
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "JPEG of 101 scans": (lambda: jpeg_of_scans(64, 100), "101 scans"),
    "JPEG of 3,000 scans": (lambda: jpeg_of_scans(8000, 3_000), "101 scans"),
    "JPEG of 100,000 comments": (lambda: jpeg_of_segments(100_000), "10001 parts"),
    "JPEG of padding": (lambda: jpeg_of_padding(1_000_000), "10001 parts"),
    "JPEG of Exif pieces": (lambda: jpeg_of_segments(500, b"Exif\0\0a", 0xE1), "65 Exif segments"),
    "JPEG of Exif overlaps": (
        lambda: jpeg_of_segments(1, b"Exif\0\0" + exif_of_overlaps(999, 60_000), 0xE1),
        "entries of its directory hold",
    ),
    "PNG of 100,000 chunks": (lambda: png_of_chunks(chunk(b"prVt", b"") * 100_000), "10001 chunks"),
    "PNG of empty pixel chunks": (
        lambda: png_of_chunks(chunk(b"IDAT", b"") * 300_000),
        "100001 chunks",
    ),
    "PNG of a text that inflates": (
        lambda: png_of_chunks(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))),
        "damaged PNG",
    ),
    "PNG of a profile that inflates": (
        lambda: png_of_chunks(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 26)))),
        "damaged PNG",
    ),
    "PNG of Exif overlaps": (
        lambda: png_of_chunks(chunk(b"eXIf", exif_of_overlaps(900, 1_000_000))),
        "entries of its directory hold",
    ),
    "PNG of a long Exif text": (
        lambda: png_of_chunks(chunk(b"tEXt", b"Raw profile type exif\0" + b"\n" * 300_000)),
        "Exif profile",
    ),
    "GIF of comments": (lambda: gif_of_comments(100_000, b"a"), "10001 parts"),
    "GIF of one long comment": (lambda: gif_of_comments(1, b"a" * 255, 20_000), "10001 parts"),
    "TIFF of entries": (lambda: tiff([(k, 4, 1, 0) for k in range(300, 30_000)]), "29700 entries"),
    "TIFF of overlaps": (
        lambda: tiff([(k, 7, 1_000_000, 0) for k in range(300, 1_200)], bytes(1_000_000)),
        "entries of its directory hold",
    ),
    "TIFF of strips": (lambda: tiff_of_strips(9_000, 200_000, 1, b"a"), "200000 strips"),
    "TIFF of a huge tile": (
        lambda: tiff_of_strips(16, 1, 8, ZEROS, t322=65_536, t323=65_536),
        "in tiles of 65536 x 65536",
    ),
    "TIFF of JPEG scans": (
        lambda: tiff_of_strips(1_000, 1, 7, jpeg_of_scans(1_000, 500)),
        "501 scans",
    ),
    "BMP of one row in runs": (lambda: bmp_of_runs(1_000_000, 1, b"\1\1\0\0"), "run-length"),
    "BMP in runs": (lambda: bmp_of_runs(5_000, 5_000, b"\0\0" * 10), "run-length"),
    "PPM of a comment": (lambda: b"P6 #" + b" " * 3_000_000 + b"\n2 2 255\n", "no size in"),
    "PPM of comments": (lambda: b"P3 900 900 255\n" + b"#\n" * 500_000, "500000 comments"),
}
READ: dict[str, Callable[[], bytes]] = {
    "GIF of frames": lambda: animation("GIF", 500),
    "APNG of frames": lambda: animation("PNG", 300),
    "WebP of frames": lambda: animation("WEBP", 300),
    "TIFF of pages": lambda: animation("TIFF", 200),
    "TIFF whose directory is the next one": lambda: tiff(
        [(256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 0)]
        + [(279, 4, 1, 16)],
        after=8,
    ),
    "TIFF whose strips are one": lambda: tiff_of_strips(1_000, 1_000, 8, ZEROS),
    "JPEG 2000 of layers": lambda: jp2_of_layers(65_535),
    "JPEG of 100 scans": lambda: jpeg_of_scans(500, 99),
    "JPEG with a video behind it": lambda: (
        encoded(noise(), "JPEG") + b"\0\2" + b"\xff\xda\0\2" * 5_000
    ),
    "JPEG with a preview of many scans": lambda: jpeg_of_segments(30, b"\xff\xda\0\2" * 10, 0xE2),
    "JPEG of a long profile": lambda: encoded(noise(), "JPEG", icc_profile=bytes(3_000_000)),
}


@pytest.mark.parametrize("attack", REFUSED)
def test_what_asks_for_too_much_is_refused_at_once(attack: str) -> None:
    make, words = REFUSED[attack]
    data = make()
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        read_image(data)
    assert time.perf_counter() - start < BUDGET_S
    text = str(caught.value)
    assert words in text and "\n" not in text
    # Pillow limits what a text inflates to; an Exif text is known only after the pixels
    others = ("that inflates", "long Exif text", "PPM of a comment")
    assert isinstance(caught.value, CostError) != attack.endswith(others)


@pytest.mark.parametrize("file", READ)
def test_what_only_looks_like_much_is_read(file: str) -> None:
    data = READ[file]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = Image.open(io.BytesIO(data)).convert("RGB")
    start = time.perf_counter()
    found = read_image(data)
    assert time.perf_counter() - start < BUDGET_S
    assert (found[..., ::-1] == np.asarray(expected)).all()


KINDS: dict[str, tuple[Callable[[], bytes], bool]] = {
    "JPEG": (lambda: encoded(noise(), "JPEG"), True),
    "progressive JPEG": (lambda: encoded(noise(), "JPEG", progressive=True), True),
    "CMYK JPEG": (lambda: encoded(noise().convert("CMYK"), "JPEG"), True),
    "PNG": (lambda: encoded(noise(), "PNG"), True),
    "GIF": (lambda: encoded(noise().quantize(64), "GIF"), True),
    "WebP": (lambda: encoded(noise(), "WEBP"), True),
    "lossless WebP": (lambda: encoded(noise(), "WEBP", lossless=True), False),
    "animated WebP": (lambda: animation("WEBP", 3), False),
    "BMP": (lambda: encoded(noise(), "BMP"), True),
    "BMP in runs": (lambda: bmp_of_runs(4, 2, b"\4\1\0\0\4\2\0\1"), False),
    "PPM": (lambda: encoded(noise(), "PPM"), True),
    "PBM": (lambda: encoded(noise(channels=1).convert("1"), "PPM"), True),
    "PGM with a comment": (lambda: b"P5 # a comment\n2\n# another\n2 255\nabcd", True),
    "PPM of another range": (lambda: b"P6 1 2 99\nabcdef", False),
    "PPM in text": (lambda: b"P3 1 2 255\n1 2 3 4 5 6\n", False),
    "TIFF": (lambda: encoded(noise(), "TIFF"), True),
    "TIFF, LZW": (lambda: encoded(noise(), "TIFF", compression="tiff_lzw"), True),
    "TIFF, deflate": (lambda: encoded(noise(), "TIFF", compression="tiff_adobe_deflate"), True),
    "big TIFF": (lambda: encoded(noise(), "TIFF", big_tiff=True), True),
    "TIFF, JPEG": (lambda: encoded(noise(), "TIFF", compression="jpeg"), False),
    "JPEG 2000": (lambda: encoded(noise(), "JPEG2000"), False),
    "AVIF": (lambda: encoded(noise(), "AVIF"), False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_files_are_read_and_their_headers_too(kind: str) -> None:
    make, bounded = KINDS[kind]
    data = make()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (read_image(data)[..., ::-1] == expected).all()
    file = io.BytesIO(data)
    header = read_header(file, "a", format_of(file, "a"))
    assert header.bounded == bounded
    if bounded:
        assert header.pixels == expected.shape[0] * expected.shape[1]


def interlaced_png(image: np.ndarray) -> bytes:
    """Adam7, which Pillow does not write: `image`, uint8 [H, W], in seven passes."""
    rows = []
    for y, x, down, right in (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):  # fmt: skip
        part = image[y::down, x::right]
        rows += [b"\0" + row.tobytes() for row in part if row.size]
    head = b"".join(side.to_bytes(4, "big") for side in image.shape[::-1])
    parts = (b"IHDR", head + b"\x08\0\0\0\1"), (b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in (*parts, (b"IEND", b"")))


def test_an_interlaced_png_is_read() -> None:
    image = np.asarray(noise(21, 35, 1))
    found = read_image(interlaced_png(image))
    assert (found == image[..., None]).all()


MEMORY = """
import resource, sys
from pathlib import Path
from condinst_infer.errors import InputError
from condinst_infer.processing.preprocess import read_image

read_image(Path(sys.argv[1]))  # a good one: all libraries are loaded
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 300_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name in sys.argv[2:]:
    try:
        read_image(Path(name))
    except InputError as error:
        assert "MemoryError" not in str(error), name
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count no address space")
def test_none_takes_more_than_its_memory(tmp_path) -> None:
    """300 MB: the largest picture among them has 4 million pixels of 35 bytes at most."""
    files = {**READ, **{name: make for name, (make, _) in REFUSED.items()}}
    files["JPEG of 8,000 x 8,000, refused by its scans"] = lambda: jpeg_of_scans(8_000, 200)
    names = [tmp_path / "good"]
    names[0].write_bytes(encoded(noise(), "PNG"))
    for number, make in enumerate(files.values()):
        names.append(tmp_path / f"{number}")
        names[-1].write_bytes(make())
    done = subprocess.run([sys.executable, "-c", MEMORY, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
