"""The function body of ClassNMS, run alone, against a greedy loop."""

import itertools
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from tests.support.function_bodies import in_openvino, nms_model, run, session
from tests.support.nms_reference import Scene, greedy_nms, random_scene


def assert_greedy(
    runner: onnxruntime.InferenceSession | ReferenceEvaluator, scene: Scene, keep: int
) -> None:
    """What `runner` of `nms_model(keep)` puts out for `scene` is what the greedy loop keeps."""
    found, count = run(runner, scene._asdict())
    expected, counts = greedy_nms(scene, threshold=0.6, keep=keep)
    assert found.dtype == count.dtype == np.int32
    np.testing.assert_array_equal(count, counts)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("classes", [1, 80])
@pytest.mark.parametrize("keep", [1, 20, 100])
def test_class_nms_body_is_greedy_on_many_scenes(keep: int, classes: int) -> None:
    random, body = np.random.default_rng(keep + classes), session(nms_model(keep))
    for batch, slots in itertools.product((1, 2, 3), (1, 2, 5, 20, 50, 90, 150, 250, 400, 500)):
        for crowd in (5, 40):
            scene = random_scene(random, batch=batch, slots=slots, classes=classes, crowd=crowd)
            assert_greedy(body, scene, keep)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("keep", [1, 20, 100])
def test_unrolled_class_nms_body_is_greedy_on_many_scenes(keep: int, batch: int) -> None:
    random, body = np.random.default_rng(keep + batch), session(nms_model(keep, batch))
    for slots, classes in itertools.product((1, 2, 5, 50, 150, 500), (1, 80)):
        for crowd in (5, 40):
            scene = random_scene(random, batch=batch, slots=slots, classes=classes, crowd=crowd)
            assert_greedy(body, scene, keep)


@pytest.mark.parametrize("classes", [1, 80])
def test_class_nms_body_is_greedy_at_full_size(classes: int) -> None:
    random = np.random.default_rng(classes)
    for keep, batch, slots in ((100, 1, 5000), (512, 1, 5000), (512, 2, 3000), (300, 3, 1000)):
        scene = random_scene(random, batch=batch, slots=slots, classes=classes)
        assert_greedy(session(nms_model(keep)), scene, keep)


def test_class_nms_body_in_the_reference_evaluator() -> None:
    random, evaluator = np.random.default_rng(8), ReferenceEvaluator(nms_model(6))
    for slots, classes in ((1, 1), (12, 1), (30, 3)):
        scene = random_scene(random, batch=2, slots=slots, classes=classes)
        # numpy would warn of 0 / 0: boxes without area must not make a NaN
        assert_greedy(evaluator, scene, 6)


@pytest.mark.parametrize("batch", [1, 3])
def test_class_nms_body_ends_after_the_last_box_of_the_fullest_image(
    batch: int, tmp_path: Path
) -> None:
    scene = random_scene(np.random.default_rng(4), batch=batch, slots=60, classes=80)
    scene.scores[:, 12:] = 0
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    body = onnxruntime.InferenceSession(nms_model(100).SerializeToString(), options)
    (_, count) = run(body, scene._asdict())
    events = json.loads(Path(body.end_profiling()).read_text())
    steps = sum(
        event["name"].endswith("kernel_time") and event["args"]["op_name"] == "ArgMax"
        for event in events
    )
    assert 1 < steps == count.max() + 1  # the last one finds nothing


@pytest.mark.parametrize("classes", [1, 80])
def test_class_nms_body_in_openvino(classes: int) -> None:
    random = np.random.default_rng(classes)
    for batch, slots in ((1, 400), (2, 150), (3, 20)):
        scene = random_scene(random, batch=batch, slots=slots, classes=classes)
        found, count = in_openvino(nms_model(50), scene._asdict())
        expected, counts = greedy_nms(scene, threshold=0.6, keep=50)
        np.testing.assert_array_equal(count, counts)
        np.testing.assert_array_equal(found, expected)
