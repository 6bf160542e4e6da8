"""TensorRT's shape profile: the smallest, best and largest input of an engine."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from condinst_infer.config.model import InputConfig
from condinst_infer.contract.metadata import Metadata
from condinst_infer.errors import ConfigError, SessionError
from condinst_infer.processing.geometry import canvas_size, network_size

TYPICAL_IMAGE = (480, 640)  # height and width, pixels; what an engine is made fastest for

Shape = tuple[int, int, int]  # images, canvas height, canvas width


@dataclass(frozen=True)
class ShapeProfile:
    """The inputs an engine takes, and the one it is fastest for."""

    min: Shape
    opt: Shape  # fastest for this
    max: Shape

    def __str__(self) -> str:
        if self.min == self.max:
            return f"{_text(self.max)} only"
        return f"{_text(self.min)} to {_text(self.max)}, fastest at {_text(self.opt)}"

    def takes(self, shape: Shape) -> bool:
        """True if `shape` lies within."""
        sides = zip(self.min, shape, self.max, strict=True)
        return all(low <= side <= high for low, side, high in sides)

    def check(self, shape: Shape) -> None:
        """SessionError with the range if `shape` lies outside."""
        if not self.takes(shape):
            raise SessionError(
                f"the input is {_text(shape)} (images x height x width), this engine takes {self}. "
                "Build one that takes it: condinst build --help, --min and --max"
            )


def typical_canvas(config: InputConfig) -> tuple[int, int]:
    """(height, width) of the network's input for an image of TYPICAL_IMAGE."""
    return canvas_size(network_size(TYPICAL_IMAGE, config), config.size_divisor)


def shape_profile_for(
    metadata: Metadata,
    min_shape: Shape | None,
    opt_shape: Shape | None,
    max_shape: Shape | None,
) -> ShapeProfile:
    """The inputs an engine of a file takes; what is None follows from the file.

    Raises:
        ConfigError: shapes for a static file, or ones that don't fit it or each other.
    """
    options = {"--min": min_shape, "--opt": opt_shape, "--max": max_shape}
    given = [shape for shape in options.values() if shape is not None]
    size, batch = metadata.size, metadata.batch
    if size and batch:
        if given:
            fixed = _text((batch, *size))
            raise ConfigError(f"the file is static, {fixed}: it takes no --min, --opt or --max.")
        return ShapeProfile(*[(batch, *size)] * 3)
    for name, shape in options.items():
        if shape is not None:
            _check(name, shape, metadata)
    small, middle, large = _defaults(metadata)
    small = min_shape or _each(min, [small, *given])
    large = max_shape or _each(max, [large, *given])
    middle = opt_shape or _each(min, [large, _each(max, [small, middle])])
    profile = ShapeProfile(small, middle, large)
    if not profile.takes(middle):
        raise ConfigError(f"the shapes must rise from --min to --opt to --max; they are {profile}.")
    return profile


def _defaults(metadata: Metadata) -> tuple[Shape, Shape, Shape]:
    """Two cells, the typical canvas, and a square of the longest side the model's resizing gives.

    Two, because TensorRT-RTX 1.7 can't build our mask heads for a side of one.
    """
    config, n = metadata.config.input, metadata.batch or 1
    if metadata.size is not None:
        fixed = (n, *metadata.size)
        return fixed, fixed, fixed
    cell = config.size_divisor
    longest = canvas_size((config.long_side, config.long_side), cell)
    return (n, 2 * cell, 2 * cell), (n, *typical_canvas(config)), (n, *longest)


def _check(name: str, shape: Shape, metadata: Metadata) -> None:
    divisor, size, batch = metadata.config.input.size_divisor, metadata.size, metadata.batch
    if any(side % divisor for side in shape[1:]):
        raise ConfigError(
            f"{name} is {_text(shape)}; height and width must be multiples of {divisor}."
        )
    if batch not in (None, shape[0]) or size not in (None, shape[1:]):
        needed = _text((batch or "N", *(size or "HW")))
        raise ConfigError(f"{name} is {_text(shape)}; the file was exported for {needed} only.")


def _each(pick: Callable[[Iterable[int]], int], shapes: list[Shape]) -> Shape:
    n, height, width = (pick(sides) for sides in zip(*shapes, strict=True))
    return n, height, width


def _text(shape: tuple[int | str, ...]) -> str:
    return "x".join(map(str, shape))
