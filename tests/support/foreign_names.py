"""What other implementations call our tensors, written down by hand from our names to theirs."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from condinst_infer.config.model import CondInstConfig

# AdelaiDet's names of the eight nodes of a BiFPN layer, in order
BIFPN_NODES = ("3_3_4", "2_2_5", "1_1_6", "0_0_7", "1_1_7_8", "2_2_6_9", "3_3_5_10", "4_4_11")
ADELAIDET_FCOS = "proposal_generator.fcos_head."


def randomised(model: nn.Module) -> None:
    """Give every tensor of `model` values of its own, so that no two can be mistaken."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        values = torch.randn(tensor.shape, generator=random) / math.prod(tensor.shape[1:]) ** 0.5
        tensor.copy_(values.abs() + 0.5 if name.endswith(("norm.weight", "_var")) else values)


def dla_name(name: str) -> str:
    """The name in the original DLA-34 of ours after "backbone."."""
    parts = name.split(".")
    if parts[0] in ("base_layer", "level0", "level1"):
        return f"{parts[0]}.{'0' if parts[1] == 'conv' else '1'}.{parts[2]}"
    *tree, layer, kind, last = parts
    path = ".".join(tree)
    if layer == "root":
        return f"{path}.root.{'conv' if kind == 'conv' else 'bn'}.{last}"
    if layer == "project":
        return f"{path}.project.{'0' if kind == 'conv' else '1'}.{last}"
    return f"{path}.{layer if kind == 'conv' else 'bn' + layer[-1]}.{last}"


def torchvision_name(name: str) -> str:
    """The name in torchvision's ResNet of ours after "backbone."."""
    match name.split("."):
        case ["stem", "conv", last]:
            return f"conv1.{last}"
        case ["stem", "norm", last]:
            return f"bn1.{last}"
        case [stage, block, "conv2", "offset", last]:  # mmdetection alone has it
            return f"layer{int(stage[3]) - 1}.{block}.conv2.conv_offset.{last}"
        case [stage, block, "shortcut", kind, last]:
            place = "0" if kind == "conv" else "1"
            return f"layer{int(stage[3]) - 1}.{block}.downsample.{place}.{last}"
        case [stage, block, conv, kind, last]:
            layer = conv if kind == "conv" else f"bn{conv[4]}"
            return f"layer{int(stage[3]) - 1}.{block}.{layer}.{last}"
    raise AssertionError(name)


def adelaidet_name(name: str, config: CondInstConfig) -> str:  # noqa: C901 - a table of names
    """AdelaiDet's name of our tensor `name`."""
    bifpn, dla = config.neck.neck_type == "bifpn", config.backbone.backbone_type == "dla34"
    bottom = "backbone.bottom_up." + "backbone." * bifpn
    step = 2 if config.heads.tower_norm == "none" else 3
    match name.split("."):
        case ["backbone", *_] if dla:
            return bottom + dla_name(name.removeprefix("backbone."))
        case ["backbone", "stem", kind, last]:
            return f"{bottom}stem.conv1.{'norm.' * (kind == 'norm')}{last}"
        case ["backbone", stage, block, "conv2", "offset", last]:
            return f"{bottom}{stage}.{block}.conv2_offset.{last}"
        case ["backbone", stage, block, conv, kind, last]:
            return f"{bottom}{stage}.{block}.{conv}.{'norm.' * (kind == 'norm')}{last}"
        case ["neck", "reduction", kind, last]:
            return f"backbone.bottom_up.res6.reduction.{'norm.' * (kind == 'norm')}{last}"
        case ["neck", "layers", i, "lateral", j, kind, last]:
            return (
                f"backbone.repeated_bifpn.{i}.lateral_{j}_f{j}.{'norm.' * (kind == 'norm')}{last}"
            )
        case ["neck", "layers", i, "weights", node]:
            return f"backbone.repeated_bifpn.{i}.weights_f{BIFPN_NODES[int(node)]}"
        case ["neck", "layers", i, "outputs", node, kind, last]:
            named = f"outputs_f{BIFPN_NODES[int(node)]}"
            return f"backbone.repeated_bifpn.{i}.{named}.{'norm.' * (kind == 'norm')}{last}"
        case ["neck", module, kind, last] if module[0] == "p":
            return f"backbone.top_block.{module}.{last}"
        case ["neck", module, kind, last]:
            return f"backbone.fpn_{module}.{'norm.' * (kind == 'norm')}{last}"
        case ["fcos", "controller", last]:
            return f"controller.{last}"
        case ["fcos", "scales", level]:
            return f"{ADELAIDET_FCOS}scales.{level}.scale"
        case ["fcos", tower, i, kind, *rest] if tower.endswith("_tower"):
            theirs = {"share": "share", "class": "cls", "box": "bbox"}[tower.removesuffix("_tower")]
            place = step * int(i) + (kind == "norm")
            return f"{ADELAIDET_FCOS}{theirs}_tower.{place}.{'.'.join(rest)}"
        case ["fcos", conv, last]:
            theirs = {"class_logits": "cls_logits", "box_regression": "bbox_pred"}
            return f"{ADELAIDET_FCOS}{theirs.get(conv, 'ctrness')}.{last}"
        case ["mask_branch", "output", last]:
            return f"mask_branch.tower.{config.mask.mask_branch_convs}.{last}"
        case ["mask_branch", "semantic", "2", last]:
            return f"mask_branch.logits.{last}"
        case ["mask_branch", part, i, kind, last]:
            theirs = "seg_head" if part == "semantic" else part
            return f"mask_branch.{theirs}.{i}.{'0' if kind == 'conv' else '1'}.{last}"
    raise AssertionError(name)


def mmdet_name(name: str, *, old: bool = False) -> str:
    """mmdetection's name of our tensor `name`, of files before 3.0 if `old`."""
    branch = "mask_head.mask_feature_head."
    match name.split("."):
        case ["backbone", *_]:
            return "backbone." + torchvision_name(name.removeprefix("backbone."))
        case ["neck", module, "conv", last]:
            place = int(module[-1]) - 3
            kind = "lateral" if module.startswith("lateral") else "fpn"
            return f"neck.{kind}_convs.{place}.conv.{last}"
        case ["fcos", "scales", level]:
            return f"bbox_head.scales.{level}.scale"
        case ["fcos", "controller", last]:
            return f"bbox_head.controller.{last}"
        case ["fcos", tower, i, kind, last]:
            convs = "cls_convs" if tower == "class_tower" else "reg_convs"
            return f"bbox_head.{convs}.{i}.{'conv' if kind == 'conv' else 'gn'}.{last}"
        case ["fcos", conv, last]:
            theirs = {"class_logits": "cls", "box_regression": "reg", "centreness": "centerness"}
            return f"bbox_head.{'fcos' if old else 'conv'}_{theirs[conv]}.{last}"
        case ["mask_branch", "output", last]:
            return f"{branch}conv_pred.{last}"
        case ["mask_branch", part, i, kind, last]:
            theirs = f"convs_all_levels.{i}.conv{i}" if part == "refine" else f"conv_branch.{i}"
            return f"{branch}{theirs}.{'conv' if kind == 'conv' else 'bn'}.{last}"
    raise AssertionError(name)


def renamed(model: nn.Module, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The weights of `model` under the names that `rename` gives them."""
    return {rename(name): tensor.clone() for name, tensor in model.state_dict().items()}
