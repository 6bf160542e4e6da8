"""Frames on their way to the device: pageable, page-locked, strided, or there already."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import condinst_infer as ci
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.cuda.stream import Stream
from condinst_infer.cuda.upload import FrameUpload
from condinst_infer.errors import ConfigError
from engines.emulator import Emulator, host
from tests.support.recorded_session import Kept, photograph


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of the upload so small that a frame needs many; and few blocks that do nothing."""
    monkeypatch.setattr("condinst_infer.cuda.upload._PIECE", 300)
    monkeypatch.setattr("condinst_infer.cuda.kernels.PASTE_BLOCKS", 1)


def frames(image: np.ndarray, pipeline: ci.Pipeline) -> dict[str, np.ndarray]:
    """The same picture in every kind of host memory."""
    pinned = pipeline.frame_buffer(*image.shape[:2])
    pinned[...] = image
    wide = np.zeros((image.shape[0], 2 * image.shape[1], 3), np.uint8)
    wide[:, 5 : 5 + image.shape[1]] = image
    return {
        "pageable": image.copy(),
        "pinned": pinned,
        "part of a pinned one": pinned[:, :],
        "part of a larger image": wide[:, 5 : 5 + image.shape[1]],
        "columns first": np.asfortranarray(image),
        "upside down": image[::-1].copy()[::-1],
    }


def test_frames_from_any_memory_give_the_same_bits(
    pieces: None, device: Device, cuda_emulator: Emulator, nano_onnx: Path
) -> None:
    image = photograph((30, 46))
    with ci.Pipeline(CudaRunner(Kept(nano_onnx), device)) as pipeline:
        expected = pipeline(image)
        stream = Stream(device)
        on_device: Any = stream.array(image)
        found = {name: pipeline(frame) for name, frame in frames(image, pipeline).items()}
        found["in device memory"] = pipeline(on_device)
        assert len(expected) > 0
        for name, result in found.items():
            assert np.array_equal(result.boxes, expected.boxes), name
            assert np.array_equal(result.masks, expected.masks), name
        stream.close()


def test_a_running_camera_allocates_nothing(
    pieces: None,
    device: Device,
    cuda_emulator: Emulator,
    nano_onnx: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = photograph((30, 45))
    with ci.Pipeline(CudaRunner(Kept(nano_onnx), device)) as pipeline:
        kinds = frames(image, pipeline)
        for frame in kinds.values():
            for _ in range(2):
                pipeline(frame)
        calls: list[str] = []
        call = device._call
        monkeypatch.setattr(
            device, "_call", lambda name, *a: (calls.append(name), call(name, *a))[1]
        )
        for frame in kinds.values():
            pipeline(frame)
        made = [name for name in calls if "Alloc" in name or "Create" in name or "Free" in name]
        assert not made and calls.count("cuGraphLaunch") == len(kinds)
        monkeypatch.undo()


@pytest.mark.parametrize("piece", [1, 100, 271, 10**6])
def test_a_frame_arrives_whole_in_pieces_of_any_size(
    piece: int, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condinst_infer.cuda.upload._PIECE", piece)
    stream = Stream(device)
    upload = FrameUpload(stream)
    rng = np.random.default_rng(0)
    for size in ((7, 30), (40, 90), (3, 2), (1, 333)):
        frame = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        assert np.array_equal(host(upload.run(frame)), frame)
    upload.close()
    stream.close()


def test_a_page_locked_frame_is_copied_once(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(device)
    upload = FrameUpload(stream)
    frame = device.pinned((4, 5, 3), np.uint8)
    assert device.is_pinned(frame.ctypes.data) and not device.is_pinned(np.empty(9).ctypes.data)
    monkeypatch.setattr(upload, "_in_pieces", None)
    upload.run(frame)
    upload.close()
    stream.close()


def test_a_frame_buffer_outlives_its_pipeline_and_is_freed_with_its_last_view(
    device: Device, cuda_emulator: Emulator, nano_onnx: Path
) -> None:
    before = cuda_emulator.live().get("pinned memory", 0)
    with ci.Pipeline(CudaRunner(Kept(nano_onnx), device)) as pipeline:
        buffer = pipeline.frame_buffer(60, 90)
    assert buffer.shape == (60, 90, 3) and buffer.dtype == np.uint8 and buffer.flags.c_contiguous
    view = buffer[10:]
    del buffer
    view[...] = 7
    assert cuda_emulator.live()["pinned memory"] == before + 1
    del view
    assert cuda_emulator.live().get("pinned memory", 0) == before


def test_on_a_cpu_a_frame_buffer_is_an_array_as_any_other(nano_onnx: Path) -> None:
    with ci.load(nano_onnx) as pipeline:
        buffer = pipeline.frame_buffer(60, 90)
        buffer[...] = photograph((60, 90))
        assert np.array_equal(pipeline(buffer).boxes, pipeline(photograph((60, 90))).boxes)
        for sides in ((0, 9), (9, -1), (2.5, 9)):
            with pytest.raises(ConfigError, match=r"(height|width) is .* whole number >= 1"):
                pipeline.frame_buffer(*sides)  # type: ignore[arg-type]
