"""FCOS heads and the controller, shared by all pyramid levels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from condinst_infer.model.layers import norm_layer
from condinst_infer.model.spans import span
from condinst_infer.ops import conv_at_locations


class HeadOutputs(NamedTuple):
    """Raw outputs of the network: tuples hold one [N, C, h, w] per level."""

    class_logits: tuple[Tensor, ...]  # [N, num_classes, h, w], float32
    regression: tuple[Tensor, ...]  # left, top, right, bottom in units of the stride, >= 0, float32
    centreness: tuple[Tensor, ...]  # [N, 1, h, w] logits, float32
    params: tuple[Tensor, ...]  # [N, P, h, w]: the controller's output
    mask_features: Tensor  # [N, mask_channels, H/s, W/s]
    semantic_logits: Tensor | None = None  # auxiliary head, where the model has one
    semantic: Tensor | None = None  # [N, C, H/4, W/4]: semantic branch of a panoptic model


class TowerLayer(nn.Module):
    """3x3 convolution with bias, norm, ReLU; a batch norm has its own statistics per level."""

    def __init__(self, channels: int, *, norm: str, levels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm: nn.Module | None = norm_layer(norm, channels)
        self.per_level = norm == "bn"
        if self.per_level:
            self.norm = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            norm = self.norm[level] if isinstance(self.norm, nn.ModuleList) else self.norm
            x = norm(x)
        return functional.relu(x)


class Heads(nn.Module):
    """Class logits, box distances, centreness and mask head parameters of every location.

    Paper section 3.2. Centreness and controller sit on the box tower.
    """

    def __init__(
        self,
        channels: int,
        *,
        levels: int,
        num_classes: int,
        num_params: int,
        share_convs: int,
        class_convs: int,
        box_convs: int,
        norm: str,
        scales: bool,
        prior_probability: float,
    ) -> None:
        super().__init__()

        def tower(convs: int) -> nn.ModuleList:
            return nn.ModuleList(
                TowerLayer(channels, norm=norm, levels=levels) for _ in range(convs)
            )

        self.share_tower = tower(share_convs)
        self.class_tower = tower(class_convs)
        self.box_tower = tower(box_convs)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_regression = nn.Conv2d(channels, 4, 3, padding=1)
        self.centreness = nn.Conv2d(channels, 1, 3, padding=1)
        self.controller = nn.Conv2d(channels, num_params, 3, padding=1)
        self.scales = nn.ParameterList(torch.ones(()) for _ in range(levels)) if scales else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
        odds = (1 - prior_probability) / prior_probability
        nn.init.constant_(self.class_logits.bias, -math.log(odds))  # pyright: ignore

    def towers(self, pyramid: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Class tower and box tower output of every level."""
        outputs = []
        for level, x in enumerate(pyramid):
            x = _through(self.share_tower, x, level)
            outputs.append(
                (_through(self.class_tower, x, level), _through(self.box_tower, x, level))
            )
        return outputs

    def detector(
        self, towers: Sequence[tuple[Tensor, Tensor]], *, boxes: bool
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Class logits, regression and centreness of every level, float32 in any precision.

        The regression has no level unless `boxes`.
        """
        logits = tuple(self.class_logits(c).float() for c, _ in towers)
        distances = [self.box_regression(b).float() for _, b in towers if boxes]
        if boxes and self.scales is not None:
            distances = [d * s.float() for d, s in zip(distances, self.scales, strict=True)]
        regression = tuple(functional.relu(d) for d in distances)
        return logits, regression, tuple(self.centreness(b).float() for _, b in towers)

    def params_map(self, towers: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        """Controller output of every location of every level."""
        return tuple(self.controller(b) for _, b in towers)

    def params_at(self, towers: Sequence[tuple[Tensor, Tensor]], locations: Tensor) -> Tensor:
        """Controller output at `locations` [N, K] alone, [N, K, P]: the rest is never needed."""
        boxes = [b for _, b in towers]
        with span("fcos/controller", "params_at"):
            return conv_at_locations(boxes, self.controller.weight, self.controller.bias, locations)


def _through(tower: nn.ModuleList, x: Tensor, level: int) -> Tensor:
    for layer in tower:
        x = layer(x, level)
    return x
