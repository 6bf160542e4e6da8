"""Backbones trained for ImageNet classification, as a start for training."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from condinst_infer.checkpoint.renaming import (
    DLA,
    TORCHVISION_RESNET,
    add_prefix,
    renamer,
    weights_from_renamed,
)
from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.errors import CheckpointError
from condinst_infer.model.condinst import CondInst, build_condinst

# torchvision's and timm's training: RGB in 0..1 normalised by these, times 255
_INPUT = {
    "channel_order": "rgb",
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
}


class ImageNetBackbone(NamedTuple):
    """Weights under our names, and the config fields they demand."""

    weights: dict[str, Tensor]  # "backbone.stem.conv.weight" and so on
    overrides: dict[str, Any]  # for `config.override`

    def model(self, config: CondInstConfig) -> CondInst:
        """A model of `config` that starts from this backbone.

        Raises:
            CheckpointError: the backbone of `config` has other tensors.
        """
        model = build_condinst(override(config, **self.overrides))
        expected = {
            name: tensor.shape
            for name, tensor in model.state_dict().items()
            if name.startswith("backbone.") and not name.endswith("num_batches_tracked")
        }
        given = {name: tensor.shape for name, tensor in self.weights.items()}
        if differing := {n for n, _ in expected.items() ^ given.items()}:
            raise CheckpointError(
                f"the ImageNet backbone does not fit {config.name}: {len(differing)} tensors are "
                f"missing, surplus or of a wrong shape, {', '.join(sorted(differing)[:5])} first."
            )
        model.load_state_dict(self.weights, strict=False)
        return model


def backbone_from_imagenet(state_dict: Mapping[str, Tensor]) -> ImageNetBackbone:
    """A torchvision or timm ResNet or DLA-34, ready to start training from.

    Sets where the stride sits, the channel order, mean and standard deviation; the classifier is
    left out. `backbone_from_imagenet(weights).model(preset("condinst_r50"))` is a model.

    Raises:
        CheckpointError: these are not weights of one of those networks.
    """
    dla = "base_layer.0.weight" in state_dict
    weights = weights_from_renamed(
        state_dict, renamer(add_prefix("", DLA if dla else TORCHVISION_RESNET))
    )
    if "backbone.stem.conv.weight" not in weights and not dla:
        raise CheckpointError(
            "these are not weights of a torchvision or timm ResNet or DLA-34; "
            "names like layer1.0.conv1.weight or base_layer.0.weight are needed."
        )
    if dla:
        return ImageNetBackbone(weights, {"backbone_type": "dla34", **_INPUT})
    blocks = len({name.split(".")[1] for name in state_dict if name.startswith("layer3.")})
    basic = "layer1.0.conv3.weight" not in state_dict
    depths = {2: "resnet18", 6: "resnet34"} if basic else {6: "resnet50", 23: "resnet101"}
    if blocks not in depths:
        raise CheckpointError(f"a ResNet with {blocks} blocks in layer3 is not known here.")
    settings = {
        "backbone_type": depths[blocks],
        "stride_in_1x1": False,
        "stem_channels": len(weights["backbone.stem.conv.weight"]),
        "res2_channels": len(weights[f"backbone.res2.0.conv{2 if basic else 3}.conv.weight"]),
    }
    return ImageNetBackbone(weights, settings | _INPUT)
