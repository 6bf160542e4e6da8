"""A network as it is deployed: batch norms folded, weights in the wanted precision."""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from condinst_infer.model.condinst import CondInst
from condinst_infer.model.layers import ConvNorm, DeformConvNorm


def in_precision(model: CondInst, precision: str) -> CondInst:
    """A copy of `model` with batch norms folded into convolutions, then halved for "fp16"."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, ConvNorm | DeformConvNorm) and isinstance(
            module.norm, nn.BatchNorm2d
        ):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = None
    if precision == "fp16":
        # what meets pixels and distances, which stay float32; halving and back would round it
        scales, mean, std = copy.deepcopy(model.fcos.scales), model.pixel_mean, model.pixel_std
        model.half()
        model.fcos.scales, model.pixel_mean, model.pixel_std = scales, mean, std
    return model
