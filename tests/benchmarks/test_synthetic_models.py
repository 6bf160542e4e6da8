"""The made-up models that the scripts time, and the folders in which they keep them."""

import shutil
from pathlib import Path

import pytest
import torch

from benchmarks import synthetic_models
from condinst_infer import checkpoint, load
from condinst_infer.contract.metadata import file_sha256
from condinst_infer.model.condinst import CondInst

NAME = "condinst_nano"


def test_made_up_models_find_as_many_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"short_side": 64, "long_side": 96}
    source = synthetic_models.checkpoint_file(NAME, tmp_path, **settings)
    digests = []

    def saved(model: CondInst, path: Path, checkpoint_sha256: str) -> None:
        digests.append(checkpoint_sha256)
        checkpoint.save(model, path)  # what is exported, without the half minute of exporting

    monkeypatch.setattr(synthetic_models, "export_onnx", saved)
    for count, slots in ((0, synthetic_models.INSTANCES), (3, 3)):
        path = synthetic_models.onnx_file(NAME, tmp_path, count, **settings)
        assert path == synthetic_models.onnx_file(NAME, tmp_path, count)  # not made twice
        with load(shutil.copy(path, tmp_path / "copy.safetensors")) as pipeline:
            assert len(pipeline(synthetic_models.frame())) == count
            assert pipeline.config.detect.max_detections == slots
            assert pipeline.config.input.short_side == 64
    assert digests == [file_sha256(source)] * 2
    ours, theirs = (checkpoint.read_tensors(p) for p in (source, tmp_path / "copy.safetensors"))
    assert list(ours) == list(theirs) and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_folders_are_kept_where_asked(tmp_path: Path) -> None:
    with (
        synthetic_models.folder(tmp_path / "a" / "b") as kept,
        synthetic_models.folder(None) as other,
    ):
        assert kept.is_dir() and other.is_dir()
    assert kept.is_dir() and not other.exists()
