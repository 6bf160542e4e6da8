"""Largest values of a configuration, so that no file can ask for a network without end.

The bounds are far above every published model: the largest, ResNeXt-152 with deformable
convolutions, has 130 million parameters.
"""

from typing import Any

MAX_PARAMETERS = 500_000_000  # 2 GB of float32
MAX_SIDE = 10_000  # pixels of the network's input; squared, 100 million
MAX_LEVEL = 10  # P10 has a stride of 1024 pixels
MAX_CHANNELS = 4096
MAX_CONVS = 32  # convolutions in a row
MAX_CLASSES = 20_000  # the largest data sets of detection have 13,000
MAX_TEXT = 1000  # characters of a name
INT32 = 2**31 - 1

_LARGEST = {
    **dict.fromkeys(("short_side", "long_side", "size_divisor"), MAX_SIDE),
    **dict.fromkeys(("stem_channels", "res2_channels", "width_per_group"), MAX_CHANNELS),
    **dict.fromkeys(("neck_channels", "mask_branch_channels", "groups"), MAX_CHANNELS),
    **dict.fromkeys(("share_convs", "class_convs", "box_convs", "mask_branch_convs"), MAX_CONVS),
    "bifpn_repeats": MAX_CONVS,
    "frozen_stages": 5,
    "deform_groups": 64,
    "neck_extra_levels": MAX_LEVEL - 2,
    "num_classes": MAX_CLASSES,
    **dict.fromkeys(("pre_nms_topk", "mask_nms_candidates"), 100_000),
    # of training
    **dict.fromkeys(("train_long_side", "crop"), MAX_SIDE),
    **dict.fromkeys(("images_per_batch", "accumulate"), 65_536),
    "workers": 1024,
    "keep_checkpoints": 1_000_000,
}
_OF_ENTRIES = {"short_sides": MAX_SIDE}
_OF_LEVELS = MAX_LEVEL
RESNET_BLOCKS = {  # of res2 to res5
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}


def largest(name: str) -> int:
    """The largest whole number that the field `name` may have, or an entry of its list."""
    if name.endswith("levels") and name not in _LARGEST:
        return _OF_LEVELS
    return _LARGEST.get(name, _OF_ENTRIES.get(name, INT32))


def parameters_at_most(config: Any) -> int:
    """A number of parameters that the network of `config` does not pass, and is near."""
    backbone, neck, heads, mask = config.backbone, config.neck, config.heads, config.mask
    plain = backbone.backbone_type in ("resnet18", "resnet34")
    blocks = RESNET_BLOCKS.get(backbone.backbone_type, (0, 0, 0, 0))
    total, before = 16_000_000, backbone.stem_channels  # all of DLA-34; no ResNet's stem has more
    for stage, (count, deform) in enumerate(zip(blocks, backbone.deform_stages, strict=True)):
        out = backbone.res2_channels * 2**stage
        width = out if plain else backbone.groups * backbone.width_per_group * 2**stage
        spatial = 9 * width * width // (1 if plain else backbone.groups)
        if deform:
            spatial += 243 * backbone.deform_groups * width  # 27 offsets and masks per group
        total += count * (spatial * (2 if plain else 1) + 2 * out * width) + before * (width + out)
        before = out
    # 3x3 convolutions between channels of the pyramid
    channels = neck.neck_channels
    bifpn = 8 * neck.bifpn_repeats if neck.neck_type == "bifpn" else 0
    towers = heads.share_convs + heads.class_convs + heads.box_convs
    inner = len(neck.neck_in_levels) + neck.neck_extra_levels + bifpn + towers
    total += (9 * inner + 36) * channels * channels + 4 * before * channels
    total += 9 * channels * (heads.num_classes + config.num_params + 6)
    branch = mask.mask_branch_channels
    total += 9 * branch * (len(mask.mask_levels) * channels + (mask.mask_branch_convs + 1) * branch)
    return total + 9 * 128 * (5 * channels + 512 + len(config.panoptic.stuff_names))
