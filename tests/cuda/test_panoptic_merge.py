"""The panoptic merge on the device, with the kernels on the CPU in the place of a GPU."""

from pathlib import Path

import numpy as np
import pytest

import condinst_infer as ci
from condinst_infer import checkpoint
from condinst_infer.config.model import override
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.cuda.stream import Stream
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.results.panoptic import PanopticSegment, PanopticSegmentation
from engines.emulator import Emulator
from tests.support.recorded_session import Recorded, photograph, resized_on

SIZES = [(60, 90), (97, 131), (40, 61)]
RULES = {"instance_threshold": 0.5, "stuff_area_limit": 40}


def rounded(result: PanopticSegmentation) -> list[PanopticSegment]:
    """The segments with scores to 1e-4; two graphs of one network sum in other orders."""
    return [s._replace(score=round(s.score or 0.0, 4)) for s in result.segments]


def assert_same(ours: PanopticSegmentation, theirs: PanopticSegmentation) -> None:
    assert np.array_equal(ours.id_map, theirs.id_map)
    assert rounded(ours) == rounded(theirs) and len(theirs.segments) > 2
    assert len(ours.instances) == len(theirs.instances) > 1


def test_owners_come_from_the_device(
    device: Device, panoptic_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [photograph(size, i) for i, size in enumerate(SIZES)]
    stream = Stream(device)
    monkeypatch.setattr("condinst_infer.runtimes.runner.resize", resized_on(stream))
    with ci.load(panoptic_onnx) as whole:
        expected = whole.panoptic(images, **RULES)
    monkeypatch.setattr(
        "condinst_infer.processing.panoptic.semantic_labels", None
    )  # no merge on the host
    monkeypatch.setattr("condinst_infer.processing.panoptic.owners_of_things", None)
    with ci.Pipeline(CudaRunner(Recorded(panoptic_onnx), device)) as pipeline:
        for _ in range(2):
            for ours, theirs in zip(pipeline.panoptic(images, **RULES), expected, strict=True):
                assert_same(ours, theirs)
    stream.close()


def test_images_of_a_batch_have_owners_of_their_own(device: Device, panoptic_onnx: Path) -> None:
    images = [photograph((128, 192), i) for i in range(3)]
    with (
        ci.load(panoptic_onnx) as whole,
        ci.Pipeline(CudaRunner(Recorded(panoptic_onnx), device), max_batch=3) as pipeline,
    ):
        found = pipeline.panoptic(images, **RULES)
        for ours, theirs in zip(found, whole.panoptic(images, **RULES), strict=True):
            assert_same(ours, theirs)


@pytest.mark.slow
def test_every_threshold_has_a_graph_of_its_own(device: Device, panoptic_onnx: Path) -> None:
    image, session = photograph((128, 192), 2), Recorded(panoptic_onnx)
    rules = [RULES, RULES | {"overlap_threshold": 0.0}, RULES | {"stuff_area_limit": 10**6}]
    with (
        ci.load(panoptic_onnx) as whole,
        ci.Pipeline(CudaRunner(session, device)) as pipeline,
    ):
        expected = [whole.panoptic(image, **rule) for rule in rules]
        assert len({len(result.segments) for result in expected}) == 3
        masks, enqueued = whole(image).masks, []
        for _ in range(4):
            for rule, theirs in zip(rules, expected, strict=True):
                ours = pipeline.panoptic(image, **rule)
                assert rounded(ours) == rounded(theirs)
                assert np.array_equal(ours.id_map, theirs.id_map)
            assert np.array_equal(pipeline(image).masks, masks)
            enqueued.append(session.enqueued)
    assert enqueued[1:] == [enqueued[0] + 8] * 3  # the second time runs it and records it


def test_a_larger_image_makes_room_and_warm_calls_allocate_nothing(
    device: Device, cuda_emulator: Emulator, panoptic_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [photograph(size) for size in ((64, 96), (128, 192), (256, 384))]
    with (
        ci.load(panoptic_onnx) as whole,
        ci.Pipeline(CudaRunner(Recorded(panoptic_onnx), device)) as pipeline,
    ):
        pipeline(images[2])  # room for its masks: what comes later makes room for owners alone
        small = [pipeline.panoptic(images[0], **RULES) for _ in range(3)]
        for _ in range(3):
            for image in images:
                pipeline.panoptic(image, **RULES)
            assert_same(pipeline.panoptic(images[0], **RULES), small[0])
        ours = pipeline.panoptic(images[1], **RULES)  # its net size: no resizing that differs
        assert_same(ours, whole.panoptic(images[1], **RULES))
        calls: list[str] = []
        call = device._call
        monkeypatch.setattr(
            device, "_call", lambda name, *a: (calls.append(name), call(name, *a))[1]
        )
        for image in images:
            pipeline.panoptic(image, **RULES)
        assert not [name for name in calls if "Alloc" in name or "Free" in name]
        assert calls.count("cuGraphLaunch") == calls.count("cuStreamSynchronize") == len(images)
        monkeypatch.undo()


def test_more_mask_bits_than_expected_are_merged_too(
    device: Device, panoptic_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condinst_infer.cuda.canvas.expected_words", lambda k, size: 3)
    image = photograph((128, 192))
    with (
        ci.load(panoptic_onnx) as whole,
        ci.Pipeline(CudaRunner(Recorded(panoptic_onnx), device)) as pipeline,
    ):
        for _ in range(3):
            assert_same(pipeline.panoptic(image, **RULES), whole.panoptic(image, **RULES))


@pytest.mark.slow
def test_the_merge_takes_what_mask_nms_kept(
    device: Device, panoptic_checkpoint: Path, tmp_path: Path
) -> None:
    model = checkpoint.load(panoptic_checkpoint)
    model.config = override(model.config, nms="mask", mask_nms_candidates=40)
    files = {graph: tmp_path / f"{graph}.onnx" for graph in ("full", "detector")}
    for graph, path in files.items():
        export_onnx(model, path, graph=graph)
    images = [photograph((128, 192), i) for i in range(2)]  # its net size: no resizing that differs
    with (
        ci.load(files["full"]) as whole,
        ci.Pipeline(CudaRunner(Recorded(files["detector"]), device), max_batch=2) as pipeline,
    ):
        expected = whole.panoptic(images, **RULES)
        for _ in range(3):  # the third time as a graph
            for ours, theirs in zip(pipeline.panoptic(images, **RULES), expected, strict=True):
                assert [s.name for s in ours.segments] == [s.name for s in theirs.segments]
                assert any(s.is_thing for s in ours.segments) and len(ours.segments) > 2
                assert np.mean(ours.id_map != theirs.id_map) < 1e-4
