"""Networks of made-up weights with the statistics of trained ones.

A network as it is initialised hides faults: its batch norms have mean 0 and shift 0, deformable
convolutions have no offsets, scales are 1, and no class passes the threshold.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.model import dla
from condinst_infer.model.condinst import CondInst
from condinst_infer.model.fpn import BiFPNLayer
from condinst_infer.model.layers import ConvNorm, DeformConvNorm
from condinst_infer.model.resnet import BasicBlock, Bottleneck

_CANVAS = (128, 160)  # pixels, of the two images whose statistics the batch norms take
_RESIDUAL_GAIN = 0.2
_OFFSET_GAIN = 0.1
_OFFSET_BIAS_GAIN = 10.0  # offsets and mask logits of deviation 1: pixels
_SQUARE = 8  # pixels of one colour in these images

# mean and standard deviation of the outputs of each predictor: distances of some cells, and mask
# logits of both signs
_OUTPUTS = {
    "fcos.class_logits": (0.0, 1.3),
    "fcos.centreness": (0.5, 1.0),
    "fcos.box_regression": (2.0, 0.7),
    "fcos.controller": (0.0, 0.4),
    "mask_branch.output": (0.0, 1.0),
}

_COORDINATE_GAIN = 10.0  # of the coordinates in the first layer of the mask heads
_LAST_WEIGHT = -0.8  # what the mean weight of their last layer is, and its bias
_LAST_BIAS = 2.0
_PASSING_SHARE = 0.02  # of the (location, class) pairs of an image
_PASSING_PAIRS = 60  # or so many, where that is more
_PASSING_LOGIT = -2.2  # 0.1, which a centreness of 0.6 makes 0.06; the threshold is 0.05

# fields that make a network small and keep its structure; DLA-34 has channels of its own
_REDUCED: dict[str, Any] = {
    "stem_channels": 8,
    "res2_channels": 16,
    "width_per_group": 4,
    "neck_channels": 64,  # two or more in each group of a GroupNorm
    "mask_branch_channels": 16,
    "mask_branch_convs": 1,
    "bifpn_repeats": 2,
    "pre_nms_topk": 60,
    "max_detections": 10,
    "mask_nms_candidates": 40,
    "short_side": 128,
    "long_side": 192,
}


def reduced(config: CondInstConfig, **changes: Any) -> CondInstConfig:
    """`config` with few channels and repeats, and the structure it has."""
    heads = config.heads
    towers = {name: min(getattr(heads, name), 1) for name in ("share_convs", "class_convs")}
    return override(
        config, **{**_REDUCED, **towers, "box_convs": min(heads.box_convs, 1), **changes}
    )


def with_trained_statistics(model: CondInst, seed: int = 0) -> CondInst:
    """Give `model` made-up weights with which it works as a trained network does, in eval mode.

    Means and variances of batch norms are those of their inputs on made-up images; the affine
    parameters of all norms, the offsets and masks of deformable convolutions, fusion weights and
    level scales are random; every image is full of instances.

    Args:
        model: changed in place, and returned.
        seed: of all that is random here.
    """
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    with torch.no_grad():
        for module in model.modules():
            _randomize(module, generator)
        for module in model.modules():
            _calm(module)
        for scale in model.fcos.scales or ():
            scale.copy_(_uniform(scale, 0.8, 1.2, generator))
        images = torch.randint(
            256, (2, *(-(-side // _SQUARE) for side in _CANVAS), 3), generator=generator
        )
        images = images.repeat_interleave(_SQUARE, 1).repeat_interleave(_SQUARE, 2)
        with _measured_norms(model), _recorded(model) as outputs:
            model.heads(images.to(torch.uint8), torch.tensor([_CANVAS] * 2, dtype=torch.int32))
        for name, (mean, deviation) in _OUTPUTS.items():
            _rescale(model.get_submodule(name), outputs[name], mean, deviation)
        logits = torch.cat([level.flatten(1) for level in outputs["fcos.class_logits"]], 1)
        _shape_masks(model)
        model.fcos.class_logits.bias += _class_shift(logits)  # pyright: ignore[reportOperatorIssue]
    return model


def _shape_masks(model: CondInst) -> None:
    """Make masks blobs around their locations: what is far in any direction is outside.

    Mask heads of purely random weights cover half of the image each.
    """
    weight, bias = model.fcos.controller.weight, model.fcos.controller.get_parameter("bias")
    layers = model.config.mask_layers
    (first_out, first_in), (_, last_in) = layers[0], layers[-1]
    weights = sum(outputs * inputs for outputs, inputs in layers)
    if model.config.mask.coordinates != "none":  # the first two inputs
        for unit in range(first_out):
            coordinates = slice(unit * first_in, unit * first_in + 2)
            weight[coordinates] *= _COORDINATE_GAIN
            bias[coordinates] *= _COORDINATE_GAIN
    if len(layers) > 1:  # one layer has no ReLU, and its masks are half planes
        bias[weights - last_in : weights] += _LAST_WEIGHT
    bias[-1] += _LAST_BIAS


def _class_shift(logits: Tensor) -> float:
    """What to add to class logits [N, A*C] so that few of them can pass the usual threshold."""
    pairs = logits.shape[1]
    share = max(_PASSING_SHARE, _PASSING_PAIRS / pairs)
    return _PASSING_LOGIT - float(logits.flatten().quantile(1 - min(share, 0.5)))


def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the parameters of one layer."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        if module.bias is not None:
            nn.init.normal_(module.bias, std=0.1, generator=generator)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        module.weight.copy_(_uniform(module.weight, 0.5, 1.5, generator))
        nn.init.normal_(module.bias, std=0.3, generator=generator)
    elif isinstance(module, BiFPNLayer):
        for weights in module.weights:
            weights.copy_(_uniform(weights, 0.2, 1.5, generator))


def _calm(module: nn.Module) -> None:
    """Weaken what makes a deep network of random weights chaotic, as training does.

    The last norm of a residual block is small, and the offsets of a deformable convolution differ
    more from tap to tap than from place to place.
    """
    if isinstance(module, Bottleneck | BasicBlock | dla.Block):
        last = module.conv3 if isinstance(module, Bottleneck) else module.conv2
        assert isinstance(last, ConvNorm) and last.norm is not None
        last.norm.weight *= _RESIDUAL_GAIN  # pyright: ignore[reportOperatorIssue]
    elif isinstance(module, DeformConvNorm):
        module.offset.weight *= _OFFSET_GAIN
        module.offset.bias *= _OFFSET_BIAS_GAIN  # pyright: ignore[reportOperatorIssue]


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(like.shape, generator=generator)


@contextmanager
def _measured_norms(model: nn.Module) -> Iterator[None]:
    """Give every batch norm that runs inside the mean and variance of its input."""

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
        assert norm.running_var is not None
        values = inputs[0].transpose(0, 1).flatten(1)  # [C, N*h*w]
        norm.running_mean.copy_(values.mean(1))
        # one location has no variance, and a dead channel none; trained ones have some
        norm.running_var.copy_(values.var(1, correction=0).clamp(min=1e-2))

    hooks = [
        module.register_forward_pre_hook(measure)
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _recorded(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """The outputs of the predictors that run inside, one tensor per level."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in _OUTPUTS}
    hooks = []
    for name, tensors in outputs.items():

        def record(_module: nn.Module, _inputs: Any, output: Tensor, to: list[Tensor] = tensors):
            to.append(output)

        hooks.append(model.get_submodule(name).register_forward_hook(record))
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _rescale(conv: Any, outputs: list[Tensor], mean: float, deviation: float) -> None:
    """Scale and shift a predictor so that these outputs get this mean and standard deviation."""
    values = torch.cat([output.flatten() for output in outputs])
    factor = deviation / max(float(values.std()), 1e-6)
    for output in outputs:
        output.mul_(factor).add_(mean - factor * values.mean())
    conv.weight *= factor
    conv.bias.copy_(conv.bias * factor + mean - factor * values.mean())
