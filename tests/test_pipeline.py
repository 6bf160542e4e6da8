"""The pipeline: which session, which canvas, which batches, and that none of it changes results."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import condinst_infer as ci
from condinst_infer.errors import ConfigError, InputError, ModelFileError, SessionError
from tests.support.bright_model import write_bright_model
from tests.support.fake_session import SIZES, FakeSession, assert_same, photograph


def test_boxes_and_masks_lie_on_the_objects_in_the_original() -> None:
    result = ci.Pipeline(FakeSession())(photograph((240, 320)))
    assert len(result) == 2
    np.testing.assert_allclose(result.boxes[0], (40, 30, 160, 120), atol=3)
    truth = np.zeros((240, 320), bool)
    truth[30:120, 40:160] = True
    assert (result.masks[0] & truth).sum() / (result.masks[0] | truth).sum() > 0.93


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"size": (96, 160)},
        {"batch": 4},
        {"size": (96, 160), "batch": 4},
        {"size": (32, 32), "batch": 1},
    ],
)
def test_a_list_gives_what_single_calls_give(metadata: dict) -> None:
    images = [photograph(size, seed) for seed, size in enumerate(SIZES)]
    pipeline = ci.Pipeline(FakeSession(**metadata), max_batch=3)
    results = pipeline(images)
    assert [result.image_size for result in results] == SIZES
    assert sum(map(len, results)) > len(SIZES)  # strips lose some objects on a tiny canvas
    for image, result in zip(images, results, strict=True):
        assert_same(result, pipeline(image))


def test_a_real_runtime_gives_what_single_calls_give(bright_model: Path, tmp_path: Path) -> None:
    static = write_bright_model(tmp_path / "static.onnx", size=(96, 160), batch=2)
    images = [photograph(size, seed) for seed, size in enumerate(SIZES)]
    for path in (bright_model, static):
        with ci.load(path, threads=1) as pipeline:
            for image, result in zip(images, pipeline(images), strict=True):
                assert_same(result, pipeline(image))


def test_only_images_of_one_canvas_share_a_batch() -> None:
    session = FakeSession()
    sizes = [(60, 90), (90, 60)] * 4 + [(60, 90)]
    ci.Pipeline(session, max_batch=3)([photograph(size) for size in sizes])
    shapes = sorted(feeds["images"].shape for feeds in session.fed)
    assert shapes == [
        (1, 160, 96, 3),
        (2, 96, 160, 3),
        (3, 96, 160, 3),
        (3, 160, 96, 3),
    ]


def test_a_static_batch_is_filled_up_with_black() -> None:
    session = FakeSession(batch=4)
    results = ci.Pipeline(session)([photograph((60, 90))])
    images, sizes = session.fed[0]["images"], session.fed[0]["image_sizes"]
    assert len(results) == 1
    assert images.shape[0] == 4 and images[0].any() and not images[1:].any()
    assert (sizes[1:] > 0).all()


def test_an_image_that_does_not_fit_a_static_canvas_is_scaled_not_cropped() -> None:
    session = FakeSession(size=(96, 160))
    portrait = photograph((320, 200))
    result = ci.Pipeline(session)(portrait)
    height, width = session.fed[0]["image_sizes"][0]
    assert height == 96 and abs(width - 60) <= 1
    assert len(result) == 2  # the second rectangle touches the lower right corner
    np.testing.assert_allclose(result.boxes[1], (150, 240, 200, 320), atol=4)


def test_every_kind_of_source_gives_the_same(tmp_path: Path) -> None:
    image = photograph((60, 90))
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image)
    pillow = Image.fromarray(image[..., ::-1])
    flipped = np.ascontiguousarray(image[::-1])[::-1]  # negative stride
    pipeline = ci.Pipeline(FakeSession())
    one = pipeline(image)
    for source in (path, str(path), pillow, flipped):
        assert_same(pipeline(source), one)
    for result in pipeline(source for source in (path, image)):
        assert_same(result, one)


def test_no_images_give_no_results() -> None:
    session = FakeSession(batch=2)
    assert ci.Pipeline(session)([]) == [] and session.fed == []


def test_an_image_without_objects_gives_empty_arrays() -> None:
    result = ci.Pipeline(FakeSession())(np.zeros((50, 70, 3), np.uint8))
    assert result.boxes.shape == (0, 4) and result.masks.shape == (0, 50, 70)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "NoneType"),
        (7, "int"),
        (b"a.jpg", "bytes"),
        ([3], "int"),
        (["missing.jpg"], r"missing\.jpg does not exist"),
        ([np.zeros((2, 9, 9, 3), np.uint8)], r"\(2, 9, 9, 3\).* not within a list"),
    ],
)
def test_what_is_no_image_is_refused(source: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ci.Pipeline(FakeSession())(source)  # type: ignore[call-overload]


def test_options_reach_the_result_and_wrong_ones_cost_no_run() -> None:
    session = FakeSession()
    pipeline, image = ci.Pipeline(session), photograph((60, 90))
    assert len(pipeline(image, max_detections=1)) == 1
    assert pipeline(image, score_threshold=0.85).labels.tolist() == [0]
    assert pipeline([image], classes=["bicycle"])[0].labels.tolist() == [1]
    runs = len(session.fed)
    for options in ({"score_threshold": 0.1}, {"max_detections": 0}, {"classes": ["bicycel"]}):
        with pytest.raises(ConfigError):
            pipeline(image, **options)  # type: ignore[call-overload]
    assert len(session.fed) == runs


def test_larger_images_than_allowed_are_refused() -> None:
    pipeline = ci.Pipeline(FakeSession(), max_pixels=5400)
    pipeline(photograph((60, 90)))
    with pytest.raises(InputError, match="max_pixels"):
        pipeline(photograph((60, 91)))


def test_config_and_metadata_are_those_of_the_session() -> None:
    session = FakeSession(batch=3)
    pipeline = ci.Pipeline(session)
    assert pipeline.config is session.metadata.config and pipeline.metadata.batch == 3


def test_leaving_the_context_closes_the_session() -> None:
    session = FakeSession()
    with ci.Pipeline(session):
        assert not session.closed
    assert session.closed


def test_calls_from_several_threads_do_not_disturb_each_other(bright_model: Path) -> None:
    pipeline = ci.load(bright_model, threads=1)
    images = [photograph(size, seed) for seed, size in enumerate(SIZES * 3)]
    expected = [pipeline(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for result, one in zip(pool.map(pipeline, images), expected, strict=True):
            assert_same(result, one)


@pytest.mark.parametrize("option", ["max_pixels", "max_batch"])
def test_limits_must_be_whole_numbers_from_one(option: str) -> None:
    for value in (0, -3, 2.5):
        with pytest.raises(ConfigError, match=f"{option} is"):
            ci.Pipeline(FakeSession(), **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("model.engine", {}, ModelFileError, "does not exist"),
        ("model.engine", {"device": "cpu"}, SessionError, "runs on a GPU only"),
        ("model.pth", {}, ModelFileError, r"must end in \.onnx, \.engine or \.safetensors"),
        ("model", {}, ModelFileError, r"must end in \.onnx, \.engine or \.safetensors"),
        ("missing.onnx", {}, ModelFileError, "does not exist"),
        ("model.onnx", {"threads": 0}, ConfigError, "threads is 0"),
        ("model.safetensors", {"threads": 0}, ConfigError, "threads is 0"),
    ],
)
def test_load_says_what_it_can_load(
    name: str, options: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ci.load(name, **options)


def test_a_network_gives_in_batches_what_it_gives_alone(
    nano_onnx: Path, nano_static_onnx: Path
) -> None:
    images = [photograph(size, seed) for seed, size in enumerate(SIZES)]
    for path in (nano_onnx, nano_static_onnx):
        with ci.load(path, threads=2) as pipeline:
            results = pipeline(images)
            assert sum(map(len, results)) > 5 * len(SIZES)
            assert len({tuple(result.scores.tolist()) for result in results}) == len(SIZES)
            for image, result in zip(images, results, strict=True):
                assert_same(result, pipeline(image))


def test_torch_and_onnx_runtime_find_the_same(nano_checkpoint: Path, nano_onnx: Path) -> None:
    torch_pipeline, onnx_pipeline = ci.load(nano_checkpoint), ci.load(nano_onnx)
    digest = torch_pipeline.metadata.checkpoint_sha256
    assert len(digest) == 64 and digest == onnx_pipeline.metadata.checkpoint_sha256
    for seed, size in enumerate(SIZES):
        image = photograph(size, seed)
        a, b = torch_pipeline(image), onnx_pipeline(image)
        assert a.names == b.names
        # worst measured: 3e-4 pixels on 300x300, 6e-7, and no pixel of 3.7 million; a pixel of
        # the network is up to 3.6 of the image
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=0, atol=3e-3)
        np.testing.assert_allclose(a.scores, b.scores, rtol=0, atol=5e-6)
        assert (a.masks != b.masks).sum() <= 1e-4 * a.masks.size  # 3 of 109,800 with --jitter
