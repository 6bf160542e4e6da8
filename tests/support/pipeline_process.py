"""A pipeline that was pickled into another process, and what that process gives back."""

from pathlib import Path

import numpy as np

import condinst_infer as ci

Arrays = dict[str, np.ndarray]


def arrays_of(result: ci.Instances) -> Arrays:
    """The four arrays of a result."""
    names = ("boxes", "scores", "labels", "masks")
    return {name: getattr(result, name) for name in names}


def arrays_from(pipeline: ci.Pipeline, image: Path) -> Arrays:
    """The arrays that `pipeline` gives for `image`; another process calls this."""
    return arrays_of(pipeline(image))


def assert_bit_equal(found: Arrays, expected: Arrays) -> None:
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


class FoundObjects:
    """A data set for torch's DataLoader: the arrays of each image; it holds the pipeline."""

    def __init__(self, pipeline: ci.Pipeline, images: list[Path]) -> None:
        self._pipeline, self._images = pipeline, images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Arrays:
        return arrays_from(self._pipeline, self._images[index])
