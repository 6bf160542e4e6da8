"""The select kernel: what a model puts out of its own candidates, and plain loops."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from condinst_infer import checkpoint, ops
from condinst_infer.cuda import kernels
from condinst_infer.cuda.stream import Stream

Arrays = dict[str, np.ndarray]
Shape = tuple[int, int]

CASES = [  # images, K, M, P, (height, width) of each level
    (1, 1, 1, 1, [(1, 1)]),
    (3, 52, 52, 169, [(5, 7), (3, 4), (2, 2), (1, 1)]),
    (3, 7, 40, 128, [(4, 9)]),
    (2, 3, 5, 301, [(1, 17), (13, 1)]),  # more parameters than twice the threads
]
STRIDES, INTEREST = (7, 16, 32, 64), (64, 128, 256, 512)  # 7: half a stride is rounded down


def levels_from_shapes(
    shapes: Sequence[Shape], strides: Sequence[int], interest: Sequence[int]
) -> np.ndarray:
    """The table that the kernel wants, int32 [L, 4]."""
    first = np.cumsum([0, *(h * w for h, w in shapes)])
    rows = [(first[i], w, strides[i], interest[i]) for i, (_, w) in enumerate(shapes)]
    return np.array(rows, dtype=np.int32)


def selected(stream: Stream, inputs: Arrays, levels: np.ndarray, *, score_root: bool) -> Arrays:
    """What the kernel puts out."""
    (n, k), m, dtype = inputs["keep"].shape, inputs["scores"].shape[1], inputs["params"].dtype
    p, a = inputs["params"].shape[1:]
    launch = kernels.select(
        n, k=k, m=m, p=p, a=a, levels=len(levels), score_root=score_root, dtype=dtype
    )
    outputs = {
        "boxes": stream.empty((n, k, 4), np.float32),
        "scores": stream.empty((n, k), np.float32),
        "labels": stream.empty((n, k), np.int32),
        "params": stream.empty((n, k, p), dtype),
        "centres": stream.empty((n, k, 2), np.float32),
        "sizes": stream.empty((n, k), np.float32),
    }
    arrays = [stream.array(np.ascontiguousarray(v)) for v in (*inputs.values(), levels)]
    stream.launch(launch, arrays, list(outputs.values()))
    return {name: stream.numpy(array) for name, array in outputs.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("score_root", [True, False])
@pytest.mark.parametrize(("n", "k", "m", "p", "shapes"), CASES)
def test_select_gathers_what_was_kept(
    stream: Stream,
    n: int,
    k: int,
    m: int,
    p: int,
    shapes: list[Shape],
    score_root: bool,
    dtype: type,
) -> None:
    random = np.random.default_rng(k)
    places = [  # centre and size of every location
        (s * x + s // 2, s * y + s // 2, size)
        for (h, w), s, size in zip(shapes, STRIDES, INTEREST, strict=False)
        for y in range(h)
        for x in range(w)
    ]
    counts = [k, 0, 1][:n]
    keep = np.full((n, k), -1, np.int32)
    for i, count in enumerate(counts):
        keep[i, :count] = random.permutation(m)[:count]
    locations = np.tile(np.arange(m, dtype=np.int32) % len(places), (n, 1))
    inputs = {
        "keep": keep,
        "count": np.array(counts, np.int32),
        "boxes": random.normal(0, 300, (n, m, 4)).astype(np.float32),
        "scores": random.uniform(-0.5, 1, (n, m)).astype(np.float32),  # below 0 counts as 0
        "labels": random.integers(0, 80, (n, m), dtype=np.int32),
        "locations": random.permuted(locations, axis=1),
        "params": random.normal(0, 1, (n, p, len(places))).astype(dtype),
    }
    levels = levels_from_shapes(shapes, STRIDES, INTEREST)
    found = selected(stream, inputs, levels, score_root=score_root)
    for i, slot in np.ndindex(n, k):
        here = {name: values[i, slot].tolist() for name, values in found.items()}
        wanted = {"boxes": [0] * 4, "scores": 0, "labels": -1, "params": [0] * p}
        wanted |= {"centres": [0, 0], "sizes": 0}
        if slot < counts[i]:
            at = keep[i, slot]
            score, location = (
                max(inputs["scores"][i, at], np.float32(0)),
                inputs["locations"][i, at],
            )
            wanted = {
                "boxes": inputs["boxes"][i, at].tolist(),
                "scores": float(np.sqrt(score) if score_root else score),
                "labels": int(inputs["labels"][i, at]),
                "params": inputs["params"][i, :, location].tolist(),
                "centres": [*places[location][:2]],
                "sizes": places[location][2],
            }
        assert here == wanted


def test_select_is_what_the_model_does(stream: Stream, nano_checkpoint: Path) -> None:
    model = checkpoint.load(nano_checkpoint)
    config, detect = model.config, model.config.detect
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3), dtype=np.uint8)
    image_sizes = torch.tensor([[96, 64], [70, 33]], dtype=torch.int32)
    with torch.no_grad():
        raw = model.heads(torch.from_numpy(images), image_sizes)
        wanted = model.finish(raw, image_sizes)
        before = model.before_nms(raw, image_sizes)
    keep, count = ops.class_nms(
        *(before[f"candidate_{name}"] for name in ("boxes", "scores", "labels")),
        iou_threshold=detect.nms_iou,
        max_detections=detect.max_detections,
    )
    assert 0 < count.min()
    inputs = {"keep": keep.numpy(), "count": count.numpy()}
    for name in ("boxes", "scores", "labels", "locations"):
        inputs[name] = before[f"candidate_{name}"].numpy()
    inputs["params"] = before["params_map"].numpy()
    shapes = [(p.shape[2], p.shape[3]) for p in raw.params]
    levels = levels_from_shapes(shapes, config.strides, config.heads.sizes_of_interest)
    found = selected(stream, inputs, levels, score_root=detect.score_root)
    for name in ("boxes", "labels"):
        np.testing.assert_array_equal(found[name], wanted[name])
    # torch's square root is one ulp off in every fifth value; the kernel's is rounded correctly
    np.testing.assert_allclose(found["scores"], wanted["scores"], rtol=2.4e-7)  # two ulps
    # the masks of what was selected are the model's
    params, centres, sizes = (
        torch.from_numpy(found[name]) for name in ("params", "centres", "sizes")
    )
    features, settings = raw.mask_features, config.mask_head_settings
    masks = ops.dynamic_mask_head(features, params, centres, sizes, count, **settings)
    # the same numbers in another layout, for which torch may choose another kernel; measured 0
    np.testing.assert_allclose(masks, wanted["masks"], rtol=0, atol=1e-5)
