"""export/examples/onnxruntime_python.py: it runs without this package and finds the same."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from condinst_infer.config.model import CondInstConfig
from tests.support.bright_model import bright_config, write_bright_model
from tests.support.example_instances import assert_same_instances
from tests.support.examples import EXAMPLES, run_without_package

EXAMPLE = EXAMPLES / "onnxruntime_python.py"


def run(model: Path, image: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The example in a folder where Python finds none of ours; it fails on a warning."""
    words = (sys.executable, "-W", "error", EXAMPLE, model, image, *options)
    return run_without_package(*words, cwd=image.parent)


def found(model: Path, image: Path) -> int:
    """The number of instances, which are those of the pipeline bit by bit."""
    ran = run(model, image)
    assert (ran.returncode, ran.stderr) == (0, "")
    count = assert_same_instances(image.parent / "instances.json", model, image, exact=True)
    assert len(ran.stdout.splitlines()) == count
    return count


def photo(path: Path, *, height: int, width: int) -> Path:
    """A picture with large and small things in it, as PNG."""
    random = np.random.default_rng(height)
    coarse = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = random.integers(0, 30, picture.shape, dtype=np.uint8)
    cv2.imwrite(str(path), cv2.add(picture, noise))
    return path


def picture_of_nuclei(path: Path, demo_folder: Path, zoom: float = 1.0) -> Path:
    """The shipped picture as PNG."""
    with Image.open(demo_folder / "nuclei.jpg") as image:
        size = [round(zoom * side) for side in image.size]
        image.resize((size[0], size[1])).save(path)
    return path


def test_the_shipped_picture(tmp_path: Path, demo_folder: Path) -> None:
    image = picture_of_nuclei(tmp_path / "nuclei.png", demo_folder)
    assert found(demo_folder / "nuclei.onnx", image) == 156


def test_no_instance(tmp_path: Path, bright_model: Path) -> None:
    image = tmp_path / "dark.png"
    Image.new("RGB", (33, 21)).save(image)
    assert found(bright_model, image) == 0


def test_an_overlay_and_a_picture_with_alpha(tmp_path: Path, bright_model: Path) -> None:
    image = tmp_path / "bright.png"
    picture = np.zeros((30, 47, 4), np.uint8)
    picture[5:20, 10:30] = (255, 128, 0, 77)
    Image.fromarray(picture).save(image)
    ran = run(bright_model, image, "-o", "found.json", "--overlay", "overlay.png")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["person 1.000 at 0.0 0.0 47.0 30.0"]
    assert assert_same_instances(tmp_path / "found.json", bright_model, image, exact=True) == 1
    with Image.open(tmp_path / "overlay.png") as overlay:
        drawn = np.asarray(overlay)
    assert drawn.shape == (30, 47, 3) and (drawn[10, 20] != picture[10, 20, :3]).any()
    assert (drawn[25, 40] == 0).all() and (drawn[0, 0] == 255).all()


def test_a_detector_graph_is_sent_to_the_other_example(tmp_path: Path, photos: Path) -> None:
    model = write_bright_model(tmp_path / "detector.onnx", graph="detector")
    ran = run(model, photos / "a.png")
    assert (
        ran.returncode == 1 and ran.stderr == "this file stops before NMS: tail.py has the rest\n"
    )
    assert not (photos / "instances.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width"), [(75, 101), (128, 192), (480, 641), (301, 40), (20, 400), (1, 1)]
)
def test_enlarged_shrunk_and_odd(tmp_path: Path, nano_onnx: Path, height: int, width: int) -> None:
    found(nano_onnx, photo(tmp_path / "photo.png", height=height, width=width))


@pytest.mark.slow
@pytest.mark.parametrize("zoom", [0.31, 1.37])
def test_nuclei_enlarged_more_and_shrunk(
    tmp_path: Path, nuclei_onnx: Path, demo_folder: Path, zoom: float
) -> None:
    image = picture_of_nuclei(tmp_path / "nuclei.png", demo_folder, zoom)
    assert found(nuclei_onnx, image) > 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nano_static", "mask_nms", "panoptic"])
def test_other_files(tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    model = request.getfixturevalue(f"{kind}_onnx")
    assert found(model, photo(tmp_path / "photo.png", height=211, width=163)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["min_scale", "short_first"])
def test_sizes_and_pixels_of_either_rule(tmp_path: Path, rule: str) -> None:
    config: CondInstConfig = bright_config(resize_rule=rule)
    model = write_bright_model(tmp_path / "half.onnx", half=True, config=config, precision="fp16")
    for height, width in ((33, 320), (183, 320), (40, 50), (97, 96)):  # the rules differ in two
        image = photo(tmp_path / "photo.png", height=height, width=width)
        assert found(model, image) == 1
        assert json.loads((tmp_path / "instances.json").read_text())[0]["segmentation"]["counts"]
