"""Checks of weights in PyTorch: their SHA-256, and that they are numbers to compute with."""

from collections.abc import Mapping

import torch
from torch import Tensor

from condinst_infer.contract.weights_sha256 import not_finite_sentence, sha256_of_parts
from condinst_infer.errors import CheckpointError


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """The digest of named tensors, as `contract.weights_sha256` describes it for a checkpoint."""
    return sha256_of_parts(
        (
            name,
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(),
        )
        for name, tensor in weights.items()
    )


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """CheckpointError with the name of the first tensor that holds NaN or infinity, if one does."""
    for name, tensor in weights.items():
        if not is_finite(tensor):
            values = tensor.detach().cpu().float().numpy()
            raise CheckpointError(not_finite_sentence(name, values))


def is_finite(tensor: Tensor) -> bool:
    """True if all numbers of `tensor` are finite; least and largest tell it without a copy."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())
