"""What a changed model loses beside its reference: which detections count, and how much."""

from typing import Any

import numpy as np
import pytest

from condinst_infer.quantization.agreement import (
    ImageAgreement,
    _compare_image,
    _detect,
    agreement,
    disagreement_percent,
    spread,
)


class Fixed:
    """A session that finds two squares, and a third with another score."""

    def __init__(self, score: float, count: int) -> None:
        masks = np.zeros((1, 3, 8, 8), np.float32)
        masks[0, 0, :4], masks[0, 1, :, :4], masks[0, 2, 6:] = 1, 1, 1
        boxes = np.array([[[0, 0, 8, 4], [0, 0, 4, 8], [0, 6, 8, 8]]], np.float32)
        self.outputs = {
            "num_detections": np.array([count], np.int32),
            "boxes": boxes,
            "scores": np.array([[0.9, 0.5, score]], np.float32),
            "labels": np.zeros((1, 3), np.int32),
            "masks": masks,
        }

    def run(self, feeds: Any) -> dict[str, np.ndarray]:
        return self.outputs


@pytest.mark.parametrize(("score", "loss"), [(0.3, 0.0), (0.2, 0.0), (0.5, 100 * 0.2 / 1.8)])
def test_a_detection_that_goes_at_the_threshold_costs_nothing(score: float, loss: float) -> None:
    ours, theirs = (_detect(Fixed(score, count), {}) for count in (3, 2))  # pyright: ignore
    found = _compare_image(ours, theirs, floor=0.3)
    assert (found.ious, found.lost, found.new) == ([1.0, 1.0], 1, 0)
    assert disagreement_percent([found]) == pytest.approx(loss, abs=1e-4)


def test_an_image_without_weight_costs_nothing() -> None:
    sure = ImageAgreement(agreeing_weight=1.8, weight=2.0, ious=[0.9, 0.95], lost=0, new=1)
    none = ImageAgreement(agreeing_weight=0.0, weight=0.0, ious=[], lost=3, new=0)
    assert (
        disagreement_percent([sure, none]) == pytest.approx(10)
        and disagreement_percent([none]) == 0
    )
    found = agreement([sure, none])
    assert (found.detections, found.lost, found.new, found.above_09) == (5, 3, 1, 0.5)


def test_images_are_taken_from_everywhere() -> None:
    names = [str(i) for i in range(10)]
    assert spread(names, 3) == ["0", "3", "6"]
    assert spread(names, 100) == names
