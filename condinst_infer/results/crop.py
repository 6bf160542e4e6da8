"""Masks of instances, cropped to their foreground."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from condinst_infer.config.model import Size


class _PackedPixels(NamedTuple):
    """The pixels of a mask as bits; see `CroppedMask.from_bits`."""

    rows: NDArray[np.uint8]  # [h, n], at least ceil(w / 8) bytes a row
    width: int


@dataclass(frozen=True, eq=False)
class CroppedMask:
    """The part of a mask that holds its foreground; outside is background.

    A mask from a GPU is kept as bits until `mask` is read.
    """

    x: int  # column of the left edge, original pixels
    y: int  # row of the top edge
    # [h, w]. Another thread may unpack them: each method reads the field once.
    _pixels: NDArray[np.bool_] | _PackedPixels

    @classmethod
    def from_bits(cls, x: int, y: int, rows: NDArray[np.uint8], width: int) -> "CroppedMask":
        """The mask whose pixels are the bits of `rows`, which it keeps without a copy.

        Args:
            x, y: the top left corner, original pixels.
            rows: uint8 [h, n], lowest bit first. The bits from `width` on must be 0, as the
                kernel `paste` and `np.packbits` leave them: nothing clears or checks them.
            width: pixels of a row, at most 8 n.
        """
        return cls(x, y, _PackedPixels(rows, width))

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The pixels [h, w], True inside the object; (0, 0) for an empty mask."""
        mask = _unpack(self._pixels)
        object.__setattr__(self, "_pixels", mask)  # in place of the bits: a caller may change it
        return mask

    @property
    def bits(self) -> NDArray[np.uint8]:
        """The pixels as bits, uint8 [h, ceil(w / 8)]: lowest first, 0 beyond the width."""
        pixels = self._pixels
        if isinstance(pixels, _PackedPixels):
            return pixels.rows[:, : -(-pixels.width // 8)]
        return np.packbits(pixels, axis=1, bitorder="little")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of `mask`."""
        pixels = self._pixels
        if isinstance(pixels, _PackedPixels):
            return len(pixels.rows), pixels.width
        return pixels.shape[0], pixels.shape[1]

    @property
    def area(self) -> int:
        """Number of foreground pixels."""
        pixels = self._pixels
        if isinstance(pixels, _PackedPixels):
            return int(cv2.norm(pixels.rows, cv2.NORM_HAMMING))  # the bits that are set
        return int(np.count_nonzero(pixels))

    @property
    def _tight_box(self) -> tuple[int, int, int, int]:
        """x, y, width and height of the foreground in `mask`; zeros if it is empty."""
        pixels = self._pixels
        if isinstance(pixels, _PackedPixels):
            return _tight_box_of_bits(pixels.rows)
        return tight_box(pixels)

    def dense(self, image_size: Size) -> NDArray[np.bool_]:
        """The mask in the size of the image, bool [H, W]."""
        dense = np.zeros(image_size, dtype=bool)
        self.paint(dense)
        return dense

    def paint(self, dense: NDArray[np.bool_]) -> None:
        """Set the pixels of this mask in `dense`, bool [H, W]; the mask's box is all replaced."""
        mask = _unpack(self._pixels)
        height, width = mask.shape
        dense[self.y : self.y + height, self.x : self.x + width] = mask

    def __repr__(self) -> str:
        height, width = self.shape
        return (
            f"<CroppedMask: {self.area} foreground pixels in {width} x {height}, "
            f"corner x={self.x}, y={self.y}>"
        )


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x, y, width and height of the foreground of a bool mask [h, w]; zeros if it is empty."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return x, y, width, height


def _tight_box_of_bits(rows: np.ndarray) -> tuple[int, int, int, int]:
    """`tight_box` of packed pixels, uint8 [h, n]."""
    first, y, count, height = cv2.boundingRect(rows)  # of the bytes that are not 0
    if not count:
        return 0, 0, 0, 0
    ends = rows[y : y + height, [first, first + count - 1]]
    left, right = np.bitwise_or.reduce(ends).tolist()
    x = 8 * first + (left & -left).bit_length() - 1  # the lowest bit of the first byte
    return x, y, 8 * (first + count - 1) + right.bit_length() - x, height


def _unpack(pixels: NDArray[np.bool_] | _PackedPixels) -> NDArray[np.bool_]:
    """The pixels as bool [h, w]; those that are not packed as they are."""
    if isinstance(pixels, _PackedPixels):
        rows, width = pixels
        return np.unpackbits(rows, axis=1, count=width, bitorder="little").view(bool)
    return pixels


def boxes_from_crops(crops: Iterable[CroppedMask], count: int) -> np.ndarray:
    """The tight boxes of the first `count` masks, float32 [count, 4] in original pixels, xyxy.

    Zeros where a mask is empty, or where there are fewer.
    """
    boxes = np.zeros((count, 4), dtype=np.float32)
    for box, crop in zip(boxes, crops, strict=False):
        x, y, width, height = crop._tight_box  # background may surround the foreground
        if width:
            box[:] = (crop.x + x, crop.y + y, crop.x + x + width, crop.y + y + height)
    return boxes
