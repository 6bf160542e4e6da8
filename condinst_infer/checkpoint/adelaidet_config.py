"""Configurations of the official implementation (AdelaiDet on detectron2)."""

from collections.abc import Mapping
from typing import Any

from condinst_infer.checkpoint.foreign_config import check_types
from condinst_infer.config.class_names import classes_of
from condinst_infer.config.model import (
    BackboneConfig,
    CondInstConfig,
    DetectConfig,
    HeadsConfig,
    InputConfig,
    MaskConfig,
    NeckConfig,
)
from condinst_infer.errors import ConfigError, shorten

# what a configuration that leaves a key out means: the settings of CondInst's MS_R_50_1x
DEFAULTS: dict[str, Any] = {
    "MODEL.BACKBONE.NAME": "build_fcos_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.FPN.NORM": "",
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.BiFPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.BiFPN.OUT_CHANNELS": 160,
    "MODEL.BiFPN.NUM_REPEATS": 6,
    "MODEL.BiFPN.NORM": "BN",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, False],
    "MODEL.RESNETS.DEFORM_MODULATED": False,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": 1,
    "MODEL.DLA.CONV_BODY": "DLA34",
    "MODEL.DLA.NORM": "FrozenBN",
    "MODEL.FCOS.NUM_CLASSES": 80,
    "MODEL.FCOS.IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    "MODEL.FCOS.PRIOR_PROB": 0.01,
    "MODEL.FCOS.INFERENCE_TH_TEST": 0.05,
    "MODEL.FCOS.NMS_TH": 0.6,
    "MODEL.FCOS.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.FCOS.POST_NMS_TOPK_TEST": 100,
    "MODEL.FCOS.TOP_LEVELS": 2,
    "MODEL.FCOS.NORM": "GN",
    "MODEL.FCOS.USE_SCALE": True,
    "MODEL.FCOS.BOX_QUALITY": "ctrness",
    "MODEL.FCOS.THRESH_WITH_CTR": True,
    "MODEL.FCOS.SIZES_OF_INTEREST": [64, 128, 256, 512],
    "MODEL.FCOS.USE_RELU": True,
    "MODEL.FCOS.USE_DEFORMABLE": False,
    "MODEL.FCOS.NUM_CLS_CONVS": 4,
    "MODEL.FCOS.NUM_BOX_CONVS": 4,
    "MODEL.FCOS.NUM_SHARE_CONVS": 0,
    "MODEL.CONDINST.MASK_OUT_STRIDE": 4,
    "MODEL.CONDINST.MASK_HEAD.CHANNELS": 8,
    "MODEL.CONDINST.MASK_HEAD.NUM_LAYERS": 3,
    "MODEL.CONDINST.MASK_HEAD.DISABLE_REL_COORDS": False,
    "MODEL.CONDINST.MASK_BRANCH.OUT_CHANNELS": 8,
    "MODEL.CONDINST.MASK_BRANCH.IN_FEATURES": ["p3", "p4", "p5"],
    "MODEL.CONDINST.MASK_BRANCH.CHANNELS": 128,
    "MODEL.CONDINST.MASK_BRANCH.NORM": "BN",
    "MODEL.CONDINST.MASK_BRANCH.NUM_CONVS": 4,
    "MODEL.CONDINST.MASK_BRANCH.SEMANTIC_LOSS_ON": False,
}
ONLY = {  # values other than these would need code nobody has asked for yet
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.DLA.CONV_BODY": "DLA34",
    "MODEL.FCOS.BOX_QUALITY": "ctrness",
    "MODEL.FCOS.USE_RELU": True,
    "MODEL.FCOS.USE_DEFORMABLE": False,
}
NORMS = {"": "none", "none": "none", "FrozenBN": "frozen_bn"}
NORMS |= dict.fromkeys(("BN", "SyncBN", "NaiveSyncBN", "nnSyncBN"), "bn")
NORMS |= dict.fromkeys(("GN", "NaiveGN"), "gn")


def flatten(cfg: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys; flat ones pass unchanged."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def config_from_adelaidet(cfg: Mapping[str, Any]) -> CondInstConfig:
    """Our config for an AdelaiDet configuration.

    Args:
        cfg: keys like "MODEL.FCOS.NORM", or the nested dictionaries of its YAML files; keys that
            are left out have the values of MS_R_50_1x, others are ignored.

    Raises:
        ConfigError: names a setting that this package can't compute.
    """
    c = DEFAULTS | flatten(cfg)
    for key, value in ONLY.items():
        if c[key] != value:
            raise ConfigError(f"{key} is {shorten(c[key])}; only {value!r} is supported.")
    check_types(c, DEFAULTS, ONLY)
    name = str(c["MODEL.BACKBONE.NAME"])
    dla, neck = "dla" in name, "BiFPN" if "bifpn" in name else "FPN"
    if not dla and "resnet" not in name:
        raise ConfigError(f"MODEL.BACKBONE.NAME is {name!r}; only ResNet and DLA are supported.")
    return CondInstConfig(
        name=str(c.get("name", "adelaidet")),
        **classes_of(int(c["MODEL.FCOS.NUM_CLASSES"])),
        input=InputConfig(
            short_side=int(c["INPUT.MIN_SIZE_TEST"]),
            long_side=int(c["INPUT.MAX_SIZE_TEST"]),
            channel_order=str(c["INPUT.FORMAT"]).lower(),
            pixel_mean=tuple(map(float, c["MODEL.PIXEL_MEAN"])),
            pixel_std=tuple(map(float, c["MODEL.PIXEL_STD"])),
        ),
        backbone=_backbone(c, dla),
        neck=NeckConfig(
            neck_type=neck.lower(),
            neck_channels=int(c[f"MODEL.{neck}.OUT_CHANNELS"]),
            neck_norm=_norm(c, f"MODEL.{neck}.NORM"),
            neck_in_levels=_levels(c[f"MODEL.{neck}.IN_FEATURES"]),
            neck_extra_levels=int(c["MODEL.FCOS.TOP_LEVELS"]),
            bifpn_repeats=int(c["MODEL.BiFPN.NUM_REPEATS"]),
        ),
        heads=_heads(c),
        mask=_mask(c),
        detect=DetectConfig(
            score_threshold=float(c["MODEL.FCOS.INFERENCE_TH_TEST"]),
            threshold_by="product" if c["MODEL.FCOS.THRESH_WITH_CTR"] else "class",
            nms_iou=float(c["MODEL.FCOS.NMS_TH"]),
            pre_nms_topk=int(c["MODEL.FCOS.PRE_NMS_TOPK_TEST"]),
            max_detections=int(c["MODEL.FCOS.POST_NMS_TOPK_TEST"]),
        ),
    )


def _heads(c: Mapping[str, Any]) -> HeadsConfig:
    fcos = "MODEL.FCOS."
    levels = _levels(c[fcos + "IN_FEATURES"])
    # theirs bound the levels' ranges; the last is doubled for the coarsest level
    interest = [int(size) for size in c[fcos + "SIZES_OF_INTEREST"]]
    interest = (*interest, 2 * interest[-1])[: len(levels)]
    return HeadsConfig(
        num_classes=int(c[fcos + "NUM_CLASSES"]),
        head_levels=levels,
        sizes_of_interest=interest,
        share_convs=int(c[fcos + "NUM_SHARE_CONVS"]),
        class_convs=int(c[fcos + "NUM_CLS_CONVS"]),
        box_convs=int(c[fcos + "NUM_BOX_CONVS"]),
        tower_norm=_norm(c, fcos + "NORM"),
        regression_scales=bool(c[fcos + "USE_SCALE"]),
        prior_probability=float(c[fcos + "PRIOR_PROB"]),
    )


def _mask(c: Mapping[str, Any]) -> MaskConfig:
    head, branch = "MODEL.CONDINST.MASK_HEAD.", "MODEL.CONDINST.MASK_BRANCH."
    return MaskConfig(
        mask_levels=_levels(c[branch + "IN_FEATURES"]),
        mask_branch_channels=int(c[branch + "CHANNELS"]),
        mask_branch_convs=int(c[branch + "NUM_CONVS"]),
        mask_branch_norm=_norm(c, branch + "NORM"),
        mask_channels=int(c[branch + "OUT_CHANNELS"]),
        mask_head_depth=int(c[head + "NUM_LAYERS"]),
        mask_head_width=int(c[head + "CHANNELS"]),
        coordinates="none" if c[head + "DISABLE_REL_COORDS"] else "relative",
        mask_stride=int(c["MODEL.CONDINST.MASK_OUT_STRIDE"]),
        semantic_loss=bool(c[branch + "SEMANTIC_LOSS_ON"]),
    )


def _backbone(c: Mapping[str, Any], dla: bool) -> BackboneConfig:
    if dla:
        return BackboneConfig(
            backbone_type="dla34",
            backbone_norm=_norm(c, "MODEL.DLA.NORM"),
            frozen_stages=max(0, int(c["MODEL.BACKBONE.FREEZE_AT"])),
        )
    resnet = "MODEL.RESNETS."
    deform = tuple(bool(stage) for stage in c[resnet + "DEFORM_ON_PER_STAGE"])
    return BackboneConfig(
        backbone_type=f"resnet{c[resnet + 'DEPTH']}",
        backbone_norm=_norm(c, resnet + "NORM"),
        frozen_stages=max(0, int(c["MODEL.BACKBONE.FREEZE_AT"])),
        stem_channels=int(c[resnet + "STEM_OUT_CHANNELS"]),
        res2_channels=int(c[resnet + "RES2_OUT_CHANNELS"]),
        groups=int(c[resnet + "NUM_GROUPS"]),
        width_per_group=int(c[resnet + "WIDTH_PER_GROUP"]),
        stride_in_1x1=bool(c[resnet + "STRIDE_IN_1X1"]),
        deform_stages=deform,
        deform_modulated=bool(c[resnet + "DEFORM_MODULATED"]),
        deform_groups=int(c[resnet + "DEFORM_NUM_GROUPS"]),
    )


def _levels(features: list[str]) -> tuple[int, ...]:
    for name in features:
        if name[-1:] not in tuple("0123456789"):
            raise ConfigError(f"IN_FEATURES has {shorten(name)}; it must be names like p3 or res3.")
    return tuple(int(name[-1]) for name in features)


def _norm(c: Mapping[str, Any], key: str) -> str:
    if c[key] not in NORMS:
        raise ConfigError(f"{key} is {shorten(c[key])}; it must be one of {', '.join(NORMS)}.")
    return NORMS[c[key]]
