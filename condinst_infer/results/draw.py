"""Instances drawn on their image: filling, contour and label, sized to the image."""

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from condinst_infer.config.model import Size
from condinst_infer.errors import InputError
from condinst_infer.results.crop import CroppedMask
from condinst_infer.system.outputs import atomic_file

_JPEG_QUALITY = 92

Colour = tuple[int, int, int]  # blue, green, red
Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2; the ends are outside


def overlay(
    image: np.ndarray,
    crops: Sequence[CroppedMask],
    *,
    texts: Sequence[str] | None = None,
    boxes: np.ndarray | None = None,
    opacity: float = 0.4,
    thickness: int | None = None,
    color_keys: Sequence[int] | None = None,
) -> np.ndarray:
    """A copy of `image` with its instances drawn on it, BGR uint8 [H, W, 3].

    Large objects are drawn first, so that small ones stay visible. Line width and text size
    follow the image size.

    Args:
        image: BGR uint8 [H, W, 3].
        crops: K masks in pixels of the image, best instance first.
        texts: K labels; one that finds no free place is left out, better instances go first.
        boxes: K boxes to draw too, [K, 4].
        opacity: of the filling, 0 to 1.
        thickness: of contours and boxes, in pixels; None follows the size of image and object.
        color_keys: K numbers; instances with the same number have the same colour.

    Raises:
        InputError: an option out of range.
    """
    if not 0 <= opacity <= 1:  # also refuses NaN
        raise InputError(f"opacity is {opacity}; it must be from 0 to 1.")
    if thickness is not None and thickness < 1:
        raise InputError(f"thickness is {thickness}; it must be at least 1 pixel.")
    canvas = image.copy()
    unit = line_unit(image.shape[0], image.shape[1])
    colours = [instance_colour(k) for k in (color_keys or range(len(crops)))]
    areas = [crop.area for crop in crops]
    for k in sorted(range(len(crops)), key=lambda k: -areas[k]):
        if areas[k]:
            if opacity:
                _fill(canvas, crops[k], colours[k], opacity)
            _outline(canvas, crops[k], colours[k], unit, thickness)
        if boxes is not None:
            x1, y1, x2, y2 = (round(v) for v in boxes[k].tolist())
            cv2.rectangle(
                canvas, (x1, y1), (x2, y2), colours[k], thickness or max(1, round(unit / 2))
            )
    if texts is None:
        return canvas
    anchors = [_extent(crop, None if boxes is None else boxes[k]) for k, crop in enumerate(crops)]
    return _draw_labels(canvas, texts, anchors, colours)


def canvas_to_draw_on(
    image: np.ndarray | None, original: np.ndarray | None, size: Size
) -> np.ndarray:
    """`image`, or else the `original`; InputError if it is not BGR uint8 [H, W, 3] of `size`."""
    image = original if image is None else image
    if image is None:
        raise InputError("this result keeps no image to draw on; give one: plot(image)")
    if image.dtype != np.uint8 or image.shape != (*size, 3):
        raise InputError(
            f"the image to draw on is {image.dtype} {image.shape}; it must be uint8 {(*size, 3)}."
        )
    return image


def write_image(path: Path, image: np.ndarray) -> None:
    """Write `image`, BGR uint8 [H, W, 3], in the file format of the suffix of `path`."""
    suffix = path.suffix.lower()
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if suffix in (".jpg", ".jpeg") else []
    done, data = cv2.imencode(suffix, image, quality)
    if not done:
        raise InputError(f"{path} can't be written: OpenCV can't encode {suffix}.")
    with atomic_file(path) as part:
        part.write_bytes(data.tobytes())


def png_bytes(image: np.ndarray) -> bytes:
    """A PNG file of `image`, BGR uint8 [H, W, 3]."""
    done, data = cv2.imencode(".png", image)
    assert done
    return data.tobytes()


def line_unit(height: int, width: int) -> float:
    """Contour width in pixels: 2 on a 640 x 480 photograph, 8 on 3840 x 2160."""
    return max(1.0, (height * width) ** 0.5 / 330)


def instance_colour(k: int) -> Colour:
    """The colour of instance `k`, always the same; neighbours in `k` differ most in hue."""
    hue = (0.58 + k * 0.618034) % 1  # steps of the golden ratio never come close to a former hue
    saturation = (0.75, 0.6, 0.9)[k % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 1.0)
    return round(255 * blue), round(255 * green), round(255 * red)


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever reads better on `background`."""
    blue, green, red = background
    luminance = 0.114 * blue + 0.587 * green + 0.299 * red  # ITU-R BT.601
    return (0, 0, 0) if luminance > 128 else (255, 255, 255)


def _fill(canvas: np.ndarray, crop: CroppedMask, colour: Colour, opacity: float) -> None:
    """Tint the pixels of one mask in `canvas`."""
    height, width = crop.shape
    region = canvas[crop.y : crop.y + height, crop.x : crop.x + width]
    # ten times faster than NumPy's own filling and copying of three interleaved channels
    solid = cv2.merge([np.full((height, width), value, np.uint8) for value in colour])
    tinted = cv2.addWeighted(region, 1 - opacity, solid, opacity, 0)
    cv2.copyTo(tinted, crop.mask.view(np.uint8), region)


def _outline(
    canvas: np.ndarray, crop: CroppedMask, colour: Colour, unit: float, thickness: int | None
) -> None:
    """Draw the contours of one mask, holes included; thinner on objects of a few pixels."""
    mask = np.ascontiguousarray(crop.mask).view(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    width = thickness or max(1, round(min(unit, min(crop.shape) / 12)))
    cv2.drawContours(
        canvas, contours, -1, colour, width, lineType=cv2.LINE_AA, offset=(crop.x, crop.y)
    )


def _extent(crop: CroppedMask, box: np.ndarray | None) -> Rectangle | None:
    """Rectangle of the box where it is drawn, else of the mask; None if it is empty."""
    if box is not None:
        x1, y1, x2, y2 = (round(v) for v in box.tolist())
        return x1, y1, x2, y2
    height, width = crop.shape
    return (crop.x, crop.y, crop.x + width, crop.y + height) if height else None


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that no font file is needed."""
    return ImageFont.load_default(size)


def _draw_labels(
    canvas: np.ndarray,
    texts: Sequence[str],
    anchors: Sequence[Rectangle | None],
    colours: Sequence[Colour],
) -> np.ndarray:
    """`canvas` with a coloured chip per text, near its anchor and inside the image."""
    height, width = canvas.shape[:2]
    size = max(11, round(0.024 * (height * width) ** 0.5))
    font = _font(size)
    picture = Image.fromarray(canvas)  # Pillow sees R, G, B; colours are given in our order
    draw = ImageDraw.Draw(picture)
    margin = max(2, size // 4)
    taken: list[Rectangle] = []
    for text, anchor, colour in zip(texts, anchors, colours, strict=True):
        if anchor is None:
            continue
        chip = (round(draw.textlength(text, font=font)) + 2 * margin, size + margin)
        place = free_place(chip, anchor, (height, width), taken)
        if place is None:
            continue
        taken.append(place)
        x1, y1, x2, y2 = place
        draw.rounded_rectangle((x1, y1, x2 - 1, y2 - 1), radius=margin, fill=colour)
        middle = (x1 + margin, (y1 + y2) / 2)
        draw.text(middle, text, fill=text_colour(colour), font=font, anchor="lm")
    return np.array(picture)


def free_place(
    chip: tuple[int, int],
    anchor: Rectangle,
    image_size: tuple[int, int],
    taken: Sequence[Rectangle],
) -> Rectangle | None:
    """Find a place for a chip (width, height): above, inside or below its anchor, off other chips.

    Always inside the image; None where every place is taken or the chip is larger than the image.
    """
    width, height = chip
    x1, y1, x2, y2 = anchor
    limit_x, limit_y = image_size[1] - width, image_size[0] - height
    if limit_x < 0 or limit_y < 0:
        return None
    middle = ((x1 + x2 - width) // 2, (y1 + y2 - height) // 2)
    for x, y in (
        *((x, y) for y in (y1 - height, y1, y2 - height, y2) for x in (x1, x2 - width)),
        middle,
    ):
        x, y = min(max(x, 0), limit_x), min(max(y, 0), limit_y)
        place = (x, y, x + width, y + height)
        if all(place[2] <= t[0] or t[2] <= x or place[3] <= t[1] or t[3] <= y for t in taken):
            return place
    return None
