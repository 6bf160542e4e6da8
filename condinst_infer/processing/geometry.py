"""Sizes on the way of an image through the network: (height, width) in pixels."""

from typing import Any, NamedTuple

import numpy as np

from condinst_infer.config.model import InputConfig, Size


def network_size(size: Size, config: InputConfig) -> Size:
    """(height, width) an image of `size` is resized to, before padding.

    The shorter side becomes `short_side`, unless the longer one would pass `long_side`. Sides
    are at least 1.
    """
    height, width = size
    short, long = min(size), max(size)
    if config.resize_rule == "min_scale":
        scale = min(config.long_side / long, config.short_side / short)
        height, width = height * scale, width * scale
    else:  # "short_first": two roundings in float64, as detectron2's shortest-edge rule has them
        scale = config.short_side / short
        height = config.short_side if height == short else height * scale
        width = config.short_side if width == short else width * scale
        if max(height, width) > config.long_side:
            scale = config.long_side / max(height, width)
            height, width = height * scale, width * scale
    return max(1, int(height + 0.5)), max(1, int(width + 0.5))


def fitted_size(size: Size, canvas: Size) -> Size:
    """`size` where it fits `canvas`, else scaled down with its aspect kept until it does."""
    scale = min(1.0, canvas[0] / size[0], canvas[1] / size[1])
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return min(height, canvas[0]), min(width, canvas[1])


def canvas_size(size: Size, divisor: int) -> Size:
    """`size` with both sides rounded up to multiples of `divisor`."""
    height, width = (-(-side // divisor) * divisor for side in size)
    return height, width


def sample_positions(inputs: int, outputs: int) -> np.ndarray:
    """Position among `inputs` of each of `outputs`, by half-pixel bilinear: float32 [outputs].

    Rounded as float32 does, like the reference: at pixel 1000 the rounding moves a mask by more
    than 1e-5. Clipped to 0 and `inputs` - 1.
    """
    scale = np.float32(inputs) / np.float32(outputs)
    place = (np.arange(outputs, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    return np.clip(place, np.float32(0), np.float32(inputs - 1))


class PlacedImage(NamedTuple):
    """An image on the way into the network, with its `placement`."""

    image: Any  # the original, BGR uint8 [H, W, 3], in host or in device memory
    net_size: Size
    canvas: Size

    @property
    def image_size(self) -> Size:
        """(height, width) of the original image."""
        return self.image.shape[0], self.image.shape[1]


def placement(size: Size, config: InputConfig, canvas: Size | None) -> tuple[Size, Size]:
    """(height, width) an image of `size` is resized to, and the canvas it goes on.

    Args:
        canvas: of a static model, (height, width): what does not fit is scaled down, never
            cropped. None gives the smallest canvas the image fits on.
    """
    net_size = network_size(size, config)
    if canvas is None:
        return net_size, canvas_size(net_size, config.size_divisor)
    return fitted_size(net_size, canvas), canvas


def place_image(image: Any, config: InputConfig, canvas: Size | None) -> PlacedImage:
    """`image` [H, W, 3] with its `placement`."""
    return PlacedImage(image, *placement((image.shape[0], image.shape[1]), config, canvas))
