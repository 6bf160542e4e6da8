"""The page of the door in headless Chromium: choose, drop, look, and what it says on a mistake."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from condinst_infer.pipeline import Pipeline
from tests.support.fake_session import FakeSession
from tests.support.http_server import Running, serving
from tests.support.stuff_session import StuffSession

PROGRAMS = [shutil.which(name) or "" for name in ("chromium", "chromedriver")]
pytestmark = pytest.mark.skipif(not all(PROGRAMS), reason="chromium or chromedriver is missing")
SCENE = np.full((120, 180, 3), 20, np.uint8)
SCENE[20:70, 30:90], SCENE[80:110, 120:160] = 255, 200
DROP = """
const [data, name, type] = arguments, parts = Uint8Array.from(atob(data), c => c.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([parts], name, {type}));
document.getElementById("drop").dispatchEvent(
  new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
"""
PIXELS = """
return Array.from(document.getElementById("canvas").getContext("2d").getImageData(0, 0, 180, 120)
  .data)
"""


@pytest.fixture(scope="module")
def door() -> Iterator[Running]:
    with serving(Pipeline(FakeSession()), max_bytes=500_000) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS[0]
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(PROGRAMS[1]))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, door: Running) -> Any:
    browser.get(door.url)
    yield browser
    assert errors(browser) == []  # and nothing was blocked


def errors(browser: Any) -> list[str]:
    """What the console says, but for advice on speed."""
    log = browser.get_log("browser")
    return [entry["message"] for entry in log if entry["source"] != "rendering"]


def saved(path: Path) -> Path:
    cv2.imwrite(str(path), SCENE)
    return path


def finished(page: Any, number: int = 1) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    script = "return document.body.dataset.done"
    WebDriverWait(page, 20, 0.05).until(lambda page: page.execute_script(script) == str(number))


def pixels(page: Any) -> np.ndarray:
    """What the canvas shows, BGR."""
    data = np.array(page.execute_script(PIXELS), np.uint8).reshape(120, 180, 4)
    return data[:, :, 2::-1]


def assert_shows_masks(page: Any) -> None:
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


def test_a_chosen_image_shows_its_masks(page: Any, tmp_path: Path) -> None:
    assert page.find_element("id", "drop").is_displayed()
    assert not page.find_element("id", "canvas").is_displayed()
    page.find_element("id", "file").send_keys(str(saved(tmp_path / "scene.png")))
    finished(page)
    assert not page.find_element("id", "drop").is_displayed()
    assert page.find_element("id", "count").text == "2 instances"
    assert "scene.png, 180 × 120" in page.find_element("id", "about").text
    assert page.find_element("id", "model").text == "condinst_nano"
    rows = [row.text.split() for row in page.find_elements("css selector", "#list li")]
    found = Pipeline(FakeSession())(SCENE)
    expected = [
        f"{n} {s:.2f}".split() for n, s in zip(found.names, found.scores.tolist(), strict=True)
    ]
    assert rows == expected
    assert_shows_masks(page)


def test_the_score_slider_hides_instances(page: Any, tmp_path: Path) -> None:
    page.find_element("id", "file").send_keys(str(saved(tmp_path / "scene.png")))
    finished(page)
    scores = sorted(Pipeline(FakeSession())(SCENE).scores.tolist())
    assert scores[0] < scores[1]
    page.execute_script(
        "const s = document.getElementById('score'); s.step = 'any'; s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'))",
        sum(scores) / 2,
    )
    assert page.find_element("id", "count").text == "1 instance"
    tinted = np.ptp(pixels(page).astype(int), axis=2) > 15
    assert tinted[40, 60] != tinted[95, 140]


def test_a_dropped_image_and_the_next_one(page: Any) -> None:
    import base64

    for number, (suffix, kind) in enumerate(((".png", "image/png"), (".tiff", "image/tiff")), 1):
        data = base64.b64encode(cv2.imencode(suffix, SCENE)[1].tobytes()).decode()
        page.execute_script(DROP, data, f"a{suffix}", kind)
        finished(page, number)
        if suffix == ".png":
            assert_shows_masks(page)
    # a format that browsers don't show: the server's overlay
    assert page.find_element("id", "count").text == "Overlay"
    assert (pixels(page) == Pipeline(FakeSession())(SCENE).plot()).all()


def test_a_mistake_is_said_and_nothing_comes_from_elsewhere(
    page: Any, door: Running, tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_text("no image")
    page.find_element("id", "file").send_keys(str(tmp_path / "notes.png"))
    from selenium.webdriver.support.ui import WebDriverWait

    error = page.find_element("id", "error")
    WebDriverWait(page, 20, 0.05).until(lambda _: error.is_displayed())
    assert "the upload is not an image" in error.text
    names = page.execute_script("return performance.getEntries().map(one => one.name)")
    loaded = [name for name in names if "://" in name]
    assert loaded and all(name.startswith(f"{door.url}/") for name in loaded)
    assert all("400 (Bad Request)" in message for message in errors(page))


def test_the_page_of_a_panoptic_model_shows_everything(browser: Any, tmp_path: Path) -> None:
    pipeline = Pipeline(StuffSession())
    with serving(pipeline) as door:
        browser.get(door.url)
        browser.find_element("id", "file").send_keys(str(saved(tmp_path / "scene.png")))
        finished(browser)
        assert browser.find_element("id", "count").text == "2 instances"
        assert_shows_masks(browser)
        browser.find_element("css selector", "[data-kind=panoptic]").click()
        finished(browser, 2)
    found = pipeline.panoptic(SCENE)
    assert {segment.name for segment in found.segments} > {"sky", "sea"}
    assert browser.find_element("id", "count").text == f"{len(found.segments)} segments"
    rows = [row.text.split() for row in browser.find_elements("css selector", "#list li")]
    assert [row[0] for row in rows] == [segment.name for segment in found.segments]
    assert [len(row) for row in rows] == [1 + segment.is_thing for segment in found.segments]
    shown = pixels(browser).astype(int)
    for segment in found.segments:
        mask = np.array(found.id_map == segment.id, np.uint8)
        core = shown[cv2.erode(mask, np.ones((9, 9))) > 0]  # no outline of a neighbour
        assert len(core) and np.ptp(core, axis=1).min() > 15
    assert errors(browser) == []
