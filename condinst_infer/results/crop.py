"""Masks of instances, cropped to their foreground."""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from condinst_infer.config.model import Size


@dataclass(frozen=True, eq=False)
class CroppedMask:
    """The part of a mask that holds its foreground; outside is background."""

    x: int  # column of the left edge, original pixels
    y: int  # row of the top edge
    _mask: NDArray[np.bool_]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The pixels [h, w], True inside the object; (0, 0) for an empty mask."""
        return self._mask

    @property
    def area(self) -> int:
        """Number of foreground pixels."""
        return int(np.count_nonzero(self.mask))

    def dense(self, image_size: Size) -> NDArray[np.bool_]:
        """The mask in the size of the image, bool [H, W]."""
        dense = np.zeros(image_size, dtype=bool)
        self.paint(dense)
        return dense

    def paint(self, dense: NDArray[np.bool_]) -> None:
        """Set the pixels of this mask in `dense`, bool [H, W]; the mask's box is all replaced."""
        height, width = self.mask.shape
        dense[self.y : self.y + height, self.x : self.x + width] = self.mask

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return (
            f"<CroppedMask: {self.area} foreground pixels in {width} x {height}, "
            f"corner x={self.x}, y={self.y}>"
        )


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x, y, width and height of the foreground of a bool mask [h, w]; zeros if it is empty."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return x, y, width, height


def boxes_from_crops(crops: Iterable[CroppedMask], count: int) -> np.ndarray:
    """The tight boxes of the first `count` masks, float32 [count, 4] in original pixels, xyxy.

    Zeros where a mask is empty, or where there are fewer.
    """
    boxes = np.zeros((count, 4), dtype=np.float32)
    for box, crop in zip(boxes, crops, strict=False):
        x, y, width, height = tight_box(crop.mask)  # background may surround the foreground
        if width:
            box[:] = (crop.x + x, crop.y + y, crop.x + x + width, crop.y + y + height)
    return boxes
