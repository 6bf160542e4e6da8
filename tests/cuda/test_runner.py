"""The pipeline whose data stay on the device, with the kernels on the CPU in the place of a GPU."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import condinst_infer as ci
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import MissingExtraError, SessionError
from condinst_infer.runtimes.ort import OrtSession
from engines.emulator import Emulator, host
from tests.support.recorded_session import Recorded, photograph, resized_on, runner

SIZES = [(60, 90), (90, 60), (133, 200), (60, 90), (40, 61), (60, 90)]


@pytest.mark.parametrize("nms", ["box", pytest.param("mask", marks=pytest.mark.slow)])
def test_a_detector_and_our_kernels_give_what_the_whole_graph_gives(
    nms: str, device: Device, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("detector_onnx", "nano_onnx")
    names = names if nms == "box" else ("mask_nms_detector_onnx", "mask_nms_onnx")
    detector_onnx, nano_onnx = map(request.getfixturevalue, names)
    # emulated, the overlaps of 60 masks take seconds an image
    images = [photograph(size, i) for i, size in enumerate(SIZES[: 4 if nms == "box" else 2])]
    stream = Stream(device)
    # resized alike: what a grey level changes in an untrained network is another matter
    monkeypatch.setattr("condinst_infer.runtimes.runner.resize", resized_on(stream))
    with ci.load(nano_onnx) as whole, ci.Pipeline(runner(device, detector_onnx)) as pipeline:
        expected = whole(images)
        alone = [pipeline(image) for image in images[:3]]
        for ours, theirs in zip([*pipeline(images), *alone], expected + expected, strict=False):
            assert len(ours) == len(theirs) > 3 and ours.image_size == theirs.image_size
            assert np.array_equal(ours.labels, theirs.labels)
            assert np.abs(ours.scores - theirs.scores).max() < 5e-6  # measured 1.2e-7
            assert np.abs(ours.boxes - theirs.boxes).max() < 1e-3  # measured 2.7e-5
            assert (ours.masks != theirs.masks).mean() < 1e-4  # p near 0.5 may go either way
            assert ours.on_device is not None and theirs.on_device is None
            assert ours.image is not None and theirs.image is not None
            assert np.shares_memory(ours.image, theirs.image)
        assert pipeline(images[0], max_detections=2).masks.shape == (2, 60, 90)
    stream.close()


def test_resizing_on_the_device_moves_boxes_by_little(
    device: Device, detector_onnx: Path, nano_onnx: Path
) -> None:
    image = photograph((133, 200))
    with ci.load(nano_onnx) as whole, ci.Pipeline(runner(device, detector_onnx)) as pipeline:
        ours, theirs = pipeline(image), whole(image)
    apart = np.abs(ours.boxes[:, None] - theirs.boxes[None]).max(2).min(1)
    assert len(ours) == len(theirs) and apart.max() < 0.5  # pixels; measured 0.05
    assert np.abs(ours.scores - theirs.scores).max() < 5e-3  # measured 8e-4


def test_outputs_stay_on_the_device_for_other_libraries(
    device: Device, detector_onnx: Path
) -> None:
    image = photograph((128, 192))
    with ci.Pipeline(runner(device, detector_onnx)) as pipeline:
        result = pipeline(image, max_detections=2)
        assert result.on_device is not None and len(result) == 2
        arrays = {name: host(array).copy() for name, array in result.on_device.items()}
    assert arrays["masks"].shape == (20, 32, 48) and arrays["masks"].dtype == np.float32
    assert np.array_equal(arrays["scores"][:2], result.scores)
    assert np.array_equal(arrays["labels"][:2], result.labels)
    large = arrays["masks"][0] > 0.5
    assert result.masks[0].any() == large.any()


def test_a_whole_engine_works_too_and_becomes_a_graph_at_its_third_batch(
    device: Device, nano_onnx: Path
) -> None:
    session = Recorded(nano_onnx)
    image = photograph((128, 192))
    with ci.load(nano_onnx) as whole, ci.Pipeline(CudaRunner(session, device)) as pipeline:
        expected = whole(image)
        enqueued = []
        for _ in range(4):
            result = pipeline(image)
            enqueued.append(session.enqueued)
            assert np.array_equal(result.masks, expected.masks)
            assert np.array_equal(result.boxes, expected.boxes)
    assert enqueued == [1, 3, 3, 3]  # the second time runs it and records it
    assert session.contexts == 0


def test_warm_calls_allocate_nothing(
    device: Device, cuda_emulator: Emulator, nano_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photograph((60, 90))
    with ci.Pipeline(CudaRunner(Recorded(nano_onnx), device)) as pipeline:
        for _ in range(2):
            pipeline(image)
        calls: list[str] = []
        call = device._call
        monkeypatch.setattr(
            device, "_call", lambda name, *a: (calls.append(name), call(name, *a))[1]
        )
        pipeline(image)
        assert not [name for name in calls if "Alloc" in name or "Free" in name or "Create" in name]
        assert calls.count("cuStreamSynchronize") == 1 and calls.count("cuMemcpyDtoHAsync") == 0
        assert calls.count("cuGraphLaunch") == 1
        monkeypatch.undo()


def test_canvases_and_plans_that_were_not_used_lately_are_freed(
    device: Device, cuda_emulator: Emulator, nano_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condinst_infer.cuda.runner._CANVASES", 1)
    monkeypatch.setattr("condinst_infer.cuda.canvas._PLANS", 1)
    session = Recorded(nano_onnx)
    with ci.Pipeline(CudaRunner(session, device)) as pipeline:
        counts = []
        for size in ((60, 90), (61, 90), (90, 60)) * 2:
            pipeline(photograph(size))
            counts.append(cuda_emulator.allocations())
            assert session.contexts == 1
    assert counts[2] == counts[5]


def test_more_mask_bits_than_expected_get_room(
    device: Device, nano_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condinst_infer.cuda.canvas.expected_words", lambda k, size: 3)
    monkeypatch.setattr("condinst_infer.cuda.download._FIRST_WORDS", 2)
    image = photograph((128, 192))
    with (
        ci.load(nano_onnx) as whole,
        ci.Pipeline(CudaRunner(Recorded(nano_onnx), device)) as pipeline,
    ):
        for _ in range(4):
            assert np.array_equal(pipeline(image).masks, whole(image).masks)


def test_threads_get_lanes_of_their_own(device: Device, nano_onnx: Path) -> None:
    images = [photograph(SIZES[i % 3], i) for i in range(12)]
    session = Recorded(nano_onnx)
    session.capturable = False  # its graph would repeat the outputs of the image it was made with
    with ci.Pipeline(CudaRunner(session, device)) as pipeline:
        alone = [pipeline(image) for image in images]
        for ours, theirs in zip(pipeline.map(images, workers=4), alone, strict=True):
            assert np.array_equal(ours.masks, theirs.masks)
            assert np.array_equal(ours.scores, theirs.scores)
            assert ours.on_device is None


def test_a_session_of_one_stream_makes_threads_wait(device: Device, detector_onnx: Path) -> None:
    session = OrtSession(detector_onnx)
    image = photograph((60, 90))
    with (
        ci.Pipeline(CudaRunner(session, device, Stream(device))) as pipeline,
        ThreadPoolExecutor(4) as pool,
    ):
        counts = [len(result) for result in pool.map(pipeline, [image] * 8)]
    assert counts[0] > 3 and len(set(counts)) == 1


def test_a_closed_pipeline_says_so_and_leaves_no_kernels(
    device: Device, detector_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, call = [], device._call
    monkeypatch.setattr(device, "_call", lambda name, *a: (calls.append(name), call(name, *a))[1])
    pipeline = ci.Pipeline(runner(device, detector_onnx))
    pipeline(photograph((60, 90)))
    pipeline.close()
    pipeline.close()
    assert calls.count("cuModuleUnload") == calls.count("cuModuleLoadDataEx") == 5  # sources
    with pytest.raises(SessionError, match="closed"):
        pipeline(photograph((60, 90)))


def test_without_a_gpu_cuda_is_refused_in_one_sentence(nano_onnx: Path) -> None:
    """In a process of its own: in this one the emulator may be loaded."""
    code = f"import condinst_infer as ci; ci.load({str(nano_onnx)!r}, device='cuda')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "no NVIDIA driver" in last and "device='cpu'" in last


def test_without_its_bindings_cuda_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings"):  # the first is shared with other packages of NVIDIA
        for loaded in ("cuda.bindings", "cuda.bindings.driver"):
            monkeypatch.delitem(sys.modules, loaded, raising=False)
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtraError, match=r"condinst-infer\[cuda\]"):
            Device()
        monkeypatch.undo()
