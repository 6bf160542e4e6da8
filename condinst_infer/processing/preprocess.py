"""From any photograph to network input: reading, sizes, resizing, batching."""

import io
import os
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO, Literal, Protocol, get_args

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from condinst_infer.config.model import MAX_PIXELS, InputConfig, Size
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.processing.geometry import placement
from condinst_infer.processing.image_header import (
    CostError,
    check_content,
    check_exif,
    read_header,
)
from condinst_infer.system.paths import is_folder, open_file, shown


class DeviceImage(Protocol):
    """An image in the memory of a GPU, as PyTorch, CuPy and PyCUDA have it."""

    @property
    def __cuda_array_interface__(self) -> Any: ...  # a dict; what torch's is, checkers can't tell


class BinaryFile(Protocol):
    """Anything that an encoded image is read from: an open file, a response, a zip member."""

    def read(self) -> bytes: ...


EncodedImage = bytes | bytearray | memoryview | BinaryFile
# a tensor of PyTorch is a DeviceImage to type checkers, wherever it lies
ImageSource = str | os.PathLike[str] | EncodedImage | np.ndarray | Image.Image | DeviceImage
ChannelOrder = Literal["bgr", "rgb"]

# What cameras and data sets write. Pillow reads more, some by running other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")
IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm"),
    *(".png", ".ppm", ".tif", ".tiff", ".webp"),
)
_MAX_PROFILE = 1 << 18  # letters of an Exif block in a PNG's text; it has 64 kB at most


def read_image(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, channel_order: ChannelOrder = "bgr"
) -> np.ndarray:
    """The image as BGR uint8 [H, W, 3], C-contiguous and upright.

    Args:
        source: path of an image file; the bytes of one; an object with `read()`, which is read
            from where it stands to its end and left open; a Pillow image; or a uint8 array:
            [H, W, 3], [H, W, 4] with alpha, or grey [H, W] or [H, W, 1]. A tensor of PyTorch in
            host memory may also be [3, H, W]. Of several frames, the first. Alpha is dropped, not
            blended. 16-bit values of files are scaled to 8 bits. EXIF rotation is applied.
        max_pixels: larger images are rejected, files before they are decoded.
        channel_order: of an array or a tensor, "bgr" or "rgb"; the other sources know theirs.

    Returns:
        A new array, or a view of `source` where that already is one of this form.

    Raises:
        InputError: anything else; the message names the file or the argument.
        ConfigError: another channel order.
    """
    check_channel_order(channel_order)
    if isinstance(source, np.ndarray):
        return _bgr_from_array(source, max_pixels, channel_order)
    if is_tensor(source):
        from condinst_infer.processing.arrays import array_from_tensor

        return _bgr_from_array(array_from_tensor(source), max_pixels, channel_order)
    if isinstance(source, Image.Image):
        return _bgr_from_pillow(source, "the Pillow image", source.format, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)) or is_file_object(source):
        content, name = _content_of(source)
        return image_from_file(io.BytesIO(content), name, max_pixels=max_pixels)
    if not isinstance(source, (str, os.PathLike)):
        from condinst_infer.processing.arrays import no_image

        raise no_image(source)
    return _image_from_path(os.fsdecode(source), max_pixels)


def check_channel_order(channel_order: str) -> None:
    """ConfigError if `channel_order` is neither "bgr" nor "rgb"."""
    if channel_order not in get_args(ChannelOrder):
        raise ConfigError(f"channel_order is {channel_order!r}; it must be one of bgr, rgb.")


def is_tensor(source: object) -> bool:
    """True if `source` is a tensor of PyTorch, which is not imported to find that out."""
    return isinstance(source, getattr(sys.modules.get("torch"), "Tensor", ()))


def is_file_object(source: object) -> bool:
    """True if `source` can be read like an open file."""
    return callable(getattr(source, "read", None)) and not isinstance(source, type)


def _content_of(source: Any) -> tuple[bytes, str]:
    """The bytes of an encoded image in memory or in a file object, and a name for messages."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), f"the content of the {type(source).__name__}"
    known = getattr(source, "name", None)
    name = known if isinstance(known, str) and known else "the content of the file object"
    try:
        content = source.read()
    except (OSError, ValueError, EOFError) as error:  # ValueError: it is closed
        raise InputError(f"{name} can't be read: {error}.") from None
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise InputError(
            f"{name} gives {type(content).__name__} in place of bytes; open it as open(path, 'rb')."
        )
    if not content:
        raise InputError(
            f"{name} has 0 bytes from where it stands to its end. If it was read before, go back: "
            "file.seek(0)"
        )
    return bytes(content), name


def _image_from_path(name: str, max_pixels: int) -> np.ndarray:
    """`read_image` of the file `name`."""
    if "://" in name:
        raise InputError(f"{name} is a URL; download it and give the file.")
    if is_folder(name):
        raise InputError(
            f"{shown(name)} is a folder; give an image file, or the folder to Pipeline.map."
        )
    with open_file(name) as file:
        return image_from_file(file, shown(name), max_pixels=max_pixels)


def image_from_file(file: BinaryIO, name: str, *, max_pixels: int) -> np.ndarray:
    """`read_image` of an open file; `name` is what messages call it."""
    with _open(file, name) as image:
        check_size((image.height, image.width), name, max_pixels)
        place = file.tell()  # Pillow goes on from here
        check_content(file, name, format_of(file, name))
        file.seek(place)
        try:
            return _bgr_from_pillow(image, name, image.format, max_pixels)
        except (MemoryError, cv2.error):  # OpenCV only reorders channels here
            raise _no_memory(name) from None


def _no_memory(name: str) -> CostError:
    return CostError(f"{name} takes more memory to decode than there is; give a smaller one.")


def size_from_file(file: BinaryIO, name: str) -> Size:
    """(height, width) of the pixels in an open image file, from its header; not yet upright."""
    with _open(file, name) as image:
        return image.height, image.width


def upright_size(file: BinaryIO, name: str, expected: Size) -> Size:
    """(height, width) of the image in an open file as `read_image` gives it, from its header.

    Args:
        expected: (height, width). A PNG has its rotation behind the pixels, which are decoded to
            find it; that is done where the sides are those of `expected` the other way round.
    """
    with _open(file, name) as image:
        size: Size = image.height, image.width
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # newer versions have turned it here
            tags = image.tag_v2
            size = tags[ExifTags.Base.ImageLength], tags[ExifTags.Base.ImageWidth]
        if size[0] == size[1] or (image.format == "PNG" and size[::-1] != tuple(expected)):
            return size
        try:
            turned = _orientation(image, name) in (5, 6, 7, 8)
        except InputError:
            raise
        except Exception as error:  # as in `_open`
            raise InputError(f"{name} can't be read, it may be damaged: {error}.") from None
        return (size[1], size[0]) if turned else size


def format_of(file: BinaryIO, name: str) -> str:
    """The one of `FORMATS` that the first bytes of an open file say; InputError if none."""
    Image.init()
    file.seek(0)
    start = file.read(16)
    if not start:
        raise InputError(f"{name} is empty (0 bytes).")
    for kind in FORMATS:
        factory, accepts = Image.OPEN.get(kind, (None, None))
        if factory is not None and accepts is not None and accepts(start) is True:
            return kind
    raise InputError(f"{name} is not an image; give one of {', '.join(FORMATS)}.")


def _open(file: BinaryIO, name: str) -> Image.Image:
    """The Pillow image in `file`, header only.

    `Image.open` would refuse or warn by a size limit that is a global of Pillow, so neither
    `max_pixels` could lift it nor two threads differ in it. The parsers it calls have no limit.
    """
    kind = format_of(file, name)
    read_header(file, name, kind)
    file.seek(0)
    try:
        return Image.OPEN[kind][0](file, name)
    except MemoryError:
        raise _no_memory(name) from None
    except Exception as error:  # damaged headers make the parsers raise nearly anything
        raise InputError(f"{name} is a damaged {kind} file: {error}.") from None


def _orientation(image: Image.Image, name: str) -> int:
    """The code of the Exif rotation, 1 if there is none."""
    block, text = image.info.get("exif"), image.info.get("Raw profile type exif", "")
    if isinstance(block, bytes):
        check_exif(block, name)
    if len(text) > _MAX_PROFILE:
        raise InputError(f"{name} has an Exif profile of {len(text)} letters; remove it.")
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _bgr_from_pillow(
    image: Image.Image, name: str, kind: str | None, max_pixels: int
) -> np.ndarray:
    """BGR uint8 [H, W, 3] from a Pillow image, upright; `kind` is the file format."""
    check_size((image.height, image.width), name, max_pixels)
    try:
        image.load()
        if _orientation(image, name) != 1:
            image = ImageOps.exif_transpose(image)
        # Pillow gives 16-bit grey as I;16, or as I where the reader has no 16-bit mode.
        if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
            grey = np.asarray(image).astype(np.uint32)
            return cv2.cvtColor(((grey + 128) // 257).astype(np.uint8), cv2.COLOR_GRAY2BGR)
        if image.mode in ("I", "F"):
            raise InputError(f"{name} has 32-bit pixels; save it with 8 or 16 bits.")
        if "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns on the direct way from a palette
        rgb = np.asarray(image.convert("RGB"))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # as in `_open`
        raise InputError(f"{name} can't be decoded, it may be damaged: {error}.") from None
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)


def _bgr_from_array(image: np.ndarray, max_pixels: int, channel_order: ChannelOrder) -> np.ndarray:
    """BGR uint8 [H, W, 3] from an array that is grey or has 3 or 4 channels."""
    if image.dtype != np.uint8:
        from condinst_infer.processing.arrays import not_uint8

        raise not_uint8(image)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        from condinst_infer.processing.arrays import no_image_shape

        raise no_image_shape(image.shape)
    check_size((image.shape[0], image.shape[1]), "the image array", max_pixels)
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2BGR)
    image = np.ascontiguousarray(image[:, :, :3])
    return image if channel_order == "bgr" else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)


def check_size(size: Size, name: str, max_pixels: int) -> None:
    """InputError for an image without pixels or with too many."""
    height, width = size
    if height * width == 0:
        raise InputError(f"{name} has no pixels: {width} x {height}.")
    if height * width > max_pixels:
        raise InputError(
            f"{name} has {width} x {height} = {height * width} pixels, more than the limit of "
            f"{max_pixels}. Raise it if you trust the image: --max-pixels {height * width} "
            f"(in Python: max_pixels={height * width})"
        )


def resize(image: np.ndarray, size: Size) -> np.ndarray:
    """`image`, uint8 [H, W, 3], at `size`, as Pillow's antialiased bilinear within a grey level."""
    height, width = size
    if (height, width) == image.shape[:2]:
        return image
    if height >= image.shape[0] and width >= image.shape[1]:
        # Enlarging needs no antialiasing, and OpenCV does it 12 times faster.
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def network_image(
    image: np.ndarray, config: InputConfig, canvas: Size | None
) -> tuple[np.ndarray, Size]:
    """`image`, BGR uint8 [H, W, 3], at the size of its `placement`, and the canvas it goes on."""
    height, width = image.shape[:2]
    net_size, canvas = placement((height, width), config, canvas)
    return resize(image, net_size), canvas


def stack_images(images: Sequence[np.ndarray], canvas: Size) -> tuple[np.ndarray, np.ndarray]:
    """Images on one canvas each, at the top left; the rest is 0.

    Args:
        images: N arrays uint8 [h, w, 3], none larger than `canvas`.
        canvas: (H, W).

    Returns:
        `images` uint8 [N, H, W, 3] and `image_sizes` int32 [N, 2], the (height, width) of each.
    """
    batch = np.zeros((len(images), *canvas, 3), dtype=np.uint8)
    sizes = np.array([image.shape[:2] for image in images], dtype=np.int32).reshape(-1, 2)
    for slot, image in zip(batch, images, strict=True):
        slot[: image.shape[0], : image.shape[1]] = image
    return batch, sizes
