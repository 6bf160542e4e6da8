"""Overlays: what is drawn stays where it belongs, whatever the image size."""

import itertools

import numpy as np
import pytest

from condinst_infer.results.crop import CroppedMask
from condinst_infer.results.draw import free_place, instance_colour, line_unit, overlay, text_colour

GREY = 120


def blank(height: int = 480, width: int = 640) -> np.ndarray:
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def changed(picture: np.ndarray) -> np.ndarray:
    return (picture != GREY).any(axis=2)


def square(x: int, y: int, side: int) -> CroppedMask:
    return CroppedMask(x, y, np.ones((side, side), dtype=bool))


def test_drawing_leaves_the_image_and_everything_far_from_a_mask_alone():
    image = blank()
    drawn = changed(overlay(image, [square(200, 100, 80)]))
    assert (image == GREY).all()
    assert drawn[100:180, 200:280].all()
    drawn[95:185, 195:285] = False  # the contour may stand out by its width
    assert not drawn.any()


def test_only_the_mask_is_filled():
    ring = np.ones((100, 100), dtype=bool)
    ring[20:80, 20:80] = False
    drawn = changed(overlay(blank(), [CroppedMask(50, 50, ring)]))
    assert drawn[60, 60] and not drawn[75:125, 75:125].any()


def test_opacity_mixes_image_and_colour():
    crops = [square(200, 100, 80)]
    for opacity in (0.0, 0.5, 1.0):
        found = overlay(blank(), crops, opacity=opacity)[140, 240]
        expected = GREY * (1 - opacity) + np.array(instance_colour(0)) * opacity
        assert np.abs(found - expected).max() <= 1  # rounding


def test_small_objects_stay_visible_on_large_ones():
    small, large = square(240, 140, 10), square(100, 50, 300)
    for crops in ([small, large], [large, small]):
        picture = overlay(blank(), crops, opacity=1)
        assert tuple(picture[145, 245]) == instance_colour(crops.index(small))
        assert tuple(picture[60, 110]) == instance_colour(crops.index(large))


def test_colours_are_stable_and_distinct():
    colours = [instance_colour(k) for k in range(12)]
    assert colours == [instance_colour(k) for k in range(12)]
    for a, b in itertools.combinations(colours, 2):
        assert np.abs(np.subtract(a, b)).sum() > 40


def test_text_contrasts_with_its_chip():
    assert text_colour((0, 255, 255)) == (0, 0, 0)  # yellow
    assert text_colour((255, 0, 0)) == (255, 255, 255)  # blue


@pytest.mark.parametrize("size", [(480, 640), (2160, 3840), (40, 60), (1, 1), (3, 900), (900, 3)])
def test_any_image_size_can_be_labelled(size):
    height, width = size
    crops = [
        CroppedMask(0, 0, np.ones(size, dtype=bool)),
        CroppedMask(width - 1, height - 1, np.ones((1, 1), dtype=bool)),
        CroppedMask(0, 0, np.zeros((0, 0), dtype=bool)),
    ]
    boxes = np.array([[0, 0, width, height]] * 3, dtype=np.float32)
    picture = overlay(blank(*size), crops, texts=["person 0.98"] * 3, boxes=boxes)
    assert picture.dtype == np.uint8 and picture.shape == (*size, 3)
    assert changed(picture).any() and picture.flags.writeable


def test_line_width_grows_with_the_image():
    assert 1.5 < line_unit(480, 640) < 2.5 and 7 < line_unit(2160, 3840) < 10
    thin = changed(overlay(blank(), [square(200, 100, 80)], opacity=0)).sum() / 80
    large = overlay(blank(2160, 3840), [square(800, 600, 480)], opacity=0)
    assert changed(large).sum() / 480 > 2.5 * thin


def test_labels_grow_with_the_image_and_carry_the_colour():
    crop = square(300, 200, 4)
    for height, width, least in ((480, 640, 13 * 40), (2160, 3840, 60 * 180)):
        plain = overlay(blank(height, width), [crop])
        labelled = overlay(blank(height, width), [crop], texts=["person 0.98"])
        differs = (plain != labelled).any(axis=2)
        assert least < differs.sum() < 12 * least
        chip = (labelled == instance_colour(0)).all(axis=2) & differs
        assert chip.sum() > 0.4 * differs.sum()


def test_label_is_left_out_for_an_empty_mask_and_none_given():
    empty = CroppedMask(0, 0, np.zeros((0, 0), dtype=bool))
    assert not changed(overlay(blank(), [empty], texts=["ghost"])).any()
    box = np.array([[50, 60, 150, 160]], dtype=np.float32)
    assert changed(overlay(blank(), [empty], texts=["box"], boxes=box)).any()


def test_labels_stay_inside_and_apart():
    random = np.random.default_rng(0)
    taken = []
    for _ in range(200):
        x, y = (int(v) for v in random.integers(0, [600, 440]))
        place = free_place((70, 16), (x, y, x + 40, y + 40), (480, 640), taken)
        if place is None:
            continue
        assert 0 <= place[0] and place[2] <= 640 and 0 <= place[1] and place[3] <= 480
        for other in taken:
            apart_x = place[2] <= other[0] or other[2] <= place[0]
            assert apart_x or place[3] <= other[1] or other[3] <= place[1]
        taken.append(place)
    assert len(taken) > 60


def test_a_label_goes_above_its_object_where_it_can():
    assert free_place((70, 16), (100, 100, 200, 200), (480, 640), []) == (100, 84, 170, 100)
    assert free_place((70, 16), (100, 4, 200, 200), (480, 640), []) == (100, 0, 170, 16)
    assert free_place((70, 16), (100, 100, 200, 200), (10, 640), []) is None
