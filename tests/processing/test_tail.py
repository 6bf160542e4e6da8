"""The tail in numpy against its torch twin, and against the graph of an exported file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import condinst_infer as ci
from condinst_infer import ops
from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.config.validation import CHOICES
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.model.condinst import CondInst
from condinst_infer.processing import tail
from condinst_infer.processing.tail import full_from_detector
from condinst_infer.verification.compare import compare, limits_of, report_on
from tests.support.command_line import Run
from tests.support.mask_reference import loop_mask_nms, mask_scene
from tests.support.nms_reference import greedy_nms, random_scene
from tests.support.reduced_networks import VARIANTS, network_names, reduced_network

Outputs = Mapping[str, np.ndarray]
QUICK = {  # a reduced network, and what is changed
    "nano": ("condinst_nano", {}),
    "five levels": ("condinst_r50", {}),
    "panoptic": ("condinst_panoptic_r50", {}),
    "absolute": ("P2, mask stride 4", {"coordinates": "absolute"}),
    "no coordinates": ("P2, mask stride 2", {"coordinates": "none"}),
    "no features": ("no norm, one class", {"use_features": False}),
    "no root": ("separate towers", {"score_root": False}),
    "no upsampling": ("separate towers", {"mask_stride": 8}),
    "greedy": ("separate towers", {"nms": "mask"}),
    **{name: (name, {}) for name in VARIANTS},
}
every_network = pytest.mark.parametrize(
    "network",
    [
        *(pytest.param(network, id=label) for label, network in QUICK.items()),
        *(pytest.param((n, {}), id=n, marks=pytest.mark.slow) for n in network_names()),
    ],
)


def photographs(n: int, canvas: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images of unequal size on one canvas."""
    coarse = np.random.default_rng(0).integers(0, 256, (n, canvas[0] // 8, canvas[1] // 8, 3))
    images = coarse.astype(np.uint8).repeat(8, 1).repeat(8, 2)
    sizes = np.array([canvas, (canvas[0] - 27, canvas[1] - 70), canvas], np.int32)
    return torch.from_numpy(images), torch.from_numpy(sizes[:n])


def both(
    model: CondInst,
    canvas: tuple[int, int],
    passing: tuple[int | None, ...] = (None, 3, 0),
    half: bool = False,
) -> tuple[Outputs, Outputs]:
    """Outputs of the full network in torch, and what numpy makes of those of its detector.

    Args:
        passing: the class logits of each image are lowered until about so many reach the
            threshold; None leaves them as they are.
        half: the maps that the detector puts out are float16.
    """
    images, sizes = photographs(len(passing), canvas)
    with torch.inference_mode():
        raw = model.heads(images, sizes)
        for i, count in enumerate(passing):
            if count is not None:
                logits = torch.cat([level[i].flatten() for level in raw.class_logits])
                best = logits.topk(count + 1).values[-1]
                for level in raw.class_logits:
                    level[i] -= best + (2.5 if count else 30.0)
        if half:
            halves = tuple(level.half() for level in raw.params)
            raw = raw._replace(params=halves, mask_features=raw.mask_features.half())
        full, cut = (make(raw, sizes) for make in (model.finish, model.before_nms))
    wanted, given = ({name: part.numpy() for name, part in out.items()} for out in (full, cut))
    return wanted, full_from_detector(given, model.config)


def assert_same(found: Outputs, wanted: Outputs, config: CondInstConfig, masks: float) -> None:
    """Equal in every slot; `masks` is the most that a probability may differ by."""
    assert list(found) == list(wanted)
    for name in wanted:
        assert (found[name].dtype, found[name].shape) == (wanted[name].dtype, wanted[name].shape)
    for name in ("num_detections", "labels"):
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    report = report_on([(wanted, found)], "fp32", limits_of(config, "fp32"))  # type: ignore
    assert report.ok, str(report)
    np.testing.assert_allclose(found["scores"], wanted["scores"], rtol=0, atol=1e-6)
    apart = np.abs(found["masks"].astype(np.float32) - wanted["masks"].astype(np.float32))
    assert apart.max() < masks


@every_network
def test_numpy_gives_torchs_instances(network: tuple[str, dict[str, Any]]) -> None:
    name, changes = network
    model = reduced_network(name, max_detections=20, **changes)
    wanted, found = both(model, (96, 160))
    first, second, third = wanted["num_detections"].tolist()
    assert first > second > third == 0
    assert_same(found, wanted, model.config, masks=1e-4)  # measured 3e-6


@pytest.mark.parametrize("changes", [{}, {"nms": "mask"}], ids=["box", "mask"])
def test_float16_maps_give_float16_masks(changes: dict[str, Any]) -> None:
    model = reduced_network("separate towers", **changes)
    wanted, found = both(model, (96, 160), half=True)
    assert found["masks"].dtype == np.float16 and wanted["num_detections"].min() == 0
    assert_same(found, wanted, model.config, masks=1e-3)  # rounding, 2**-11; measured 5e-4


@pytest.mark.parametrize("changes", [{}, {"nms": "mask"}], ids=["box", "mask"])
def test_a_batch_without_any_instance(changes: dict[str, Any]) -> None:
    model = reduced_network("P2, mask stride 4", max_detections=7, **changes)
    wanted, found = both(model, (64, 32), passing=(0, 0))
    assert not found["num_detections"].any() and (found["labels"] == -1).all()
    assert found["boxes"].shape == (2, 7, 4) and found["masks"].shape == (2, 7, 16, 8)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_as_many_as_the_file_may_report_and_not_one_more() -> None:
    model = reduced_network("separate towers", pre_nms_topk=200, nms_iou=0.95)
    for most, reached in ((1, True), (37, True), (150, False)):
        model.config = override(model.config, max_detections=most)
        wanted, found = both(model, (96, 160), passing=(None,))
        assert (wanted["num_detections"] == most) == reached
        assert_same(found, wanted, model.config, masks=1e-4)


@pytest.mark.parametrize("slots", [0, 1, 9, 240])
def test_box_nms_keeps_what_a_plain_loop_keeps(slots: int) -> None:
    random = np.random.default_rng(slots)
    for _ in range(9):  # a third of them with ties, and overlaps that are exactly the threshold
        scene = random_scene(random, batch=1, slots=slots, classes=3)
        for most in (1, 30, 300):
            kept = tail.class_nms(*(a[0] for a in scene), iou_threshold=0.5, max_detections=most)
            keep, count = greedy_nms(scene, threshold=0.5, keep=most)
            assert kept.tolist() == keep[0, : count[0]].tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", CHOICES["mask_nms"])
def test_mask_nms_keeps_what_plain_loops_keep(kind: str, dtype: type) -> None:
    random = np.random.default_rng(0)
    changes = {"nms": "mask", "mask_nms": kind, "nms_iou": 0.5, "max_detections": 20}
    detect = override(CondInstConfig(), **changes).detect
    for candidates, size in ((1, (1, 1)), (17, (8, 8)), (40, (13, 9)), (60, (16, 22))) * 2:
        scene = mask_scene(random, batch=2, candidates=candidates, size=size, dtype=dtype)
        keep, scores, count = loop_mask_nms(scene, kind, keep=20)
        for i, real in enumerate((scene.scores > 0).sum(1)):
            masks, scores_of, labels = (part[i, :real] for part in scene)
            kept, found = tail.mask_nms(masks, scores_of, labels, detect)
            assert kept.tolist() == keep[i, : count[i]].tolist()
            np.testing.assert_allclose(found, scores[i, : count[i]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_upsampling_equals_torchs(factor: int) -> None:
    for size in ((1, 1), (1, 5), (7, 3), (12, 20)):
        x = np.random.default_rng(factor).normal(size=size).astype(np.float32)
        expected = ops.aligned_bilinear(torch.from_numpy(x)[None, None], factor)[0, 0].numpy()
        found = tail.aligned_bilinear(x, factor)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)  # measured 5e-7


def test_boxes_of_masks_equal_torchs() -> None:
    masks = mask_scene(np.random.default_rng(1), batch=1, candidates=40, size=(13, 9)).masks[0]
    masks[3] = 0.5
    expected = ops.boxes_from_masks(torch.from_numpy(masks)[None], 4)[0].numpy()
    assert (expected == 0).all(1).any()
    np.testing.assert_array_equal(tail.boxes_from_masks(masks, 4), expected)


def test_places_equal_torchs() -> None:
    config = CondInstConfig()
    shapes = [(-(-96 // stride), -(-160 // stride)) for stride in config.strides]
    assert (96 % 64, 160 % 64) != (0, 0)  # the coarse levels are rounded up
    every = torch.arange(sum(rows * columns for rows, columns in shapes))[None]
    interest = config.heads.sizes_of_interest
    expected = ops.places_from_locations(every, shapes, config.strides, interest)
    for found, part in zip(tail._places(config, (12, 20)), expected, strict=True):
        np.testing.assert_array_equal(found, part[0].numpy())


def scans() -> list[np.ndarray]:
    """Images of three sizes; the last is flat."""
    random = np.random.default_rng(4)
    sizes = ((128, 192), (90, 150), (128, 192), (61, 200))
    images = [random.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3), np.uint8) for h, w in sizes]
    images = [
        np.kron(image, np.ones((8, 8, 1), np.uint8))[:h, :w]
        for image, (h, w) in zip(images, sizes, strict=True)
    ]
    return [*images, np.full((100, 100, 3), 90, np.uint8)]


def assert_same_files(full: Path, cut: Path, **options: Any) -> None:
    """`load` of a detector file finds what it finds in the full one."""
    options = {"max_batch": 2, **options}
    with ci.load(full, **options) as ours, ci.load(cut, **options) as theirs:
        assert theirs.metadata.graph == "detector"
        wanted, found = ours(scans()), theirs(scans())
    assert sum(map(len, wanted)) > 30
    for a, b in zip(wanted, found, strict=True):
        assert a.labels.tolist() == b.labels.tolist()
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=0, atol=1e-3)
        np.testing.assert_allclose(a.scores, b.scores, rtol=0, atol=1e-5)
        assert (a.masks != b.masks).sum() <= 1e-4 * a.masks.size


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("full", "cut"),
    [
        ("nano_onnx", "detector_onnx"),
        pytest.param("mask_nms_onnx", "mask_nms_detector_onnx", marks=pytest.mark.slow),
    ],
    ids=["box", "mask"],
)
def test_a_detector_file_finds_what_the_full_file_finds(
    full: str, cut: str, runtime: str, request: pytest.FixtureRequest
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    files = (request.getfixturevalue(name) for name in (full, cut))
    assert_same_files(*files, runtime=runtime)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=pytest.mark.slow if slow else pytest.mark.long)
        for name, precision, slow in (
            ("P2, mask stride 4", "fp16", True),
            ("condinst_panoptic_r101_dcn", "fp32", False),
            ("condinst_panoptic_r101_dcn", "fp16", False),
            ("condinst_r101_dcn_bifpn_sem", "fp32", False),
            ("condinst_r101_dcn_bifpn_sem", "fp16", False),
        )
    ],
)
def test_detector_files_of_other_networks(name: str, precision: str, tmp_path: Path) -> None:
    model = reduced_network(name, max_detections=20)
    full, cut = tmp_path / "full.onnx", tmp_path / "detector.onnx"
    export_onnx(model, full, precision=precision)
    export_onnx(model, cut, graph="detector", precision=precision)
    report = compare(full, cut)  # how far float16 is from itself is the CPU's matter
    assert report.ok and min(report.detections) > 30
    if precision == "fp32":
        assert_same_files(full, cut)
    if model.config.is_panoptic:
        with ci.load(full) as ours, ci.load(cut) as theirs:
            for a, b in zip(ours.panoptic(scans()), theirs.panoptic(scans()), strict=True):
                assert (a.id_map != b.id_map).mean() < 1e-3


def test_the_command_line_takes_a_detector_file(
    condinst: Run, nano_onnx: Path, detector_onnx: Path, photos: Path, tmp_path: Path
) -> None:
    found = []
    for path in (nano_onnx, detector_onnx):
        out = tmp_path / path.stem
        assert condinst("predict", path, photos, "-o", out)[0] == 0
        entries = json.loads((out / "detections.json").read_text())
        found.append([(entry["image_id"], entry["category_id"]) for entry in entries])
    assert len(found[0]) > 20 and found[0] == found[1]
