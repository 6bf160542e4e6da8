"""Checkpoints: there and back, files that are damaged or foreign, and whole files of others."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from condinst_infer import checkpoint
from condinst_infer.config.model import CondInstConfig, override, with_classes
from condinst_infer.config.presets import preset
from condinst_infer.contract.metadata import KEY, file_sha256
from condinst_infer.errors import CheckpointError, ConfigError, InputError
from condinst_infer.model.condinst import CondInst, build_condinst
from tests.support.classes import numbered_classes
from tests.support.foreign_names import adelaidet_name, mmdet_name, randomised, renamed

# AdelaiDet keys of `small_adelaidet`
YAML = """
MODEL:
  RESNETS: {STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, WIDTH_PER_GROUP: 4, DEPTH: 101}
  FPN: {OUT_CHANNELS: 16}
  FCOS: {NUM_CLASSES: 3}
"""


@pytest.fixture(scope="module")
def small() -> CondInst:
    """A small network with everything that a checkpoint can hold."""
    config = with_classes(preset("condinst_nano", stem_channels=8), ("cell", "débris"))
    config = override(config, neck_channels=16, mask_branch_channels=8, frozen_stages=2)
    model = build_condinst(override(config, category_ids=(4, 9))).eval()
    randomised(model)
    return model


def small_adelaidet(depth: int = 101) -> CondInst:
    """The network of `YAML`."""
    widths = {"stem_channels": 8, "res2_channels": 16, "width_per_group": 4, "neck_channels": 16}
    config = override(
        CondInstConfig(name="adelaidet"),
        **widths, backbone_type=f"resnet{depth}", **numbered_classes(3), deform_modulated=False,
    )  # fmt: skip
    model = build_condinst(config).eval()
    randomised(model)
    return model


def adelaidet_weights(model: CondInst) -> dict[str, Tensor]:
    return renamed(model, lambda name: adelaidet_name(name, model.config))


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    ours, theirs = expected.state_dict(), found.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_loading_gives_what_was_saved(small: CondInst, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"an older file")
    checkpoint.save(small, path)
    assert list(tmp_path.iterdir()) == [path]
    loaded = checkpoint.load(path)
    assert loaded.config == small.config and loaded.config.class_names == ("cell", "débris")
    assert not loaded.training
    assert_same(loaded, small)
    frozen = {name for name, p in loaded.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, p in small.named_parameters() if not p.requires_grad}
    parts = {".".join(name.split(".")[:2]) for name in frozen}
    assert parts == {"backbone.stem", "backbone.res2"}
    assert len(file_sha256(path)) == 64
    checkpoint.save(loaded, tmp_path / "again.safetensors")
    again = file_sha256(tmp_path / "again.safetensors")
    assert again == file_sha256(path)


def test_half_weights_are_saved_as_float32(small: CondInst, tmp_path: Path) -> None:
    half = checkpoint.load(saved(small, tmp_path / "a.safetensors")).half()
    checkpoint.save(half, tmp_path / "b.safetensors")
    types = {t.dtype for t in load_file(tmp_path / "b.safetensors").values()}
    assert types == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("place", "said"), [("file/model.safetensors", "can't be written"), ("folder", "is a folder")]
)
def test_unwritable_place_is_one_error_and_leaves_nothing(
    small: CondInst, tmp_path: Path, place: str, said: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=said):
        checkpoint.save(small, tmp_path / place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def saved(model: CondInst, path: Path) -> Path:
    checkpoint.save(model, path)
    return path


def test_files_that_are_no_checkpoint(small: CondInst, tmp_path: Path) -> None:
    whole = saved(small, tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "broken.safetensors"
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="not a file"):
        checkpoint.load(tmp_path)
    for content in (b"", whole[:-5], whole[:100], b"a text file, not weights", whole[8:]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
            checkpoint.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no CondInst configuration inside.*condinst import"):
        checkpoint.load(path)
    for text in ("not json", "[]", '{"name": "x"}'):
        save_file({"weight": torch.zeros(2)}, path, metadata={KEY: text})
        with pytest.raises(CheckpointError, match="broken.safetensors: the configuration is"):
            checkpoint.load(path)


def test_one_error_lists_every_tensor_that_does_not_fit(small: CondInst, tmp_path: Path) -> None:
    path = saved(small, tmp_path / "model.safetensors")
    weights = load_file(path)
    del weights["backbone.stem.conv.weight"], weights["fcos.scales.2"]
    weights |= {
        "backbone.extra": torch.zeros(1),
        "fcos.controller.weight": torch.zeros(16, 169, 3, 3),
    }
    save_file(weights, path, metadata={KEY: small.config.to_json()})
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path)
    text = str(error.value)
    assert text.startswith(f"{path}: the weights do not fit the configuration condinst_nano")
    assert "(backbone.stem.conv.weight, fcos.controller.weight, fcos.scales.2)" in text
    assert "1 surplus (backbone.extra)" in text
    assert "fcos.controller.weight [16, 169, 3, 3], needed [169, 16, 3, 3]" in text
    assert "\n" not in text


def test_foreign_weights_that_do_not_fit_are_listed_under_their_names() -> None:
    weights = adelaidet_weights(small_adelaidet(50))
    del weights["controller.bias"]
    weights["mask_branch.surprise.weight"] = torch.zeros(1)
    weights["backbone.fpn_lateral3.weight"] = torch.zeros(3)
    cfg = {"MODEL": {"RESNETS": {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16}}}
    cfg |= {"MODEL.RESNETS.WIDTH_PER_GROUP": 4, "MODEL.FPN.OUT_CHANNELS": 16}
    with pytest.raises(CheckpointError) as error:
        checkpoint.model_from_adelaidet(weights, cfg | {"MODEL.FCOS.NUM_CLASSES": 3})
    for part in (
        "2 missing (fcos.controller.bias, neck.lateral3.conv.weight)",
        "1 surplus (mask_branch.surprise.weight)",
        "1 of a wrong shape (backbone.fpn_lateral3.weight [3], needed [16, 32, 1, 1])",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"MODEL": {"FCOS": {"BOX_QUALITY": "iou"}}}, "BOX_QUALITY is 'iou'; only 'ctrness'"),
        ({"MODEL.FCOS.USE_DEFORMABLE": True}, "USE_DEFORMABLE is True; only False"),
        ({"MODEL.BACKBONE.NAME": "build_vovnet_backbone"}, "only ResNet and DLA"),
        ({"MODEL.FCOS.NORM": "LN"}, "MODEL.FCOS.NORM is 'LN'; it must be one of"),
        ({"MODEL.CONDINST.MASK_HEAD.CHANNELS": 32}, "at most 16"),
    ],
)
def test_unsupported_settings_are_named(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checkpoint.config_from_adelaidet(cfg)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"model": {"neck": {"type": "PAFPN"}}}, "neck.type is 'PAFPN'; only 'FPN'"),
        ({"bbox_head.dcn_on_last_conv": True}, "dcn_on_last_conv is True; only False"),
        ({"test_cfg": {"mask_thr": 0.4}}, "test_cfg.mask_thr is 0.4; only 0.5"),
    ],
)
def test_unsupported_settings_of_mmdetection_are_named(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checkpoint.config_from_mmdet(cfg)


@pytest.mark.parametrize("wrapping", ["plain", "model", "state_dict", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_import_with_a_yaml_above_its_base(suffix: str, wrapping: str, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "Base.yaml").write_text(YAML + '  PIXEL_MEAN: [1, 2, 3]\n_BASE_: "Root.yaml"\n')
    (tmp_path / "Root.yaml").write_text("INPUT: {MIN_SIZE_TEST: 600}\nMODEL: {PIXEL_MEAN: [0]}")
    above = tmp_path / "configs" / "R50.yaml"
    above.write_text('_BASE_: "../Base.yaml"\nMODEL:\n  RESNETS: {DEPTH: 50}\n')
    model, path = small_adelaidet(50), tmp_path / f"weights{suffix}"
    weights = adelaidet_weights(model)
    if wrapping == "module.":
        weights = {f"module.{name}": tensor for name, tensor in weights.items()}
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        wrapped = {wrapping: weights, "iteration": 90000}
        torch.save(weights if wrapping in ("plain", "module.") else wrapped, path)
    found = checkpoint.import_weights(path, above)
    changed = {"pixel_mean": (1.0, 2.0, 3.0), "short_side": 600}
    assert found.config == override(model.config, **changed)
    assert_same(found, model)


def test_import_without_a_configuration_reads_it_from_the_shapes(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    fields: dict[str, Any] = {**numbered_classes(4), "deform_modulated": False}
    shared = {"share_convs": 3, "class_convs": 0, "box_convs": 1, "tower_norm": "bn"}
    config = preset("condinst_rt_r50_shtw", backbone_norm="frozen_bn", **fields | shared)
    model = build_condinst(override(config, name="adelaidet")).eval()
    randomised(model)
    torch.save(adelaidet_weights(model), path)
    found = checkpoint.import_weights(path)
    assert found.config == model.config
    assert_same(found, model)
    torch.save({"state_dict": renamed(build_condinst(preset("condinst_r50")), mmdet_name)}, path)
    config = checkpoint.import_weights(path).config
    assert (config.name, config.heads.num_classes) == ("mmdet", 80)


class Bomb:
    """What a malicious checkpoint holds: unpickling it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.target,)


def test_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    target, path = tmp_path / "exploded", tmp_path / "bomb.pth"
    pickle.loads(pickle.dumps(Bomb(target)))
    assert target.exists()  # it is live
    target.unlink()
    torch.save({"model": {"weight": torch.zeros(1)}, "note": Bomb(target)}, path)
    with pytest.raises(CheckpointError, match="could run code, so it was rejected") as error:
        checkpoint.import_weights(path)
    path.write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(CheckpointError, match="could run code, so it was rejected"):
        checkpoint.import_weights(path)
    assert not target.exists()
    assert "\n" not in str(error.value)


def test_files_that_hold_no_foreign_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.import_weights(path)
    for content in (b"", b"a text file\n", b"PK\x03\x04 half a zip"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            checkpoint.import_weights(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(CheckpointError, match="holds list, not named tensors"):
        checkpoint.import_weights(path)
    torch.save({"fc.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="holds no CondInst model"):
        checkpoint.import_weights(path)


def test_configuration_files_that_can_not_be_read(tmp_path: Path) -> None:
    weights, path = tmp_path / "w.pth", tmp_path / "c.yaml"
    torch.save({"proposal_generator.x": torch.zeros(1)}, weights)
    with pytest.raises(InputError, match="does not exist"):
        checkpoint.import_weights(weights, path)
    for text, message in (("a: [", "not a YAML"), ("- 1", "holds no configuration")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            checkpoint.import_weights(weights, path)
