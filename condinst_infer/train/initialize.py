"""The model a training starts with: fresh weights, or those of a file as far as they fit."""

from pathlib import Path
from typing import NamedTuple

import torch

from condinst_infer import checkpoint
from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.errors import CheckpointError
from condinst_infer.model.condinst import CondInst, build_condinst


class InitialModel(NamedTuple):
    """A model and where its weights come from."""

    model: CondInst
    fitted: tuple[str, ...]  # tensors taken from the file
    unfitted: tuple[str, ...]  # "name: why" of those left out, on either side


def initial_model(
    config: CondInstConfig, init: str | Path | None = None, *, seed: int = 0
) -> InitialModel:
    """A model of `config` whose weights are drawn with `seed`, then taken from `init`.

    Args:
        init: a checkpoint of ours, or a classification ResNet or DLA-34 of torchvision or timm
            (.pth or .safetensors). The pixel statistics it was trained with, and where its
            strides sit, replace those of `config`.

    Raises:
        CheckpointError: not such a file, or nothing in it fits.
    """
    torch.manual_seed(seed)
    if init is None:
        return InitialModel(build_condinst(config), (), ())
    path = Path(init)
    if checkpoint.is_ours(path):
        source = checkpoint.load(path)
        weights, old = source.state_dict(), source.config
        overrides = {
            "channel_order": old.input.channel_order,
            "pixel_mean": old.input.pixel_mean,
            "pixel_std": old.input.pixel_std,
            "stride_in_1x1": old.backbone.stride_in_1x1,
        }
    else:
        tensors = checkpoint.read_tensors(path)
        try:
            backbone = checkpoint.backbone_from_imagenet(tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        weights, overrides = backbone.weights, backbone.overrides
        if (found := overrides["backbone_type"]) != config.backbone.backbone_type:
            raise CheckpointError(
                f"{path} is a {found}, but {config.name} has a {config.backbone.backbone_type}; "
                f"to train with this backbone, add --set backbone_type={found}"
            )
        overrides = {k: v for k, v in overrides.items() if not k.endswith("_channels")}
    model = build_condinst(override(config, **overrides))
    own = model.state_dict()
    fitting = {n: t for n, t in weights.items() if n in own and t.shape == own[n].shape}
    if not fitting:
        raise CheckpointError(f"nothing in {path} fits {config.name}: no tensor has its shape.")
    model.load_state_dict(fitting, strict=False)
    return InitialModel(model, tuple(fitting), tuple(_reasons_left_out(weights, own)))


def _reasons_left_out(weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> list[str]:
    """The reason for each tensor that was left out: on one side only, or of two shapes."""
    reasons = []
    for name in sorted({*weights, *own}):
        if name.endswith("num_batches_tracked"):
            continue
        if name not in own:
            reasons.append(f"{name}: only in the file")
        elif name not in weights:
            reasons.append(f"{name}: not in the file, starts at random")
        elif weights[name].shape != own[name].shape:
            reasons.append(
                f"{name}: {list(weights[name].shape)} in the file, {list(own[name].shape)} needed"
            )
    return reasons
