"""Every image is looked at before the first iteration."""

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from condinst_infer.errors import InputError
from condinst_infer.processing.preprocess import read_image
from condinst_infer.train.image_check import check_image_sizes
from condinst_infer.train.run import train
from tests.support.small_training import small_config, small_data, small_settings

FILE = Path("train.json")


def write(path: Path, size: tuple[int, int], orientation: int = 1) -> Path:
    """A grey image of (height, width)."""
    image = Image.fromarray(np.full((*size, 3), 90, np.uint8))
    exif = Image.Exif()
    exif[0x112] = orientation
    image.save(path, exif=exif)
    return path


def test_all_that_is_wrong_is_one_message(tmp_path: Path) -> None:
    images = [(write(tmp_path / f"{number}.png", (40, 60)), (40, 60)) for number in range(9)]
    for number in (1, 2, 3, 4):
        images[number][0].unlink()
    images[5] = (images[5][0], (60, 40))
    images[6][0].write_bytes(b"")
    images[7][0].write_text("no image")
    images[8][0].unlink()
    images[8][0].mkdir()
    with pytest.raises(InputError) as caught:
        check_image_sizes(images, FILE)
    text = str(caught.value)
    assert text.startswith("train.json: 8 of 9 images can't be used. Do not exist: 4 (")
    missing = ", ".join(str(tmp_path / f"{number}.png") for number in (1, 2, 3))
    assert f"Do not exist: 4 ({missing}, ...)." in text
    assert f"Have another size: 1 ({tmp_path / '5.png'} is 60 x 40 pixels, not 40 x 60)." in text
    assert f"Can't be read: 3 ({tmp_path / '6.png'} is empty (0 bytes), " in text
    assert text.endswith("The image folder must be the one that file_name is relative to.")
    check_image_sizes(images[:1], FILE)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_that_of_the_upright_image(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    path = write(tmp_path / f"a.{suffix}", (40, 60), orientation)
    height, width = read_image(path).shape[:2]
    check_image_sizes([(path, (height, width))], FILE)
    with pytest.raises(InputError, match="[46]0 x [46]0 pixels, not 30 x 40"):
        check_image_sizes([(path, (40, 30))], FILE)


def test_a_training_with_a_missing_or_misshapen_image_does_not_begin(tmp_path: Path) -> None:
    data, run = small_data(tmp_path), tmp_path / "run"
    (data.images / "004.png").unlink()
    cv2.imwrite(str(data.images / "005.png"), np.zeros((96, 100, 3), np.uint8))
    with pytest.raises(InputError, match="2 of 5 images can't be used") as caught:
        train(small_config(), small_settings(), data, run)
    assert "004.png" in str(caught.value) and "100 x 96 pixels, not 128 x 96" in str(caught.value)
    assert not run.exists()


def test_a_validation_image_is_looked_at_too(tmp_path: Path) -> None:
    data, run = small_data(tmp_path), tmp_path / "run"
    val = small_data(tmp_path / "val")
    cv2.imwrite(str(val.images / "003.png"), np.zeros((97, 128, 3), np.uint8))
    with pytest.raises(InputError, match="1 of 6 images can't be used. Have another size: 1"):
        train(small_config(), small_settings(), data, run, val=val)


@pytest.mark.long
def test_thousands_of_images_take_seconds(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", (480, 640))
    for number in range(5000):
        (tmp_path / f"{number}.jpg").hardlink_to(path)
    started = time.perf_counter()
    check_image_sizes([(tmp_path / f"{n}.jpg", (480, 640)) for n in range(5000)], FILE)
    seconds = time.perf_counter() - started
    print(f"{seconds:.2f} s")
    assert seconds < 5  # measured 0.6
