"""COCO run lengths: there and back for every mask, and a ValueError for every other text."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condinst_infer.datasets.coco import rle_from_segmentation
from condinst_infer.errors import CondInstError
from condinst_infer.results.crop import CroppedMask
from condinst_infer.results.rle import compress_counts, crop_from_rle, rle_from_crop
from tests.support.mutations import REPEATABLE, damaged_bytes

SIZES = st.one_of(st.integers(1, 40), st.sampled_from([0, -1, 2**15, 2**30, 10**9, 2**62]))
REAL = compress_counts([3, 5, 1, 70, 2, 3000, 9, 10, 41, 6])


def read_both(text: str, height: int, width: int) -> None:
    """Read with our decoder, and as an annotation with that of faster-coco-eval."""
    rle: dict[str, Any] = {"size": [height, width], "counts": text}
    for read in (crop_from_rle, lambda value: rle_from_segmentation(value, (height, width))):
        try:
            read(rle)
        except (ValueError, CondInstError) as error:
            assert len(str(error)) < 300
        except RuntimeError:  # of faster-coco-eval; `condinst eval` names the annotation
            assert read is not crop_from_rle


@pytest.mark.slow
@settings(REPEATABLE, max_examples=8000)
@given(damaged_bytes(REAL.encode()), SIZES, SIZES)
def test_a_damaged_text_is_refused_or_a_mask(data: bytes, height: int, width: int) -> None:
    read_both(data.decode("latin-1"), height, width)


@pytest.mark.slow
@settings(REPEATABLE, max_examples=4000)
@given(st.lists(st.integers(-(2**40), 2**40), max_size=9), SIZES, SIZES)
def test_runs_of_any_length_are_refused_or_a_mask(
    counts: list[int], height: int, width: int
) -> None:
    read_both(compress_counts(counts) if counts else "", height, width)


@pytest.mark.slow
@settings(REPEATABLE, max_examples=1000)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 10**6), st.floats(0, 1))
def test_every_mask_comes_back(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    rle = rle_from_crop(CroppedMask(0, 0, mask), (height, width))
    crop = crop_from_rle(rle)
    h, w = crop.shape
    found = np.zeros_like(mask)
    found[crop.y : crop.y + h, crop.x : crop.x + w] = crop.mask
    assert (found == mask).all()


@pytest.mark.parametrize(
    ("size", "counts", "words"),
    [
        ([10**9, 10**9], compress_counts([0, 10**18]), "pixels; there may be"),
        ([4, 4], "o" * 10**6 + "0", "a run that no image has"),
        ([4, 4], compress_counts([4, -8, 20]), "a run of -8 pixels"),
        ([4, 4], compress_counts([2**33, 2]), "a run of 8589934592 pixels"),
        ([4, 4], compress_counts([5, 5]), "do not add up to 4 x 4"),
        ([0, 4], "0", "pixels; there may be"),
        ([4, 4], "é", "no COCO run lengths"),
        ([4, 4], "@o", "no COCO run lengths"),
        ([4, 4], "", "do not add up"),
    ],
)
def test_what_is_no_mask_is_one_sentence(size: list[int], counts: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        crop_from_rle({"size": size, "counts": counts})


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([[0, 0, 1e300, 0, 1e300, 1e300]], "its outline has"),
        ([[0, 0, 1e8, 0, 0, 5]], "its outline has 2e"),
        ({"size": [4, 4], "counts": [0.5, 15.5]}, "add up"),
        ({"size": [4, 4], "counts": 16}, "neither a text nor a list"),
        ({"size": [4, 4], "counts": "o" * 99}, "no COCO run lengths"),
        ({"size": "x" * 10**6, "counts": [16]}, "its mask is 'xxx"),
    ],
)
def test_annotations_without_end_are_refused(segmentation: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words) as error:
        rle_from_segmentation(segmentation, (4, 4))
    assert len(str(error.value)) < 300
