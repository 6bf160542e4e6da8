"""The sign of a broken network among the scores of its candidates."""

import torch
from torch import Tensor, nn

_LARGEST = 1e38  # of a finite sum: features and logits are below 65504


class Flaw(nn.Module):
    """Make no score of an image finite where a number that the scores depend on is not.

    NaN passes no threshold, so a broken network would find nothing, as in an empty image. It has
    no weights, and is a module for the names of the nodes in an exported graph.
    """

    def forward(self, scores: Tensor, *tensors: Tensor) -> Tensor:
        """Scores [N, M] as they are, or NaN or infinity where `tensors` [N, ...] have one."""
        sums = [tensor.float().flatten(1).sum(1, keepdim=True) for tensor in tensors]
        total = torch.cat(sums, 1).sum(1, keepdim=True)  # [N, 1]
        return scores + torch.where(total.abs() < _LARGEST, 0.0, total)
