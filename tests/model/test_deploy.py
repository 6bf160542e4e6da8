"""A network as it is deployed computes what the trained one does."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from condinst_infer.config import presets
from condinst_infer.model.condinst import CondInst
from condinst_infer.model.deploy import in_precision
from condinst_infer.model.heads import HeadOutputs
from condinst_infer.model.layers import ConvNorm, DeformConvNorm
from tests.support.reduced_networks import reduced_network

SIZES = torch.tensor([[128, 160], [101, 90]], dtype=torch.int32)


def raw_outputs(model: CondInst) -> HeadOutputs:
    """The outputs of `model` on two images of coloured squares."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (2, 16, 20, 3), generator=generator)
    images = images.repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.uint8)
    with torch.inference_mode():
        return model.heads(images, SIZES)


def distance(ours: Tensor | Sequence[Tensor] | None, theirs: object) -> float:
    """Largest difference over the largest magnitude."""
    if ours is None:
        assert theirs is None
        return 0.0
    if isinstance(ours, Tensor):
        assert isinstance(theirs, Tensor)
        return float((ours - theirs).abs().max() / ours.abs().max())
    assert isinstance(theirs, Sequence)
    return max(map(distance, ours, theirs))


@pytest.mark.parametrize("name", presets.preset_names())
def test_folding_batch_norms_changes_nothing(name: str) -> None:
    model = reduced_network(name)
    folded = in_precision(model, "fp32")
    layers = [m for m in folded.modules() if isinstance(m, ConvNorm | DeformConvNorm)]
    assert len(layers) > 10
    assert not any(isinstance(layer.norm, nn.BatchNorm2d) for layer in layers)
    for field, ours, theirs in zip(
        HeadOutputs._fields, raw_outputs(model), raw_outputs(folded), strict=True
    ):
        # float32 rounds in another order; measured worst 2e-5, of DLA-34
        assert distance(ours, theirs) < 1e-4, field


@pytest.mark.parametrize("name", ["condinst_nano", "condinst_panoptic_r101_dcn"])
def test_a_network_has_the_statistics_of_a_trained_one(name: str) -> None:
    model = reduced_network(name)
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            assert (module.running_mean != 0).any() and (module.running_var != 1).any(), path
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            assert module.weight.std() > 0 and module.bias.std() > 0, path
        if isinstance(module, DeformConvNorm):
            assert module.offset.bias is not None and module.offset.bias.std() > 0.5, path
            assert module.offset.weight.std() > 0, path
    assert len({scale.item() for scale in model.fcos.scales or ()}) == len(model.config.strides)
    logits = torch.cat([level.flatten(2) for level in raw_outputs(model).class_logits], 2)
    assert logits.std() > 0.5 and (logits > -2).any(2).any(1).all()  # in every image
