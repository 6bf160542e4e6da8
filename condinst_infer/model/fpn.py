"""Feature pyramids: FPN (arXiv:1612.03144) and BiFPN (arXiv:1911.09070)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from condinst_infer.model.layers import ConvNorm


class FPN(nn.Module):
    """Top-down sums of 1x1 laterals, smoothed by 3x3 convolutions; P6 and P7 from P5 as in FCOS."""

    def __init__(
        self,
        in_channels: Mapping[int, int],
        *,
        levels: Sequence[int],
        extra_levels: int,
        channels: int,
        norm: str,
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.extra = tuple(range(max(levels) + 1, max(levels) + 1 + extra_levels))
        for level in self.levels:
            lateral = ConvNorm(in_channels[level], channels, 1, norm=norm, relu=False)
            self.add_module(f"lateral{level}", lateral)
            self.add_module(f"output{level}", ConvNorm(channels, channels, norm=norm, relu=False))
        for level in self.extra:
            self.add_module(f"p{level}", ConvNorm(channels, channels, stride=2, relu=False))

    def forward(self, maps: Mapping[int, Tensor]) -> dict[int, Tensor]:
        pyramid: dict[int, Tensor] = {}
        x: Tensor | None = None
        for level in reversed(self.levels):
            lateral = getattr(self, f"lateral{level}")(maps[level])
            x = lateral if x is None else lateral + functional.interpolate(x, scale_factor=2.0)
            pyramid[level] = getattr(self, f"output{level}")(x)
        for i, level in enumerate(self.extra):
            below = pyramid[level - 1]
            # no ReLU before the first extra level, one before each later
            pyramid[level] = getattr(self, f"p{level}")(functional.relu(below) if i else below)
        return dict(sorted(pyramid.items()))


class BiFPNLayer(nn.Module):
    """One top-down and bottom-up pass over five levels.

    A node sums maps of neighbouring levels with learned weights, then swish, then a convolution.
    Inputs 0 to 4 are the five levels, 5 and later the nodes in order of creation.
    """

    NODES = (  # (target level, inputs)
        (3, (3, 4)),
        (2, (2, 5)),
        (1, (1, 6)),
        (0, (0, 7)),
        (1, (1, 7, 8)),
        (2, (2, 6, 9)),
        (3, (3, 5, 10)),
        (4, (4, 11)),
    )

    def __init__(self, in_channels: Sequence[int] | None, *, channels: int, norm: str) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            ConvNorm(c, channels, 1, norm=norm, relu=False, bias=True) for c in in_channels or ()
        )
        self.weights = nn.ParameterList(torch.ones(len(inputs)) for _, inputs in self.NODES)
        self.outputs = nn.ModuleList(
            ConvNorm(channels, channels, norm=norm, relu=False) for _ in self.NODES
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        maps = list(levels)
        for i, lateral in enumerate(self.lateral):
            maps[i] = lateral(maps[i])
        level_of = [0, 1, 2, 3, 4]
        for (target, inputs), weights, output in zip(
            self.NODES, self.weights, self.outputs, strict=True
        ):
            weights = functional.relu(weights)
            weights = weights / (weights.sum() + 1e-4)
            resized = [
                _resize_to_level(maps[k], target - level_of[k], maps[target]) for k in inputs
            ]
            x = weights[0] * resized[0]
            for weight, map_ in zip(weights[1:], resized[1:], strict=True):
                x = x + weight * map_
            maps.append(output(functional.silu(x)))
            level_of.append(target)
        return [maps[len(maps) - 1 - level_of[::-1].index(level)] for level in range(5)]


class BiFPN(nn.Module):
    """Repeated BiFPN layers over P3 to P7; P6 and P7 are max-pooled from a reduced res5."""

    def __init__(
        self, in_channels: Mapping[int, int], *, channels: int, norm: str, repeats: int
    ) -> None:
        super().__init__()
        self.reduction = ConvNorm(in_channels[5], channels, 1, norm=norm, relu=False)
        first = [in_channels[level] for level in (3, 4, 5)]
        self.layers = nn.ModuleList(
            BiFPNLayer(None if i else first, channels=channels, norm=norm) for i in range(repeats)
        )

    def forward(self, maps: Mapping[int, Tensor]) -> dict[int, Tensor]:
        p6 = _downsample(self.reduction(maps[5]))
        levels = [maps[3], maps[4], maps[5], p6, _downsample(p6)]
        for layer in self.layers:
            levels = layer(levels)
        return dict(zip(range(3, 8), levels, strict=True))


def _downsample(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=2, padding=1)


def _resize_to_level(x: Tensor, up: int, target: Tensor) -> Tensor:
    """`x` brought `up` (-1, 0 or 1) levels higher, to the size of `target`."""
    if up == 0:
        return x
    # nearest to a given size, not times two: P6 and P7 can have odd sizes
    return _downsample(x) if up > 0 else functional.interpolate(x, size=target.shape[-2:])
