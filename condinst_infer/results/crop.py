"""One mask: the part of the image that holds its foreground, and its run-length encoding."""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class CroppedMask:
    """The part of a mask that holds its foreground; outside is background."""

    x: int  # column of the left edge, original pixels
    y: int  # row of the top edge
    mask: NDArray[np.bool_]  # [h, w], True inside the object; (0, 0) for an empty mask

    def __repr__(self) -> str:
        height, width = self.mask.shape
        inside = np.count_nonzero(self.mask)
        return (
            f"<CroppedMask: {inside} foreground pixels in {width} x {height}, "
            f"corner x={self.x}, y={self.y}>"
        )


def boxes_from_crops(crops: Iterable[CroppedMask], count: int) -> np.ndarray:
    """The tight boxes of the first `count` masks, float32 [count, 4] in original pixels, xyxy.

    Zeros where a mask is empty, or where there are fewer.
    """
    boxes = np.zeros((count, 4), dtype=np.float32)
    for box, crop in zip(boxes, crops, strict=False):
        if crop.mask.any():  # a crop may have background around its foreground
            x, y, width, height = cv2.boundingRect(crop.mask.view(np.uint8))
            box[:] = (crop.x + x, crop.y + y, crop.x + x + width, crop.y + y + height)
    return boxes
