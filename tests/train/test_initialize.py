"""Training starts from what fits, says what does not, and settings are checked before it starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from condinst_infer import checkpoint
from condinst_infer.config import presets
from condinst_infer.errors import CheckpointError, ConfigError
from condinst_infer.model.condinst import build_condinst
from condinst_infer.train.initialize import initial_model
from condinst_infer.train.settings import TrainConfig, field_names, replace_settings, settings_for
from tests.support.classes import numbered_classes
from tests.support.command_line import Run, assert_refused
from tests.support.foreign_names import randomised, torchvision_name
from tests.support.small_training import command_line, small_config, small_data


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    one, same, other = (initial_model(small_config(), seed=s).model.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    name = "fcos.controller.weight"
    assert not torch.equal(one[name], other[name])


def test_a_checkpoint_of_other_classes_gives_all_but_the_classifier(tmp_path: Path) -> None:
    source = build_condinst(small_config(**numbered_classes(5), pixel_mean=(1.0, 2.0, 3.0)))
    randomised(source)
    checkpoint.save(source, tmp_path / "model.safetensors")
    start = initial_model(small_config(**numbered_classes(2)), tmp_path / "model.safetensors")
    assert start.unfitted == (
        "fcos.class_logits.bias: [5] in the file, [2] needed",
        "fcos.class_logits.weight: [5, 16, 3, 3] in the file, [2, 16, 3, 3] needed",
    )
    assert start.model.config.input.pixel_mean == (1.0, 2.0, 3.0)
    weights, found = source.state_dict(), start.model.state_dict()
    assert set(start.fitted) == {n for n in weights if "class_logits" not in n}
    assert all(torch.equal(found[name], weights[name]) for name in start.fitted)


def test_tensors_of_one_side_only_are_named(tmp_path: Path) -> None:
    checkpoint.save(build_condinst(small_config(semantic_loss=True)), tmp_path / "a.safetensors")
    checkpoint.save(build_condinst(small_config()), tmp_path / "b.safetensors")
    without = initial_model(small_config(), tmp_path / "a.safetensors").unfitted
    assert without and all(": only in the file" in line for line in without)
    lacking = initial_model(small_config(semantic_loss=True), tmp_path / "b.safetensors").unfitted
    assert lacking and all("not in the file, starts at random" in line for line in lacking)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_imagenet_backbone_brings_its_pixel_statistics(tmp_path: Path, suffix: str) -> None:
    source = build_condinst(small_config())
    randomised(source)
    weights = {
        torchvision_name(name.removeprefix("backbone.")): tensor
        for name, tensor in source.state_dict().items()
        if name.startswith("backbone.")
    }
    path = tmp_path / f"resnet18{suffix}"
    (torch.save if suffix == ".pth" else save_file)(weights | {"fc.bias": torch.zeros(3)}, path)
    start = initial_model(small_config(channel_order="bgr"), path)
    assert start.model.config.input.channel_order == "rgb"
    assert start.model.config.input.pixel_std == (58.395, 57.12, 57.375)
    found = start.model.backbone.state_dict()
    assert all(torch.equal(found[n], t) for n, t in source.backbone.state_dict().items())
    assert all(line.split(".")[0] != "backbone" for line in start.unfitted)
    with pytest.raises(CheckpointError, match="--set backbone_type=resnet18"):
        initial_model(small_config(backbone_type="resnet34"), path)


def test_a_file_that_fits_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        initial_model(small_config(), tmp_path / "none.pth")
    torch.save({"w": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not weights of a torchvision or timm"):
        initial_model(small_config(), tmp_path / "other.pth")


@pytest.mark.parametrize("name", presets.preset_names())
def test_every_preset_has_the_schedule_of_its_paper(name: str) -> None:
    settings = settings_for(presets.preset(name))
    sides = settings.augment.short_sides
    if "cityscapes" in name:
        assert (settings.iterations, settings.images_per_batch, settings.steps) == (
            *(24_000, 8),
            (18_000,),
        )
        assert (sides[0], sides[-1]) == (800, 1024)
    elif "_rt_" in name or "nano" in name:
        assert (settings.iterations, settings.images_per_batch) == (360_000, 16)
        assert (sides[0], sides[-1]) == (256, 608)
    else:
        assert (settings.iterations, settings.steps) == (90_000, (60_000, 80_000))
        assert (sides[0], sides[-1]) == (640, 800)
    assert settings.learning_rate == 0.01
    assert settings_for(presets.preset(name), "short").optimizer == "adamw"


def test_no_training_field_is_also_a_model_field() -> None:
    from condinst_infer.config.model import SECTION_OF

    assert not set(field_names()) & set(SECTION_OF)
    assert len(set(field_names())) == len(field_names())


def test_fields_of_every_section_are_replaced_by_name() -> None:
    settings = replace_settings(
        TrainConfig(), iterations=5, crop=64, focal_gamma=1, short_sides=[64, 80], rotate=True
    )
    assert (settings.iterations, settings.augment.crop, settings.augment.rotate) == (5, 64, True)
    assert (settings.loss.focal_gamma, settings.augment.short_sides) == (1.0, (64, 80))
    assert settings.momentum == TrainConfig().momentum


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"iteration": 5}, "no training setting 'iteration'; did you mean iterations"),
        ({"loss": 5}, "loss is 5; it must be of type LossConfig"),
        ({"iterations": 0}, "iterations is 0; it must be a whole number >= 1"),
        ({"iterations": 2.5}, "a whole number"),
        ({"iterations": True}, "a whole number"),
        ({"rotate": 1}, "true or false"),
        ({"learning_rate": -1}, "a number >= 0"),
        ({"learning_rate": 0}, "above 0"),
        ({"learning_rate": float("nan")}, "a number >= 0"),
        ({"optimizer": "adam"}, "one of sgd, adamw"),
        ({"schedule": 3}, "schedule is 3"),
        ({"amp": "fp8"}, "one of off, bf16, fp16"),
        ({"short_sides": 640}, "a list of whole numbers"),
        ({"short_sides": []}, "at least 32 pixels"),
        ({"short_sides": ["640"]}, "a list of whole numbers"),
        ({"short_sides": [16]}, "at least 32 pixels"),
    ],
)
def test_a_setting_out_of_range_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace_settings(TrainConfig(), **values)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "crop"], "--set crop is not NAME=VALUE"),
        (["--set", "crops=3"], "did you mean crop?"),
        (["--set", "mask_stride=3"], "mask_stride 3"),
        (["--set", 'mask_stride="2"'], "a whole number"),
        (["--learning-rate", "nan"], "a number >= 0"),
        (["--init", "none.pth"], "none.pth does not exist"),
        (["--val", "none.json"], "none.json does not exist"),
        (["--val", "{instances}", "--val-images", "none"], "Do not exist: 6 (none/000.png"),
        (["--val", "{other}"], "does not list 2 of the model's 2 classes"),
        (["--resume"], "holds no run to resume"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(
    condinst: Run, tmp_path: Path, words: list[str], says: str
) -> None:
    run, data = tmp_path / "run", small_data(tmp_path)
    other = json.loads(data.annotations.read_text())
    other |= {"annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    files = {"instances": data.annotations, "other": tmp_path / "other.json"}
    words = [word.format(**files) for word in words]
    assert_refused(condinst(*command_line(data, run), *words), says)
    assert not run.exists()


def test_the_command_says_what_starts_from_a_file(condinst: Run, tmp_path: Path) -> None:
    checkpoint.save(
        build_condinst(small_config(**numbered_classes(5))), tmp_path / "start.safetensors"
    )
    words = command_line(small_data(tmp_path), tmp_path / "run", iterations=1)
    status, out, _ = condinst(*words, "--init", str(tmp_path / "start.safetensors"))
    assert status == 0
    assert "5 images, 10 objects, 2 classes" in out
    assert "left out: 1 images without objects" in out
    assert "fcos.class_logits.bias: [5] in the file, [2] needed" in out
    assert out.splitlines()[-1] == f"-> {tmp_path / 'run' / 'model.safetensors'}"
