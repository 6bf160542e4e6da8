"""The mask head: per instance, 1x1 convolutions whose weights the controller wrote."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from condinst_infer.config.model import ABSOLUTE_SCALE, mask_layers
from condinst_infer.config.validation import CHOICES
from condinst_infer.ops.aligned_bilinear import aligned_bilinear
from condinst_infer.ops.onnx_nodes import custom_node, is_exporting

COORDINATES = CHOICES["coordinates"]  # the node's attribute is the index
CANDIDATE_MASK_HEAD = "CandidateMaskHead"  # the node that makes the masks for mask NMS


def split_params(
    params: Tensor, layers: Sequence[tuple[int, int]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights [N, K, out, in] and biases [N, K, out] of each layer.

    A row of `params` [N, K, P] holds the weights of all layers (out x in, row-major), then their
    biases.
    """
    weights, biases = [o * i for o, i in layers], [o for o, _ in layers]
    parts = params.split([*weights, *biases], dim=2)
    shaped = [p.unflatten(2, shape) for p, shape in zip(parts, layers, strict=False)]
    return shaped, list(parts[len(layers) :])


def mask_logits(
    features: Tensor,
    params: Tensor,
    centres: Tensor,
    sizes: Tensor,
    *,
    stride: int,
    depth: int = 3,
    width: int = 8,
    channels: int = 8,
    coordinates: str = "relative",
    use_features: bool = True,
) -> Tensor:
    """Mask logits [N, K, h, w] of each instance at the features' stride; positive is foreground.

    Args:
        features: mask branch output, [N, channels, h, w].
        params: controller outputs of the kept instances, [N, K, P]; layout in `split_params`.
        centres: location each instance was predicted from, [N, K, 2], (x, y) in network pixels.
        sizes: size of interest of its level, [N, K], pixels.
        stride: network pixels per feature cell.
        depth, width: layers of a mask head and their channels.
        coordinates: "relative" is (centre - pixel) / size, "absolute" pixel / 512, or "none".

    The mask FCN head of CondInst (arXiv:2003.05664, section 3.1). Its first layer is one matrix
    product for all instances: `w . (centre - pixel) / size` is a bias per instance minus a product
    with absolute coordinates, so no coordinate map per instance is ever made. Float32 throughout:
    half precision can't hold the folded coordinates.
    """
    layers = mask_layers(
        depth=depth,
        width=width,
        channels=channels,
        coordinates=coordinates,
        use_features=use_features,
    )
    weights, biases = split_params(params.float(), layers)
    first, bias, inputs = weights[0], biases[0], []
    batch, _, rows, columns = features.shape
    if coordinates != "none":
        of_pixel = first[:, :, :, :2] / ABSOLUTE_SCALE  # [N, K, out, 2]
        if coordinates == "relative":
            of_pixel = -first[:, :, :, :2] / sizes[:, :, None, None]
            bias = bias - (of_pixel * centres[:, :, None]).sum(3)
        first = torch.cat([of_pixel, first[:, :, :, 2:]], 3)
        inputs.append(_pixels(rows, columns, stride, features).expand(batch, -1, -1))
    if use_features:
        inputs.append(features.float().flatten(2))
    x = torch.cat(inputs, 1)  # [N, in, h*w]
    x = first.flatten(1, 2) @ x + bias.flatten(1)[:, :, None]  # [N, K*out, h*w]
    x = x.unflatten(1, (params.shape[1], layers[0][0]))  # [N, K, out, h*w]
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        x = weight @ x.relu() + bias[..., None]
    return x[:, :, 0].unflatten(2, (rows, columns))


def mask_logits_by_grouped_conv(
    features: Tensor,
    params: Tensor,
    centres: Tensor,
    sizes: Tensor,
    *,
    stride: int,
    depth: int = 3,
    width: int = 8,
    channels: int = 8,
    coordinates: str = "relative",
    use_features: bool = True,
) -> Tensor:
    """Compute `mask_logits` word for word as the paper says; the usual and slow way."""
    layers = mask_layers(
        depth=depth,
        width=width,
        channels=channels,
        coordinates=coordinates,
        use_features=use_features,
    )
    weights, biases = split_params(params, layers)
    batch, kept = params.shape[:2]
    rows, columns = features.shape[2:]
    inputs = []
    if coordinates != "none":
        pixels = _pixels(rows, columns, stride, features)  # [2, h*w]
        maps = (pixels / ABSOLUTE_SCALE).expand(batch, kept, -1, -1)
        if coordinates == "relative":
            maps = (centres[..., None] - pixels) / sizes[:, :, None, None]  # [N, K, 2, h*w]
        inputs.append(maps.unflatten(3, (rows, columns)).to(features.dtype))
    if use_features:
        inputs.append(features[:, None].expand(-1, kept, -1, -1, -1))
    x = torch.cat(inputs, 2).reshape(1, -1, rows, columns)  # [1, N*K*in, h, w]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        kernel = weight.reshape(-1, weight.shape[3], 1, 1)
        x = functional.conv2d(x.relu() if i else x, kernel, bias.flatten(), groups=batch * kept)
    return x.reshape(batch, kept, rows, columns)


def dynamic_mask_head(
    features: Tensor,
    params: Tensor,
    centres: Tensor,
    sizes: Tensor,
    count: Tensor,
    *,
    stride: int,
    factor: int,
    depth: int = 3,
    width: int = 8,
    channels: int = 8,
    coordinates: str = "relative",
    use_features: bool = True,
    node: str = "DynamicMaskHead",
) -> Tensor:
    """Mask probabilities [N, K, factor*h, factor*w] of each instance, 0 in slots past `count`.

    The logits of `mask_logits` (arguments there), upsampled by `factor`, then sigmoid.
    `count` is int32 [N]. The result has the dtype of `features`. `node` is its name in the graph,
    for a function body is written for one factor and one K.
    """
    shape = {"depth": depth, "width": width, "channels": channels}
    if is_exporting():
        attributes = {
            **{name: [value] for name, value in shape.items()},
            "stride": [stride],
            "factor": [factor],
            "coordinates": [COORDINATES.index(coordinates)],
            "use_features": [int(use_features)],
        }
        batch, _, rows, columns = features.shape
        output = (features.dtype, (batch, params.shape[1], factor * rows, factor * columns))
        inputs = (features, params, centres, sizes, count)
        return custom_node(node, inputs, attributes, [output])[0]
    used = max([1, *count.tolist()])  # the slots above hold nothing in any image
    logits = mask_logits(
        features,
        params[:, :used],
        centres[:, :used],
        sizes[:, :used],
        stride=stride,
        coordinates=coordinates,
        use_features=use_features,
        **shape,
    )
    real = torch.arange(used, device=params.device) < count[:, None]  # [N, used]
    probabilities = aligned_bilinear(logits, factor).sigmoid()
    masks = probabilities.new_zeros(*params.shape[:2], *probabilities.shape[2:])
    masks[:, :used] = torch.where(real[:, :, None, None], probabilities, 0.0)
    return masks.to(features.dtype)


def _pixels(rows: int, columns: int, stride: int, like: Tensor) -> Tensor:
    """(x, y) of every cell in network pixels, float32 [2, rows*columns]."""
    y = torch.arange(rows, device=like.device) * stride + stride // 2
    x = torch.arange(columns, device=like.device) * stride + stride // 2
    grid = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid[1], grid[0]]).flatten(1).float()
