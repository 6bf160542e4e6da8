"""A panoptic session that needs no runtime."""

from collections.abc import Mapping

import numpy as np

from condinst_infer.config.model import override
from tests.support.fake_session import FakeSession


class StuffSession(FakeSession):
    """A panoptic session: what is not bright is sky, in the lower half sea."""

    def __init__(self) -> None:
        stuff = {"stuff_names": ("sky", "sea"), "stuff_ids": (201, 202), "stuff_area_limit": 1}
        config = override(FakeSession().metadata.config, neck_in_levels=(2, 3, 4, 5), **stuff)
        super().__init__(config=config)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = super().run(feeds)
        n, _, h, w = outputs["masks"].shape
        semantic = np.zeros((n, 3, h, w), np.float32)
        semantic[:, 1, : h // 2] = semantic[:, 2, h // 2 :] = 5
        return {**outputs, "semantic": semantic}
