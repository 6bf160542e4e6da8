"""A pickled pipeline opens its file again, in whatever process, and gives the same results."""

import copy
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import pytest
import torch

import condinst_infer as ci
from condinst_infer.errors import ModelFileError
from tests.support.fake_session import FakeSession, assert_same, photograph
from tests.support.pipeline_process import (
    FoundObjects,
    arrays_from,
    arrays_of,
    assert_bit_equal,
)

METHODS = [name for name in multiprocessing.get_all_start_methods() if name != "fork"]


@pytest.mark.parametrize("method", METHODS)
def test_another_process_finds_the_same(method: str, demo_folder: Path) -> None:
    image = demo_folder / "nuclei.jpg"
    with ci.load("nuclei", threads=1) as pipeline:
        expected = arrays_of(pipeline(image))
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found = pool.submit(arrays_from, pipeline, image).result(timeout=120)
    assert len(expected["scores"]) == 156
    assert_bit_equal(found, expected)


def test_the_workers_of_a_data_loader_find_the_same(bright_model: Path, tmp_path: Path) -> None:
    images = [tmp_path / f"{seed}.png" for seed in range(4)]
    for seed, path in enumerate(images):
        cv2.imwrite(str(path), photograph((60, 90 + seed), seed))
    with ci.load(bright_model, threads=1) as pipeline:
        expected = [arrays_of(pipeline(path)) for path in images]
        loader = torch.utils.data.DataLoader(
            FoundObjects(pipeline, images),  # type: ignore[arg-type]
            batch_size=None,
            num_workers=2,
            multiprocessing_context="spawn",
        )
        found = [{name: t.numpy() for name, t in tensors.items()} for tensors in loader]
    assert len(found) == 4 and all(len(arrays["scores"]) for arrays in expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert_bit_equal(ours, theirs)


def test_joblib_finds_the_same(bright_model: Path, tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), photograph((60, 90)))
    with ci.load(bright_model, threads=1) as pipeline:
        found = joblib.Parallel(n_jobs=2)(joblib.delayed(arrays_from)(pipeline, path) for _ in "ab")
        for arrays in found:
            assert_bit_equal(arrays, arrays_of(pipeline(path)))


def test_all_options_come_along(bright_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "device": "cpu",
        "threads": 1,
        "runtime": "onnxruntime",
        "precision": None,
        "workers": 2,
        "max_pixels": 5400,
        "max_batch": 3,
    }
    pipeline = ci.load(bright_model, **options)  # type: ignore[arg-type]
    seen = {}
    monkeypatch.setattr("condinst_infer.pipeline.load", lambda **given: seen.update(given))
    pickle.loads(pickle.dumps(pipeline))
    assert seen == options | {"path": bright_model}


def test_the_limits_hold_in_the_copy(bright_model: Path) -> None:
    pipeline = pickle.loads(pickle.dumps(ci.load(bright_model, max_pixels=5400)))
    pipeline(photograph((60, 90)))
    with pytest.raises(ci.InputError, match="limit of 5400"):
        pipeline(photograph((60, 91)))


def test_a_relative_path_is_found_from_another_folder(
    bright_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(bright_model, tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    pipeline = ci.load("m.onnx", threads=1)
    monkeypatch.chdir("/")
    image = photograph((60, 90))
    assert_same(pickle.loads(pickle.dumps(pipeline))(image), pipeline(image))


@pytest.mark.parametrize("function", [copy.copy, copy.deepcopy])
def test_a_copy_is_a_pipeline_of_its_own(function: type, bright_model: Path) -> None:
    pipeline, image = ci.load(bright_model, threads=1), photograph((60, 90))
    expected = pipeline(image)
    other = function(pipeline)
    pipeline.close()
    assert_same(other(image), expected)
    other.close()


def test_a_file_that_has_gone_is_named(bright_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    shutil.copy(bright_model, path)
    content = pickle.dumps(ci.load(path))
    path.unlink()
    with pytest.raises(ModelFileError, match=r"m\.onnx, the file of a pickled pipeline") as caught:
        pickle.loads(content)
    assert "condinst_infer.load" in str(caught.value)


def test_a_session_made_by_hand_is_not_pickled() -> None:
    for function in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"made by hand .*condinst_infer\.load"):
            function(ci.Pipeline(FakeSession()))
