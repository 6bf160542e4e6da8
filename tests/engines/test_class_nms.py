"""The class_nms kernel: exactly what ops.class_nms keeps."""

import numpy as np
import pytest
import torch

from condinst_infer import ops
from condinst_infer.cuda import kernels
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import ConfigError
from tests.support.nms_reference import Scene, random_scene

Kept = tuple[np.ndarray, np.ndarray]  # keep [N, K], count [N]

SIZES = [  # slots, runs, most kept, how many boxes lie in a heap, classes
    (1, 1, 1, 1, 1),
    (2, 2, 5, 2, 1),
    (35, 5, 12, 7, 1),
    (60, 1, 12, 20, 2),
    (300, 2, 30, 20, 80),
    (1000, 1, 1, 20, 1),
    (1023, 3, 40, 40, 1),
    (1025, 5, 100, 40, 2),  # the second chunk has one candidate
    (5000, 5, 20, 50, 1),
    (kernels.MAX_CANDIDATES, 5, kernels.MAX_DETECTIONS, 10, 80),
]


def in_runs(scene: Scene, runs: int) -> Scene:
    """`scene` with each of `runs` equal parts of its slots in falling score."""
    for n, scores in enumerate(scene.scores):
        parts = scores.reshape(runs, -1)
        order = np.argsort(-parts, axis=1, kind="stable")
        order = (order + np.arange(runs)[:, None] * parts.shape[1]).ravel()
        for values in scene:
            values[n] = values[n, order]
    return scene


def kept(stream: Stream, scene: Scene, *, runs: int = 1, keep: int, threshold: float = 0.6) -> Kept:
    """What the kernel says."""
    n, m = scene.scores.shape
    outputs = [stream.empty((n, keep), np.int32), stream.empty((n,), np.int32)]
    launch = kernels.class_nms(n, m, runs=runs, max_detections=keep, iou_threshold=threshold)
    stream.launch(launch, [stream.array(values) for values in scene], outputs)
    return stream.numpy(outputs[0]), stream.numpy(outputs[1])


def expected(scene: Scene, *, keep: int, threshold: float = 0.6) -> Kept:
    """What torch says."""
    tensors = [torch.from_numpy(values) for values in scene]
    found, count = ops.class_nms(*tensors, iou_threshold=threshold, max_detections=keep)
    return found.numpy(), count.numpy()


def assert_same(found: Kept, wanted: Kept) -> None:
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


@pytest.mark.parametrize(("slots", "runs", "keep", "crowd", "classes"), SIZES)
def test_class_nms_keeps_what_torch_keeps(
    stream: Stream, slots: int, runs: int, keep: int, crowd: int, classes: int
) -> None:
    random = np.random.default_rng(slots)
    batch = 1 if slots > 2000 else 3  # of several, the last image has empty slots only
    for _ in range(1 if slots > 100 else 5):  # a third has equal boxes, scores and overlaps
        scene = random_scene(random, batch=batch, slots=slots, classes=classes, crowd=crowd)
        scene = in_runs(scene, runs)
        assert_same(kept(stream, scene, runs=runs, keep=keep), expected(scene, keep=keep))


def test_every_chunk_is_tested_against_what_those_before_kept(stream: Stream) -> None:
    # places of very unequal numbers of boxes: rare ones are first seen in late chunks
    random = np.random.default_rng(6)
    places = (100 * random.random(5000) ** 16).astype(int)
    low = random.uniform(0, 600, (100, 2))[places] + random.normal(0, 1, (5000, 2))
    boxes = np.concatenate([low, low + 60], axis=1, dtype=np.float32)[None]
    scores = random.uniform(0.05, 1, (1, 5000)).astype(np.float32)
    scene = in_runs(Scene(boxes, scores, random.integers(0, 2, (1, 5000), dtype=np.int32)), 5)
    wanted = expected(scene, keep=200)
    ranks = np.argsort(np.argsort(-scene.scores[0], kind="stable"))
    first_seen = np.bincount(ranks[wanted[0][0, : wanted[1][0]]] // 1024)
    assert len(first_seen) == 5 and first_seen.min() > 3
    assert_same(kept(stream, scene, runs=5, keep=200), wanted)


def test_equal_scores_are_taken_by_slot(stream: Stream) -> None:
    random = np.random.default_rng(0)
    scene = random_scene(random, batch=1, slots=1200, classes=3, crowd=20)
    scene.scores[:] = 0.5
    found = kept(stream, scene, runs=6, keep=60)
    assert_same(found, expected(scene, keep=60))
    assert (np.diff(found[0]) > 0).all()


def test_no_box_of_no_area_is_suppressed(stream: Stream) -> None:
    scene = random_scene(np.random.default_rng(1), batch=1, slots=64, classes=1)
    scene.boxes[:] = 7
    scene.scores[:] = 0.5
    keep, count = kept(stream, scene, keep=70)
    assert count.tolist() == [64]
    assert keep[0].tolist() == [*range(64), *[-1] * 6]


def test_overlaps_at_the_threshold_are_rounded_as_in_torch(stream: Stream) -> None:
    # pairs that overlap by 0.6 but for rounding: three quarters of a width in common
    random = np.random.default_rng(2)
    left, top, width, height = random.uniform(1, 900, (4, 64, 1)).astype(np.float32)
    x = left + np.concatenate([np.zeros_like(width), width / 4], axis=1)
    y = np.broadcast_to(top, x.shape)
    boxes = np.stack([x, y, x + width, y + height], axis=2).reshape(1, 128, 4)
    scores = np.linspace(1, 0.5, 128, dtype=np.float32)[None]
    scene = Scene(boxes, scores, np.arange(128, dtype=np.int32)[None] // 2)
    wanted = expected(scene, keep=128)
    assert 76 < wanted[1] < 116  # either outcome in a fifth of the 64 pairs at least
    assert_same(kept(stream, scene, keep=128), wanted)


def test_no_candidates_give_no_detections(stream: Stream) -> None:
    scene = random_scene(np.random.default_rng(3), batch=2, slots=1, classes=1)
    scene = Scene(scene.boxes[:, :0], scene.scores[:, :0], scene.labels[:, :0])
    keep, count = kept(stream, scene, keep=3)
    assert (keep == -1).all()
    assert (count == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, "unsorted"])
def test_scores_that_do_not_fall_do_no_harm(stream: Stream, bad: float | str) -> None:
    random = np.random.default_rng(4)
    scene = random_scene(random, batch=1, slots=1500, classes=2)
    if not isinstance(bad, str):
        scene = in_runs(scene, 3)
        scene.scores[:, random.permutation(1500)[:300]] = bad
    keep, count = kept(stream, scene, runs=3, keep=20)
    real = keep[0, : count[0]]
    assert len(np.unique(real)) == len(real)
    assert ((real >= 0) & (real < 1500)).all()
    assert (scene.scores[0, real] > 0).all()
    assert (keep[0, count[0] :] == -1).all()


@pytest.mark.parametrize(("slots", "keep"), [(5121, 8), (16, 513)])
def test_more_than_a_block_holds_is_refused(stream: Stream, slots: int, keep: int) -> None:
    with pytest.raises(ConfigError, match="5121|513"):
        kernels.class_nms(1, slots, runs=1, max_detections=keep, iou_threshold=0.6)
    # symbolic sizes can't be refused: the kernel keeps nothing
    launch = kernels.class_nms(1, 1, runs=1, max_detections=1, iou_threshold=0.6)
    launch = launch._replace(scalars=(slots, 1, keep, launch.scalars[3]))
    scene = random_scene(np.random.default_rng(5), batch=1, slots=slots, classes=1)
    outputs = [stream.empty((1, keep), np.int32), stream.empty((1,), np.int32)]
    stream.launch(launch, [stream.array(values) for values in scene], outputs)
    assert (stream.numpy(outputs[0]) == -1).all()
    assert stream.numpy(outputs[1]).tolist() == [0]
