"""Results as sequences: index, slice, filter."""

import re
from itertools import pairwise

import numpy as np
import pytest

import condinst_infer as ci
from tests.support.results import instances, segmented

MASKS = np.zeros((5, 30, 40), bool)
for k in range(5):
    MASKS[k, 2 : 4 + 3 * k, 3:9] = True  # areas 12, 30, 48, 66, 84
RESULT = instances(MASKS, np.zeros((30, 40, 3), np.uint8))  # cat, dog, cat, dog, cat


def test_an_instance_holds_its_part_of_every_array() -> None:
    for k, one in enumerate(RESULT):
        assert isinstance(one, ci.Instance)
        assert (one.box == RESULT.boxes[k]).all() and one.score == RESULT.scores[k]
        assert (one.label, one.name) == (k % 2, ("cat", "dog")[k % 2])
        assert (one.mask == MASKS[k]).all() and one.area == MASKS[k].sum() == RESULT.areas[k]
        assert one.rle() == RESULT.rle()[k]
        (polygon,), (same,) = one.polygons(), RESULT.polygons()[k]
        assert (polygon.outer == same.outer).all()
        assert repr(one) == f"<Instance: {one.name} {one.score:.2f} at (1, 2, 12, 22)>"
    assert RESULT[-1].area == 84 and RESULT[np.int64(4)].area == 84


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -2), [4, 2, 0]),
        ([3, 0], [3, 0]),
        (np.array([-1, 1]), [4, 1]),
        (np.array([False, True, False, False, True]), [1, 4]),
        ([], []),
        (np.zeros(5, bool), []),
    ],
    ids=str,
)
def test_slices_masks_and_indices_give_instances(index: object, kept: list[int]) -> None:
    some = RESULT[index]  # pyright: ignore
    assert isinstance(some, ci.Instances) and len(some) == len(kept)
    assert some.boxes.shape == (len(kept), 4) and some.masks.shape == (len(kept), 30, 40)
    assert (some.scores == RESULT.scores[kept]).all() and (some.labels == RESULT.labels[kept]).all()
    assert (some.masks == MASKS[kept]).all() and some.image is RESULT.image
    assert some.on_device is None and some.names == tuple(RESULT.names[k] for k in kept)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (5, "out of range"),
        (-6, "out of range"),
        ([0, 5], "out of bounds"),
        ([True, False], r"bool \[2\]; there are 5"),
        ([0.5], "float64"),
        ([[0, 1]], r"\(1, 2\)"),
        ("cat", "it must be a number"),
    ],
    ids=str,
)
def test_other_indices_say_what_is_needed(index: object, words: str) -> None:
    with pytest.raises(IndexError, match=words):
        RESULT[index]  # pyright: ignore


def test_filter_takes_classes_scores_and_areas() -> None:
    assert len(RESULT.filter()) == 5
    assert RESULT.filter(classes="dog").names == ("dog", "dog")
    assert RESULT.filter(classes=[0, "dog"], min_area=40).areas.tolist() == [48, 66, 84]
    assert RESULT.filter(min_score=0.7).scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert len(RESULT.filter(classes=["cat"], min_score=0.95)) == 0
    with pytest.raises(ci.ConfigError, match="did you mean cat"):
        RESULT.filter(classes="cta")


def test_a_chosen_segment_keeps_its_pixels_and_the_rest_is_void() -> None:
    whole = segmented()
    assert (
        len(whole) == 4 and list(whole) == list(whole.segments) and whole[-1] == whole.segments[3]
    )
    some = whole[1:3]
    assert some.segments == whole.segments[1:3]
    expected = np.where(np.isin(whole.id_map, [s.id for s in some]), whole.id_map, 0)
    assert (some.id_map == expected).all() and some.image is whole.image
    assert (whole[[True, False, False, False]].id_map > 0).sum() == whole[0].area
    with pytest.raises(IndexError):
        whole[4]


def test_segments_are_filtered_by_class_score_and_area() -> None:
    whole = segmented()
    stuff = [s for s in whole if not s.is_thing]
    assert whole.filter(min_score=1.0).segments == tuple(stuff)
    assert whole.filter(classes=stuff[0].name).segments == (stuff[0],)
    areas = sorted(s.area for s in whole)
    assert all(a < b for a, b in pairwise(areas))
    assert len(whole.filter(min_area=areas[2])) == 2
    with pytest.raises(ci.ConfigError, match=re.escape("no class 'sofa'")):
        whole.filter(classes="sofa")
