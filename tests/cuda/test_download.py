"""Masks come from the device as bits, in host memory of their own."""

from collections.abc import Sequence

import numpy as np
import pytest

from condinst_infer.cuda import download
from condinst_infer.cuda.download import HostCopy, crops_from_bits
from condinst_infer.cuda.stream import Stream
from condinst_infer.results.crop import CroppedMask

CROPS = ((3, 4, 33, 6, 0), (1, 2, 32, 5, 12))  # 17 words


def contents(stream: Stream, host_copy: HostCopy, bits: np.ndarray) -> list[CroppedMask]:
    """The masks of a batch of one image, whose two slots have `bits`."""
    values: dict[str, Sequence[object] | np.ndarray] = {"crops": [CROPS], "used": [17]}
    values |= {"num_detections": [2], "boxes": np.ones((1, 2, 4)), "scores": np.ones((1, 2))}
    for name, value in (values | {"labels": np.ones((1, 2)), "bits": bits}).items():
        array = host_copy[name]
        stream.upload(array, np.asarray(value, array.dtype).reshape(array.shape))
    host_copy.fetch()
    used = host_copy.wait()
    return host_copy.contents(used, 1)[1][0]


@pytest.mark.parametrize("first_words", [1 << 16, 5])  # all come with the first copy, or a part
def test_masks_outlive_the_next_batch_and_the_device_memory(
    stream: Stream, first_words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_FIRST_WORDS", first_words)
    random = np.random.default_rng(0)
    frames = [random.integers(0, 2**32, 17, np.uint32) for _ in range(2)]
    for bits in frames:
        bits[1:12:2] &= 1  # beyond 33 columns
    host_copy = HostCopy(stream, 1, 2, 17)
    early, late = (contents(stream, host_copy, bits) for bits in frames)
    host_copy.close()
    for found, bits in zip((early, late), frames, strict=True):
        expected = crops_from_bits(np.array(CROPS, np.int32), bits)
        assert [crop.area for crop in found] == [crop.area for crop in expected] != [0, 0]
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours.x, ours.y) == (theirs.x, theirs.y)
            assert np.array_equal(ours.mask, theirs.mask)


def test_masks_are_views_of_the_bits_and_unpack_none() -> None:
    bits = np.full(17, 1, np.uint32)
    wide, narrow = crops_from_bits(np.array(CROPS, np.int32), bits)
    assert np.shares_memory(wide.bits, bits) and np.shares_memory(narrow.bits, bits)
    assert wide.shape == (6, 33) and wide.area == 12
    assert narrow.shape == (5, 32) and narrow.area == 5
    assert narrow.mask.nonzero()[1].tolist() == [0] * 5
