"""Reading any image, and refusing what is none; sizes and pixels are in test_resize."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from condinst_infer.config.model import InputConfig
from condinst_infer.errors import InputError
from condinst_infer.processing.geometry import network_size
from condinst_infer.processing.preprocess import read_image, resize

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 160, 220]]], dtype=np.uint8)


def picture(height: int = 16, width: int = 24) -> np.ndarray:
    """Smooth BGR uint8 that JPEG keeps well; no symmetry that could hide a flip."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 / width, y * 255 / height, 255 - (x + y) * 255 / (height + width)], 2)
    return image.astype(np.uint8)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def png_claiming(height: int, width: int) -> bytes:
    """A PNG whose header claims a size and that holds next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def refusal(source, **options) -> str:
    """The message of the InputError; one line."""
    with pytest.raises(InputError) as caught:
        read_image(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_lossless_files_are_read_exactly_in_bgr(tmp_path, suffix):
    image = picture()
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(image[..., ::-1]), **options)
    for source in (path, str(path), Image.open(path)):
        found = read_image(source)
        assert found.dtype == np.uint8 and found.flags.c_contiguous
        assert (found == image).all()


def test_jpeg(tmp_path):
    image = picture(64, 48)
    path = saved(tmp_path / "a.jpg", Image.fromarray(image[..., ::-1]), quality=95)
    # Loss of the codec, worst 9 grey levels here; swapped channels differ by 200.
    assert np.abs(read_image(path).astype(int) - image).max() < 20


def test_one_pixel(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("RGB", (1, 1), (10, 20, 30)))
    assert read_image(path).tolist() == [[[30, 20, 10]]]


def test_long_strip(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("RGB", (20000, 10), (10, 20, 30)))
    image = read_image(path)
    assert image.shape == (10, 20000, 3)
    size = network_size((10, 20000), InputConfig())
    assert size == (1, 1333)
    assert resize(image, size).shape == (1, 1333, 3)


@pytest.mark.parametrize(("mode", "value", "expected"), [
    ("L", 77, (77, 77, 77)),
    ("1", 1, (255, 255, 255)),
    ("LA", (77, 0), (77, 77, 77)),
    ("RGBA", (10, 20, 30, 0), (30, 20, 10)),
    ("I;16", 65535, (255, 255, 255)),
    ("I;16", 257 * 100, (100, 100, 100)),
    ("I;16", 257 * 100 + 129, (101, 101, 101)),
])  # fmt: skip
def test_modes_of_png(tmp_path, mode, value, expected):
    path = saved(tmp_path / "a.png", Image.new(mode, (3, 2), value))
    assert read_image(path).shape == (2, 3, 3)
    assert tuple(read_image(path)[1, 2]) == expected


def test_palette_with_and_without_transparency(tmp_path):
    palette = Image.fromarray(COLOURS).quantize(4)
    plain = saved(tmp_path / "a.png", palette)
    clear = saved(tmp_path / "b.png", palette, transparency=b"\x00\xff\x80\xff")
    assert (read_image(plain) == COLOURS[..., ::-1]).all()
    assert (read_image(clear) == COLOURS[..., ::-1]).all()


def test_cmyk_jpeg(tmp_path):
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # cyan
    blue, green, red = read_image(saved(tmp_path / "a.jpg", cmyk))[8, 8]
    assert blue > 240 and green > 240 and red < 15


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert read_image(path)[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_rotation_is_undone(tmp_path, orientation, suffix):
    # What each code says was done to the upright picture.
    done = [
        lambda x: x,
        lambda x: x[:, ::-1],
        lambda x: x[::-1, ::-1],
        lambda x: x[::-1],
        lambda x: x.swapaxes(0, 1),
        lambda x: np.rot90(x, 1),
        lambda x: x[::-1, ::-1].swapaxes(0, 1),
        lambda x: np.rot90(x, -1),
    ]
    upright = picture(32, 48)
    stored = np.ascontiguousarray(done[orientation - 1](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored[..., ::-1]))
    path = saved(tmp_path / f"a.{suffix}", image, exif=exif, quality=95)
    found = read_image(path)
    assert found.shape == (32, 48, 3)
    assert np.abs(found.astype(int) - upright).max() < 25


def test_arrays():
    image = picture()
    grey = image[..., 0]
    assert np.shares_memory(read_image(image), image)
    assert (read_image(grey) == grey[..., None]).all()
    assert (read_image(grey[..., None]) == grey[..., None]).all()
    assert (read_image(np.dstack([image, grey])) == image).all()
    for view in (image[::-1], image[:, ::-2], image[..., ::-1], np.asfortranarray(image), grey.T):
        found = read_image(view)
        assert found.flags.c_contiguous and found.shape[2] == 3
        assert (found == (view if view.ndim == 3 else view[..., None])).all()


@pytest.mark.parametrize(("array", "words"), [
    (np.full((4, 4, 3), np.nan), "float64"),
    (np.zeros((4, 4, 3), dtype=np.float32), "float32"),
    (np.zeros((4, 4, 3), dtype=np.uint16), "uint16"),
    (np.zeros((4, 4, 3), dtype=bool), "bool"),
    (np.zeros((4,), dtype=np.uint8), r"\(4,\)"),
    (np.zeros((1, 4, 4, 3), dtype=np.uint8), r"\(1, 4, 4, 3\)"),
    (np.zeros((3, 4, 5), dtype=np.uint8), r"\(3, 4, 5\)"),
    (np.zeros((4, 4, 2), dtype=np.uint8), r"\(4, 4, 2\)"),
    (np.zeros((0, 4, 3), dtype=np.uint8), "no pixels"),
    (np.zeros((4, 0), dtype=np.uint8), "no pixels"),
])  # fmt: skip
def test_arrays_that_are_no_image(array, words):
    assert re.search(words, refusal(array))


def test_things_that_are_no_image(tmp_path):
    assert "a list" in refusal([[1, 2], [3, 4]])
    assert "NoneType" in refusal(None)
    assert "does not exist" in refusal(tmp_path / "missing.jpg")
    assert "folder" in refusal(tmp_path)
    assert "URL" in refusal("https://example.org/a.jpg")
    assert "can't be the name of a file" in refusal("a\0b.jpg")
    assert "no pixels" in refusal(Image.new("RGB", (0, 5)))


def test_files_that_are_no_image(tmp_path):
    text, empty = tmp_path / "text.jpg", tmp_path / "empty.jpg"
    text.write_text("this is not a photograph\n" * 10)
    empty.write_bytes(b"")
    assert f"{text} is not an image" in refusal(text)
    assert f"{empty} is empty" in refusal(empty)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp"])
def test_truncated_files_are_refused(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    content = path.read_bytes()
    for part in (0.6, 0.2):
        path.write_bytes(content[: int(part * len(content))])
        assert str(path) in refusal(path)
    path.write_bytes(content[:20])
    assert str(path) in refusal(path)


def test_pixels_without_a_known_range_are_refused(tmp_path):
    for mode in ("I", "F"):
        path = saved(tmp_path / f"{mode}.tif", Image.new(mode, (4, 4)))
        assert f"{path} has 32-bit pixels" in refusal(path)


def test_sixteen_bit_greymap(tmp_path):
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 257 * 40))
    assert read_image(path)[0, :, 0].tolist() == [255, 40]


def test_pixel_cap_comes_before_decoding(tmp_path):
    path = tmp_path / "bomb.png"
    for size in ((10_001, 10_000), (30_000, 30_000), (1_000_000, 1_000_000)):
        path.write_bytes(png_claiming(*size))
        message = refusal(path)
        assert f"{size[0] * size[1]} pixels" in message
        assert "--max-pixels" in message and "max_pixels=" in message


def test_pixel_cap_can_be_raised_past_that_of_pillow(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(png_claiming(20_000, 10_000))  # Image.open refuses 179 million
    # Accepted by its size, it is decoded and found to be cut off.
    assert "can't be decoded" in refusal(path, max_pixels=200_000_000)


def test_pixel_cap_holds_for_every_kind_of_source(tmp_path):
    image = picture(10, 10)
    path = saved(tmp_path / "a.png", Image.fromarray(image))
    for source in (image, Image.fromarray(image), path):
        assert "100 pixels, more than the limit of 99" in refusal(source, max_pixels=99)
        assert read_image(source, max_pixels=100).shape == (10, 10, 3)
