"""`compare` finds what differs, where, and whether it is too much."""

from pathlib import Path

import numpy as np
import pytest
import torch

from condinst_infer import checkpoint
from condinst_infer.config.model import override
from condinst_infer.errors import ConfigError, ModelFileError
from condinst_infer.model.condinst import build_condinst
from condinst_infer.processing import tail
from condinst_infer.verification.compare import compare


def image() -> np.ndarray:
    coarse = np.random.default_rng(3).integers(0, 256, (9, 12, 3), np.uint8)
    return coarse.repeat(14, 0).repeat(15, 1)


def test_a_checkpoint_and_its_export_agree_on_every_stage(
    nano_checkpoint: Path, nano_onnx: Path
) -> None:
    report = compare(nano_checkpoint, nano_onnx, [image()])
    assert report.ok, str(report)
    stages = {row.stage for row in report.rows}
    assert {"class_logits", "mask_features", "candidates", "detections", "masks"} <= stages
    assert report.detections[0] == report.detections[1] > 0
    assert sum(report.mask_iou_histogram.values()) == report.detections[0]
    assert "mask_features" in str(report)
    assert report.to_dict()["ok"] is True


def test_two_exports_agree(nano_onnx: Path, nano_static_onnx: Path) -> None:
    assert compare(nano_onnx, nano_static_onnx).ok


def test_a_detector_file_is_compared_by_its_instances(
    nano_onnx: Path, detector_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = compare(detector_onnx, nano_onnx, [image()])
    assert report.ok and report.detections[0] == report.detections[1] > 0, str(report)
    assert {"detections", "boxes", "scores", "masks"} <= {row.stage for row in report.rows}

    def nearest(x: np.ndarray, factor: int) -> np.ndarray:
        return x.repeat(factor, 0).repeat(factor, 1)

    monkeypatch.setattr(tail, "aligned_bilinear", nearest)
    report = compare(detector_onnx, nano_onnx, [image()])
    assert [row.stage for row in report.rows if not row.ok] == ["masks"]


@pytest.mark.parametrize(
    ("tensor", "stage"),
    [
        ("mask_branch.output.bias", "mask_features"),
        ("fcos.class_logits.bias", "class_logits"),
        ("fcos.box_regression.weight", "box_regression"),
    ],
)
def test_the_stage_that_was_changed_is_named(
    tensor: str, stage: str, nano_checkpoint: Path, nano_onnx: Path, tmp_path: Path
) -> None:
    model = checkpoint.load(nano_checkpoint)
    with torch.no_grad():
        model.get_parameter(tensor).add_(0.3)
    checkpoint.save(model, tmp_path / "other.safetensors")
    report = compare(tmp_path / "other.safetensors", nano_onnx)
    assert not report.ok
    assert [row.stage for row in report.rows if not row.ok][0] == stage


def test_different_models_are_refused(nano_checkpoint: Path, tmp_path: Path) -> None:
    other = build_condinst(override(checkpoint.load(nano_checkpoint).config, nms_iou=0.5))
    checkpoint.save(other, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="detect settings differ"):
        compare(nano_checkpoint, tmp_path / "other.safetensors")


def test_what_is_no_model_is_refused(nano_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"\.onnx, \.engine or \.safetensors"):
        compare(nano_checkpoint, tmp_path / "x.jpg")
