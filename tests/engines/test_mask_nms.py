"""The kernels of mask NMS: exactly what ops.mask_nms keeps, and the tight boxes of masks."""

import numpy as np
import pytest
import torch

from condinst_infer import ops
from condinst_infer.cuda import kernels
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import ConfigError
from tests.support.mask_reference import Kept, Masks, mask_scene

SIZES = [  # images, candidates, most kept, (height, width) of the masks
    (1, 1, 1, (1, 1)),
    (3, 2, 7, (3, 11)),
    (3, 17, 5, (8, 8)),  # the second tile of pairs has one row
    (2, 48, 48, (31, 17)),  # 527 cells: more than a chunk of 512, and no whole word
    (2, 150, 20, (12, 9)),
]


def kept(
    stream: Stream, scene: Masks, kind: str, *, keep: int, root: bool = False, times: int = 1
) -> Kept:
    """What the three kernels say; candidate i is called `times` * i."""
    n, c, h, w = scene.masks.shape
    masks, scores, labels = map(stream.array, scene)
    words = -(-h * w // 32)
    bits, areas = stream.empty((n, c, words), np.uint32), stream.empty((n, c), np.int32)
    ious = stream.empty((n, c, c), np.float32)
    found = [stream.empty((n, keep), kind) for kind in (np.int32, np.float32)]
    found.append(stream.empty((n,), np.int32))
    launch = kernels.mask_bits(n, c, h * w, dtype=scene.masks.dtype)
    stream.launch(launch, [masks], [bits, areas])
    stream.launch(kernels.mask_ious(n, c, words), [bits, areas, labels], [ious])
    thresholds = {"iou_threshold": 0.5, "score_threshold": 0.05}
    launch = kernels.mask_nms(n, c, k=keep, kind=kind, **thresholds, score_root=root)
    order = stream.array(np.tile(times * np.arange(c, dtype=np.int32), (n, 1)))
    stream.launch(launch, [ious, scores, areas, order], found)
    return stream.numpy(found[0]), stream.numpy(found[1]), stream.numpy(found[2])


def expected(scene: Masks, kind: str, *, keep: int) -> Kept:
    """What torch says."""
    thresholds = {"iou_threshold": 0.5, "score_threshold": 0.05, "max_detections": keep}
    found = ops.mask_nms(*map(torch.from_numpy, scene), kind=kind, **thresholds)
    return found[0].numpy(), found[1].numpy(), found[2].numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", kernels.MASK_NMS)
@pytest.mark.parametrize(("n", "c", "keep", "size"), SIZES, ids=str)
def test_mask_nms_keeps_what_torch_keeps(
    stream: Stream, kind: str, n: int, c: int, keep: int, size: tuple[int, int], dtype: type
) -> None:
    random = np.random.default_rng(c)
    for _ in range(1 if c > 40 else 4):
        scene = mask_scene(random, batch=n, candidates=c, size=size, dtype=dtype)
        wanted = expected(scene, kind, keep=keep)
        for found, values in zip(kept(stream, scene, kind, keep=keep), wanted, strict=True):
            np.testing.assert_array_equal(found, values)


def test_candidates_are_called_what_they_are_told_to_be(stream: Stream) -> None:
    scene = mask_scene(np.random.default_rng(1), batch=2, candidates=20, size=(6, 9))
    keep, scores, _ = kept(stream, scene, "greedy", keep=8)
    called, roots, _ = kept(stream, scene, "greedy", keep=8, root=True, times=3)
    assert (keep > 0).any() and (keep == -1).any()
    np.testing.assert_array_equal(called, np.where(keep < 0, -1, 3 * keep))
    np.testing.assert_array_equal(roots, np.sqrt(scores))


def test_every_candidate_of_a_full_block_counts(stream: Stream) -> None:
    # 512 masks of one cell of 256: each cell twice, so the second half is suppressed
    masks = np.zeros((1, 512, 16, 16), np.float32)
    masks.reshape(512, 256)[np.arange(512), np.arange(512) % 256] = 1
    scores = np.linspace(1, 0.5, 512, dtype=np.float32)[None]
    scene = Masks(masks, scores, np.zeros((1, 512), np.int32))
    keep, _, count = kept(stream, scene, "greedy", keep=300)
    assert count.tolist() == [256] and keep[0, :257].tolist() == [*range(256), -1]


def test_more_candidates_than_threads_are_refused() -> None:
    settings = {"k": 1, "kind": "fast", "iou_threshold": 0.5, "score_threshold": 0.05}
    with pytest.raises(ConfigError, match="513 candidates"):
        kernels.mask_nms(1, 513, **settings, score_root=False)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size", [(1, 1), (5, 40), (23, 33)], ids=str)
def test_mask_extents_are_the_boxes_of_torch(
    stream: Stream, size: tuple[int, int], dtype: type
) -> None:
    random = np.random.default_rng(size[0])
    for _ in range(3):
        masks = mask_scene(random, batch=3, candidates=9, size=size, dtype=dtype).masks
        counts = np.array([9, 4, 0], np.int32)
        boxes = stream.empty((3, 9, 4), np.float32)
        launch = kernels.mask_extents(3, 9, size, stride=4, dtype=masks.dtype)
        stream.launch(launch, [stream.array(masks), stream.array(counts)], [boxes])
        masks[np.arange(9) >= counts[:, None]] = 0
        wanted = ops.boxes_from_masks(torch.from_numpy(masks), 4)
        np.testing.assert_array_equal(stream.numpy(boxes), wanted)
