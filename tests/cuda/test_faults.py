"""What the host does when the driver refuses something, on the emulated driver."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import condinst_infer as ci
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.kernels import class_nms
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import CondInstError, SessionError
from condinst_infer.results.instances import Instances
from engines.emulator import Emulator
from tests.support.recorded_session import Kept, Recorded, photograph, runner

FRAMES = 4  # the first allocates, the second records, the third is the first that is a graph


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small pictures most blocks have nothing to do, and the emulator runs them all."""
    monkeypatch.setattr("condinst_infer.cuda.kernels.PASTE_BLOCKS", 1)


def assert_same(found: Instances, expected: Instances) -> None:
    assert len(found) == len(expected) > 0
    assert np.array_equal(found.boxes, expected.boxes)
    assert np.array_equal(found.masks, expected.masks)


REFUSALS = (
    "cuStreamBeginCapture:1:900",
    "cuStreamEndCapture:1:901",
    "cuLaunchKernel@paste_f32:4:901",
    "cuMemcpyDtoHAsync:4:900",
    "cuGraphInstantiateWithFlags:1:2",
    "cuGraphLaunch:1:2",
    "cuGraphLaunch:2:2",
)


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, marks=[pytest.mark.slow] if i % 3 else [])
        for i, rule in enumerate(REFUSALS)
    ],
)
def test_a_refused_graph_costs_no_call_its_result(
    rule: str,
    device: Device,
    cuda_emulator: Emulator,
    nano_onnx: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Call by call and size by size; it is said once, and not tried again."""
    session = Kept(nano_onnx)
    images = [photograph((30, 45)), photograph((45, 30), 1)]
    with ci.Pipeline(CudaRunner(session, device)) as pipeline:
        expected = [pipeline(image) for image in images]
    with caplog.at_level(logging.WARNING), ci.Pipeline(CudaRunner(session, device)) as pipeline:
        cuda_emulator.fault(rule)
        for image, result in [*zip(images, expected, strict=True)] * 5:
            assert_same(pipeline(image), result)
        assert cuda_emulator.fired() == 1 and not session.capturable
    told = [record.getMessage() for record in caplog.records if "CUDA graphs" in record.message]
    assert len(told) == 1 and "CUDA_ERROR" in told[0]


def first_frames(device: Device, session: Recorded, image: Any, expected: Instances) -> list[str]:
    """Run a new pipeline on `image`: the sentences of the calls that failed."""
    said = []
    with ci.Pipeline(CudaRunner(session, device)) as pipeline:
        for _ in range(FRAMES):
            try:
                assert_same(pipeline(image), expected)
            except CondInstError as error:
                said.append(str(error))
    return said


def check_every_call(
    status: str, step: int, device: Device, emulator: Emulator, session: Recorded, image: Any
) -> list[list[str]]:
    """Let one call of the driver after the other fail, each in a new pipeline: what it said."""
    with ci.Pipeline(CudaRunner(session, device)) as pipeline:
        expected = pipeline(image)
    said, number = [], 1
    while True:
        before = emulator.live() | {"memory": emulator.allocations()}
        session.capturable = True
        emulator.fault(f"*:{number}:{status}")
        said.append(first_frames(device, session, image, expected))
        if emulator.fired() == 0:
            return said[:-1]
        emulator.fault("")
        assert emulator.live() | {"memory": emulator.allocations()} == before
        number += step


@pytest.mark.parametrize(
    ("graph", "step"),
    [
        ("nano_onnx", 23),
        pytest.param("nano_onnx", 1, marks=pytest.mark.slow),
        pytest.param("detector_onnx", 1, marks=pytest.mark.long),
    ],
)
def test_any_refused_call_gives_the_result_or_a_sentence(
    graph: str,
    step: int,
    device: Device,
    cuda_emulator: Emulator,
    request: pytest.FixtureRequest,
) -> None:
    """Only the call that was refused may fail; the next one works."""
    session, image = Kept(request.getfixturevalue(graph)), photograph((30, 45))
    for status in ("2", "999"):
        failed = check_every_call(status, step, device, cuda_emulator, session, image)
        assert len(failed) > 60 / step
        for said in failed:
            assert len(said) <= 1
            assert all("CUDA_ERROR" in text and text.count("\n") == 0 for text in said)
        assert not all(failed), "graphs and what frees memory are not worth a failure"
        if status == "2":  # memory of other images is freed, and all is done again
            assert sum(map(bool, failed)) < len(failed) / 4


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a_lost_gpu_is_a_sentence_for_every_call_and_leaves_nothing(
    step: int, device: Device, cuda_emulator: Emulator, nano_onnx: Path
) -> None:
    session, image = Kept(nano_onnx), photograph((30, 45))
    failed = check_every_call("700:sticky", step, device, cuda_emulator, session, image)
    assert len(failed) > 60 / step and len(failed[0]) == FRAMES
    for said in failed:
        assert all("this process can't use it any more" in text for text in said)
    assert [len(said) for said in failed] == sorted((len(said) for said in failed), reverse=True)


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_a_detector_with_a_panoptic_merge_survives_refusals_too(
    step: int,
    device: Device,
    cuda_emulator: Emulator,
    panoptic_onnx: Path,
) -> None:
    session, image = Kept(panoptic_onnx), photograph((30, 45))
    number = 1
    with ci.Pipeline(CudaRunner(session, device)) as pipeline:
        expected = pipeline.panoptic(image)
    while True:
        cuda_emulator.fault(f"*:{number}:2")
        with ci.Pipeline(CudaRunner(session, device)) as pipeline:
            for _ in range(3):
                found = pipeline.panoptic(image)
                assert np.array_equal(found.id_map, expected.id_map)
        if cuda_emulator.fired() == 0:
            break
        number += step
    assert number > 60


def test_memory_of_other_images_is_freed_before_a_call_fails(
    device: Device, cuda_emulator: Emulator, nano_onnx: Path
) -> None:
    small, large = photograph((60, 90)), photograph((90, 60))
    with ci.Pipeline(CudaRunner(Recorded(nano_onnx), device)) as pipeline:
        expected = [pipeline(small), pipeline(large)]
        pipeline(small)
        full = cuda_emulator.allocations()
        cuda_emulator.fault("cuMemAlloc:1:2")
        assert_same(pipeline(photograph((128, 192))), pipeline(photograph((128, 192))))
        assert cuda_emulator.fired() == 1 and cuda_emulator.allocations() < full
        cuda_emulator.fault("cuMemAlloc:0:2")
        with pytest.raises(SessionError, match="no memory left .*smaller images or fewer"):
            pipeline(small)
        cuda_emulator.fault("")
        assert_same(pipeline(small), expected[0])
        assert_same(pipeline(large), expected[1])


def test_the_error_of_the_work_wins_over_that_of_the_capture(
    device: Device, cuda_emulator: Emulator
) -> None:
    def work() -> None:
        cuda_emulator.fault("cuStreamEndCapture:1:901")
        raise ValueError("the first")

    stream = Stream(device)
    with pytest.raises(ValueError, match="the first"):
        stream.graph(work)
    cuda_emulator.fault("")
    stream.fill(stream.empty((4,), np.uint8), 0)  # it captures no more
    stream.close()


def test_a_kernel_that_the_driver_cannot_compile_tells_its_words(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condinst_infer.cuda.driver.ptx", lambda source: "nonsense")
    launch = class_nms(1, 1, runs=1, max_detections=1, iou_threshold=0.5)
    words = r"can't compile class_nms\.ptx: ptxas fatal : Missing \.version directive at the start"
    with pytest.raises(SessionError, match=words):
        device.function(launch)


def calls_with_a_pipeline(device: Device, path: Path) -> list[Callable[[], object]]:
    """Every public way into the GPU's code, in an order that works."""
    made: list[ci.Pipeline] = []
    image = photograph((60, 90))
    return [
        lambda: made.append(ci.Pipeline(runner(device, path))),
        lambda: [made[0](image) for _ in range(3)],
        lambda: made[0](image, max_detections=1),
        lambda: made[0].frame_buffer(20, 30),
        lambda: list(made[0].map([image, image])),
        lambda: Device(0).compute_capability,
        lambda: made[0].close(),
    ]


@pytest.mark.parametrize("before", [1, None])
def test_the_callers_gpu_stays_current(
    before: int | None, device: Device, cuda_emulator: Emulator, detector_onnx: Path
) -> None:
    """Also after a call that failed."""
    cuda_emulator.devices(2)
    driver = device._driver
    context = driver.CUcontext(0) if before is None else Device(before)._context
    _, former = driver.cuCtxGetCurrent()
    driver.cuCtxSetCurrent(context)
    for call in calls_with_a_pipeline(device, detector_onnx):
        call()
        assert int(driver.cuCtxGetCurrent()[1]) == int(context)
    with ci.Pipeline(runner(device, detector_onnx)) as pipeline:
        cuda_emulator.fault("*:0:700:sticky")
        with pytest.raises(SessionError, match="can't use it any more"):
            pipeline(photograph((60, 90)))
        assert int(driver.cuCtxGetCurrent()[1]) == int(context)
        cuda_emulator.fault("")
    driver.cuCtxSetCurrent(former)
    cuda_emulator.devices(1)
