"""No configuration asks for more than a network of a few gigabytes, and each field has its type."""

import dataclasses
import json
import time
from typing import Any

import pytest
import torch

from condinst_infer.config.bounds import MAX_PARAMETERS, parameters_at_most
from condinst_infer.config.model import SECTIONS, CondInstConfig, config_from_dict, override
from condinst_infer.config.presets import preset, preset_names
from condinst_infer.errors import ConfigError
from condinst_infer.model.condinst import build_condinst
from condinst_infer.train.settings import TrainConfig, field_names, replace_settings

DEFAULT = CondInstConfig()
FIELDS = [(f.name, f.type) for cls in SECTIONS.values() for f in dataclasses.fields(cls)]
WRONG: list[Any] = [None, True, -7, 0.5, 10**9, 10**30, float("nan"), float("inf"), "", "x" * 10**5]
WRONG += [[], [None], [[1]], [10**9], [-1], [0.5], ["a"], {}, {"a": 1}, "\ud800", [True] * 3]


def takes(name: str, value: Any) -> bool:
    """True if a configuration may have `value` in the field `name`."""
    data = json.loads(DEFAULT.to_json())
    (section,) = (
        s for s, cls in SECTIONS.items() if name in {f.name for f in dataclasses.fields(cls)}
    )
    data[section][name] = value
    started = time.process_time()
    try:
        config_from_dict(data)
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return False
    finally:
        assert time.process_time() - started < 1
    return True


@pytest.mark.parametrize(("name", "kind"), FIELDS, ids=[name for name, _ in FIELDS])
def test_a_field_takes_no_value_of_another_type(name: str, kind: Any) -> None:
    taken = [value for value in WRONG if takes(name, value)]
    allowed: dict[Any, tuple[Any, ...]] = {bool: (True,), float: (0.5,), str: ()}
    fits = allowed.get(kind, ()) if kind is not int else ()
    if name == "stuff_area_limit":
        fits = (10**9,)  # pixels
    if kind in (tuple[str, ...], tuple[int, ...]) and name.startswith("stuff_"):
        fits = ([],)
    assert taken == list(fits)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"neck_extra_levels": 10**9}, "neck_extra_levels is 1000000000; it must be at most 8"),
        ({"neck_channels": 4097}, "neck_channels is 4097; it must be at most 4096"),
        ({"res2_channels": 4096, "width_per_group": 4096}, "asks for about"),
        ({"mask_levels": (10**9,)}, "mask_levels is (1000000000,); it must be at most 10"),
        ({"mask_levels": (-1, 0, 1)}, "the lowest level is 2"),
        ({"class_convs": 10**6}, "class_convs is 1000000; it must be at most 32"),
        ({"bifpn_repeats": 33}, "bifpn_repeats is 33"),
        ({"neck_in_levels": (3, 4, 5, 6)}, "must be levels of the backbone, 2 to 5"),
        ({"long_side": 10_001}, "long_side is 10001; it must be at most 10000"),
        ({"nms_iou": 10**400}, "nms_iou is 1000"),
        ({"name": "x" * 1001}, "at most 1000 characters long"),
        ({"name": 3}, "name is 3; it must be text"),
        ({"pixel_mean": (1, 2, "3")}, "pixel_mean is (1, 2, '3'); it must be a list of numbers"),
        ({"deform_stages": (0, 1, 1, 1)}, "it must be a list of true or false"),
    ],
)
def test_bounds_are_one_sentence(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        override(DEFAULT, **values)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["condinst_r101_dcn_bifpn_sem", "condinst_rt_dla34"])
def test_the_estimate_of_parameters_is_never_below(name: str) -> None:
    check_estimate(preset(name))


@pytest.mark.slow
def test_the_estimate_is_near_for_all_presets() -> None:
    for name in preset_names():
        check_estimate(preset(name))


def check_estimate(config: CondInstConfig) -> None:
    with torch.device("meta"):
        model = build_condinst(config)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert real <= parameters_at_most(config) <= 2 * real + 40_000_000
    assert parameters_at_most(config) < MAX_PARAMETERS / 4


@pytest.mark.parametrize(
    "values",
    [
        {"res2_channels": 1024, "groups": 2, "backbone_type": "resnet152", "nms": "mask"},
        {"deform_stages": (True,) * 4, "deform_groups": 8, "num_classes": 80},
        {"neck_channels": 1024, "share_convs": 8, "neck_extra_levels": 8},
        {"neck_type": "bifpn", "neck_channels": 512, "bifpn_repeats": 12},
        {"mask_branch_channels": 1024, "mask_branch_convs": 9, "semantic_loss": True},
        {"stem_channels": 4096, "backbone_type": "resnet34"},
    ],
)
def test_the_estimate_holds_for_wide_networks(values: dict[str, Any]) -> None:
    config = override(DEFAULT, **values)
    with torch.device("meta"):
        model = build_condinst(config)
    assert sum(p.numel() for p in model.parameters()) <= parameters_at_most(config)


def test_training_settings_have_bounds_too() -> None:
    for name in field_names():
        for value in (10**12, -1, float("nan"), None, "x", [10**12], [None]):
            with pytest.raises(ConfigError):
                replace_settings(TrainConfig(), **{name: value})
