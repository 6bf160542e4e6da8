"""The page of the door in headless Chromium: choose, drop, look, and what it says on a mistake."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import condinst_infer as ci
from condinst_infer.pipeline import Pipeline
from tests.support.chromium import Chromium
from tests.support.fake_session import FakeSession
from tests.support.http_server import Running, serving
from tests.support.stuff_session import StuffSession

PROGRAM = shutil.which("chromium") or ""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="chromium is missing"),
]
SCENE = np.full((120, 180, 3), 20, np.uint8)
SCENE[20:70, 30:90], SCENE[80:110, 120:160] = 255, 200
DROP = """
((data, name, type) => {
  const parts = Uint8Array.from(atob(data), c => c.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([parts], name, {type}));
  document.getElementById("drop").dispatchEvent(
    new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
})
"""
PIXELS = "[...document.getElementById('canvas').getContext('2d').getImageData(0, 0, %d, %d).data]"
ROWS = "[...document.querySelectorAll('#list li')].map(row => row.innerText.split(/\\s+/))"
SLIDE = "((s, v) => { s.step = 'any'; s.value = v; s.dispatchEvent(new Event('input')); })"
HEIGHT = "document.documentElement.scrollHeight"


@pytest.fixture(scope="module")
def door() -> Iterator[Running]:
    with serving(Pipeline(FakeSession()), max_bytes=500_000) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(PROGRAM, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(browser: Chromium, door: Running) -> Iterator[Chromium]:
    yield opened(browser, door)
    assert browser.problems == []  # and nothing was blocked


@pytest.fixture
def phone(browser: Chromium) -> Iterator[Chromium]:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.send("Emulation.setDeviceMetricsOverride", **size)
    yield browser
    browser.send("Emulation.clearDeviceMetricsOverride")


def opened(browser: Chromium, door: Running) -> Chromium:
    """The page, which knows the model."""
    browser.problems.clear()
    browser.open(f"{door.url}/")
    browser.wait_for("document.getElementById('model').textContent")
    return browser


def choose(page: Chromium, path: Path, image: np.ndarray = SCENE) -> None:
    """Choose an image, and wait for its masks."""
    cv2.imwrite(str(path), image)
    page.choose_file("#file", path)
    page.wait_for("document.body.dataset.done === '1'")


def text(page: Chromium, name: str) -> str:
    return page.evaluate(f"document.getElementById('{name}').innerText")


def is_shown(page: Chromium, name: str) -> bool:
    return page.evaluate(f"document.getElementById('{name}').getClientRects().length > 0")


def pixels(page: Chromium, width: int = 180, height: int = 120) -> np.ndarray:
    """What the canvas shows, BGR."""
    data = np.array(page.evaluate(PIXELS % (width, height)), np.uint8)
    return data.reshape(height, width, 4)[:, :, 2::-1]


def assert_shows_masks(page: Chromium) -> None:
    """Both rectangles are tinted, each in its colour, and nothing else is but an outline."""
    shown = pixels(page).astype(int)
    first, second = shown[30:60, 40:80], shown[88:102, 128:152]
    for part in (first, second):
        assert np.ptp(part, axis=(0, 1)).max() <= 2 and np.ptp(part[0, 0]) > 40
    assert np.abs(first[0, 0] - second[0, 0]).max() > 40
    tinted = np.ptp(shown, axis=2) > 15
    masks = Pipeline(FakeSession())(SCENE).masks.any(axis=0)
    assert tinted[masks].all()
    around = cv2.dilate(np.array(masks, np.uint8), np.ones((5, 5))) > 0
    assert not tinted[~around].any() and (shown[~around] == 20).all()


def test_a_chosen_image_shows_its_masks(page: Chromium, tmp_path: Path) -> None:
    assert is_shown(page, "drop") and not is_shown(page, "canvas")
    choose(page, tmp_path / "scene.png")
    assert not is_shown(page, "drop") and text(page, "count") == "2 instances"
    assert "scene.png, 180 × 120" in text(page, "about")
    assert text(page, "model") == "condinst_nano"
    found = Pipeline(FakeSession())(SCENE)
    pairs = zip(found.names, found.scores.tolist(), strict=True)
    assert page.evaluate(ROWS) == [[name, f"{score:.2f}"] for name, score in pairs]
    assert_shows_masks(page)


def test_the_score_slider_hides_instances(page: Chromium, tmp_path: Path) -> None:
    choose(page, tmp_path / "scene.png")
    scores = sorted(Pipeline(FakeSession())(SCENE).scores.tolist())
    assert scores[0] < scores[1]
    page.evaluate(f"{SLIDE}(document.getElementById('score'), {sum(scores) / 2})")
    assert text(page, "count") == "1 instance"
    tinted = np.ptp(pixels(page).astype(int), axis=2) > 15
    assert tinted[40, 60] != tinted[95, 140]


def test_the_slider_begins_at_the_lowest_score_of_the_model(browser: Chromium) -> None:
    slider = "(({min, value}) => [+min, +value])(document.getElementById('score'))"
    for session, panoptic in ((FakeSession(), None), (StuffSession(), 0.45)):
        with serving(Pipeline(session)) as door:
            page = opened(browser, door)
            page.wait_for("document.getElementById('score').min === '0.22'")
            floor = session.metadata.config.reported_floor
            assert 0.22 <= floor < 0.23 and page.evaluate(slider) == [0.22, 0.22]
            if panoptic:
                page.evaluate("document.querySelector('[data-kind=panoptic]').click()")
                assert page.evaluate(slider) == [panoptic, panoptic]


def test_a_dropped_image_and_the_next_one(page: Chromium) -> None:
    for number, (suffix, kind) in enumerate(((".png", "image/png"), (".tiff", "image/tiff")), 1):
        data = base64.b64encode(cv2.imencode(suffix, SCENE)[1].tobytes()).decode()
        words = ", ".join(json.dumps(word) for word in (data, f"a{suffix}", kind))
        page.evaluate(f"{DROP}({words})")
        page.wait_for(f"document.body.dataset.done === '{number}'")
        if suffix == ".png":
            assert_shows_masks(page)
    # a format that browsers don't show: the server's overlay
    assert text(page, "count") == "Overlay"
    assert (pixels(page) == Pipeline(FakeSession())(SCENE).plot()).all()


def test_a_mistake_is_said_and_nothing_comes_from_elsewhere(
    browser: Chromium, door: Running, tmp_path: Path
) -> None:
    page = opened(browser, door)
    (tmp_path / "notes.png").write_text("no image")
    page.choose_file("#file", tmp_path / "notes.png")
    page.wait_for("document.getElementById('error').getClientRects().length")
    assert text(page, "error").startswith("the upload is not an image but text, 'no image';")
    names = page.evaluate("performance.getEntries().map(one => one.name)")
    loaded = [name for name in names if "://" in name]
    assert loaded and all(name.startswith(f"{door.url}/") for name in loaded)
    assert page.problems and all("400 (Bad Request)" in problem for problem in page.problems)
    page.evaluate("document.getElementById('error').click()")
    assert not is_shown(page, "error")


def test_the_page_of_a_panoptic_model_shows_everything(browser: Chromium, tmp_path: Path) -> None:
    pipeline = Pipeline(StuffSession())
    with serving(pipeline) as door:
        page = opened(browser, door)
        choose(page, tmp_path / "scene.png")
        assert text(page, "count") == "2 instances"
        assert_shows_masks(page)
        page.evaluate("document.querySelector('[data-kind=panoptic]').click()")
        page.wait_for("document.body.dataset.done === '2'")
    found = pipeline.panoptic(SCENE)
    assert {segment.name for segment in found.segments} > {"sky", "sea"}
    assert text(page, "count") == f"{len(found.segments)} segments"
    rows: Any = [[cell for cell in row if cell] for row in page.evaluate(ROWS)]
    assert [row[0] for row in rows] == [segment.name for segment in found.segments]
    assert [len(row) for row in rows] == [1 + segment.is_thing for segment in found.segments]
    shown = pixels(page).astype(int)
    for segment in found.segments:
        mask = np.array(found.id_map == segment.id, np.uint8)
        core = shown[cv2.erode(mask, np.ones((9, 9))) > 0]  # no outline of a neighbour
        assert len(core) and np.ptp(core, axis=1).min() > 15
    assert page.problems == []


def test_the_list_of_many_instances_fits_on_a_phone(phone: Chromium, demo_folder: Path) -> None:
    with ci.load(demo_folder / "nuclei.onnx", threads=1) as pipeline, serving(pipeline) as door:
        page = opened(phone, door)
        page.choose_file("#file", demo_folder / "nuclei.jpg")
        page.wait_for("document.body.dataset.done === '1'")
        number = len(page.evaluate(ROWS))
        assert number > 100 and text(page, "count") == f"{number} instances"
        assert page.evaluate(HEIGHT) <= 844  # one screen; 4,841 pixels with all rows
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert text(page, "more") == f"Show all {number}"
        page.evaluate("document.getElementById('more').click()")
        rows = "document.getElementById('list')"
        assert page.evaluate(f"{rows}.scrollHeight") >= 28 * number
        assert page.evaluate(f"{rows}.clientHeight") > 6 * 28
        assert text(page, "more") == "Show fewer" and page.evaluate(HEIGHT) < 1300
        page.evaluate("document.getElementById('more').click()")
        assert page.evaluate(HEIGHT) <= 844


def test_a_large_photo_is_drawn_smaller_on_a_phone(phone: Chromium, tmp_path: Path) -> None:
    image = cv2.resize(SCENE, None, fx=20, fy=20, interpolation=cv2.INTER_NEAREST)
    with serving(Pipeline(FakeSession())) as door:
        page = opened(phone, door)
        choose(page, tmp_path / "large.png", image)
        assert "3600 × 2400" in text(page, "about") and text(page, "count") == "2 instances"
        size = page.evaluate("(c => [c.width, c.height])(document.getElementById('canvas'))")
        assert size == [2450, 1633]  # 4 million pixels
        where = "getImageData(Math.round(%f * 2450 / 180), Math.round(%f * 1633 / 120), 1, 1).data"
        for x, y, is_tinted in ((35, 25, True), (85, 65, True), (155, 105, True), (100, 60, False)):
            at = f"[...document.getElementById('canvas').getContext('2d').{where % (x, y)}]"
            assert (np.ptp(page.evaluate(at)[:3]) > 15) == is_tinted, (x, y)
    assert page.problems == []
