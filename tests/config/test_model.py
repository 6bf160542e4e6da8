"""Configurations: there and back through JSON, overrides, and what makes no model."""

import dataclasses
import json
import re
from typing import Any

import pytest

from condinst_infer.config import presets
from condinst_infer.config.model import (
    SECTION_OF,
    CondInstConfig,
    config_from_dict,
    override,
    with_classes,
)
from condinst_infer.config.presets import preset
from condinst_infer.errors import ConfigError

DEFAULT = CondInstConfig()


@pytest.mark.parametrize("name", presets.preset_names())
def test_preset_there_and_back_through_json(name: str) -> None:
    config = preset(name)
    assert config.name == name
    text = config.to_json()
    assert "\n" not in text
    assert CondInstConfig.from_json(text) == config
    assert config_from_dict(dataclasses.asdict(config)) == config
    assert hash(CondInstConfig.from_json(text)) == hash(config)  # no list where a tuple was


def test_presets_are_the_models_of_the_papers() -> None:
    def differing(name: str, base: str) -> set[str]:
        ours, theirs = preset(name), preset(base)
        return {
            field
            for field, section in SECTION_OF.items()
            if getattr(getattr(ours, section), field) != getattr(getattr(theirs, section), field)
        }

    assert preset("condinst_r50") == DEFAULT
    assert DEFAULT.num_params == 169 and DEFAULT.mask_layers == ((8, 10), (8, 8), (1, 8))
    assert DEFAULT.strides == (8, 16, 32, 64, 128)
    assert (DEFAULT.mask_feature_stride, DEFAULT.mask_factor) == (8, 2)
    assert differing("condinst_eccv_r50", "condinst_r50") == {"mask_levels", "mask_stride"}
    assert differing("condinst_r101_sem", "condinst_r50") == {"backbone_type", "semantic_loss"}
    assert differing("condinst_rt_dla34_shtw", "condinst_rt_dla34") == {
        "share_convs", "class_convs", "box_convs"
    }  # fmt: skip
    real_time = preset("condinst_rt_r50_shtw")
    assert (real_time.input.short_side, real_time.input.long_side) == (512, 736)
    assert real_time.strides == (8, 16, 32) and real_time.heads.share_convs == 4
    best = preset("condinst_r101_dcn_bifpn_sem")
    assert best.backbone.deform_stages == (False, True, True, True)
    assert (best.neck.neck_type, best.neck.neck_channels) == ("bifpn", 160)
    assert best.neck.bifpn_repeats == 6
    assert preset("condinst_cityscapes_r50").class_names[2] == "car"
    assert preset("condinst_cityscapes_r50").mask.mask_stride == 2
    assert all(presets.figure(name) for name in presets.preset_names())


def test_preset_takes_overrides_and_names_the_nearest() -> None:
    assert preset("condinst_nano", mask_stride=8).mask.mask_stride == 8
    message = "no preset 'condinst_r5'; did you mean condinst_r50? List them: condinst presets"
    with pytest.raises(ConfigError, match=re.escape(message)):
        preset("condinst_r5")
    with pytest.raises(ConfigError, match="no preset 'x'. List them"):
        preset("x")


def test_override_reaches_every_section_and_leaves_the_rest() -> None:
    changed = override(DEFAULT, short_side=640, nms_iou=0.5, coordinates="none", name="mine")
    back = override(changed, short_side=800, nms_iou=0.6, coordinates="relative")
    assert changed.input.short_side == 640 and changed.detect.nms_iou == 0.5
    assert changed.mask.coordinates == "none" and changed.name == "mine"
    assert override(back, name=DEFAULT.name) == DEFAULT
    assert override(DEFAULT, mask_levels=[3, 4]).mask.mask_levels == (3, 4)  # a list is a tuple
    assert override(DEFAULT) == DEFAULT


def test_classes_are_set_together() -> None:
    named = with_classes(DEFAULT, ["cell"])
    assert named.heads.num_classes == 1 and named.category_ids == (1,)
    both = with_classes(DEFAULT, ("a", "b"), (7, 9))
    assert (both.heads.num_classes, both.category_ids) == (2, (7, 9))
    same = with_classes(DEFAULT, DEFAULT.class_names[::-1])
    assert same.category_ids == DEFAULT.category_ids
    with pytest.raises(ConfigError, match="num_classes entries each; with_classes sets all three"):
        with_classes(DEFAULT, ("a", "b"), (7,))
    with pytest.raises(ConfigError, match="with_classes sets all three"):
        override(DEFAULT, num_classes=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_strides": 4}, "no configuration field 'mask_strides'; did you mean mask_stride?"),
        ({"zzz": 4}, "no configuration field 'zzz'."),
        ({"backbone_type": "vgg"}, "backbone_type is 'vgg'; it must be one of resnet18, "),
        ({"mask_levels": ()}, "mask_levels is (); it must be levels in a row"),
        ({"mask_levels": (3, 5)}, "mask_levels is (3, 5); it must be levels in a row"),
        ({"pixel_std": (1.0, 0.0, 1.0)}, "pixel_std none that is 0"),
        ({"nms_iou": 2.0}, "nms_iou is 2.0; it must be a number from 0 to 1."),
        ({"score_threshold": "x"}, "score_threshold is 'x'; it must be a number"),
        ({"size_divisor": 16}, "size_divisor must be a multiple of 32"),
        ({"input": 3}, "input is 3; it must be of type InputConfig"),
        (
            {"backbone_type": "resnet18", "deform_stages": (False, True, True, True)},
            "resnet18 can have neither deformable",
        ),
        ({"deform_stages": (True,)}, "deform_stages needs four entries"),
        ({"tower_norm": "BN"}, "tower_norm is 'BN'; it must be one of none, bn, gn."),
        ({"short_side": 0}, "short_side is 0; it must be a whole number >= 1."),
        ({"max_detections": 0}, "max_detections is 0; it must be a whole number >= 1."),
        ({"share_convs": -1}, "share_convs is -1; it must be a whole number >= 0."),
        ({"num_classes": True}, "num_classes is True; it must be a whole number >= 1."),
        ({"long_side": 800.5}, "long_side is 800.5; it must be a whole number >= 1."),
        ({"long_side": "800"}, "long_side is '800'; it must be a whole number >= 1."),
        ({"max_detections": 513}, "max_detections must be at most 512."),
        ({"mask_head_depth": 5}, "mask_head_depth must be 1 to 4."),
        ({"mask_head_width": 17}, "mask_head_width and mask_channels must be at most 16."),
        ({"mask_channels": 17}, "mask_head_width and mask_channels must be at most 16."),
        ({"mask_stride": 1}, "mask_stride 1 must be the mask features' stride 8 divided by"),
        ({"mask_stride": 16}, "mask_stride 16 must be the mask features' stride 8 divided by"),
        ({"mask_levels": (2, 3)}, "mask_levels (2, 3) must be levels of the pyramid [3, 4, 5,"),
        ({"neck_extra_levels": 1}, "must be levels of the pyramid [3, 4, 5, 6]."),
        ({"sizes_of_interest": (64,)}, "sizes_of_interest needs one entry per head level."),
        ({"use_features": False, "coordinates": "none"}, "without features needs coordinates."),
        ({"category_ids": (1, 2)}, "class_names and category_ids need num_classes entries each;"),
        ({"class_names": ("a",), "num_classes": 2}, "need num_classes entries each;"),
        ({"neck_type": "bifpn", "neck_in_levels": (2, 3, 4, 5)}, "a bifpn has three input levels"),
    ],
)  # fmt: skip
def test_values_that_make_no_model_are_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        override(DEFAULT, **values)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["share_convs", "class_convs", "box_convs", "mask_branch_convs"])
def test_towers_may_be_empty(field: str) -> None:
    config = override(DEFAULT, **{field: 0})
    assert getattr(getattr(config, SECTION_OF[field]), field) == 0


def test_text_that_is_no_configuration() -> None:
    data = json.loads(DEFAULT.to_json())
    damaged: list[tuple[Any, str]] = [
        ([], "is incomplete"),
        (3, "is incomplete"),
        (data | {"mask": 3}, "is incomplete"),
        ({k: v for k, v in data.items() if k != "neck"}, "is incomplete"),
        (data | {"zoom": 1}, "unknown fields zoom; it was written by a newer version"),
        (data | {"mask": data["mask"] | {"zip": 1}}, "unknown fields zip"),
        (data | {"class_names": 5}, "class_names is 5; it must be a list of texts"),
        (data | {"heads": data["heads"] | {"head_levels": 3}}, "a list of whole numbers"),
        (data | {"heads": data["heads"] | {"num_classes": None}}, "num_classes is None"),
        (data | {"detect": data["detect"] | {"rank_by": "luck"}}, "rank_by is 'luck'"),
    ]
    for value, message in damaged:
        with pytest.raises(ConfigError, match=re.escape(message)):
            CondInstConfig.from_json(json.dumps(value))
    with pytest.raises(ConfigError, match="the configuration is not JSON"):
        CondInstConfig.from_json(DEFAULT.to_json()[:-1])


def test_fields_left_out_have_their_defaults() -> None:
    data = json.loads(preset("condinst_nano").to_json())
    del data["mask"]["mask_stride"], data["category_ids"]
    assert config_from_dict(data) == preset("condinst_nano")


@pytest.mark.parametrize(
    ("values", "floor"),
    [
        ({}, 0.05**0.5),
        ({"score_threshold": 0.09}, 0.3),
        ({"score_root": False}, 0.05),
        ({"threshold_by": "class"}, 0.0),
        ({"threshold_by": "class", "score_root": False}, 0.0),
    ],
)
def test_reported_floor_is_the_lowest_possible_score(values: dict[str, Any], floor: float) -> None:
    assert override(DEFAULT, **values).reported_floor == pytest.approx(floor)


@pytest.mark.parametrize(
    ("values", "layers", "params"),
    [
        ({"mask_head_depth": 1}, ((1, 10),), 11),
        ({"mask_head_depth": 2, "mask_head_width": 2}, ((2, 10), (1, 2)), 25),
        ({"coordinates": "none"}, ((8, 8), (8, 8), (1, 8)), 153),
        ({"use_features": False}, ((8, 2), (8, 8), (1, 8)), 105),
        ({"mask_channels": 1, "coordinates": "absolute"}, ((8, 3), (8, 8), (1, 8)), 113),
    ],
)
def test_mask_head_layers(
    values: dict[str, Any], layers: tuple[tuple[int, int], ...], params: int
) -> None:
    config = override(DEFAULT, **values)
    assert config.mask_layers == layers and config.num_params == params


@pytest.mark.parametrize(
    ("levels", "stride", "factor"), [((3, 4), 8, 1), ((3,), 4, 2), ((3,), 2, 4), ((2, 3), 4, 1)]
)
def test_mask_factor_is_feature_stride_over_mask_stride(
    levels: tuple[int, ...], stride: int, factor: int
) -> None:
    changes = {"neck_in_levels": (2, 3, 4, 5), "mask_levels": levels, "mask_stride": stride}
    config = override(DEFAULT, **changes)
    assert config.mask_feature_stride == 2 ** levels[0] and config.mask_factor == factor
