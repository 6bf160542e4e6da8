"""Polygons of masks: outer rings and holes."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from condinst_infer.results.crop import CroppedMask

Ring = NDArray[np.int32]  # [n, 2], x and y of pixels of the image, n >= 1


class Polygon(NamedTuple):
    """One part of a mask. Rings run through its border pixels, which belong to the mask.

    A ring is closed: the last point is joined to the first. `cv2.fillPoly` of `outer` gives back
    the part without its holes. The rings of `holes` run through the pixels of the mask around
    each hole.
    """

    outer: Ring
    holes: tuple[Ring, ...]

    def __repr__(self) -> str:
        return f"<Polygon: {len(self.outer)} points, {len(self.holes)} holes>"


def polygons_from_crop(crop: CroppedMask, tolerance: float = 0.0) -> list[Polygon]:
    """The parts of a mask, the largest first; empty for an empty mask.

    Pixels that touch at a corner belong to one part.

    Args:
        crop: the mask.
        tolerance: a ring may leave the border by so many pixels, which takes fewer points.
    """
    mask = np.ascontiguousarray(crop.mask).view(np.uint8)
    if not mask.size:
        return []
    contours, tree = cv2.findContours(
        mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(crop.x, crop.y)
    )
    if tree is None:
        return []
    parents = tree.reshape(-1, 4)[:, 3]  # the outer ring of a hole, -1 for an outer ring
    rings = [_simplify(contour, tolerance) for contour in contours]
    polygons = [
        Polygon(ring, tuple(rings[hole] for hole in np.flatnonzero(parents == k)))
        for k, ring in enumerate(rings)
        if parents[k] < 0
    ]
    return sorted(polygons, key=lambda polygon: -cv2.contourArea(polygon.outer))


def _simplify(contour: np.ndarray, tolerance: float) -> Ring:
    """The points of an OpenCV contour, fewer of them if `tolerance` allows."""
    if tolerance > 0:
        contour = cv2.approxPolyDP(contour, tolerance, closed=True)
    return contour.reshape(-1, 2).astype(np.int32)
