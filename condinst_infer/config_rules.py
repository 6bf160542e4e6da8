"""What a configuration has to fulfil to make a model."""

from dataclasses import fields, is_dataclass
from typing import Any

from condinst_infer.errors import ConfigError

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
CHOICES: dict[str, tuple[str, ...]] = {
    "resize_rule": ("short_first", "min_scale"),
    "channel_order": ("bgr", "rgb"),
    "backbone_type": (*RESNETS, "dla34"),
    "backbone_norm": ("frozen_bn", "bn", "bn_eval", "gn"),
    "neck_type": ("fpn", "bifpn"),
    "neck_norm": ("none", "bn", "gn"),
    "tower_norm": ("none", "bn", "gn"),
    "mask_branch_norm": ("none", "bn", "gn"),
    "coordinates": ("none", "relative", "absolute"),
    "threshold_by": ("product", "class"),
    "rank_by": ("product", "class"),
}


def check(config: Any) -> None:
    """ConfigError for the first rule that `config` breaks."""
    for section in fields(config):
        settings = getattr(config, section.name)
        for f in fields(settings) if is_dataclass(settings) else ():
            value = getattr(settings, f.name)
            if f.name in CHOICES and value not in CHOICES[f.name]:
                raise ConfigError(f"{f.name} is {value!r}; it must be one of {CHOICES[f.name]}.")
            least = 0 if f.name in _MAY_BE_ZERO else 1
            if f.type is int and (type(value) is not int or value < least):
                raise ConfigError(f"{f.name} is {value!r}; it must be a whole number >= {least}.")
    heads, mask, neck = config.heads, config.mask, config.neck
    pyramid = {*neck.neck_in_levels}
    pyramid |= {max(pyramid) + 1 + i for i in range(neck.neck_extra_levels)}
    rules = {
        f"head_levels {heads.head_levels} must be levels of the pyramid {sorted(pyramid)}": set(
            heads.head_levels
        )
        <= pyramid,
        f"mask_levels {mask.mask_levels} must be levels of the pyramid {sorted(pyramid)}": set(
            mask.mask_levels
        )
        <= pyramid
        and len(mask.mask_levels) > 0,
        "sizes_of_interest needs one entry per head level": len(heads.sizes_of_interest)
        == len(heads.head_levels),
        "class_names and category_ids need num_classes entries each": heads.num_classes
        == len(config.class_names)
        == len(config.category_ids),
        f"mask_stride {mask.mask_stride} must be the mask features' stride "
        f"{config.mask_feature_stride} divided by 1, 2 or 4": config.mask_feature_stride
        in (mask.mask_stride, 2 * mask.mask_stride, 4 * mask.mask_stride),
        "mask_head_depth must be 1 to 4": mask.mask_head_depth <= 4,
        "mask_head_width and mask_channels must be at most 16": max(
            mask.mask_head_width, mask.mask_channels
        )
        <= 16,
        "a mask head without features needs coordinates": mask.use_features
        or mask.coordinates != "none",
        "max_detections must be at most 512": config.detect.max_detections <= 512,
        "a bifpn has three input levels (3, 4, 5) and two extra ones": neck.neck_type != "bifpn"
        or (neck.neck_in_levels == (3, 4, 5) and neck.neck_extra_levels == 2),
    }
    for rule, holds in rules.items():
        if not holds:
            raise ConfigError(f"{rule}.")


_MAY_BE_ZERO = {
    "frozen_stages",
    "neck_extra_levels",
    "share_convs",
    "class_convs",
    "box_convs",
    "mask_branch_convs",
}
