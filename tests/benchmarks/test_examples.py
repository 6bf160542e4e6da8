"""The table of examples, from a made-up file, and the comparison behind it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.examples import differences
from benchmarks.report.examples import parts
from tests.support.results import instances

MASKS = np.zeros((2, 20, 30), bool)
MASKS[0, 3:7, 2:9] = MASKS[1, 10:, 20:] = True


def test_a_row_says_how_far_an_example_is_and_times_are_ratios(tmp_path: Path) -> None:
    row: dict[str, Any] = {"example": "node", "instances": 5, "expected": 5, "boxes": 6.1e-5}
    row |= {"scores": 0.0, "pixels": 2, "of_pixels": 900}
    rows = [row, {"example": "web", "instances": 4, "expected": 5}]
    times = {"cpp": 50.0, "cpp_detector": 75.0, "python": 100.0}
    path = tmp_path / "nuclei.json"
    content = {"environment": {"cpu": "A CPU"}, "rows": rows, "times_ms": times}
    path.write_text(json.dumps(content))
    text = parts(path)["examples"]
    assert "| node | 5 of 5 | 6e-05 | 0 | 2 of 900 |" in text
    assert "| web | 4 of 5 |  |  | other instances |" in text
    assert "on A CPU" in text and " 0.50 of the time" in text and " 0.75 with" in text


def test_differences_are_those_of_instances_in_their_order() -> None:
    expected = instances(MASKS)
    found: list[dict[str, Any]] = [
        {
            "label": int(one.label),
            "score": float(one.score) + 0.25,
            "box": [side - 0.5 for side in one.box.tolist()],
            "segmentation": {"size": [20, 30], "counts": [600 - k, k]},
        }
        for k, one in enumerate(expected, 1)
    ]
    far = differences(found, expected)
    # the last pixel of the first mask and the last two of the second
    assert far["pixels"] == 28 + 1 + 100 - 2
    assert (far["boxes"], far["of_pixels"]) == (0.5, 1200)
    assert far["scores"] == pytest.approx(0.25)
    assert differences(found[::-1], expected) == {"instances": 2, "expected": 2}
