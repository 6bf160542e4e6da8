"""The rivals of our pipeline have as much to do as it has, and run without torchvision."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import competitors, synthetic_models, torchvision_stub
from condinst_infer import ops

ONCE = {"repeats": 1, "threads": 1}


def side(masks: np.ndarray, name: str = "n") -> competitors.Side:
    return competitors.Side(name, "package 1.0", "PyTorch", (480, 640), 2_000_000, lambda: masks)


def test_rivals_must_make_as_many_masks() -> None:
    masks = np.zeros((100, *synthetic_models.FRAME), bool)
    result = competitors.measure([side(masks), side(masks[:95], "m")], **ONCE)
    ours, other = result["sides"]
    assert (ours["ratio"], other["instances"]) == (1, 95)
    assert other["ratio"] == other["times_ms"]["p50"] / ours["times_ms"]["p50"]
    for wrong in (masks[:94], masks[:, 1:], masks.view(np.uint8)):
        with pytest.raises(SystemExit, match="masks"):
            competitors.measure([side(masks), side(wrong)], **ONCE)


def test_the_stand_in_suppresses_as_our_nms() -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 50, (60, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 30, (60, 2))], 1)
    boxes, scores = torch.from_numpy(boxes).float(), torch.from_numpy(random.random(60)).float()
    labels = torch.zeros(1, 60, dtype=torch.int32)
    keep, count = ops.class_nms(
        boxes[None], scores[None], labels, iou_threshold=0.5, max_detections=60
    )
    assert torchvision_stub._nms(boxes, scores, 0.5).tolist() == keep[0, : count[0]].tolist()
    assert 5 < int(count[0]) < 60


def test_the_stand_in_is_found_where_torchvision_is_missing() -> None:
    code = (
        "import importlib.util, sys\n"
        "from benchmarks import torchvision_stub\n"
        "missing = importlib.util.find_spec('torchvision') is None\n"
        "torchvision_stub.stand_in()\n"
        "from importlib.metadata import version\n"
        "import torch, torchvision\n"
        "from torchvision.transforms import functional as F\n"
        "assert version('torchvision') and F.resize and torchvision.ops.nms\n"
        "if missing:\n"
        "    class Child(torchvision.datasets.CocoDetection): pass\n"
        "    x = F.normalize(F.resize(torch.ones(3, 4, 6), [2, 3]), [.5] * 3, [.25] * 3)\n"
        "    assert x.shape == (3, 2, 3) and (x == 2).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
