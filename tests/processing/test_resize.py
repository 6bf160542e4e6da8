"""Sizes and pixels the network gets: shape rules, resizing, batching."""

import numpy as np
import pytest
from PIL import Image

from condinst_infer.config.model import InputConfig
from condinst_infer.processing.geometry import canvas_size, fitted_size, network_size
from condinst_infer.processing.preprocess import resize, stack_images

SHORT_FIRST = [  # h, w, short side, long side, network h, w; detectron2's shortest-edge rule
    (480, 640, 800, 1333, 800, 1067),
    (427, 640, 800, 1333, 800, 1199),
    (640, 427, 512, 736, 736, 491),
    (1080, 1920, 800, 1333, 750, 1333),
    (375, 1242, 512, 736, 222, 736),
    (612, 612, 512, 736, 512, 512),
    (151, 302, 800, 1333, 666, 1333),
    (232, 688, 640, 1333, 449, 1333),
    (1, 1, 800, 1333, 800, 800),
    (10, 20000, 800, 1333, 1, 1333),
    (20000, 1, 800, 1333, 1333, 1),
]


@pytest.mark.parametrize("row", SHORT_FIRST)
def test_network_size_short_first(row):
    config = InputConfig(short_side=row[2], long_side=row[3])
    assert network_size(row[:2], config) == row[4:]


@pytest.mark.parametrize("row", [
    (151, 302, 800, 1333, 667, 1333),
    (232, 688, 640, 1333, 450, 1333),
    (688, 232, 640, 1333, 1333, 450),
    (480, 640, 800, 1333, 800, 1067),
    (20000, 1, 800, 1333, 1333, 1),
])  # fmt: skip
def test_network_size_min_scale(row):
    config = InputConfig(short_side=row[2], long_side=row[3], resize_rule="min_scale")
    assert network_size(row[:2], config) == row[4:]


def test_canvas_size_is_the_next_multiple():
    assert canvas_size((800, 1067), 32) == (800, 1088)
    assert canvas_size((1, 33), 32) == (32, 64)


def test_fitted_size_keeps_what_fits_and_the_aspect_of_what_does_not():
    assert fitted_size((500, 700), (512, 704)) == (500, 700)
    assert fitted_size((704, 512), (512, 704)) == (512, 372)
    assert fitted_size((1, 1333), (512, 704)) == (1, 704)
    random = np.random.default_rng(0)
    for height, width, *canvas in random.integers(1, 3000, (500, 4)).tolist():
        fitted = fitted_size((height, width), (canvas[0], canvas[1]))
        assert 1 <= fitted[0] <= canvas[0] and 1 <= fitted[1] <= canvas[1]


@pytest.mark.parametrize(
    "size", [(256, 341), (150, 200), (225, 300), (100, 400), (1, 1), (193, 257)]
)
def test_resize_is_within_one_grey_level_of_pillow(size):
    image = np.random.default_rng(0).integers(0, 256, (193, 257, 3), dtype=np.uint8)
    expected = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    found = resize(image, size)
    assert found.dtype == np.uint8 and found.shape == (*size, 3)
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 1


def test_resize_from_one_pixel():
    image = np.array([[[1, 2, 3]]], dtype=np.uint8)
    assert (resize(image, (8, 5)) == image).all()


def test_stacked_pads_right_and_bottom_with_zeros():
    random = np.random.default_rng(0)
    sizes_in = ((5, 7), (8, 3))
    images = [random.integers(1, 256, (*size, 3), dtype=np.uint8) for size in sizes_in]
    batch, sizes = stack_images(images, (8, 16))
    assert batch.dtype == np.uint8 and batch.shape == (2, 8, 16, 3)
    assert sizes.dtype == np.int32 and sizes.tolist() == [[5, 7], [8, 3]]
    for slot, image in zip(batch, images, strict=True):
        height, width = image.shape[:2]
        assert (slot[:height, :width] == image).all()
        assert not slot[height:].any() and not slot[:, width:].any()


def test_stacked_of_no_images():
    batch, sizes = stack_images([], (8, 16))
    assert batch.shape == (0, 8, 16, 3) and sizes.shape == (0, 2)
