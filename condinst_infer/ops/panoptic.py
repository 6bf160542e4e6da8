"""Panoptic merge: instances in front, stuff behind them."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from condinst_infer.config.model import MILLION, SEMANTIC_STRIDE, Size
from condinst_infer.ops.aligned_bilinear import aligned_bilinear


def panoptic_merge(
    masks: Tensor,
    semantic: Tensor,
    *,
    stride: int,
    net_size: Size,
    image_size: Size,
    overlap_threshold: float,
    stuff_area_limit: int,
) -> Tensor:
    """The owner of every pixel: 0 is void, 1 to K the instance, K + c the stuff class c.

    Args:
        masks: probabilities of K instances on the padded canvas, [K, h, w], best score first.
        semantic: logits [C, H/4, W/4] of the padded canvas H x W; class 0 is any thing.
        stride: network pixels per mask cell.
        net_size: (height, width) of the network image without padding.
        image_size: (height, width) of the original image.
        overlap_threshold: 0 to 1; an instance that loses more of its area to better ones is
            dropped.
        stuff_area_limit: stuff classes of fewer pixels are void.

    Returns:
        int64 [H, W] in original pixels.
    """
    owners = torch.zeros(image_size, dtype=torch.int64, device=semantic.device)
    limit = round(overlap_threshold * MILLION)
    for number, mask in enumerate(masks, 1):
        x = aligned_bilinear(mask[None, None].float(), stride)
        claimed = _native(x, net_size, image_size)[0] > 0.5  # [H, W]
        free = claimed & (owners == 0)
        lost = claimed.sum() - free.sum()
        if lost * MILLION <= limit * claimed.sum():
            owners[free] = number
    logits = semantic_logits(semantic, net_size=net_size, image_size=image_size)
    labels = torch.where(owners == 0, logits.argmax(0), 0)
    for c in range(1, len(semantic)):
        if (labels == c).sum() >= stuff_area_limit:
            owners[labels == c] = len(masks) + c
    return owners


def semantic_logits(semantic: Tensor, *, net_size: Size, image_size: Size) -> Tensor:
    """Logits [C, H, W] in original pixels, from those of the padded canvas."""
    size = (SEMANTIC_STRIDE * semantic.shape[1], SEMANTIC_STRIDE * semantic.shape[2])
    x = interpolate(semantic[None].float(), size, mode="bilinear", align_corners=False)
    return _native(x, net_size, image_size)


def _native(x: Tensor, net_size: Size, image_size: Size) -> Tensor:
    """[C, H, W] in original pixels from [1, C, H, W] in those of the canvas."""
    x = x[:, :, : net_size[0], : net_size[1]]
    return interpolate(x, image_size, mode="bilinear", align_corners=False)[0]
