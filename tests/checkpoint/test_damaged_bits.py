"""Weights that a disk damaged, or that a training that diverged left: refused with their name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from condinst_infer import checkpoint
from condinst_infer.config.presets import preset
from condinst_infer.contract.weights_sha256 import WEIGHTS_KEY
from condinst_infer.errors import CheckpointError
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.train.initialize import initial_model
from tests.checkpoint.test_files import adelaidet_weights, small_adelaidet
from tests.support.command_line import Run, assert_refused
from tests.support.damaged_bits import flip, spread

# of each part of the network
TENSORS = [
    "backbone.stem.conv.weight",
    "neck.lateral4.conv.bias",
    "fcos.share_tower.0.conv.weight",
    "fcos.class_logits.bias",
    "fcos.scales.1",
    "fcos.controller.bias",
    "mask_branch.output.weight",
]
MANY = [pytest.param(120, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def saved(nano_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bits") / "model.safetensors"
    checkpoint.save(checkpoint.load(nano_checkpoint), path)
    return path


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(saved, tmp_path / "model.safetensors"))


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def write_with(path: Path, name: str, value: float, *, drop_digest: bool = False) -> None:
    weights, metadata = load_file(path), metadata_of(path)
    weights[name].view(-1)[0] = value
    if drop_digest:
        del metadata[WEIGHTS_KEY]
    save_file(weights, path, metadata=metadata)


@pytest.mark.parametrize("count", [5, *MANY])
def test_a_flipped_bit_among_the_weights_is_noticed(count: int, copy: Path, condinst: Run) -> None:
    begin = 8 + int.from_bytes(copy.read_bytes()[:8], "little")
    for position in spread(begin, copy.stat().st_size, count):
        flip(copy, position)
        with pytest.raises(CheckpointError, match=r"SHA-256 inside differs|holds (NaN|infinity)"):
            checkpoint.load(copy)
        flip(copy, position)
    checkpoint.load(copy)
    flip(copy, begin)
    status, out, _ = condinst("info", copy, "--verify")
    assert status == 1 and out.startswith("changed: ") and out.count("\n") == 1
    assert_refused(condinst("predict", copy, copy, "-o", copy.parent / "out"), str(copy))


def test_the_same_model_gives_the_same_file(saved: Path, tmp_path: Path) -> None:
    for _ in range(3):  # two entries in a random order are alike half of the time
        checkpoint.save(checkpoint.load(saved), tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_a_file_without_checksum_loads_and_says_so(copy: Path, condinst: Run) -> None:
    digest = metadata_of(copy)[WEIGHTS_KEY]
    assert f"weights_sha256:     {digest}\n" in condinst("info", copy)[1]
    assert condinst("info", copy, "--verify")[:2] == (
        0, f"match: {copy} is as it was written: its weights have the SHA-256 inside.\n",
    )  # fmt: skip
    write_with(copy, "fcos.scales.1", 1.5, drop_digest=True)
    assert checkpoint.load(copy).state_dict()["fcos.scales.1"] == 1.5
    assert "weights_sha256:     no checksum\n" in condinst("info", copy)[1]
    assert json.loads(condinst("info", copy, "--json")[1])["weights_sha256"] is None
    status, out, _ = condinst("info", copy, "--verify", "--json")
    assert (status, json.loads(out)) == (0, {"file": str(copy), "verify": "no checksum"})


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("value", [np.nan, pytest.param(-np.inf, marks=pytest.mark.slow)])
def test_a_weight_that_is_not_finite_is_refused(
    value: float, name: str, copy: Path, condinst: Run
) -> None:
    write_with(copy, name, value)
    sentence = f"the weight {name} holds {'NaN' if np.isnan(value) else 'infinity'}"
    output = copy.with_suffix(".onnx")
    assert_refused(condinst("export", copy, "-o", output), str(copy), sentence)
    assert_refused(condinst("info", copy, "--verify"), str(copy), sentence)
    with pytest.raises(CheckpointError, match=sentence):
        initial_model(preset("condinst_nano"), copy)
    assert not output.exists()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_model_with_such_a_weight_is_not_exported(
    precision: str, saved: Path, tmp_path: Path
) -> None:
    model = checkpoint.load(saved)
    model.get_parameter("fcos.controller.bias").data[3] = np.nan
    with pytest.raises(CheckpointError, match=r"the weight fcos\.controller\.bias holds NaN"):
        export_onnx(model, tmp_path / "a.onnx", precision=precision)
    assert not (tmp_path / "a.onnx").exists()


def test_a_weight_that_fp16_can_not_hold_is_named(saved: Path, tmp_path: Path) -> None:
    model = checkpoint.load(saved)
    model.get_parameter("fcos.controller.bias").data[3] = 65521  # 65519 rounds to 65504
    with pytest.raises(CheckpointError, match=r"fcos\.controller\.bias.* ends at 65504"):
        export_onnx(model, tmp_path / "a.onnx", precision="fp16")


def test_a_negative_variance_is_refused(saved: Path, tmp_path: Path) -> None:
    model = checkpoint.load(saved)
    norms = [n for n, _ in model.named_buffers() if n.endswith("running_var")]
    model.get_buffer(norms[0])[0] = -1.0
    with pytest.raises(CheckpointError, match="look at the variance"):
        export_onnx(model, tmp_path / "a.onnx")


@pytest.mark.parametrize("count", [6, *MANY])
def test_a_damaged_pth_is_refused(count: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    weights = adelaidet_weights(small_adelaidet())
    torch.save({"model": weights}, path)
    refused = 0
    for position in spread(0, path.stat().st_size, count):
        flip(path, position)
        try:
            found = checkpoint.read_tensors(path)
            # a date or padding: whatever is read is as it was
            assert found.keys() == weights.keys()
            assert all(torch.equal(found[name], weights[name]) for name in weights)
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        flip(path, position)
    assert refused > count // 2


def test_a_backbone_to_start_from_is_checked_too(tmp_path: Path) -> None:
    weights = {
        "conv1.weight": torch.full((64, 3, 7, 7), torch.nan),
        **{f"layer{k}.{i}.conv1.weight": torch.zeros(1) for k in (1, 2, 3, 4) for i in (0, 1)},
    }
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: the weight conv1\.weight holds NaN"):
        initial_model(preset("condinst_nano"), tmp_path / "a.pth")


def test_import_names_the_weight_that_is_not_finite(tmp_path: Path, condinst: Run) -> None:
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    weights = adelaidet_weights(small_adelaidet())
    weights["controller.bias"][0] = np.inf
    torch.save({"model": weights}, tmp_path / "a.pth")
    output = tmp_path / "a.safetensors"
    found = condinst("import", tmp_path / "a.pth", "-o", output)
    assert_refused(found, f"{tmp_path / 'a.pth'}: the weight controller.bias holds infinity")
    weights["controller.bias"] = weights["controller.bias"].double()
    weights["controller.bias"][0] = 1e300  # finite until it is float32
    torch.save({"model": weights}, tmp_path / "a.pth")
    found = condinst("import", tmp_path / "a.pth", "-o", output)
    assert_refused(found, "the weight controller.bias holds infinity")
    assert not output.exists()
