"""The model that ships finds nuclei, with PyTorch as with ONNX Runtime."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import nuclei
from condinst_infer import checkpoint, load
from condinst_infer.contract.metadata import file_sha256
from condinst_infer.evaluation.average_precision import evaluate
from condinst_infer.profiling.environment import environment
from condinst_infer.verification.check_export import verify_export

TRUTH = Path(__file__).parent / "data" / "nuclei"


@pytest.fixture
def micrographs(demo_folder: Path, tmp_path: Path) -> Path:
    """The images of TRUTH/instances.json in one folder."""
    for path in (demo_folder / "nuclei.jpg", TRUTH / "stained.jpg"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_the_onnx_file_is_an_export_of_the_checkpoint(demo_folder: Path) -> None:
    source = demo_folder / "nuclei.safetensors"
    assert verify_export(checkpoint.load(source), demo_folder / "nuclei.onnx").ok
    with load(demo_folder / "nuclei.onnx") as pipeline:
        assert pipeline.metadata.checkpoint_sha256 == file_sha256(source)
        assert pipeline.config.class_names == ("nucleus",)


def test_it_finds_nuclei_in_both_runtimes(demo_folder: Path, micrographs: Path) -> None:
    found = []
    for name in ("nuclei.onnx", "nuclei.safetensors"):
        with load(demo_folder / name) as pipeline:
            result = evaluate(pipeline, TRUTH / "instances.json", micrographs, max_detections=500)
        found.append(result.mask["AP"])
    assert min(found) > 50  # type: ignore[type-var]
    # measured 0; a mask at a threshold of IoU may go either way: 0.05 for each of 218 nuclei
    assert found[0] == pytest.approx(found[1], abs=0.5)


def test_it_finds_none_where_there_are_none(demo_folder: Path) -> None:
    with load(demo_folder / "nuclei.onnx") as pipeline:
        for grey in (5, 20):  # as dark as the background of a fluorescence image
            result = pipeline(np.full((256, 320, 3), grey, np.uint8))
            assert len(result) == 0 and result.masks.shape == (0, 256, 320)


def test_what_is_known_of_the_training_stays_with_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_folder: Path
) -> None:
    result = tmp_path / "nuclei.json"
    old = {"environment": {"cpu": "old"}, "training": {"minutes": 8}}
    result.write_text(json.dumps(old))
    words = ["x", "--annotations", TRUTH / "instances.json"]
    words += ["--images", demo_folder, "--calibration", demo_folder]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    monkeypatch.setattr(nuclei, "RESULT", result)
    monkeypatch.setattr(nuclei, "measure", lambda *arguments: {"artefacts": []})
    monkeypatch.setattr(nuclei, "draw", lambda *arguments: None)
    for _ in range(2):
        nuclei.main()
        found = json.loads(result.read_text())
        assert found["training"] == {"minutes": 8, "environment": {"cpu": "old"}}
        assert found["environment"]["cpu"] == environment()["cpu"]
