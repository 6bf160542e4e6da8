"""A 3x3 convolution evaluated at chosen locations of a pyramid only."""

from collections.abc import Sequence

import torch
from torch import Tensor

from condinst_infer.ops.onnx_nodes import quotient


def conv_at_locations(
    features: Sequence[Tensor], weight: Tensor, bias: Tensor | None, locations: Tensor
) -> Tensor:
    """Evaluate a padded 3x3 convolution at `locations` only.

    Args:
        features: one [N, C, h, w] per level.
        weight, bias: of the convolution, [O, C, 3, 3] and [O].
        locations: int [N, K], index into the A locations of all levels.

    Returns:
        [N, K, O], in the dtype of the features.
    """
    batch, kept = locations.shape
    channels = weight.shape[1]
    locations = locations.long()
    tap_row = torch.tensor([-1, -1, -1, 0, 0, 0, 1, 1, 1], device=locations.device)
    tap_column = torch.tensor([-1, 0, 1] * 3, device=locations.device)
    patches = torch.zeros((), dtype=features[0].dtype, device=locations.device)
    offset = 0
    for level in features:
        height, width = level.shape[2:]
        place = (locations - offset)[:, :, None]  # [N, K, 1]
        here = (place >= 0) & (place < height * width)
        first = quotient(place, width)  # of other levels: any number
        row = first + tap_row  # [N, K, 9]
        column = place - first * width + tap_column
        inside = here & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = torch.where(inside, row * width + column, 0).flatten(1)  # [N, K*9]
        taken = level.flatten(2).gather(2, index[:, None].expand(-1, channels, -1))  # [N, C, K*9]
        patches = patches + taken * inside.flatten(1)[:, None].to(taken.dtype)
        offset = offset + height * width
    patches = patches.reshape(batch, channels, kept, 9).transpose(1, 2)  # [N, K, C, 9]
    out = patches.flatten(2) @ weight.flatten(1).T  # [N, K, O]
    return out if bias is None else out + bias
