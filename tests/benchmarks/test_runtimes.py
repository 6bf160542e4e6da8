"""The table of runtimes, from a made-up file, and the script that measures them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.report.runtimes import parts
from benchmarks.runtimes import differences, measure
from tests.support.bright_model import write_bright_model

FEEDS = {
    "images": np.full((1, 64, 64, 3), 200, np.uint8),
    "image_sizes": np.array([[64, 64]], np.int32),
}


def test_a_cell_says_what_was_found_and_how_far_it_is(tmp_path: Path) -> None:
    found = {"instances": 5, "matched": 4, "expected": 4, "least_mask_iou": 0.9876}
    far = {"boxes": 6.1e-5, "scores": 0.0, "masks": 0.31}
    files = {
        "plain": {"error": "no rule for | that."},
        "standard": {"version": "1", "builds": True},
    }
    files["static"] = {"version": "1", **found, **far}
    path = tmp_path / "nuclei.json"
    path.write_text(json.dumps({"rows": [{"runtime": "mnn", "version": "3", "files": files}]}))
    (line,) = [line for line in parts(path)["runtimes"].splitlines() if "MNN" in line]
    assert line == (
        "| MNN | 3 | fails: no rule for / that | builds; not run | "
        "4 of 4, 5 found; boxes 6e-05 px, masks 0.3, mask IoU from 0.988 |"
    )


def test_differences_are_those_of_one_instance() -> None:
    masks = np.zeros((1, 2, 8, 8), np.float32)
    masks[0, :, :4] = 0.9
    boxes = np.array([[[0, 0, 8, 4], [0, 0, 0, 0]]], np.float32)
    ours = {"num_detections": np.array([1]), "boxes": boxes, "masks": masks}
    ours |= {"scores": np.array([[0.5, 0]]), "labels": np.array([[0, -1]])}
    theirs = ours | {"boxes": boxes + 0.25, "masks": masks * 0.5}
    far = differences(ours, theirs)
    assert (far["instances"], far["matched"], far["boxes"]) == (1, 1, 0.25)
    assert far["masks"] == pytest.approx(0.45) and far["least_mask_iou"] == 0
    assert differences(ours, {"masks": masks})["error"].startswith("there is no output boxes")


@pytest.mark.slow
def test_a_runtime_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = write_bright_model(tmp_path / "bright.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    found: Any = session.run(names, FEEDS)
    expected = dict(zip(names, found, strict=True))
    row = measure("onnxruntime", Path(sys.executable), path, FEEDS, expected)
    assert row["version"] == onnxruntime.__version__
    assert (row["instances"], row["matched"], row["masks"]) == (1, 1, 0)
    (tmp_path / "text.onnx").write_text("I am a text")
    row = measure("onnxruntime", Path(sys.executable), tmp_path / "text.onnx", FEEDS, expected)
    assert "version" not in row and "rotobuf" in row["error"]
