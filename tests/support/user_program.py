"""A program of a user, which test_distribution.py type-checks against the wheel; it never runs."""

import io
from collections.abc import Iterator
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


def find_in_all_forms(device: torch.device, content: bytes, image: NDArray[np.uint8]) -> None:
    pipeline = ci.load("nuclei", device=device)
    assert_type(pipeline(content), ci.Instances)
    assert_type(pipeline(bytearray(content)), ci.Instances)
    assert_type(pipeline(memoryview(content)), ci.Instances)
    assert_type(pipeline(io.BytesIO(content)), ci.Instances)
    assert_type(pipeline(image, channel_order="rgb"), ci.Instances)
    assert_type(pipeline.panoptic(image, channel_order="rgb"), ci.PanopticSegmentation)
    assert_type(pipeline((image, image)), list[ci.Instances])
    with Path("street.jpg").open("rb") as file:
        assert_type(pipeline(file), ci.Instances)
        assert_type(pipeline([file, content, image]), list[ci.Instances])

    def images() -> Iterator[NDArray[np.uint8]]:
        yield image

    assert_type(pipeline(images()), list[ci.Instances])
    for source in (Path("photos"), "scans/*.png"):
        for found in pipeline.map(source, channel_order="rgb"):
            assert_type(found, ci.Instances)


def use(result: ci.Instances, folder: Path) -> float:
    total = 0.0
    for instance in result:
        assert_type(instance, ci.Instance)
        assert_type(instance.box, NDArray[np.float32])
        assert_type(instance.mask, NDArray[np.bool_])
        assert_type(instance.polygons(tolerance=1.0), list[ci.Polygon])
        total += instance.score * instance.area
    assert_type(result[3], ci.Instance)
    assert_type(result[2:5], ci.Instances)
    assert_type(result[result.scores > 0.5], ci.Instances)
    assert_type(result[np.array([2, 0])], ci.Instances)
    assert_type(result[[0, 1]], ci.Instances)
    best = result.filter(classes=["person", 2], min_score=0.5, min_area=100)
    for suffix in (".png", ".json", ".csv", ".txt"):
        best.save(folder / f"street{suffix}")
    assert_type(ci.Instances.from_json(best.to_json()), ci.Instances)
    assert_type(best.to_yolo(), str)
    print(best.to_labelme("street.jpg")["shapes"], len(best.to_dataframe()))
    assert_type(best.to_supervision(compact=False), supervision.Detections)
    assert_type(best.plot(color_by="class", thickness=2, fill=False), NDArray[np.uint8])
    best.show()
    return total


def use_segments(result: ci.PanopticSegmentation) -> list[str]:
    assert_type(result[0], ci.PanopticSegment)
    assert_type(result.filter(classes="sky", min_area=10), ci.PanopticSegmentation)
    result[:3].save("street.json")
    return [segment.name for segment in result]


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
