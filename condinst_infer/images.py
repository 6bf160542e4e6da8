"""Images on their way through a pipeline: one or many, and which of them share a batch."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from condinst_infer.engines.arrays import is_device_array
from condinst_infer.preprocess import Placed


def is_one(source: Any) -> bool:
    """Whether `source` is one image; what is neither, `read_image` refuses with its reason."""
    single = (str, bytes, os.PathLike, np.ndarray, Image.Image)
    return isinstance(source, single) or is_device_array(source) or not isinstance(source, Iterable)


def by_canvas(items: Iterable[Placed], most: int) -> Iterator[list[tuple[int, Placed]]]:
    """Groups of up to `most` items of one canvas, each item with its place in `items`."""
    waiting: dict[tuple[int, int], list[tuple[int, Placed]]] = {}
    for place, item in enumerate(items):
        group = waiting.setdefault(item.canvas, [])
        group.append((place, item))
        if len(group) == most:
            yield waiting.pop(item.canvas)
    yield from waiting.values()
