"""Models without a box branch: the graph, every runtime, the pipeline, what checks an export."""

from collections.abc import Callable
from pathlib import Path
from shutil import copy

import numpy as np
import onnx
import pytest
import torch

import condinst_infer as ci
from benchmarks.trained_statistics import with_trained_statistics
from condinst_infer import checkpoint
from condinst_infer.config.model import override
from condinst_infer.config.presets import preset
from condinst_infer.config.validation import CHOICES
from condinst_infer.errors import ParityError
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.model.condinst import CondInst, build_condinst
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.pytorch import TorchSession
from condinst_infer.verification import self_test
from condinst_infer.verification.check_export import finish_export, verify_export
from condinst_infer.verification.compare import compare
from condinst_infer.verification.intermediates import TorchIntermediates
from tests.support.command_line import Run

KINDS = CHOICES["mask_nms"]
CANVAS = (128, 192)


def feeds() -> dict[str, np.ndarray]:
    """Three images of unequal size on one canvas; the last is flat."""
    random = np.random.default_rng(2)
    coarse = random.integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    images = np.kron(coarse, np.ones((1, 8, 8, 1), np.uint8))
    images[2] = 100
    return {"images": images, "image_sizes": np.array([CANVAS, (90, 150), CANVAS], np.int32)}


def discs() -> np.ndarray:
    """Six bright discs on a dark ground, far from each other: what a nucleus looks like."""
    y, x = np.mgrid[:256, :352]
    light = np.zeros((256, 352))
    for i in range(6):
        radii = 14 + 3 * (i % 3), 12 + 5 * (i // 3)
        away = np.hypot((y - 64 - 128 * (i // 3)) / radii[0], (x - 58 - 117 * (i % 3)) / radii[1])
        light = np.maximum(light, np.clip((1.2 - away) / 0.35, 0, 1))
    return np.repeat((4 + 170 * light).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def nuclei(demo_folder: Path) -> CondInst:
    """The trained model that ships; six discs give 400 candidates above 0.1."""
    model = checkpoint.load(demo_folder / "nuclei.safetensors")
    model.config = override(model.config, score_threshold=0.1, max_detections=100)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_objects_far_from_each_other_are_those_of_box_nms(kind: str, nuclei: CondInst) -> None:
    found = {}
    images, sizes = torch.from_numpy(discs())[None], torch.tensor([[256, 352]], dtype=torch.int32)
    config = nuclei.config
    for nms in ("box", "mask"):
        nuclei.config = override(config, nms=nms, mask_nms=kind, mask_nms_candidates=512)
        with torch.inference_mode():
            found[nms] = nuclei(images, sizes)
    nuclei.config = config
    box, mask = found.values()
    assert box["num_detections"].tolist() == [6]
    for name in ("num_detections", "scores", "labels"):
        assert torch.equal(box[name], mask[name]), name
    # the controller runs for more locations: float32 sums in another order
    torch.testing.assert_close(box["masks"], mask["masks"], rtol=0, atol=1e-4)
    # cells of 2 pixels, of a mask of its own
    assert (box["boxes"] - mask["boxes"]).abs().max() < 4


@pytest.mark.slow
def test_the_box_branch_is_not_in_the_graph(
    mask_nms_onnx: Path, mask_nms_detector_onnx: Path
) -> None:
    for path, nodes in (
        (mask_nms_onnx, ["CandidateMaskHead", "MaskNMS", "DynamicMaskHead"]),
        (mask_nms_detector_onnx, []),
    ):
        proto = onnx.load(path)
        names = [node.name for node in proto.graph.node]
        names += [tensor.name for tensor in proto.graph.initializer]
        assert not any("box_regression" in name for name in names)
        assert any(name.startswith("fcos/centreness/Conv") for name in names)
        assert [node.op_type for node in proto.graph.node if node.domain] == nodes
        assert {body.name for body in proto.functions} == set(nodes)
    assert "candidate_boxes" not in OrtSession(mask_nms_detector_onnx).outputs


def test_the_box_branch_is_trained_all_the_same(mask_nms_checkpoint: Path) -> None:
    model = checkpoint.load(mask_nms_checkpoint)
    with torch.no_grad():
        raw = model.heads(*map(torch.from_numpy, feeds().values()))
    assert len(raw.regression) == len(model.config.strides)


def test_attributes_match_the_bodies(mask_nms_onnx: Path) -> None:
    proto, detect = onnx.load(mask_nms_onnx), OrtSession(mask_nms_onnx).metadata.config.detect
    nodes = {node.op_type: node for node in proto.graph.node if node.domain}
    values = {
        name: {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for name, node in nodes.items()
    }
    assert values["MaskNMS"] == {
        "kind": [KINDS.index(detect.mask_nms)],
        "iou_threshold": [pytest.approx(detect.nms_iou)],
        "score_threshold": [pytest.approx(detect.score_threshold)],
        "max_detections": [detect.max_detections],
    }
    few, all_ = (values[name] for name in ("DynamicMaskHead", "CandidateMaskHead"))
    assert all_ == few | {"factor": [1]} and few["factor"] == [2]
    constants = {}
    for body in proto.functions:
        for node in body.node:
            if node.op_type == "Constant":
                value = onnx.helper.get_attribute_value(node.attribute[0])
                array = value if isinstance(value, int) else onnx.numpy_helper.to_array(value)
                constants[body.name, node.output[0]] = np.asarray(array).tolist()
    assert constants["CandidateMaskHead", "up_by"] == [1, 1, 1, 1]
    assert constants["CandidateMaskHead", "all_slots"] == 60 == detect.mask_nms_candidates
    assert constants["DynamicMaskHead", "all_slots"] == detect.max_detections
    assert constants["MaskNMS", "most"] == [detect.max_detections]
    assert constants["MaskNMS", "iou_limit"] == pytest.approx(detect.nms_iou)


def assert_same_outputs(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert set(found) == set(wanted)
    for name in ("num_detections", "labels"):
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    # a cell at a half may go either way, and an edge of its box with it; measured 0
    assert (np.abs(found["boxes"] - wanted["boxes"]) > 1e-3).mean() < 0.05
    np.testing.assert_allclose(  # measured 5e-7
        found["scores"], wanted["scores"], rtol=0, atol=1e-5
    )
    # the steepest pixel of made-up weights; measured 5e-3
    np.testing.assert_allclose(found["masks"], wanted["masks"], rtol=0, atol=2e-2)


def test_onnx_runtime_gives_what_torch_gives(
    mask_nms_checkpoint: Path, mask_nms_onnx: Path
) -> None:
    session = OrtSession(mask_nms_onnx)
    wanted = TorchSession(checkpoint.load(mask_nms_checkpoint)).run(feeds())
    assert len(set(wanted["num_detections"].tolist())) > 1, wanted["num_detections"]
    together = session.run(feeds())
    assert_same_outputs(together, wanted)
    for i in range(3):
        alone = session.run({name: value[i : i + 1] for name, value in feeds().items()})
        assert_same_outputs(alone, {name: value[i : i + 1] for name, value in together.items()})


def test_openvino_gives_what_onnx_runtime_gives(mask_nms_onnx: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    from condinst_infer.runtimes.openvino import OvSession

    assert_same_outputs(
        OvSession(mask_nms_onnx).run(feeds()), OrtSession(mask_nms_onnx).run(feeds())
    )


def test_boxes_are_those_of_the_masks(mask_nms_onnx: Path) -> None:
    images = [image[:120, :180] for image in feeds()["images"]]
    with ci.load(mask_nms_onnx) as pipeline:
        results = pipeline(images)
        best = pipeline(images[0], max_detections=3)
        above = pipeline(images[0], score_threshold=float(results[0].scores[4]))
    assert len(results[0]) > 8 > len(above) > len(best) == 3
    for found in (*results, best, above):
        for box, mask in zip(found.boxes, found.masks, strict=True):
            rows, columns = np.nonzero(mask)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == edges
    np.testing.assert_array_equal(best.boxes, results[0].boxes[:3])
    np.testing.assert_array_equal(above.boxes, results[0].boxes[: len(above)])


def test_a_mask_in_the_padding_is_no_instance(
    mask_nms_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OrtSession.run

    def moved(self: OrtSession, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = run(self, given)
        masks = outputs["masks"][:, 1]
        masks[...] = 0
        masks[:, -1, -1] = 1  # the canvas is larger than the image
        return outputs

    with ci.load(mask_nms_onnx) as pipeline:
        whole = pipeline(feeds()["images"][0][:100, :180])
        monkeypatch.setattr(OrtSession, "run", moved)
        found = pipeline(feeds()["images"][0][:100, :180])
    np.testing.assert_array_equal(found.scores, np.delete(whole.scores, 1))


@pytest.mark.parametrize(
    ("kind", "precision", "graph"),
    [
        ("greedy", "fp16", "detector"),
        pytest.param("matrix", "fp16", "full", marks=pytest.mark.slow),
        pytest.param("fast", "fp32", "full", marks=pytest.mark.slow),
    ],
)
def test_an_export_is_verified(
    kind: str, precision: str, graph: str, mask_nms_checkpoint: Path, tmp_path: Path
) -> None:
    model, path = checkpoint.load(mask_nms_checkpoint), tmp_path / "model.onnx"
    model.config = override(model.config, mask_nms=kind)
    export_onnx(model, path, precision=precision, graph=graph, size=CANVAS, batch=1)
    stages = {row.stage for row in finish_export(model, path).rows}
    assert {"class_logits", "candidates"} <= stages and "box_regression" not in stages
    own = {"nms", "outputs", "params", "mask_heads", "candidate_masks"}
    assert own <= stages if graph == "full" else not own & stages
    props = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    expected = self_test.self_test_from_props(props, path)
    assert expected is not None and sum(expected.counts) > 3 and not expected.tied
    self_test.check(OrtSession(path, threads=1), expected)


def without_suppression(proto: onnx.ModelProto) -> None:
    """NMS keeps the best candidates, whatever they overlap."""
    body = next(body for body in proto.functions if body.name == "MaskNMS")
    limit = next(node for node in body.node if node.output[0] == "iou_limit")
    limit.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.array(1, np.float32)))


def with_other_masks(proto: onnx.ModelProto) -> None:
    """The masks of candidates are those of another stride."""
    body = next(body for body in proto.functions if body.name == "CandidateMaskHead")
    stride = next(node for node in body.node if node.output[0] == "stride")
    stride.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.array(16, np.float32)))


@pytest.mark.parametrize(
    ("change", "stage"), [(without_suppression, "nms"), (with_other_masks, "candidate_masks")]
)
def test_a_wrong_body_is_found_out(
    change: Callable[[onnx.ModelProto], None],
    stage: str,
    mask_nms_checkpoint: Path,
    mask_nms_onnx: Path,
    tmp_path: Path,
) -> None:
    proto, path = onnx.load(mask_nms_onnx), tmp_path / "wrong.onnx"
    change(proto)
    onnx.save(proto, path)
    with pytest.raises(ParityError, match=f"network does: {stage} differs"):
        verify_export(checkpoint.load(mask_nms_checkpoint), path)


@pytest.mark.slow
def test_compare_and_info_know_the_model(
    condinst: Run, mask_nms_checkpoint: Path, mask_nms_onnx: Path, mask_nms_detector_onnx: Path
) -> None:
    for path in (mask_nms_onnx, mask_nms_detector_onnx):
        report = compare(mask_nms_checkpoint, path)
        assert report.ok, str(report)
        assert "candidates" in {row.stage for row in report.rows}
    status, out, _ = condinst("info", mask_nms_onnx)
    assert status == 0 and "greedy, by the masks of 60 candidates" in out


@pytest.mark.slow
def test_an_image_may_have_fewer_candidates_than_asked_for(tmp_path: Path) -> None:
    # 3 levels of 10: fewer than 300, and than the 60 that may be kept
    torch.manual_seed(0)
    config = preset("condinst_nano", nms="mask", pre_nms_topk=10, max_detections=60)
    model = with_trained_statistics(build_condinst(config))
    assert model.config.mask_candidates == 30
    path = tmp_path / "few.onnx"
    export_onnx(model, path, size=CANVAS, batch=3)
    found, wanted = OrtSession(path).run(feeds()), TorchSession(model).run(feeds())
    assert 0 < wanted["num_detections"].max() <= 30 and wanted["boxes"].shape == (3, 60, 4)
    np.testing.assert_array_equal(found["num_detections"], wanted["num_detections"])


@pytest.mark.slow
def test_candidates_in_other_places_are_found_out(
    mask_nms_checkpoint: Path,
    mask_nms_detector_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = Path(copy(mask_nms_detector_onnx, tmp_path / "detector.onnx"))
    network = TorchIntermediates(checkpoint.load(mask_nms_checkpoint))
    expected = self_test.store(path, network, OrtSession(path))
    run = OrtSession.run

    def moved(self: OrtSession, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = run(self, given)
        return outputs | {"candidate_locations": outputs["candidate_locations"] + 30}

    monkeypatch.setattr(OrtSession, "run", moved)
    with pytest.raises(ParityError, match="are off by"):
        self_test.check(OrtSession(path, threads=1), expected)
