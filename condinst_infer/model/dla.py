"""DLA-34, deep layer aggregation (arXiv:1707.06484)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from condinst_infer.model.layers import ConvNorm


class Block(nn.Module):
    """Two 3x3 convolutions added to a residual that the caller supplies."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, stride=stride, norm=norm)
        self.conv2 = ConvNorm(out_channels, out_channels, norm=norm, relu=False)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return functional.relu(self.conv2(self.conv1(x)) + residual)


class Tree(nn.Module):
    """Two sub-trees of `depth - 1` whose outputs a 1x1 root joins, with those of its ancestors.

    A tree of depth 1 has two blocks for sub-trees and owns the root; deeper trees hand the output
    of the first sub-tree down to the root of the second. With `keep_input` the (downsampled) input
    goes to that root too.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        norm: str,
        keep_input: bool = False,
        extra_channels: int = 0,
    ) -> None:
        super().__init__()
        self.stride, self.keep_input, self.depth = stride, keep_input, depth
        extra_channels += in_channels if keep_input else 0
        self.project: nn.Module | None = None
        if depth == 1:
            if in_channels != out_channels:
                self.project = ConvNorm(in_channels, out_channels, 1, norm=norm, relu=False)
            self.tree1 = Block(in_channels, out_channels, stride=stride, norm=norm)
            self.tree2 = Block(out_channels, out_channels, stride=1, norm=norm)
            self.root = ConvNorm(2 * out_channels + extra_channels, out_channels, 1, norm=norm)
        else:
            self.tree1 = Tree(depth - 1, in_channels, out_channels, stride=stride, norm=norm)
            self.tree2 = Tree(
                depth - 1,
                out_channels,
                out_channels,
                stride=1,
                norm=norm,
                extra_channels=extra_channels + out_channels,
            )

    def forward(self, x: Tensor, ancestors: tuple[Tensor, ...] = ()) -> Tensor:
        bottom = functional.max_pool2d(x, self.stride) if self.stride > 1 else x
        if self.keep_input:
            ancestors = (*ancestors, bottom)
        if self.depth > 1:
            return self.tree2(x1 := self.tree1(x), (*ancestors, x1))
        residual = bottom if self.project is None else self.project(bottom)
        x1 = self.tree1(x, residual)
        x2 = self.tree2(x1, x1)
        return self.root(torch.cat([x2, x1, *ancestors], 1))


class DLA34(nn.Module):
    """Bottom-up maps of levels 0 to 5 (strides 1 to 32)."""

    channels = {0: 16, 1: 32, 2: 64, 3: 128, 4: 256, 5: 512}

    def __init__(self, *, norm: str, frozen_stages: int) -> None:
        super().__init__()
        c = self.channels
        self.base_layer = ConvNorm(3, 16, 7, norm=norm)
        self.level0 = ConvNorm(16, c[0], norm=norm)
        self.level1 = ConvNorm(c[0], c[1], stride=2, norm=norm)
        self.level2 = Tree(1, c[1], c[2], stride=2, norm=norm)
        self.level3 = Tree(2, c[2], c[3], stride=2, norm=norm, keep_input=True)
        self.level4 = Tree(2, c[3], c[4], stride=2, norm=norm, keep_input=True)
        self.level5 = Tree(1, c[4], c[5], stride=2, norm=norm, keep_input=True)
        parts = [self.base_layer, *(getattr(self, f"level{i}") for i in range(6))]
        for part in parts[:frozen_stages]:
            part.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = self.base_layer(x)
        maps = {}
        for level in self.channels:
            maps[level] = x = getattr(self, f"level{level}")(x)
        return maps
