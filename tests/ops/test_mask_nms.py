"""Mask NMS in every dialect: torch, function body, CUDA; all keep what plain loops keep."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from condinst_infer import ops
from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.config.validation import CHOICES
from condinst_infer.ops import Candidates
from tests.support.function_bodies import (
    FLOAT,
    HALF,
    INT,
    in_openvino,
    one_node_model,
    run,
    session,
)
from tests.support.mask_reference import Kept, Masks, loop_mask_nms, mask_scene

KINDS = CHOICES["mask_nms"]
SIZES = [  # images, candidates, most kept, (height, width) of the masks
    (1, 1, 1, (1, 1)),
    (1, 1, 3, (5, 7)),
    (3, 2, 4, (3, 11)),
    (2, 17, 5, (8, 8)),
    (3, 40, 40, (13, 9)),
    (4, 60, 20, (16, 22)),
]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_size = pytest.mark.parametrize(("batch", "candidates", "keep", "size"), SIZES, ids=str)


def scenes(batch: int, candidates: int, size: tuple[int, int], **options: Any) -> list[Masks]:
    """Six, of either sort."""
    random = np.random.default_rng(candidates)
    make = {"batch": batch, "candidates": candidates, "size": size, **options}
    return [mask_scene(random, **make) for _ in range(6)]


def in_torch(scene: Masks, kind: str, *, iou: float = 0.5, score: float = 0.05, keep: int) -> Kept:
    tensors = [torch.from_numpy(values) for values in scene]
    settings = {"iou_threshold": iou, "score_threshold": score, "max_detections": keep}
    kept, scores, count = ops.mask_nms(*tensors, kind=kind, **settings)
    return kept.numpy(), scores.numpy(), count.numpy()


def assert_same(found: Any, wanted: Kept, rtol: float = 0) -> None:
    """Equal; scores within `rtol`."""
    keep, scores, count = found
    assert (keep.dtype, scores.dtype, count.dtype) == (np.int32, np.float32, np.int32)
    np.testing.assert_array_equal(keep, wanted[0])
    np.testing.assert_allclose(scores, wanted[1], rtol=rtol, atol=0)
    np.testing.assert_array_equal(count, wanted[2])


@every_kind
@every_size
def test_mask_nms_is_the_loop(
    kind: str, batch: int, candidates: int, keep: int, size: tuple[int, int]
) -> None:
    some = 0
    for scene in scenes(batch, candidates, size):
        wanted = loop_mask_nms(scene, kind, keep=keep)
        assert_same(in_torch(scene, kind, keep=keep), wanted)
        some += (wanted[2] > 1).any() and (wanted[2] < (scene.scores > 0).sum(1)).any()
    assert candidates < 17 or some > 3  # some are kept and some are not


def test_the_kinds_differ_where_they_should() -> None:
    a, b, c = np.zeros((3, 1, 12))
    a[:, :8], b[:, 2:10], c[:, 4:12] = 1, 1, 1  # IoU of neighbours 0.6, of a and c a third
    masks = np.stack([a, b, c])[None].astype(np.float32)
    scene = Masks(masks, np.array([[0.9, 0.8, 0.7]], np.float32), np.zeros((1, 3), np.int32))
    assert in_torch(scene, "greedy", keep=3)[0].tolist() == [[0, 2, -1]]  # b is gone, c is free
    assert in_torch(scene, "fast", keep=3)[0].tolist() == [[0, -1, -1]]  # b takes c with it
    keep, scores, count = in_torch(scene, "matrix", keep=3)
    assert keep.tolist() == [[0, 2, 1]] and count.tolist() == [3]
    # b: 1 - 0.6; c: the least of 1 - 1/3 by a and (1 - 0.6) / (1 - 0.6) by b
    np.testing.assert_allclose(scores, [[0.9, 0.7 * 2 / 3, 0.8 * 0.4]], rtol=1e-6)
    assert in_torch(scene, "matrix", keep=3, score=0.4)[2].tolist() == [2]
    for kind in KINDS:  # another class is no rival
        other = scene._replace(labels=np.array([[0, 1, 2]], np.int32))
        assert in_torch(other, kind, keep=3)[0].tolist() == [[0, 1, 2]]


@every_kind
def test_an_equal_mask_is_kept_once_and_one_without_cells_never(kind: str) -> None:
    masks = np.full((1, 4, 3, 3), 0.9, np.float32)
    masks[0, 0] = 0.5  # not above
    scene = Masks(masks, np.full((1, 4), 0.5, np.float32), np.zeros((1, 4), np.int32))
    keep, scores, count = in_torch(scene, kind, keep=3)
    assert keep.tolist() == [[1, -1, -1]] and count.tolist() == [1]
    assert scores.tolist() == [[0.5, 0, 0]]


def body(
    kind: str, keep: int, dtype: int = FLOAT, batch: int | None = None, **overrides: Any
) -> onnx.ModelProto:
    """A model of one MaskNMS with its function body; with `batch`, that without a loop."""
    settings = {"nms": "mask", "mask_nms": kind, "max_detections": keep, "nms_iou": 0.5}
    config = override(CondInstConfig(), **{**settings, **overrides})
    inputs = {"masks": (dtype, 4), "scores": (FLOAT, 2), "labels": (INT, 2)}
    outputs = {"keep": (INT, 2), "kept_scores": (FLOAT, 2), "count": (INT, 1)}
    return one_node_model("MaskNMS", config, inputs, outputs, batch)


@every_kind
@every_size
def test_mask_nms_body_in_onnx_runtime(
    kind: str, batch: int, candidates: int, keep: int, size: tuple[int, int]
) -> None:
    runner = session(body(kind, keep))
    for scene in scenes(batch, candidates, size):
        assert_same(run(runner, scene._asdict()), loop_mask_nms(scene, kind, keep=keep))


@every_size
def test_unrolled_mask_nms_body_is_greedy(
    batch: int, candidates: int, keep: int, size: tuple[int, int]
) -> None:
    model = body("greedy", keep, batch=batch)
    assert not any(node.op_type == "Loop" for node in model.functions[0].node)
    runner = session(model)
    for scene in scenes(batch, candidates, size):
        assert_same(run(runner, scene._asdict()), loop_mask_nms(scene, "greedy", keep=keep))


@every_kind
def test_mask_nms_body_in_half_precision(kind: str) -> None:
    runner = session(body(kind, 10, HALF))
    for scene in scenes(3, 30, (9, 14), dtype=np.float16):
        assert_same(run(runner, scene._asdict()), loop_mask_nms(scene, kind, keep=10))
        assert_same(in_torch(scene, kind, keep=10), loop_mask_nms(scene, kind, keep=10))


@every_kind
def test_mask_nms_body_in_openvino(kind: str) -> None:
    for batch, candidates, keep, size in SIZES[2:]:
        model = body(kind, keep)
        for scene in scenes(batch, candidates, size)[:3]:
            # it may multiply by a reciprocal: an ulp or two in a decayed score, and ties part
            rtol = 2.4e-7 if kind == "matrix" else 0
            if kind == "matrix":
                scene.scores[...] *= np.linspace(1, 0.99, candidates, dtype=np.float32)
            found = in_openvino(model, scene._asdict())
            assert_same(found, loop_mask_nms(scene, kind, keep=keep), rtol)


@every_kind
def test_mask_nms_body_in_the_reference_evaluator(kind: str) -> None:
    for batch, candidates, keep, size in SIZES[:4]:
        evaluator = ReferenceEvaluator(body(kind, keep))
        for scene in scenes(batch, candidates, size):
            assert_same(run(evaluator, scene._asdict()), loop_mask_nms(scene, kind, keep=keep))


@every_kind
def test_mask_nms_body_reads_its_thresholds(kind: str) -> None:
    runner = session(body(kind, 40, nms_iou=0.3, score_threshold=0.25))
    for scene in scenes(2, 40, (13, 9)):
        wanted = loop_mask_nms(scene, kind, iou=0.3, score=0.25, keep=40)
        assert_same(run(runner, scene._asdict()), wanted)


def test_a_chain_of_overlaps_takes_as_many_rounds_as_it_needs() -> None:
    # each overlaps the next: every second one stays, and the last is decided last
    masks = np.zeros((1, 60, 1, 64), np.float32)
    for i, mask in enumerate(masks[0, :, 0]):
        mask[i : i + 4] = 1
    scores = np.linspace(0.9, 0.1, 60, dtype=np.float32)[None]
    scene = Masks(masks, scores, np.zeros((1, 60), np.int32))
    wanted = loop_mask_nms(scene, "greedy", keep=40)
    assert wanted[2] == 30
    assert_same(run(session(body("greedy", 40)), scene._asdict()), wanted)


@pytest.mark.parametrize("stride", [2, 4])
def test_boxes_from_masks_are_tight(stride: int) -> None:
    random = np.random.default_rng(3)
    masks = mask_scene(random, batch=3, candidates=20, size=(9, 14)).masks
    found = ops.boxes_from_masks(torch.from_numpy(masks), stride)
    assert found.dtype == torch.float32 and found.shape == (3, 20, 4)
    for box, mask in zip(found.flatten(0, 1).tolist(), masks.reshape(-1, 9, 14), strict=True):
        rows, columns = np.nonzero(mask > 0.5)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else []
        assert box == [stride * edge for edge in edges or [0] * 4]


def test_best_candidates_are_those_of_all_levels() -> None:
    scores = torch.tensor([[0.9, 0.5, -1.0, 0.7, 0.5, 0.2], [-1.0] * 6])
    numbers = torch.arange(12, dtype=torch.int32).reshape(2, 6)
    best = ops.best_candidates(Candidates(None, scores, numbers, 100 + numbers), 4)
    assert best.scores[0].tolist() == pytest.approx([0.9, 0.7, 0.5, 0.5])
    assert best.labels[0].tolist() == [0, 3, 1, 4]  # ties go to the lower slot
    assert best.locations[0].tolist() == [100, 103, 101, 104]
    assert (best.scores[1] == -1).all() and best.labels.shape == (2, 4)
