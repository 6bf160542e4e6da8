"""The page of export/examples/web in headless Chromium: it finds, shows and saves the instances."""

import base64
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from condinst_infer.processing.preprocess import read_image
from tests.support.chromium import Chromium
from tests.support.example_instances import assert_same_instances, mask_from_runs
from tests.support.examples import write_nuclei_png
from tests.support.javascript_examples import install_example
from tests.support.waiting import eventually

CHROMIUM = shutil.which("chromium") or ""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is missing"),
]
STATUS = "document.querySelector('#status').innerText"
DROP = """
(() => {
  const bytes = Uint8Array.from(atob("DATA"), (character) => character.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], "dropped.png"));
  dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
})()
"""
SLIDE = """
(() => {
  const slider = document.querySelector("#score");
  slider.value = VALUE;
  slider.dispatchEvent(new Event("input"));
})()
"""
PIXELS = """
(() => {
  const canvas = document.querySelector("canvas");
  const size = [canvas.width, canvas.height];
  return [...size, Array.from(canvas.getContext("2d").getImageData(0, 0, ...size).data)];
})()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """The folder of the page, with its packages and the model that ships."""
    folder = install_example("web", tmp_path_factory.mktemp("javascript"))
    shutil.copy(demo_folder / "nuclei.onnx", folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def site(installed: Path) -> Iterator[str]:
    """The address of the page, served as the page says."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with (installed / "log.txt").open("w") as log:
        server = subprocess.Popen(words, cwd=installed, stdout=log, stderr=log)
    try:
        eventually(partial(is_open, port))
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait()


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micrograph that ships, as PNG."""
    return write_nuclei_png(tmp_path_factory.mktemp("picture"))


@pytest.fixture
def page(site: str, tmp_path: Path) -> Iterator[Chromium]:
    with Chromium(CHROMIUM, tmp_path) as page:
        page.open(site)
        yield page


def pixels(page: Chromium) -> np.ndarray:
    """What the canvas shows, BGR."""
    width, height, data = page.evaluate(PIXELS)
    return np.array(data, np.uint8).reshape(height, width, 4)[:, :, 2::-1]


def slide(page: Chromium, value: float) -> None:
    page.evaluate(SLIDE.replace("VALUE", str(value)))


def test_the_page_finds_shows_and_saves_the_instances(
    page: Chromium, picture: Path, tmp_path: Path
) -> None:
    page.choose_file("#image", picture)  # the model is not there yet: the image waits for it
    page.wait_for(f"/^\\d+ of 156 instances: \\d+ nucleus/.test({STATUS})")
    for width in (390, 1280):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        page.send("Emulation.setDeviceMetricsOverride", **metrics)
        assert page.evaluate("document.documentElement.scrollWidth") == width
    slide(page, 1)
    page.wait_for(f"{STATUS}.startsWith('0 of 156')")
    assert (pixels(page) == read_image(picture)).all()
    slide(page, 0)
    page.wait_for(f"{STATUS}.startsWith('156 of 156')")
    tinted = np.ptp(pixels(page).astype(int), axis=2) > 20  # the picture is grey
    page.evaluate("document.querySelector('#save').click()")
    saved = tmp_path / "instances.json"
    eventually(lambda: saved.exists() and saved.read_text().endswith("]"))
    assert assert_same_instances(saved, "nuclei", picture, exact=False) == 156
    assert (tinted == masks_of(saved)).mean() > 0.999
    assert page.problems == []


def masks_of(saved: Path) -> np.ndarray:
    """Where any mask is."""
    found = json.loads(saved.read_text())
    return np.any([mask_from_runs(one["segmentation"]) for one in found], axis=0)


def test_a_mistake_is_said_and_the_page_goes_on(
    page: Chromium, picture: Path, demo_folder: Path, tmp_path: Path
) -> None:
    page.wait_for(f"{STATUS} === 'Model: condinst_nano, 1 class.'")
    for name, content, words in (
        ("notes.png", b"no image", "notes.png is not an image that this browser can read."),
        ("wrong.onnx", b"no model", "The model is not an ONNX file, or it is damaged."),
        ("picture.png", picture.read_bytes(), "There is no model yet: choose an .onnx file."),
    ):
        (tmp_path / name).write_bytes(content)
        page.choose_file("#model" if name.endswith(".onnx") else "#image", tmp_path / name)
        page.wait_for(f"{STATUS}.trim() === '{words}'")
    page.evaluate('dispatchEvent(new DragEvent("drop", { dataTransfer: new DataTransfer() }))')
    page.wait_for(f"{STATUS}.trim() === 'That was not a file: drop an image.'")
    page.choose_file("#model", demo_folder / "nuclei.onnx")
    page.wait_for(f"/^Model: /.test({STATUS})")
    crop = cv2.imencode(".png", read_image(picture)[:101, :143])[1].tobytes()
    page.evaluate(DROP.replace("DATA", base64.b64encode(crop).decode()))
    text = page.wait_for(f"/ of \\d+ instances/.test({STATUS}) && {STATUS}")
    assert re.match(r"\d+ of \d+ instances: \d+ nucleus\.", text)
    assert pixels(page).shape == (101, 143, 3)
    assert page.problems == []


def test_a_missing_model_is_said(site: str, page: Chromium) -> None:
    page.open(f"{site}?model=other.onnx")
    text = "There is no model at other.onnx: put one there, or choose a file."
    page.wait_for(f"{STATUS}.trim() === '{text}'")


def test_missing_packages_are_said(installed: Path, site: str, tmp_path: Path) -> None:
    packages = (installed / "node_modules").rename(tmp_path / "node_modules")
    try:
        with Chromium(CHROMIUM, tmp_path) as page:  # nothing is in its cache
            page.open(site)
            page.wait_for(f"{STATUS}.includes('The worker did not start: run npm ci here, and ')")
    finally:
        packages.rename(installed / "node_modules")
