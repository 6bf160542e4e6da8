"""The models of the two CondInst papers, and a small one: functions that return a config.

Papers: ECCV 2020 (arXiv:2003.05664) and the journal version (arXiv:2102.03026).
"""

from typing import Any, NamedTuple

from condinst_infer.config.class_names import (
    CITYSCAPES_CLASS_NAMES,
    CITYSCAPES_STUFF_NAMES,
    COCO_STUFF_IDS,
    COCO_STUFF_NAMES,
)
from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.errors import ConfigError, did_you_mean


class Preset(NamedTuple):
    """Changes on a base preset, and the paper's figure that the preset stands for."""

    base: str | None
    changes: dict[str, Any]
    figure: str


_BIFPN = {"neck_type": "bifpn", "neck_channels": 160, "neck_norm": "bn"}
_DCN = {"deform_stages": (False, True, True, True)}
_RT = {
    # MIN/MAX_SIZE_TEST of the real-time settings; journal paper section 4.8
    "short_side": 512,
    "long_side": 736,
    "backbone_norm": "bn",
    "head_levels": (3, 4, 5),
    "sizes_of_interest": (64, 128, 256),
    "neck_extra_levels": 0,
    "semantic_loss": True,
}
_DLA = {"backbone_type": "dla34", "frozen_stages": 0}
_SHARED_TOWER = {"share_convs": 4, "class_convs": 0, "box_convs": 0}
_CITYSCAPES = {
    # the original scale, 2048x1024, and masks at half of it; journal paper section 4.9
    "num_classes": len(CITYSCAPES_CLASS_NAMES),
    "class_names": CITYSCAPES_CLASS_NAMES,
    "category_ids": (24, 25, 26, 27, 28, 31, 32, 33),
    "short_side": 1024,
    "long_side": 2048,
    "mask_stride": 2,
}
_PANOPTIC = {
    "neck_in_levels": (2, 3, 4, 5),
    "stuff_names": COCO_STUFF_NAMES,
    "stuff_ids": COCO_STUFF_IDS,
}
_NANO = {
    "backbone_type": "resnet18",
    "backbone_norm": "bn",
    "frozen_stages": 0,
    "stem_channels": 32,
    "res2_channels": 16,
    "stride_in_1x1": False,
    "neck_channels": 64,
    "tower_norm": "bn",
    "mask_branch_channels": 64,
    "mask_branch_convs": 2,
    "pixel_std": (57.375, 57.12, 58.395),
    "semantic_loss": False,
}

_PRESETS: dict[str, Preset] = {
    "condinst_eccv_r50": Preset(
        "condinst_r50", {"mask_levels": (3,), "mask_stride": 2}, "35.4 AP, 49 ms V100"
    ),
    "condinst_r50": Preset(None, {}, "35.6-37.7 AP, 49 ms V100"),
    "condinst_r101": Preset("condinst_r50", {"backbone_type": "resnet101"}, "39.1 AP"),
    "condinst_r50_sem": Preset("condinst_r50", {"semantic_loss": True}, "38.6 AP"),
    "condinst_r101_sem": Preset("condinst_r101", {"semantic_loss": True}, "40.0 AP"),
    "condinst_r50_bifpn": Preset("condinst_r50", _BIFPN, "-"),
    "condinst_r101_bifpn_sem": Preset("condinst_r101_sem", _BIFPN, "40.5 AP"),
    "condinst_r101_dcn_bifpn_sem": Preset("condinst_r101_bifpn_sem", _DCN, "41.3 AP"),
    "condinst_rt_r50_shtw": Preset(
        "condinst_r50", {**_RT, **_SHARED_TOWER}, "36.0 AP, 43 FPS V100"
    ),
    "condinst_rt_dla34_shtw": Preset("condinst_rt_r50_shtw", _DLA, "35.8 AP, 47 FPS V100"),
    "condinst_rt_dla34": Preset("condinst_r50", {**_RT, **_DLA}, "36.3 AP, 41 FPS V100"),
    "condinst_cityscapes_r50": Preset("condinst_r50", _CITYSCAPES, "33.3 AP val"),
    "condinst_cityscapes_r50_sem": Preset(
        "condinst_cityscapes_r50", {"semantic_loss": True}, "33.9 AP val"
    ),
    "condinst_cityscapes_r101_dcn_bifpn_sem": Preset(
        "condinst_r101_dcn_bifpn_sem", _CITYSCAPES, "39.3 AP val"
    ),
    "condinst_panoptic_r50": Preset("condinst_r50", _PANOPTIC, "44.6 PQ"),
    "condinst_panoptic_r101": Preset("condinst_r101", _PANOPTIC, "46.1 PQ"),
    "condinst_panoptic_r101_dcn": Preset("condinst_panoptic_r101", _DCN, "47.8 PQ"),
    "condinst_panoptic_cityscapes_r50": Preset(
        "condinst_cityscapes_r50",
        {
            **_PANOPTIC,
            "stuff_names": CITYSCAPES_STUFF_NAMES,
            "stuff_ids": (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23),
        },
        "61.7 PQ val",
    ),
    "condinst_nano": Preset("condinst_rt_r50_shtw", _NANO, "ours: for CPUs, tests and the demo"),
}


def preset_names() -> tuple[str, ...]:
    """Every preset's name, in the order of the papers."""
    return tuple(_PRESETS)


def figure(name: str) -> str:
    """The published figure that `name` stands for; not measured here."""
    return _PRESETS[name].figure


def preset(name: str, **overrides: Any) -> CondInstConfig:
    """The config of preset `name`, with config fields replaced by `overrides`.

    Raises:
        ConfigError: there is no such preset or field, or the result makes no model.
    """
    if name not in _PRESETS:
        hint = did_you_mean(name, _PRESETS)
        raise ConfigError(f"there is no preset {name!r}{hint} List them: condinst presets")
    base, changes, _ = _PRESETS[name]
    config = CondInstConfig() if base is None else preset(base)
    return override(config, **{"name": name, **changes, **overrides})
