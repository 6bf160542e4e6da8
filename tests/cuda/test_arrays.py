"""Images of other libraries in device memory, with the kernels on the CPU in place of a GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import condinst_infer as ci
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.runtimes.ort import OrtSession
from engines.emulator import Emulator
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
        stream = Stream(device)
        result = pipeline(Foreign(stream, image, pad, number))  # type: ignore[call-overload]
        assert np.array_equal(result.masks, expected.masks) and len(result) > 3
        assert result.image is None and result.image_size == (60, 91)
        stream.close()


@pytest.mark.parametrize("alone", [False, True], ids=["own streams", "one stream"])
@pytest.mark.parametrize(("pad", "number"), [(0, None), (13, 1)])
def test_rgb_in_device_memory_gives_what_bgr_gives(
    device: Device, detector_onnx: Path, pad: int, number: int | None, alone: bool
) -> None:
    image = photograph((60, 91))
    only = Stream(device) if alone else None
    network = CudaRunner(OrtSession(detector_onnx), device, only)
    with ci.Pipeline(network) as pipeline:
        expected = pipeline(image)
        stream = Stream(device)
        rgb: Any = Foreign(stream, image[..., ::-1], pad, number)
        result = pipeline(rgb, channel_order="rgb")
        assert np.array_equal(result.masks, expected.masks) and len(result) > 3
        assert np.array_equal(result.boxes, expected.boxes)
        assert result.image is not None and np.array_equal(result.image, image)
        (mapped,) = pipeline.map([rgb], channel_order="rgb")
        assert np.array_equal(mapped.masks, expected.masks)
        with pytest.raises(ConfigError, match="channel_order"):
            network.image(rgb, 6000, "grb")  # type: ignore[arg-type]
        stream.close()


def test_a_batch_in_device_memory_is_taken_image_by_image(
    device: Device, detector_onnx: Path
) -> None:
    images = [photograph((60, 91), seed) for seed in range(2)]
    with ci.Pipeline(runner(device, detector_onnx)) as pipeline:
        stream = Stream(device)

        class Batch(list):
            """Iterates over the first axis, as PyTorch and CuPy do."""

            ndim = 4
            __cuda_array_interface__: Any = None

        batch = Batch(Foreign(stream, image, 0, None) for image in images)
        results: Any = pipeline(batch)
        assert isinstance(results, list) and len(results) == 2
        for image, result in zip(images, results, strict=True):
            assert np.array_equal(result.masks, pipeline(image).masks)
        stream.close()


def test_tensors_on_the_gpu_are_refused_as_those_of_the_host(
    device: Device, detector_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch has no GPU here: a tensor of the host stands for one of the GPU."""
    monkeypatch.setattr("condinst_infer.cuda.runner.is_device_array", lambda source: True)
    with ci.Pipeline(runner(device, detector_onnx)) as pipeline:
        with pytest.raises(InputError, match=r"\(image \* 255\)\.round\(\)\.to\(torch\.uint8\)"):
            pipeline(torch.zeros(60, 91, 3))
        with pytest.raises(InputError, match="can't be used as an array of the GPU"):
            pipeline(torch.zeros(60, 91, 3, dtype=torch.uint8))


def test_an_image_on_another_gpu_or_nowhere_is_refused(
    device: Device, cuda_emulator: Emulator, detector_onnx: Path
) -> None:
    """The kernels would read memory that is not theirs, which no process survives."""
    cuda_emulator.devices(2)
    elsewhere = Stream(Device(1))
    image: Any = Foreign(elsewhere, photograph((60, 91)), 0, None)
    with ci.Pipeline(runner(device, detector_onnx)) as pipeline:
        for order in ("bgr", "rgb"):
            with pytest.raises(InputError, match=r"on GPU 1 and the model on GPU 0.*'cuda:0'"):
                pipeline(image, channel_order=order)
        elsewhere.close()
        with pytest.raises(InputError, match="the driver knows no memory at its address"):
            pipeline(image)
    cuda_emulator.devices(1)


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
        stream = Stream(device)
        array = Foreign(stream, photograph((60, 91)), 0, None)
        array.__cuda_array_interface__ |= changes
        with pytest.raises(InputError, match=words):
            pipeline(array)  # type: ignore[call-overload]
        with pytest.raises(InputError, match="6000"):
            pipeline(Foreign(stream, photograph((60, 101)), 0, None))  # type: ignore[call-overload]
        stream.close()
