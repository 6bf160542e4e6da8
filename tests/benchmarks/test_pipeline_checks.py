"""The comparison of whole pipelines finds what differs, and does not pass for want of instances."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import pipeline_checks
from benchmarks.gpu.pipeline_checks import _equal, _near
from benchmarks.gpu.pipeline_checks import pipeline_checks as compared
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.stream import Graph
from condinst_infer.profiling.gpu.checks import Check
from condinst_infer.results.crop import CroppedMask
from condinst_infer.results.instances import Instances

SIZE = (40, 50)


def instances(**changes: Any) -> Instances:
    """Two squares of 10 pixels."""
    corners = np.array([(5, 5), (20, 30)], np.float32)  # x, y
    mask = np.ones((10, 10), bool)
    return dataclasses.replace(
        Instances(
            boxes=np.concatenate([corners, corners + 10], 1),
            scores=np.array([0.9, 0.8], np.float32),
            labels=np.zeros(2, np.int32),
            crops=[CroppedMask(int(x), int(y), mask) for x, y in corners],
            image_size=SIZE,
            class_names=("square",),
            category_ids=(1,),
        ),
        **changes,
    )


def changed_pixels() -> Instances:
    mask = np.ones((10, 10), bool)
    mask[3, 3:7] = False
    return instances(crops=[CroppedMask(5, 5, mask), instances().crops[1]])


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (instances(), 0),
        (changed_pixels(), 4),
        (instances(scores=np.array([0.9, 0.7], np.float32)), 1),
        (instances(labels=np.ones(2, np.int32)), 2),
    ],
    ids=["same", "pixels", "score", "labels"],
)
def test_every_differing_value_counts(found: Instances, wrong: int) -> None:
    check = _equal("case", found, instances(), "a plain run")
    assert check.difference == wrong and check.ok == (wrong == 0)


def test_another_number_of_instances_is_wrong() -> None:
    check = _equal("case", instances()[:1], instances(), "a plain run")
    assert math.isnan(check.difference) and not check.ok


@pytest.mark.parametrize(
    ("found", "stage"),
    [
        (instances(boxes=instances().boxes + np.float32(0.2)), "boxes"),
        (instances(scores=np.array([0.9, 0.79], np.float32)), "scores"),
        (changed_pixels(), "masks"),
        (instances()[:1], "detections"),
    ],
    ids=["boxes", "scores", "masks", "count"],
)
def test_what_is_too_far_from_another_runtime_is_named(found: Instances, stage: str) -> None:
    checks = list(_near(found, instances(), "ONNX Runtime"))
    assert [check.case.split()[2] for check in checks if not check.ok] == [stage]
    assert all(check.ok for check in _near(instances(), instances(), "ONNX Runtime"))


def test_no_instances_are_no_success() -> None:
    for found, expected in ((instances()[:0], instances()), (instances(), instances()[:0])):
        with pytest.raises(RuntimeError, match="nothing to compare"):
            _equal("case", found, expected, "a plain run")
        with pytest.raises(RuntimeError, match="nothing to compare"):
            list(_near(found, expected, "ONNX Runtime"))


def test_a_comparison_that_fails_leaves_the_others(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(device: Device, model: object, frame: object) -> Any:
        """A frame beside another."""
        raise ValueError("made up")

    names = ("_frames", "_graph_replay", "_torch_on_the_cpu", "_onnxruntime")
    for name in names[:3]:
        monkeypatch.setattr(pipeline_checks, name, lost)
    monkeypatch.setattr(pipeline_checks, names[3], lambda *_: iter(["compared"]))
    *failed, last = compared(device, small=True)
    failure = {"kernel": "pipeline", "case": "A frame beside another"}
    assert failed == [failure | {"error": "ValueError: made up"}] * 3 and last == "compared"


@pytest.mark.slow
def test_a_graph_that_does_nothing_is_found(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Graph, "launch", lambda self: None)
    checks = [check for check in compared(device, small=True) if isinstance(check, Check)]
    wrong = [check.case.split(",")[0] for check in checks if not check.ok]
    assert wrong == ["replay of a CUDA graph"] and len(checks) == 10
