"""Images of other libraries in device memory, with the kernels on the CPU in place of a GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import condinst_infer as ci
from condinst_infer.cuda.driver import Device, Stream
from condinst_infer.errors import InputError
from tests.support.recorded_session import photograph, runner


class Foreign:
    """An array of another library in device memory, rows apart, with its own stream."""

    def __init__(self, stream: Stream, image: np.ndarray, pad: int, number: int | None) -> None:
        height, width, _ = image.shape
        rows = np.full((height, 3 * width + pad), 77, np.uint8)
        rows[:, : 3 * width] = image.reshape(height, -1)
        self._array = stream.array(rows)
        self.shape = image.shape
        self.__cuda_array_interface__: dict[str, Any] = {
            **self._array.__cuda_array_interface__,
            "shape": image.shape,
            "strides": (3 * width + pad, 3, 1),
            "stream": number,
        }


@pytest.mark.parametrize(("pad", "number"), [(0, None), (13, 1)])
def test_arrays_in_device_memory_are_read_where_they_are(
    device: Device, detector_onnx: Path, pad: int, number: int | None
) -> None:
    image = photograph((60, 91))
    with ci.Pipeline(runner(device, detector_onnx)) as pipeline:
        expected = pipeline(image)
        stream = device.stream()
        result = pipeline(Foreign(stream, image, pad, number))  # type: ignore[call-overload]
        assert np.array_equal(result.masks, expected.masks) and len(result) > 3
        assert result.image is None and result.image_size == (60, 91)
        stream.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"typestr": "<f4"}, "uint8"),
        ({"shape": (60, 91)}, r"\[H, W, 3\]"),
        ({"shape": (0, 91, 3)}, r"\[H, W, 3\]"),
        ({"strides": (1, 60, 5460)}, "contiguous"),
    ],
)
def test_other_arrays_in_device_memory_are_refused(
    device: Device, detector_onnx: Path, changes: dict[str, Any], words: str
) -> None:
    with ci.Pipeline(runner(device, detector_onnx), max_pixels=6000) as pipeline:
        stream = device.stream()
        array = Foreign(stream, photograph((60, 91)), 0, None)
        array.__cuda_array_interface__ |= changes
        with pytest.raises(InputError, match=words):
            pipeline(array)  # type: ignore[call-overload]
        with pytest.raises(InputError, match="6000"):
            pipeline(Foreign(stream, photograph((60, 101)), 0, None))  # type: ignore[call-overload]
        stream.close()
