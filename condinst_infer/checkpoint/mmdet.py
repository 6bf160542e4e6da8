"""Configurations and weights of mmdetection's CondInst."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from condinst_infer.checkpoint.adelaidet_config import NORMS, flatten
from condinst_infer.checkpoint.foreign_config import check_types
from condinst_infer.checkpoint.renaming import (
    TORCHVISION_RESNET,
    Rules,
    add_prefix,
    model_from_renamed,
    renamer,
)
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
from condinst_infer.model.condinst import CondInst

# what a configuration that leaves a key out means: condinst_r50_fpn_ms-poly-90k_coco_instance
DEFAULTS: dict[str, Any] = {
    "data_preprocessor.mean": [123.675, 116.28, 103.53],
    "data_preprocessor.std": [58.395, 57.12, 57.375],
    "data_preprocessor.bgr_to_rgb": True,
    "data_preprocessor.pad_size_divisor": 32,
    "backbone.type": "ResNet",
    "backbone.depth": 50,
    "backbone.frozen_stages": 1,
    "backbone.norm_cfg.requires_grad": True,
    "backbone.norm_eval": True,
    "backbone.style": "pytorch",
    "backbone.dcn.type": None,
    "backbone.dcn.deform_groups": 1,
    "backbone.stage_with_dcn": [False, False, False, False],
    "neck.type": "FPN",
    "neck.out_channels": 256,
    "neck.start_level": 1,
    "neck.add_extra_convs": "on_output",
    "neck.relu_before_extra_convs": True,
    "neck.num_outs": 5,
    "bbox_head.num_classes": 80,
    "bbox_head.stacked_convs": 4,
    "bbox_head.strides": [8, 16, 32, 64, 128],
    "bbox_head.norm_on_bbox": True,
    "bbox_head.centerness_on_reg": True,
    "bbox_head.dcn_on_last_conv": False,
    "mask_head.num_layers": 3,
    "mask_head.feat_channels": 8,
    "mask_head.size_of_interest": 8,
    "mask_head.mask_out_stride": 4,
    "mask_head.disable_rel_coors": False,
    "mask_head.mask_feature_head.feat_channels": 128,
    "mask_head.mask_feature_head.start_level": 0,
    "mask_head.mask_feature_head.end_level": 2,
    "mask_head.mask_feature_head.out_channels": 8,
    "mask_head.mask_feature_head.num_stacked_convs": 4,
    "mask_head.mask_feature_head.norm_cfg.type": "BN",
    "test_cfg.nms_pre": 1000,
    "test_cfg.score_thr": 0.05,
    "test_cfg.nms.iou_threshold": 0.6,
    "test_cfg.max_per_img": 100,
    "test_cfg.mask_thr": 0.5,
}
ONLY = {  # values other than these would need code nobody has asked for yet
    "backbone.type": "ResNet",
    "neck.type": "FPN",
    "neck.add_extra_convs": "on_output",
    "neck.relu_before_extra_convs": True,
    "bbox_head.norm_on_bbox": True,
    "bbox_head.centerness_on_reg": True,
    "bbox_head.dcn_on_last_conv": False,
    "test_cfg.mask_thr": 0.5,
}


def config_from_mmdet(cfg: Mapping[str, Any]) -> CondInstConfig:
    """Our config for an mmdetection configuration.

    Where mmdetection differs from AdelaiDet, the difference is a field: RGB input, the image size
    rule, threshold and per-level limit on the class alone, no root in the score, boxes clipped
    and empty ones dropped before NMS.

    Args:
        cfg: keys like "model.bbox_head.num_classes", flat or nested, with or without "model.".

    Raises:
        ConfigError: names a setting that this package can't compute.
    """
    c = DEFAULTS | {key.removeprefix("model."): value for key, value in flatten(cfg).items()}
    for key, value in ONLY.items():
        if c[key] != value:
            raise ConfigError(f"{key} is {shorten(c[key])}; only {value!r} is supported.")
    check_types(c, DEFAULTS, ONLY)
    in_levels = tuple(range(int(c["neck.start_level"]) + 2, 6))
    classes = int(c["bbox_head.num_classes"])
    return CondInstConfig(
        name=str(c.get("name", "mmdet")),
        **classes_of(classes),
        input=InputConfig(
            resize_rule="min_scale",
            channel_order="rgb" if c["data_preprocessor.bgr_to_rgb"] else "bgr",
            pixel_mean=tuple(map(float, c["data_preprocessor.mean"])),
            pixel_std=tuple(map(float, c["data_preprocessor.std"])),
            size_divisor=int(c["data_preprocessor.pad_size_divisor"]),
        ),
        backbone=_backbone(c),
        neck=NeckConfig(
            neck_channels=int(c["neck.out_channels"]),
            neck_in_levels=in_levels,
            neck_extra_levels=int(c["neck.num_outs"]) - len(in_levels),
        ),
        heads=HeadsConfig(
            num_classes=classes,
            head_levels=_levels(c),
            sizes_of_interest=tuple(
                int(stride) * int(c["mask_head.size_of_interest"])
                for stride in c["bbox_head.strides"]
            ),
            class_convs=int(c["bbox_head.stacked_convs"]),
            box_convs=int(c["bbox_head.stacked_convs"]),
        ),
        mask=_mask(c),
        detect=DetectConfig(
            score_threshold=float(c["test_cfg.score_thr"]),
            threshold_by="class",
            rank_by="class",
            score_root=False,
            clip_before_nms=True,
            pre_nms_topk=int(c["test_cfg.nms_pre"]),
            nms_iou=float(c["test_cfg.nms.iou_threshold"]),
            max_detections=int(c["test_cfg.max_per_img"]),
        ),
    )


def _levels(c: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(stride).bit_length() - 1 for stride in c["bbox_head.strides"])


def _mask(c: Mapping[str, Any]) -> MaskConfig:
    head, branch = "mask_head.", "mask_head.mask_feature_head."
    norm = c[branch + "norm_cfg.type"]
    if norm not in NORMS:
        raise ConfigError(f"{branch}norm_cfg.type is {norm!r}; it must be BN, SyncBN or GN.")
    first, last = int(c[branch + "start_level"]), int(c[branch + "end_level"])
    return MaskConfig(
        mask_levels=_levels(c)[first : last + 1],
        mask_branch_channels=int(c[branch + "feat_channels"]),
        mask_branch_convs=int(c[branch + "num_stacked_convs"]),
        mask_branch_norm=NORMS[norm],
        mask_channels=int(c[branch + "out_channels"]),
        mask_head_depth=int(c[head + "num_layers"]),
        mask_head_width=int(c[head + "feat_channels"]),
        coordinates="none" if c[head + "disable_rel_coors"] else "relative",
        mask_stride=int(c[head + "mask_out_stride"]),
    )


def model_from_mmdet(state_dict: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> CondInst:
    """The network of an mmdetection CondInst checkpoint, in evaluation mode.

    Args:
        state_dict: its weights, name -> tensor.
        cfg: its configuration, as for `config_from_mmdet`.

    Raises:
        CheckpointError: lists every tensor that is missing, surplus or of the wrong shape.
        ConfigError: the configuration is not supported.
    """
    config = config_from_mmdet(cfg)
    return model_from_renamed(config, state_dict, renamer(_rules(config)))


def cfg_from_mmdet_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the configuration from the shapes of the weights, as far as they tell it."""
    blocks = {name.split(".")[2] for name in state_dict if name.startswith("backbone.layer3.")}
    classes = [t for n, t in state_dict.items() if n.endswith((".conv_cls.bias", ".fcos_cls.bias"))]
    return {
        "backbone.depth": {6: 50, 23: 101, 36: 152}.get(len(blocks), 50),
        "bbox_head.num_classes": len(classes[0]) if classes else 80,
    }


def _backbone(c: Mapping[str, Any]) -> BackboneConfig:
    norm = "bn_eval" if c["backbone.norm_eval"] else "bn"
    return BackboneConfig(
        backbone_type=f"resnet{c['backbone.depth']}",
        backbone_norm=norm if c["backbone.norm_cfg.requires_grad"] else "frozen_bn",
        frozen_stages=int(c["backbone.frozen_stages"]) + 1,
        stride_in_1x1=c["backbone.style"] == "caffe",
        deform_stages=tuple(bool(stage) for stage in c["backbone.stage_with_dcn"]),
        deform_modulated=c["backbone.dcn.type"] == "DCNv2",
        deform_groups=int(c["backbone.dcn.deform_groups"]),
    )


def _rules(config: CondInstConfig) -> Rules:
    """Their names -> ours."""
    levels, head = config.neck.neck_in_levels, r"bbox_head\."
    extra = range(max(levels) + 1, max(levels) + 1 + config.neck.neck_extra_levels)
    branch = r"mask_head\.mask_feature_head\."
    rules = add_prefix(r"backbone\.", TORCHVISION_RESNET)
    for i, level in enumerate([*levels, *extra]):
        ours = f"output{level}" if level in levels else f"p{level}"
        rules.append((rf"neck\.lateral_convs\.{i}\.conv\.(\w+)", rf"neck.lateral{level}.conv.\1"))
        rules.append((rf"neck\.fpn_convs\.{i}\.conv\.(\w+)", rf"neck.{ours}.conv.\1"))
    for theirs, ours in (("cls", "class"), ("reg", "box")):
        convs = rf"{head}{theirs}_convs\.(\d+)\."
        rules.append((convs + r"conv\.(\w+)", rf"fcos.{ours}_tower.\1.conv.\2"))
        rules.append((convs + r"gn\.(\w+)", rf"fcos.{ours}_tower.\1.norm.\2"))
    for theirs, ours in (
        ("cls", "class_logits"),
        ("reg", "box_regression"),
        ("centerness", "centreness"),
    ):  # older files say fcos_cls and so on
        rules.append((rf"{head}(?:conv|fcos)_{theirs}\.(\w+)", rf"fcos.{ours}.\1"))
    return [
        *rules,
        (head + r"scales\.(\d+)\.scale", r"fcos.scales.\1"),
        (head + r"controller\.(\w+)", r"fcos.controller.\1"),
        (branch + r"convs_all_levels\.(\d)\.conv\1\.conv\.(\w+)", r"mask_branch.refine.\1.conv.\2"),
        (
            branch + r"convs_all_levels\.(\d)\.conv\1\.[bg]n\.(\w+)",
            r"mask_branch.refine.\1.norm.\2",
        ),
        (branch + r"conv_branch\.(\d)\.conv\.(\w+)", r"mask_branch.tower.\1.conv.\2"),
        (branch + r"conv_branch\.(\d)\.[bg]n\.(\w+)", r"mask_branch.tower.\1.norm.\2"),
        (branch + r"conv_pred\.(\w+)", r"mask_branch.output.\1"),
    ]
