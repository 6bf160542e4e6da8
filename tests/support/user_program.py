"""A program of a user, which test_distribution.py type-checks against the wheel; it never runs."""

from pathlib import Path
from typing import assert_type

import numpy as np
import supervision
import torch
from numpy.typing import NDArray
from PIL import Image

import condinst_infer as ci


def find(photos: list[Path]) -> float:
    with ci.load("model.onnx", workers=2, runtime="openvino") as pipeline:
        assert_type(pipeline, ci.Pipeline)
        assert_type(pipeline.config.detect.score_threshold, float)
        assert_type(pipeline.metadata, ci.Metadata)
        assert_type(pipeline(photos), list[ci.Instances])
        assert_type(pipeline(Image.new("RGB", (9, 9)), classes=["cat"]), ci.Instances)
        assert_type(pipeline(torch.zeros(9, 9, 3, dtype=torch.uint8)), ci.Instances)
        result = pipeline("street.jpg", score_threshold=0.5, max_detections=3)
        assert_type(result, ci.Instances)
        assert_type(result.boxes, NDArray[np.float32])
        assert_type(result.labels, NDArray[np.int32])
        assert_type(result.masks, NDArray[np.bool_])
        assert_type(result.names, tuple[str, ...])
        assert_type(result.plot(), NDArray[np.uint8])
        assert_type(result.to_supervision(), supervision.Detections)
        assert_type(result.crops[0], ci.CroppedMask)
        for found in pipeline.map(photos, workers=2):
            assert_type(found, ci.Instances)
        return float(result.scores.max())


def watch(pipeline: ci.Pipeline) -> list[float | None]:
    with pipeline.stream("traffic.mp4", every=2) as frames:
        assert_type(frames, ci.FrameStream[ci.Instances])
        for frame, found in frames:
            assert_type(frame, ci.Frame)
            assert_type(frame.image, NDArray[np.uint8])
            assert_type(found, ci.Instances)
        return [frame.seconds for frame, _ in frames]


def areas(pipeline: ci.Pipeline, photos: list[str]) -> dict[str, int]:
    try:
        (first, *others) = pipeline.panoptic(photos, overlap_threshold=0.4)
        assert_type(others, list[ci.PanopticSegmentation])
        assert_type(pipeline.panoptic(photos[0]), ci.PanopticSegmentation)
        assert_type(first.id_map, NDArray[np.int32])
        assert_type(first.segments, tuple[ci.PanopticSegment, ...])
        assert_type(first.segments[0].score, float | None)
        return {segment.name: segment.area for segment in first.segments}
    except (ci.InputError, ci.ConfigError) as error:
        assert_type(error, ci.InputError | ci.ConfigError)
        raise ci.CondInstError(str(error)) from error


def wider() -> ci.CondInstConfig:
    assert_type(ci.preset_names(), tuple[str, ...])
    return ci.override(ci.preset("condinst_r50"), short_side=1024)
