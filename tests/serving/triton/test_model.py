"""The models `condinst export --triton` writes, and the client, without a Triton."""

import json
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tritonclient.http
from triton_python_backend_utils import InferenceRequest, InferenceResponse, Tensor, TritonError
from tritonclient.utils import InferenceServerException

import condinst_infer as ci
from export.triton import client
from tests.support.bright_model import write_bright_model
from tests.support.fake_session import SIZES, photograph
from tests.support.triton_server import Door, Server, assert_equal, outputs, served

INSTANCES = ("boxes", "scores", "labels", "names", "masks")
BRIGHT: dict[str, dict[str, Any]] = {  # fields of Metadata
    "dynamic": {},
    "size": {"size": (96, 160)},
    "batch": {"batch": 2},
    "static": {"size": (96, 160), "batch": 3},
    "half": {"half": True, "precision": "fp16"},
}


def encoded(image: np.ndarray) -> np.ndarray:
    """A PNG file as an input."""
    return np.array([cv2.imencode(".png", image)[1].tobytes()], dtype=object)


@pytest.mark.parametrize("fields", BRIGHT.values(), ids=BRIGHT)
def test_results_are_those_of_the_pipeline(fields: dict[str, Any], tmp_path: Path) -> None:
    model = write_bright_model(tmp_path / "bright.onnx", **fields)
    triton, pipeline = served(model, tmp_path / "models"), ci.load(model)
    for seed, size in enumerate(SIZES):
        image = photograph(size, seed)
        assert_equal(outputs(triton.infer("model", image=encoded(image))), pipeline(image))
        assert_equal(outputs(triton.infer("model", pixels=image)), pipeline(image))
    network = triton.models["model_network"]
    assert network.config.max_batch_size == (0 if "batch" in fields else 4)
    assert network.config.HasField("dynamic_batching") == ("batch" not in fields)


def test_a_trained_model(demo_folder: Path, tmp_path: Path) -> None:
    model, photo = demo_folder / "nuclei.onnx", demo_folder / "nuclei.jpg"
    triton = served(model, tmp_path / "models", on_gpu=True)
    found = ci.load(model)(photo)
    image = np.array([photo.read_bytes()], dtype=object)
    got = outputs(triton.infer("model", image=image))
    assert len(found) > 50 and set(got) == set(INSTANCES)
    assert_equal(got, found)


def test_no_instance_gives_empty_tensors(bright_model: Path, tmp_path: Path) -> None:
    dark = np.zeros((40, 50, 3), np.uint8)
    got = outputs(served(bright_model, tmp_path / "models").infer("model", pixels=dark))
    assert {name: array.shape for name, array in got.items()} == {
        "boxes": (0, 4), "scores": (0,), "labels": (0,), "names": (0,), "masks": (0,)
    }  # fmt: skip


def test_panoptic_outputs(panoptic_onnx: Path, tmp_path: Path) -> None:
    triton, pipeline = served(panoptic_onnx, tmp_path / "models"), ci.load(panoptic_onnx)
    image = photograph((90, 130))
    found = pipeline.panoptic(image)
    got = outputs(triton.infer("model", "id_map", "segments", pixels=image))
    np.testing.assert_array_equal(got["id_map"], found.id_map)
    segments = [json.loads(text) for text in got["segments"]]
    assert [segment["id"] for segment in segments] == [segment.id for segment in found.segments]
    assert segments[0]["box"] == list(found.segments[0].box) and len(segments) > 1
    runs = triton.models["model_network"].runs
    assert len(runs) == 1  # instances were not asked for
    assert_equal(outputs(triton.infer("model", pixels=image)), pipeline(image))


def test_a_request_that_fails_spoils_no_other(bright_model: Path, tmp_path: Path) -> None:
    triton, image = served(bright_model, tmp_path / "models"), photograph((60, 90))
    step = triton.models["model"].model
    broken = np.array([b"no image"], dtype=object)
    requests = [
        InferenceRequest("model", INSTANCES, [Tensor(name, array) for name, array in inputs])
        for inputs in (
            [("pixels", image)],
            [("image", broken)],
            [("pixels", image), ("image", encoded(image))],
            [],
            [("pixels", np.zeros((0, 5, 3), np.uint8))],
            [("image", encoded(image))],
        )
    ]
    responses = step.execute(requests)
    texts = [r.error().message() for r in responses if r.has_error()]
    assert [r.has_error() for r in responses] == [False, True, True, True, True, False]
    assert texts[0] == "the image is not an image; give one of JPEG, PNG, WEBP, BMP, TIFF, " \
        "GIF, PPM, AVIF, JPEG2000."  # fmt: skip
    assert texts[1:3] == [f"send one of image and pixels; {n} came." for n in (2, 0)]
    assert "has no pixels" in texts[3]
    assert {r.error().code for r in responses if r.has_error()} == {TritonError.INVALID_ARG}
    for response in (responses[0], responses[-1]):
        assert_equal(outputs(response), ci.load(bright_model)(image))
    step.finalize()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda request: InferenceResponse([], TritonError("out of memory")),
         "model_network failed: out of memory"),
        (lambda request: InferenceResponse([Tensor("boxes", np.zeros((1, 1, 4), np.float32))]),
         "model_network gave no output 'num_detections'."),
        (lambda request: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)  # fmt: skip
def test_a_network_that_fails(
    answer: Callable[..., Any], text: str, bright_model: Path, tmp_path: Path
) -> None:
    triton = served(bright_model, tmp_path / "models")
    triton.models["model_network"].answer = answer
    if "num_detections" in text:  # what Triton would not let through
        triton.answer = answer  # type: ignore[method-assign]
    step = triton.models["model"]
    request = InferenceRequest("model", INSTANCES, [Tensor("pixels", photograph((60, 90)))])
    error = step.answer(request).error()
    assert (error.message(), error.code) == (text, TritonError.INTERNAL)


def test_metadata_that_were_changed_are_refused(bright_model: Path, tmp_path: Path) -> None:
    served(bright_model, tmp_path / "models")
    path = tmp_path / "models" / "model" / "1" / "metadata.json"
    path.write_text(path.read_text().replace("condinst_nano", "condinst_nana"))
    with pytest.raises(ci.ModelFileError, match="changed after export"):
        Server(tmp_path / "models")


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' decode
def test_the_client(
    bright_model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Over HTTP, with Triton's own client."""
    handler = type("_Door", (Door,), {"triton": served(bright_model, tmp_path / "models")})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url, path = f"127.0.0.1:{http.server_port}", photos / "a.png"
        with tritonclient.http.InferenceServerClient(url) as connection:
            found = ci.load(bright_model)(path)
            assert found.image is not None and len(found) == 1
            for image in (path.read_bytes(), found.image):
                got = client.find(connection, "model", image)
                for name in ("boxes", "scores", "labels", "masks"):
                    np.testing.assert_array_equal(getattr(got, name), getattr(found, name))
                    assert getattr(got, name).dtype == getattr(found, name).dtype
                assert got.names == list(found.names)
            nothing = client.find(connection, "model", np.zeros((40, 50, 3), np.uint8))
            assert nothing.names == [] and len(nothing.masks) == 0
            with pytest.raises(InferenceServerException, match="not an image") as refused:
                client.find(connection, "model", b"text")
            assert refused.value.status() == "400"
        monkeypatch.setattr("sys.argv", ["client.py", "model", str(path), "--url", url])
        client.main()
        area = found.masks.sum()
        line = capsys.readouterr().out
        assert line.startswith(f"{path}: {found.names[0]} {found.scores[0]:.3f} at 0.0")
        assert line.endswith(f" {area} pixels\n")
        http.shutdown()
