"""`Pipeline.map`: what single calls give, in order, with little ahead and several workers."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import condinst_infer as ci
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.paste import paste
from condinst_infer.processing.postprocess import BatchOutputs
from condinst_infer.processing.preprocess import stack_images
from condinst_infer.runtimes.runner import CpuRunner
from tests.support.bright_model import write_bright_model
from tests.support.fake_session import SIZES, FakeSession, assert_same, photograph


@pytest.mark.parametrize("metadata", [{}, {"batch": 4}, {"size": (96, 160), "batch": 2}])
@pytest.mark.parametrize(("workers", "max_batch"), [(1, 1), (2, 1), (3, 2), (2, 8)])
def test_map_gives_what_single_calls_give(metadata: dict, workers: int, max_batch: int) -> None:
    images = [photograph(size, seed) for seed, size in enumerate(SIZES * 2)]
    with ci.Pipeline(FakeSession(**metadata), max_batch=max_batch) as pipeline:
        results = list(pipeline.map(images, workers=workers))
        assert [result.image_size for result in results] == SIZES * 2
        for image, result in zip(images, results, strict=True):
            assert_same(result, pipeline(image))
        assert list(pipeline.map([], workers=workers)) == []


def test_map_fills_batches_of_what_follows_each_other() -> None:
    for metadata, max_batch, most in (({}, 3, 3), ({"batch": 4}, 1, 4), ({}, 1, 1)):
        session = FakeSession(**metadata)
        images = [photograph((60, 90), seed) for seed in range(12)]
        list(ci.Pipeline(session, max_batch=max_batch).map(images, workers=2))
        assert [len(feeds["images"]) for feeds in session.fed] == [most] * (12 // most)
        assert all(image.any() for feeds in session.fed for image in feeds["images"])


def test_a_real_runtime_gives_what_single_calls_give(bright_model: Path, tmp_path: Path) -> None:
    static = write_bright_model(tmp_path / "static.onnx", size=(96, 160), batch=2)
    images = [photograph(size, seed) for seed, size in enumerate(SIZES)]
    for path in (bright_model, static):
        with ci.load(path, workers=3) as pipeline:
            for image, result in zip(images, pipeline.map(images, workers=3), strict=True):
                assert_same(result, pipeline(image))


def test_a_network_gives_what_single_calls_give(
    nano_onnx: Path, nano_static_onnx: Path, nano_checkpoint: Path
) -> None:
    images = [photograph(size, seed) for seed, size in enumerate(SIZES)]
    for path in (nano_onnx, nano_static_onnx, nano_checkpoint):
        with ci.load(path, threads=1, workers=2) as pipeline:
            results = list(pipeline.map(images, workers=2))
            assert sum(map(len, results)) > 5 * len(SIZES)
            for image, result in zip(images, results, strict=True):
                assert_same(result, pipeline(image))


def test_workers_read_and_run_and_make_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), photograph((60, 90)))
    threads = []
    together = threading.Barrier(2)
    stages = (
        ("processing.preprocess.cv2.cvtColor", cv2.cvtColor),
        ("runtimes.runner.stack_images", stack_images),
        ("processing.postprocess.paste", paste),
    )
    for name, stage in stages:

        def recorded(*args: Any, stage: Any = stage, **options: Any) -> Any:
            threads.append(threading.current_thread().name)
            together.wait(20)  # both workers are at the same stage at the same time
            return stage(*args, **options)

        monkeypatch.setattr(f"condinst_infer.{name}", recorded)
    pipeline = ci.Pipeline(FakeSession())
    assert len(list(pipeline.map([tmp_path / "a.png"] * 4, workers=2))) == 4
    assert len(threads) == 12 and len(set(threads)) == 2
    assert threading.current_thread().name not in threads


def no_workers() -> bool:
    return not [t for t in threading.enumerate() if t.name.startswith("condinst")]


class Endless:
    """Photographs without end; knows how many were taken."""

    taken = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for seed in itertools.count():
            self.taken += 1
            yield photograph((60, 90), seed)


@pytest.mark.parametrize(("workers", "batch"), [(1, 1), (2, 1), (2, 3), (3, 2)])
def test_sources_without_end_are_taken_as_results_are(workers: int, batch: int) -> None:
    sources = Endless()
    pipeline = ci.Pipeline(FakeSession(), max_batch=batch)
    results = pipeline.map(sources, workers=workers)
    ahead = batch * (2 * workers if workers > 1 else 1)
    assert sources.taken == 0
    for got in range(1, 11):
        next(results)
        assert got <= sources.taken < got + ahead + batch
    results.close()
    assert no_workers()
    assert len(pipeline(photograph((60, 90)))) == 2  # it can go on


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_image_that_cannot_be_read_fails_in_its_place(workers: int, batch: int) -> None:
    good = [photograph(SIZES[seed], seed) for seed in range(8)]
    sources = [*good[:3], "gone.jpg", *good[3:], "gone too.jpg"]
    pipeline = ci.Pipeline(FakeSession(), max_batch=batch)
    got = []
    with pytest.raises(InputError, match=r"gone\.jpg does not exist") as caught:
        for result in pipeline.map(sources, workers=workers):
            got.append(result)
    assert [result.image_size for result in got] == SIZES[:3]
    assert caught.tb is not None  # it holds the iterator, which must have ended all the same
    assert no_workers()


def test_options_reach_the_results_and_wrong_ones_are_refused_at_once() -> None:
    session, sources = FakeSession(), Endless()
    pipeline, image = ci.Pipeline(session), photograph((60, 90))
    one = list(pipeline.map([image, image], workers=2, max_detections=1))
    assert [len(result) for result in one] == [1, 1]
    assert next(pipeline.map([image], score_threshold=0.85)).labels.tolist() == [0]
    assert next(pipeline.map([image], classes=["bicycle"])).labels.tolist() == [1]
    for options in (
        {"score_threshold": 0.1},
        {"max_detections": 0},
        {"classes": ["bicycel"]},
        {"workers": 0},
        {"workers": 1.5},
    ):
        with pytest.raises(ConfigError):
            pipeline.map(sources, **options)  # type: ignore[arg-type]
    assert sources.taken == 0


@pytest.mark.parametrize("source", ["a.jpg", Path("a.jpg"), np.zeros((9, 9, 3), np.uint8), None])
def test_one_image_is_no_iterable_of_images(source: object) -> None:
    with pytest.raises(InputError, match="iterable of images"):
        ci.Pipeline(FakeSession()).map(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_keep_no_memory_that_later_calls_write_to(workers: int) -> None:
    class OnDevice(CpuRunner):
        def run(self, batch: Sequence[PlacedImage], panoptic: Any = None) -> BatchOutputs:
            found = super().run(batch)
            return found._replace(on_device=[{"boxes": found.outputs["boxes"]}] * len(batch))

    pipeline, image = ci.Pipeline(OnDevice(FakeSession())), photograph((60, 90))
    assert pipeline(image).on_device is not None
    for result in pipeline.map([image] * 3, workers=workers):
        assert result.on_device is None
        assert_same(result, pipeline(image))


@pytest.mark.parametrize(
    ("options", "threads"),
    [
        ({}, None),
        ({"workers": 1}, None),
        ({"threads": 3}, 3),
        ({"workers": 2}, 4),
        ({"workers": 3}, 2),
        ({"workers": 9}, 1),
        ({"workers": 4, "threads": 5}, 5),
    ],
)
def test_workers_share_the_cores_unless_told_otherwise(
    options: dict, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def runner(path: Path, device: str | None, threads: int | None, **more: object) -> CpuRunner:
        asked.update(more, threads=threads)
        return CpuRunner(FakeSession())

    monkeypatch.setattr("condinst_infer.pipeline.open_model", runner)
    monkeypatch.setattr("condinst_infer.system.hardware.usable_cores", lambda: 8)
    ci.load("model.onnx", **options, runtime="openvino", precision="bf16")
    assert asked == {
        "threads": threads,
        "workers": options.get("workers", 1),
        "runtime": "openvino",
        "precision": "bf16",
    }


def test_calls_at_the_same_time_share_one_pool_of_threads(
    bright_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def session(path: Path, *, device: str, threads: int | None) -> FakeSession:
        asked.append(threads)
        return FakeSession()

    monkeypatch.setattr("condinst_infer.runtimes.ort.OrtSession", session)
    for (
        threads,
        workers,
    ) in ((None, 1), (3, 1), (1, 4), (3, 2)):
        ci.load(bright_model, threads=threads, workers=workers)
    assert asked == [None, 3, 1, 5]  # the calling threads work too: 2 + 4 = 2 * 3


def test_workers_of_a_loaded_model_must_be_a_whole_number() -> None:
    for value in (0, 1.5):
        with pytest.raises(ConfigError, match="workers is"):
            ci.load("model.onnx", workers=value)  # type: ignore[arg-type]
