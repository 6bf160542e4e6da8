"""The door under many requests and bad ones, on a real port with a real client."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

import condinst_infer as ci
from condinst_infer.pipeline import Pipeline
from condinst_infer.results.crop import CroppedMask
from condinst_infer.results.rle import rle_from_crop
from condinst_infer.serving.http.responses import PredictRequest, RequestHandler
from tests.support.fake_session import FakeSession
from tests.support.http_server import GOOD, Running, as_json, picture, png, serving

PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def door() -> Iterator[Running]:
    with serving(Pipeline(FakeSession()), max_bytes=50_000, max_pixels=10_000) as running:
        yield running


@pytest.mark.parametrize("batch", [1, 4])
def test_of_32_parallel_requests_each_gets_its_own_reply(bright_model: Path, batch: int) -> None:
    images = [picture(k) for k in range(32)]
    with ci.load(bright_model, threads=1, max_batch=batch) as pipeline:
        expected = [as_json(pipeline(image)) for image in images]
        assert len({json.dumps(one["masks"]) for one in expected}) == 32
        with serving(pipeline, workers=2, batch=batch, wait_ms=1000) as door:
            together = threading.Barrier(32)

            def sent(place: int) -> Any:
                together.wait(30)
                if place % 2:
                    reply = door.post(content=png(images[place]), headers=PNG)
                else:
                    reply = door.post(files={"image": ("a.png", png(images[place]))})
                assert reply.status_code == 200
                return reply.json()

            with ThreadPoolExecutor(32) as pool:
                assert list(pool.map(sent, range(32))) == expected
            counts = door.metrics()
    assert counts['condinst_requests_total{path="/predict",status="200"}'] == 32
    assert counts['condinst_request_seconds_count{path="/predict"}'] == 32
    assert counts["condinst_batch_images_sum"] == 32
    assert counts["condinst_queue_images"] == 0
    calls = counts["condinst_batch_images_count"]
    assert calls == 32 if batch == 1 else 8 <= calls <= 16
    assert counts[f'condinst_batch_images_bucket{{le="{float(batch)}"}}'] == calls


def test_parameters_in_query_and_form_are_those_of_a_call(door: Running) -> None:
    pipeline, image = Pipeline(FakeSession()), np.zeros((60, 90, 3), np.uint8)
    image[5:40, 5:40], image[10:20, 60:80], image[50:55, 60:66] = 255, 220, 200
    data = png(image)
    everything = door.post(content=data).json()
    assert everything == as_json(pipeline(image)) and len(everything["scores"]) == 3
    query = door.post("/predict?max_detections=2&score_threshold=0.5", content=data)
    form = door.post(
        "/predict?max_detections=2",
        files={"file": data},
        data={"score_threshold": "0.5"},
    )
    expected = as_json(pipeline(image, max_detections=2, score_threshold=0.5))
    assert len(expected["scores"]) == 2 and query.json() == form.json() == expected
    for classes in (["person"], ["bicycle", 2]):
        some = as_json(pipeline(image, classes=classes))
        words = ", ".join(map(str, classes))
        reply = door.post("/predict", params={"classes": words}, content=data)
        assert 0 < len(some["names"]) < 3 and reply.json() == some


def test_in_one_batch_each_has_its_own_parameters_and_fate() -> None:
    pipeline, counted = Pipeline(FakeSession(), max_batch=8), []
    image = np.maximum(picture(3), picture(36))
    asked = [{}, {"max_detections": 1}, {}, {"max_detections": 1}, {"score_threshold": 2.0}]
    data = [png(image), png(image), b"no image", png(picture(3)), png(image)]
    overlays = [False, False, False, True, False]
    orders = [
        PredictRequest(data, False, overlay, tuple(options.items()))
        for data, overlay, options in zip(data, overlays, asked, strict=True)
    ]
    both, one, bad, overlay, wrong = RequestHandler(pipeline, 10**6, counted.append)(orders)
    assert json.loads(both.content) == as_json(pipeline(image))
    assert json.loads(one.content) == as_json(pipeline(image, max_detections=1))
    assert both.content != one.content
    assert (bad.status, wrong.status) == (400, 422)
    assert overlay.content == png(pipeline(picture(3)).plot())
    assert counted == [1, 2, 1]


def test_an_overlay_is_a_png_of_the_plot(door: Running) -> None:
    plot = Pipeline(FakeSession())(picture(3)).plot()
    png_wanted = {"accept": "image/png"}
    for path, headers in (("/predict?output=overlay", {}), ("/predict", png_wanted)):
        reply = door.post(path, content=GOOD, headers=headers)
        assert reply.headers["content-type"] == "image/png"
        decoded = cv2.imdecode(np.frombuffer(reply.content, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None and (decoded == plot).all()
    asked = door.post("/predict?output=json", content=GOOD, headers=png_wanted)
    assert asked.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("status", "words", "request_"),
    [
        (400, "is empty", {"content": b""}),
        (400, "is not an image", {"content": b"GIF or so"}),
        (400, "is a damaged PNG file", {"content": GOOD[:20], "headers": PNG}),
        (400, "can't be decoded", {"content": GOOD[:80], "headers": PNG}),
        (413, "at most 50000 bytes", {"content": bytes(50_001)}),
        (413, "at most 50000 bytes", {"content": iter([bytes(30_000)] * 2)}),
        (413, "at most 50000 bytes", {"files": {"image": bytes(50_000)}}),
        (413, "at most 50000 bytes", {"content": bytes(20_000_000)}),
        (413, "takes at most 10000.", {"content": png(np.zeros((101, 100, 3), np.uint8))}),
        (400, "not an image but text, 'image=a'", {"data": {"image": "a"}}),
        (400, "not an image but text, 'a.png'", {"files": {"image": (None, "a.png")}}),
        (400, "holds 2 images", {"files": {"a": GOOD, "b": GOOD}}),
        (400, "boundary", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}),
        (
            400,
            "the form can't be read",
            {"content": b"xx", "headers": {"content-type": "multipart/form-data; boundary=a"}},
        ),
        (422, "there is no parameter 'clases' here; did you mean classes?", {"p": "clases=a"}),
        (422, "is 'much'; it must be a number.", {"p": "score_threshold=much"}),
        (422, "is 'nan'; it must be a number.", {"p": "score_threshold=nan"}),
        (422, "below", {"p": "score_threshold=0.01"}),
        (422, "whole number", {"p": "max_detections=0"}),
        (422, "'json' or 'overlay'", {"p": "output=xml"}),
        (422, "no class 'dgo'; did you mean dog", {"p": "classes=dgo"}),
        (422, "max_detections is 'x'", {"files": {"a": GOOD}, "data": {"max_detections": "x"}}),
    ],
)
def test_a_bad_request_is_answered_with_one_sentence(
    door: Running, status: int, words: str, request_: dict[str, Any]
) -> None:
    query = request_.get("p")
    request = {"content": GOOD} if query else request_
    reply = door.post(f"/predict?{query}" if query else "/predict", **request)
    error = reply.json()
    assert reply.status_code == status and list(error) == ["error"]
    assert words in error["error"] and "\n" not in error["error"]
    assert error["error"][-1] in ".?" or "curl" in error["error"] or "condinst" in error["error"]
    assert door.post(content=GOOD).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"), [("/predict", 413), ("/predict?clases=a", 422), ("/nothing", 404)]
)
def test_a_refusal_reaches_a_client_that_reads_only_when_it_has_sent_all(
    door: Running, path: str, status: int
) -> None:
    with closing(HTTPConnection(*door.address, timeout=30)) as client:
        client.request("POST", path, bytes(20_000_000))
        assert client.getresponse().status == status


def test_other_paths_and_methods_and_what_they_say(door: Running) -> None:
    for method, path, status, words in (
        ("GET", "/nothing", 404, "/openapi.json"),
        ("POST", "/panoptic", 404, "there is nothing here"),  # not a panoptic model
        ("GET", "/docs", 404, "there is nothing here"),  # it would load scripts from elsewhere
        ("GET", "/predict", 405, "this path takes POST"),
        ("POST", "/predict/", 404, "there is nothing here"),
    ):
        reply = httpx.request(method, door.url + path, headers={"origin": "http://a.example"})
        assert reply.status_code == status and words in reply.json()["error"]
        assert not [name for name in reply.headers if name.startswith("access-control")]
    health = httpx.get(f"{door.url}/health")
    assert health.status_code == 200 and health.json()["ready"] is True
    assert health.json()["model"] == "condinst_nano" and health.json()["sha256"] == "0" * 64
    page = httpx.get(door.url)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http" not in page.text
    schema = httpx.get(f"{door.url}/openapi.json").json()
    names = {one["name"] for one in schema["paths"]["/predict"]["post"]["parameters"]}
    assert names == {"output", "score_threshold", "max_detections", "classes"}


def test_metrics_add_up(door: Running) -> None:
    def total(counts: dict[str, float]) -> float:
        return sum(n for name, n in counts.items() if name.startswith("condinst_requests_total"))

    before = door.metrics()
    for _ in range(3):
        door.post(content=GOOD)
    for _ in range(2):
        door.post(content=b"no image")
    httpx.get(f"{door.url}/{'x' * 30}")
    after = door.metrics()
    for path, status, number in (("/predict", 200, 3), ("/predict", 400, 2), ("other", 404, 1)):
        name = f'condinst_requests_total{{path="{path}",status="{status}"}}'
        assert after[name] - before.get(name, 0) == number
    assert total(after) - total(before) == 7  # and the first look at the metrics
    name = 'condinst_request_seconds_bucket{le="+Inf",path="/predict"}'
    assert after[name] - before.get(name, 0) == 5
    name = "condinst_batch_images_sum"
    assert after[name] - before[name] == 3


def test_panoptic_models_have_a_second_path(panoptic_onnx: Path) -> None:
    with ci.load(panoptic_onnx, threads=1) as pipeline, serving(pipeline) as door:
        image = np.random.default_rng(1).integers(0, 255, (100, 140, 3), np.uint8)
        expected = pipeline.panoptic(image, instance_threshold=0.5)
        reply = door.post("/panoptic?instance_threshold=0.5", content=png(image)).json()
        assert reply["image_size"] == [100, 140] and len(reply["segments"]) > 1
        for got, segment in zip(reply["segments"], expected.segments, strict=True):
            assert got["name"] == segment.name and got["id"] == segment.id
            assert got["score"] == segment.score and got["box"] == list(segment.box)
            crop = CroppedMask(0, 0, expected.id_map == segment.id)
            assert got["mask"] == rle_from_crop(crop, (100, 140))
        overlay = door.post("/panoptic?output=overlay", content=png(image))
        assert overlay.headers["content-type"] == "image/png"
        wrong = door.post("/panoptic?score_threshold=0.5", content=png(image))
        assert wrong.status_code == 422 and "score_threshold" in wrong.json()["error"]
        assert httpx.get(f"{door.url}/health").json()["panoptic"] is True
