"""Weights and configurations of other implementations give the network they describe."""

from typing import Any

import pytest
import torch

from condinst_infer import checkpoint
from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.config.presets import preset
from condinst_infer.errors import CheckpointError
from condinst_infer.model.condinst import build_condinst
from tests.support.classes import numbered_classes
from tests.support.foreign_names import (
    adelaidet_name,
    dla_name,
    mmdet_name,
    randomised,
    renamed,
    torchvision_name,
)
from tests.support.tiny_model import BRANCH, FCOS, RESNETS, TINY_CFG, assert_same, tiny_model

# every option that changes the network: (keys, fields)
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "shared towers, a batch norm per level, three levels": (
        {FCOS + "NORM": "BN", FCOS + "NUM_SHARE_CONVS": 2, FCOS + "NUM_CLS_CONVS": 0}
        | {FCOS + "NUM_BOX_CONVS": 0, FCOS + "IN_FEATURES": ["p3", "p4", "p5"]}
        | {FCOS + "TOP_LEVELS": 0},
        {"tower_norm": "bn", "share_convs": 2, "class_convs": 0, "box_convs": 0}
        | {"head_levels": (3, 4, 5), "sizes_of_interest": (64, 128, 256), "neck_extra_levels": 0},
    ),
    "towers without norm": (
        {FCOS + "NORM": "", FCOS + "NUM_SHARE_CONVS": 2, FCOS + "USE_SCALE": False},
        {"tower_norm": "none", "share_convs": 2, "regression_scales": False},
    ),
    "bifpn": (
        {"MODEL.BACKBONE.NAME": "build_fcos_resnet_bifpn_backbone"}
        | {"MODEL.BiFPN.OUT_CHANNELS": 16, "MODEL.BiFPN.NUM_REPEATS": 2},
        {"neck_type": "bifpn", "neck_norm": "bn", "bifpn_repeats": 2},
    ),
    "modulated deformable convolution": (
        {RESNETS + "DEFORM_ON_PER_STAGE": [False, True, True, True]}
        | {RESNETS + "DEFORM_MODULATED": True},
        {"deform_stages": (False, True, True, True), "deform_modulated": True},
    ),
    "deformable convolution in groups": (
        {RESNETS + "DEFORM_ON_PER_STAGE": [False, False, False, True]}
        | {RESNETS + "DEFORM_NUM_GROUPS": 2},
        {"deform_stages": (False, False, False, True), "deform_groups": 2},
    ),
    "semantic head, mask branch on p2, group norm in it": (
        {BRANCH + "SEMANTIC_LOSS_ON": True, BRANCH + "IN_FEATURES": ["p2", "p3", "p4", "p5"]}
        | {"MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"], BRANCH + "NORM": "GN"},
        {"semantic_loss": True, "mask_levels": (2, 3, 4, 5), "neck_in_levels": (2, 3, 4, 5)}
        | {"mask_branch_norm": "gn"},
    ),
    "small mask heads without coordinates, no norm in the branch": (
        {"MODEL.CONDINST.MASK_HEAD.CHANNELS": 4, "MODEL.CONDINST.MASK_HEAD.NUM_LAYERS": 2}
        | {"MODEL.CONDINST.MASK_HEAD.DISABLE_REL_COORDS": True, BRANCH + "NORM": ""}
        | {BRANCH + "OUT_CHANNELS": 5, "MODEL.CONDINST.MASK_OUT_STRIDE": 8},
        {"mask_head_width": 4, "mask_head_depth": 2, "coordinates": "none", "mask_channels": 5}
        | {"mask_branch_norm": "none", "mask_stride": 8},
    ),
    "resnext, trained norms, stride in the 3x3, norm in the pyramid": (
        {RESNETS + "NUM_GROUPS": 2, RESNETS + "NORM": "SyncBN", "MODEL.BACKBONE.FREEZE_AT": 0}
        | {RESNETS + "STRIDE_IN_1X1": False, "MODEL.FPN.NORM": "GN", RESNETS + "DEPTH": 101},
        {"groups": 2, "backbone_norm": "bn", "frozen_stages": 0, "stride_in_1x1": False}
        | {"neck_norm": "gn", "backbone_type": "resnet101"},
    ),
    "resnet18": ({RESNETS + "DEPTH": 18}, {"backbone_type": "resnet18"}),
    "dla": (
        {"MODEL.BACKBONE.NAME": "build_fcos_dla_fpn_backbone"}
        | {"MODEL.FPN.IN_FEATURES": ["level3", "level4", "level5"]},
        {"backbone_type": "dla34", "stem_channels": 64, "res2_channels": 256}
        | {"width_per_group": 64, "deform_modulated": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_adelaidet_weights_give_the_network_they_describe(option: str) -> None:
    keys, fields = OPTIONS[option]
    model = tiny_model(**fields)
    weights = renamed(model, lambda name: adelaidet_name(name, model.config))
    scales = {name: t.reshape(1) for name, t in weights.items() if name.endswith(".scale")}
    unused = {
        "mask_head.sizes_of_interest": torch.zeros(5),
        "mask_head._iter": torch.zeros(1),
        "pixel_mean": torch.zeros(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
    }
    if "dla" in option:  # a projection that the original owns and never uses
        bottom = "backbone.bottom_up.level3.project."
        unused |= {
            f"{bottom}0.weight": torch.zeros(128, 64, 1, 1),
            f"{bottom}1.bias": torch.zeros(128),
        }
    found = checkpoint.model_from_adelaidet(weights | scales | unused, TINY_CFG | keys)
    assert_same(found, model)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("deform", [False, True])
def test_mmdetection_weights_give_the_network_they_describe(deform: bool, old: bool) -> None:
    cfg: dict[str, Any] = {
        "model": {"neck": {"out_channels": 16}},
        "model.bbox_head.num_classes": 3,
    }
    cfg |= {
        "model.bbox_head.stacked_convs": 2,
        "model.mask_head.mask_feature_head.feat_channels": 8,
    }
    fields: dict[str, Any] = {"deform_modulated": False}
    if deform:
        stages = [False, True, True, True]
        cfg |= {"model.backbone.stage_with_dcn": stages, "model.backbone.dcn.type": "DCNv2"}
        fields = {"deform_stages": tuple(stages), "deform_modulated": True}
    config = override(
        CondInstConfig(name="mmdet"),
        neck_channels=16, **numbered_classes(3), class_convs=2, box_convs=2, mask_branch_channels=8,
        backbone_norm="bn_eval", stride_in_1x1=False, channel_order="rgb", resize_rule="min_scale",
        pixel_mean=(123.675, 116.28, 103.53), pixel_std=(58.395, 57.12, 57.375),
        threshold_by="class", rank_by="class", score_root=False, clip_before_nms=True, **fields,
    )  # fmt: skip
    model = build_condinst(config).eval()
    randomised(model)
    found = checkpoint.model_from_mmdet(renamed(model, lambda n: mmdet_name(n, old=old)), cfg)
    assert_same(found, model)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "dla34"])
def test_imagenet_weights_become_the_backbone(backbone: str) -> None:
    changes = {"stem_channels": 8, "res2_channels": 16, "width_per_group": 4, "neck_channels": 16}
    config = preset("condinst_r50", backbone_type=backbone, backbone_norm="bn", **changes)
    model = build_condinst(config)
    randomised(model)
    rename = dla_name if backbone == "dla34" else torchvision_name
    weights = renamed(model.backbone, rename)
    weights |= {"fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}
    if backbone == "dla34":
        weights["level4.project.0.weight"] = torch.zeros(256, 128, 1, 1)
    start = checkpoint.backbone_from_imagenet(weights)
    other = {"stem_channels": 64, "res2_channels": 256, "backbone_type": "resnet101"}
    begun = start.model(override(config, **other))
    for name, tensor in begun.backbone.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(
            tensor, model.backbone.state_dict()[name]
        )
    settings = begun.config
    assert settings.backbone.backbone_type == backbone
    assert settings.backbone.stride_in_1x1 == (backbone == "dla34")  # which has none
    assert settings.input.channel_order == "rgb"
    assert settings.input.pixel_mean == (123.675, 116.28, 103.53)
    assert settings.input.pixel_std == (58.395, 57.12, 57.375)
    with pytest.raises(CheckpointError, match="the ImageNet backbone does not fit"):
        start.model(override(config, backbone_norm="gn"))
    with pytest.raises(CheckpointError, match="not weights of a torchvision or timm"):
        checkpoint.backbone_from_imagenet({"fc.weight": torch.zeros(1)})
