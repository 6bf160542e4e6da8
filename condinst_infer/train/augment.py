"""Random changes to a training image that keep its masks true."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from condinst_infer.config.model import InputConfig
from condinst_infer.processing.geometry import network_size
from condinst_infer.processing.preprocess import resize
from condinst_infer.results.crop import CroppedMask


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images; the defaults are the papers' (section 4.1)."""

    short_sides: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # one is drawn; Detectron2
    train_long_side: int = 1333  # cap of the longer side
    horizontal_flip: bool = True
    vertical_flip: bool = False  # for data without an up direction: cells, aerial views
    rotate: bool = False  # by 90, 180 and 270 degrees, for the same
    colour_jitter: float = 0.0  # 0 to 1: brightness, contrast, saturation; hue a tenth of it
    crop: int = 0  # side of a random square taken after resizing, pixels; 0 takes all


def augment(
    image: np.ndarray,
    crops: Sequence[CroppedMask],
    rng: np.random.Generator,
    settings: AugmentConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """A variation of an image and its masks at a drawn size.

    Args:
        image: BGR uint8 [H, W, 3].
        crops: G masks.

    Returns:
        Image uint8 [h, w, 3] and masks bool [G, h, w]; a mask may have become empty.
    """
    image, place = _vary_colors(image, rng, settings)
    masks = np.zeros((len(crops), *image.shape[:2]), bool)
    for mask, crop in zip(masks, crops, strict=True):
        _paint(mask, crop, place)
    return image, masks


def augment_map(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator, settings: AugmentConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The variation of `image` that `augment` gives, and of `labels` with it.

    Args:
        image: BGR uint8 [H, W, 3].
        labels: uint16 [H, W].

    Returns:
        Image uint8 [h, w, 3] and labels uint16 [h, w], those of the nearest pixels.
    """
    image, place = _vary_colors(image, rng, settings)
    size = (image.shape[1], image.shape[0])
    return image, cv2.warpAffine(labels, place[:2], size, flags=cv2.INTER_NEAREST)


def _vary_colors(
    image: np.ndarray, rng: np.random.Generator, settings: AugmentConfig
) -> tuple[np.ndarray, np.ndarray]:
    """A variation of `image`, and where a pixel (x, y, 1) of it has gone, float64 [3, 3]."""
    # drawn whether they are used or not, so that one option does not change the others
    short_side, quarters = int(rng.choice(settings.short_sides)), int(rng.integers(4))
    mirror, upside_down = rng.random() < 0.5, rng.random() < 0.5
    place = np.eye(3)  # of a pixel of the original, (x, y, 1), in the result
    for _ in range(quarters if settings.rotate else 0):
        place = np.array([[0, 1, 0], [-1, 0, image.shape[1] - 1], [0, 0, 1]]) @ place
        image = np.rot90(image)
    if settings.horizontal_flip and mirror:
        place = np.array([[-1, 0, image.shape[1] - 1], [0, 1, 0], [0, 0, 1]]) @ place
        image = image[:, ::-1]
    if settings.vertical_flip and upside_down:
        place = np.array([[1, 0, 0], [0, -1, image.shape[0] - 1], [0, 0, 1]]) @ place
        image = image[::-1]
    sizes = InputConfig(short_side=short_side, long_side=settings.train_long_side)
    height, width = network_size(image.shape[:2], sizes)
    y, x = height / image.shape[0], width / image.shape[1]
    top, left = _corner((height, width), settings.crop, rng)
    # pixel centres lie at halves
    place = np.array([[x, 0, x / 2 - 0.5 - left], [0, y, y / 2 - 0.5 - top], [0, 0, 1]]) @ place
    image = resize(np.ascontiguousarray(image), (height, width))
    if settings.crop:
        image = image[top : top + settings.crop, left : left + settings.crop]
    if settings.colour_jitter:
        image = _jitter(image, settings.colour_jitter, rng)
    return image, place


def _corner(size: tuple[int, int], side: int, rng: np.random.Generator) -> tuple[int, int]:
    """(top, left) of a random square of `side` inside `size`, or of as much of it as fits."""
    top, left = (int(rng.integers(max(0, full - side) + 1)) for full in size)
    return (top, left) if side else (0, 0)


def _paint(mask: np.ndarray, crop: CroppedMask, place: np.ndarray) -> None:
    """Sets in `mask`, bool [h, w], the pixels where `crop`, moved by `place`, is above a half."""
    height, width = crop.shape
    offset = np.array([[1, 0, crop.x], [0, 1, crop.y], [0, 0, 1]])
    corners = place @ offset @ np.array([[-1, width], [-1, height], [1, 1]])  # with a margin
    low = np.maximum(np.floor(corners[:2].min(1)), 0).astype(int)
    high = np.minimum(np.ceil(corners[:2].max(1)) + 1, mask.shape[::-1]).astype(int)
    if (low >= high).any():
        return
    move = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]]) @ place @ offset
    size = tuple(map(int, high - low))
    warped = cv2.warpAffine(crop.mask.astype(np.uint8) * 255, move[:2], size)
    mask[low[1] : high[1], low[0] : high[0]] = warped > 127


def _jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """`image` with other brightness, contrast, saturation and hue."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    mean = float(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).mean()) * brightness
    grey = np.arange(256)
    # contrast is stretched about the mean
    image = cv2.LUT(image, _bytes(contrast * (brightness * grey - mean) + mean))
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)  # hue 0 to 179: a tenth is 18
    hue = (grey + rng.uniform(-18, 18) * strength) % 180
    hsv[..., 0] = cv2.LUT(hsv[..., 0], _bytes(hue))
    hsv[..., 1] = cv2.LUT(hsv[..., 1], _bytes(saturation * grey))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def _bytes(table: np.ndarray) -> np.ndarray:
    return np.clip(table, 0, 255).astype(np.uint8)
