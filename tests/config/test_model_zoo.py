"""The models that others have published, imported by their names."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from condinst_infer import checkpoint
from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.config.model_zoo import (
    ADELAIDET,
    LICENCES,
    MMDET,
    PUBLISHED,
    PublishedModel,
    published_model,
)
from condinst_infer.config.presets import preset
from condinst_infer.errors import CheckpointError, ConfigError
from condinst_infer.model.condinst import build_condinst
from tests.support import goldens
from tests.support.command_line import Run, assert_refused
from tests.support.foreign_names import adelaidet_name, renamed
from tests.support.tiny_model import TINY_CFG, assert_same, tiny_model


def config_of(name: str) -> CondInstConfig:
    model = published_model(name)
    read = {ADELAIDET: checkpoint.config_from_adelaidet, MMDET: checkpoint.config_from_mmdet}
    return read[model.family](model.cfg)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_name_is_the_network_it_says(name: str) -> None:
    with torch.device("meta"):
        model = build_condinst(config_of(name))
    blocks = {key.split(".")[2] for key in model.state_dict() if key.startswith("backbone.res4.")}
    assert len(blocks) == (23 if "101" in name else 6)
    assert model.config.neck.neck_channels == (160 if "BiFPN" in name else 256)
    assert any("mask_branch.semantic" in key for key in model.state_dict()) == ("sem" in name)
    assert PUBLISHED[name].name == name and PUBLISHED[name].family in LICENCES


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("MS_R_50_1x", "A_R50_1x"),
        ("MS_R_50_3x", "A_R50_1x"),
        ("condinst_r50_fpn_ms-poly-90k_coco_instance", "M_mmdet_R50"),
    ],
)
def test_a_name_is_the_configuration_the_reference_numbers_were_made_with(
    name: str, golden: str
) -> None:
    assert config_of(name) == goldens.model(golden).config


@pytest.mark.parametrize(
    ("name", "of_paper"),
    [
        ("MS_R_50_1x", "condinst_r50"),
        ("MS_R_101_3x", "condinst_r101"),
        ("MS_R_50_3x_sem", "condinst_r50_sem"),
        ("MS_R_101_3x_sem", "condinst_r101_sem"),
        ("MS_R_50_BiFPN_3x", "condinst_r50_bifpn"),
        ("MS_R_101_BiFPN_3x_sem", "condinst_r101_bifpn_sem"),
    ],
)
def test_the_models_of_the_authors_are_our_presets(name: str, of_paper: str) -> None:
    unused = {"name": "adelaidet", "deform_modulated": False}  # without deformable convolutions
    assert config_of(name) == override(preset(of_paper), **unused)


def test_weights_and_a_name_are_enough(tmp_path: Path) -> None:
    path, beside = tmp_path / "w.pth", tmp_path / "w.yaml"
    model = tiny_model(semantic_loss=True)
    torch.save({"model": renamed(model, lambda n: adelaidet_name(n, model.config))}, path)
    cfg: dict[str, Any] = TINY_CFG | {"MODEL.CONDINST.MASK_BRANCH.SEMANTIC_LOSS_ON": True}
    beside.write_text(yaml.safe_dump(cfg))
    found = checkpoint.import_weights(path, PublishedModel("tiny", ADELAIDET, cfg, 0.0, 0.0))
    assert found.config == override(checkpoint.import_weights(path, beside).config, name="tiny")
    found.config = model.config
    assert_same(found, model)
    with pytest.raises(CheckpointError, match="weights of AdelaiDet, but tiny is a model of mmdet"):
        checkpoint.import_weights(path, PublishedModel("tiny", MMDET, {}, 0.0, 0.0))
    with pytest.raises(CheckpointError, match="do not fit the configuration MS_R_50_3x_sem"):
        checkpoint.import_weights(path, published_model("CondInst_MS_R_50_3x_sem"))


def test_a_name_nobody_has_published_is_refused(condinst: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean MS_R_50_3x"):
        published_model("MS_R50_3x")
    command = ("import", tmp_path / "w.pth", "-o", tmp_path / "model.safetensors")
    refused = condinst(*command, "--preset-from", "mask_rcnn")
    assert_refused(refused, "'mask_rcnn'", "condinst presets --published")
    both = condinst(*command, "--preset-from", "MS_R_50_1x", "--config", "a.yaml")
    assert_refused(both, "not allowed with")
