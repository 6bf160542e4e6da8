"""The semantic branch of panoptic models: what every pixel without an instance shows."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class SemanticBranch(nn.Module):
    """Class logits at the finest level, from all levels brought there and concatenated.

    A 1x1 convolution of concatenated maps is a sum of one per map, and it commutes with bilinear
    upsampling: so each level has its own, and 54 channels are upsampled instead of 256.
    CondInst journal paper section 3.1; the structure is that of Panoptic-FPN (arXiv:1901.02446).
    """

    def __init__(self, in_channels: int, *, inputs: int, classes: int) -> None:
        super().__init__()
        self.output = nn.ModuleList(
            nn.Conv2d(in_channels, classes, 1, bias=i == 0) for i in range(inputs)
        )
        for conv in self.output:
            nn.init.normal_(conv.weight, std=0.01)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.output[0].bias)  # pyright: ignore[reportArgumentType]

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Logits [N, classes, h, w] from levels `pyramid`, finest first."""
        x = self.output[0](pyramid[0])
        for conv, level in zip(list(self.output)[1:], pyramid[1:], strict=True):
            x = x + functional.interpolate(conv(level), size=x.shape[-2:], mode="bilinear")
        return x


def semantic_by_concatenation(branch: SemanticBranch, pyramid: Sequence[Tensor]) -> Tensor:
    """Compute `branch` as the paper words it: slower; for tests."""
    size = pyramid[0].shape[-2:]
    x = torch.cat([functional.interpolate(m, size=size, mode="bilinear") for m in pyramid], 1)
    weight = torch.cat([conv.weight for conv in branch.output], 1)  # pyright: ignore
    return functional.conv2d(x, weight, branch.output[0].bias)  # pyright: ignore
