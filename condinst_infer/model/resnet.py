"""ResNet (arXiv:1512.03385) as detectors use it, MSRA or torchvision style."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from condinst_infer.config.bounds import RESNET_BLOCKS
from condinst_infer.model.layers import ConvNorm, DeformConvNorm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, stride=stride, norm=norm)
        self.conv2 = ConvNorm(out_channels, out_channels, norm=norm, relu=False)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the 3x3 may be deformable."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        middle_channels: int,
        *,
        stride: int,
        norm: str,
        groups: int,
        stride_in_1x1: bool,
        deform: dict[str, int | bool] | None,
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = ConvNorm(in_channels, middle_channels, 1, stride=first, norm=norm)
        if deform is None:
            self.conv2 = ConvNorm(
                middle_channels, middle_channels, stride=second, groups=groups, norm=norm
            )
        else:
            self.conv2 = DeformConvNorm(
                middle_channels,
                middle_channels,
                stride=second,
                norm=norm,
                groups=groups,
                modulated=bool(deform["modulated"]),
                deform_groups=int(deform["groups"]),
            )
        self.conv3 = ConvNorm(middle_channels, out_channels, 1, norm=norm, relu=False)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """Bottom-up maps of levels 2 to 5 (strides 4 to 32).

    Stages below `frozen_stages` (stem 1, res2 2, ...) keep their weights and statistics.
    """

    def __init__(
        self,
        *,
        depth: str,
        norm: str,
        frozen_stages: int,
        stem_channels: int,
        res2_channels: int,
        groups: int,
        width_per_group: int,
        stride_in_1x1: bool,
        deform_stages: Sequence[bool],
        deform_modulated: bool,
        deform_groups: int,
    ) -> None:
        super().__init__()
        frozen = [stage <= frozen_stages for stage in range(1, 6)]
        norms = ["frozen_bn" if f and norm != "gn" else norm for f in frozen]
        self.stem = ConvNorm(3, stem_channels, 7, stride=2, norm=norms[0])
        self.channels = {level: res2_channels * 2 ** (level - 2) for level in range(2, 6)}
        in_channels = stem_channels
        for level, blocks in enumerate(RESNET_BLOCKS[depth], start=2):
            out_channels, stage = self.channels[level], []
            for block in range(blocks):
                stride = 2 if block == 0 and level > 2 else 1
                if depth in ("resnet18", "resnet34"):
                    made = BasicBlock(
                        in_channels, out_channels, stride=stride, norm=norms[level - 1]
                    )
                else:
                    deform = {"modulated": deform_modulated, "groups": deform_groups}
                    made = Bottleneck(
                        in_channels,
                        out_channels,
                        groups * width_per_group * 2 ** (level - 2),
                        stride=stride,
                        norm=norms[level - 1],
                        groups=groups,
                        stride_in_1x1=stride_in_1x1,
                        deform=deform if deform_stages[level - 2] else None,
                    )
                stage.append(made)
                in_channels = out_channels
            self.add_module(f"res{level}", nn.Sequential(*stage))
        parts = [self.stem, self.res2, self.res3, self.res4, self.res5]
        for part, is_frozen in zip(parts, frozen, strict=True):
            if is_frozen:
                part.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = functional.max_pool2d(self.stem(x), 3, stride=2, padding=1)
        maps = {}
        for level in self.channels:
            maps[level] = x = getattr(self, f"res{level}")(x)
        return maps


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: str) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm, relu=False)
