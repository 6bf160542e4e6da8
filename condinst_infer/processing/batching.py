"""Batching: one image or many, and the images that share a batch."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from condinst_infer.errors import InputError
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.preprocess import ImageSource, is_file_object, is_tensor

_ONE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)


def is_one(source: Any) -> bool:
    """True if `source` is one image; what is neither, `read_image` rejects with its reason.

    An array of four axes is an iterable of images: [N, H, W, 3].
    """
    if isinstance(source, np.ndarray) or is_tensor(source) or is_device_array(source):
        return getattr(source, "ndim", None) != 4
    return isinstance(source, _ONE) or is_file_object(source) or not isinstance(source, Iterable)


def until_failure(
    sources: Iterable[ImageSource], place: Callable[[ImageSource], PlacedImage]
) -> tuple[list[PlacedImage], InputError | None]:
    """`place` of each of `sources` up to the first that can't be read, and why it can't."""
    images = []
    for source in sources:
        try:
            images.append(place(source))
        except InputError as error:
            return images, error
    return images, None


def by_canvas(items: Iterable[PlacedImage], most: int) -> Iterator[list[tuple[int, PlacedImage]]]:
    """Groups of up to `most` items of one canvas, each item with its place in `items`."""
    waiting: dict[tuple[int, int], list[tuple[int, PlacedImage]]] = {}
    for place, item in enumerate(items):
        group = waiting.setdefault(item.canvas, [])
        group.append((place, item))
        if len(group) == most:
            yield waiting.pop(item.canvas)
    yield from waiting.values()


def is_device_array(source: object) -> bool:
    """True if `source` lies in device memory as far as it says."""
    if is_tensor(source):  # the attribute raises RuntimeError where a gradient is wanted
        return bool(getattr(source, "is_cuda", False))
    return hasattr(source, "__cuda_array_interface__")
