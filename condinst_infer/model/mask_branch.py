"""The mask branch: the features that every instance's mask head reads (paper section 3.1)."""

from collections.abc import Sequence

from torch import Tensor, nn

from condinst_infer.model.layers import ConvNorm
from condinst_infer.ops import aligned_bilinear


class MaskBranch(nn.Module):
    """Pyramid levels summed at the finest one's size, a tower of 3x3 convolutions, a 1x1.

    With `semantic_classes` it also has the auxiliary semantic head of training (section 3.3), on
    the finest input level.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        inputs: int,
        channels: int,
        convs: int,
        out_channels: int,
        norm: str,
        semantic_classes: int = 0,
    ) -> None:
        super().__init__()
        self.refine = nn.ModuleList(
            ConvNorm(in_channels, channels, norm=norm) for _ in range(inputs)
        )
        self.tower = nn.Sequential(*(ConvNorm(channels, channels, norm=norm) for _ in range(convs)))
        self.output = nn.Conv2d(channels, out_channels, 1)
        self.semantic: nn.Module | None = None
        if semantic_classes:
            self.semantic = nn.Sequential(
                ConvNorm(in_channels, channels, norm=norm),
                ConvNorm(channels, channels, norm=norm),
                nn.Conv2d(channels, semantic_classes, 1),
            )

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Mask features [N, out_channels, h, w] from levels `pyramid`, finest first."""
        x = self.refine[0](pyramid[0])
        for i, level in enumerate(pyramid[1:], start=1):
            x = x + aligned_bilinear(self.refine[i](level), 2**i)
        return self.output(self.tower(x))
