"""A session that needs no runtime: it finds what is bright, and tells what it was given."""

from collections.abc import Mapping

import cv2
import numpy as np

import condinst_infer as ci
from condinst_infer.contract.metadata import Metadata
from condinst_infer.contract.tensors import check_feeds, contract_inputs, contract_outputs
from tests.support.bright_model import bright_config

SIZES = [(60, 90), (90, 60), (300, 300), (61, 90), (20, 700), (90, 60), (700, 20), (60, 90), (1, 1)]


class FakeSession:
    """Finds every bright rectangle, largest first; keeps the feeds it was given."""

    def __init__(self, **metadata: object) -> None:
        config = bright_config(max_detections=5)
        self.metadata = Metadata(**{"config": config, **metadata})  # type: ignore[arg-type]
        self.inputs = contract_inputs(self.metadata)
        self.outputs = contract_outputs(self.metadata)
        self.fed: list[Mapping[str, np.ndarray]] = []
        self.closed = False

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        self.fed.append(feeds)
        n, h, w, _ = feeds["images"].shape
        out = {
            "num_detections": np.zeros(n, np.int32),
            "boxes": np.zeros((n, 5, 4), np.float32),
            "scores": np.zeros((n, 5), np.float32),
            "labels": np.full((n, 5), -1, np.int32),
            "masks": np.zeros((n, 5, h // 4, w // 4), np.float32),
        }
        for i, image in enumerate(feeds["images"]):
            bright = (image.min(axis=2) > 128).astype(np.uint8)
            _, places, stats, _ = cv2.connectedComponentsWithStats(bright)
            order = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:5]
            out["num_detections"][i] = len(order)
            for slot, part in enumerate(order):
                x, y, width, height, _ = stats[part]
                out["boxes"][i, slot] = x, y, x + width, y + height
                out["scores"][i, slot] = 0.9 - 0.1 * slot
                out["labels"][i, slot] = slot
                cells = (places == part).reshape(h // 4, 4, w // 4, 4)
                out["masks"][i, slot] = cells.mean(axis=(1, 3))
        return out

    def close(self) -> None:
        self.closed = True


def photograph(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A dark noisy image with two bright rectangles."""
    height, width = size
    image = np.random.default_rng(seed).integers(0, 60, (height, width, 3), dtype=np.uint8)
    image[height // 8 : height // 2, width // 8 : width // 2] = 230
    image[3 * height // 4 :, 3 * width // 4 :] = 200
    return image


def assert_same(a: ci.Instances, b: ci.Instances) -> None:
    assert a.image_size == b.image_size and a.names == b.names
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.masks, b.masks)
