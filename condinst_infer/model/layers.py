"""Convolution, norm and activation: the blocks every part of the network is made of."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that always uses its running statistics; with `frozen`, nothing in it trains."""

    def __init__(self, channels: int, *, frozen: bool) -> None:
        super().__init__(channels)
        self.eval()
        if frozen:
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> "FixedBatchNorm2d":
        return super().train(False)


def norm_layer(norm: str, channels: int) -> nn.Module | None:
    """The norm called `norm` in the config, or None for "none".

    Group norm has 32 groups as in FCOS, fewer where 32 does not divide the channels.
    """
    match norm:
        case "bn":
            return nn.BatchNorm2d(channels)
        case "frozen_bn" | "bn_eval":
            return FixedBatchNorm2d(channels, frozen=norm == "frozen_bn")
        case "gn":
            return nn.GroupNorm(math.gcd(32, channels), channels)
        case _:
            return None


class ConvNorm(nn.Module):
    """A convolution, then its norm, then ReLU where asked for.

    The convolution has a bias when it has no norm, or when `bias` says so.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: str = "none",
        relu: bool = True,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=norm == "none" if bias is None else bias,
        )
        self.norm = norm_layer(norm, out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return functional.relu(x) if self.relu else x


class DeformConvNorm(nn.Module):
    """3x3 deformable convolution (arXiv:1703.06211, modulated: 1811.11168), norm and ReLU.

    Written with `grid_sample`, so that it exports as a standard operation. Each of the nine taps is
    sampled bilinearly at its offset, zero outside the map; then a 1x1 convolution joins them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        norm: str,
        modulated: bool,
        deform_groups: int,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, bias=False
        )
        # per deformable group 9 (y, x) pairs, then 9 masks for each group
        offsets = (27 if modulated else 18) * deform_groups
        self.offset = nn.Conv2d(in_channels, offsets, 3, stride=stride, padding=1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # pyright: ignore[reportArgumentType]
        self.norm = norm_layer(norm, out_channels)
        self.stride, self.modulated, self.deform_groups = stride, modulated, deform_groups

    def forward(self, x: Tensor) -> Tensor:
        out = self.offset(x)
        batch, _, rows, columns = out.shape
        split = 18 * self.deform_groups
        taps = self._sample(x, out[:, :split])  # [N, C, 9, h, w]
        if self.modulated:
            masks = out[:, split:].sigmoid()
            masks = masks.reshape(batch * self.deform_groups, 1, 9, rows, columns)
            taps = (taps.reshape(masks.shape[0], -1, 9, rows, columns) * masks).reshape(taps.shape)
        taps = taps.flatten(1, 2)  # [N, C*9, h, w]
        weight = self.conv.weight.flatten(1)[..., None, None]  # [O, C*9, 1, 1]
        # the bias is that of a folded norm
        x = functional.conv2d(taps, weight, self.conv.bias, groups=self.conv.groups)
        if self.norm is not None:
            x = self.norm(x)
        return functional.relu(x)

    def _sample(self, x: Tensor, offsets: Tensor) -> Tensor:
        """`x` [N, C, H, W] at the nine displaced taps of every output pixel, [N, C, 9, h, w]."""
        batch, channels, height, width = x.shape
        rows, columns = offsets.shape[-2:]
        groups = batch * self.deform_groups
        # coordinates stay in float32: half precision knows a 100-pixel map to 0.05 pixels only
        offsets = offsets.float().reshape(groups, 9, 2, rows, columns)
        tap = torch.arange(9, device=x.device)
        row = torch.arange(rows, device=x.device) * self.stride - 1
        column = torch.arange(columns, device=x.device) * self.stride - 1
        y = (tap // 3)[:, None, None] + row[:, None] + offsets[:, :, 0]
        x_ = (tap % 3)[:, None, None] + column + offsets[:, :, 1]  # [N*G, 9, h, w]
        # grid_sample without align_corners puts pixel i at (2 i + 1) / size - 1
        grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], -1)
        taps = functional.grid_sample(
            x.float().reshape(groups, channels // self.deform_groups, height, width),
            grid.reshape(groups, 9 * rows, columns, 2),
            align_corners=False,
        )
        return taps.to(x.dtype).reshape(batch, channels, 9, rows, columns)
