"""Every operation of `ops` against its definition, and the shortcuts that must change nothing."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from condinst_infer import ops
from condinst_infer.config.model import mask_layers
from condinst_infer.model.layers import DeformConvNorm
from tests.support.nms_reference import greedy_nms, random_scene

SHAPES, STRIDES = ((6, 9), (3, 5), (1, 2)), (8, 16, 32)
CHOICES = ("product", "class")
INPUTS = tuple(  # what a mask head may read
    (coordinates, features)
    for coordinates in ("relative", "absolute", "none")
    for features in (True, False)
    if features or coordinates != "none"
)


def one_stage_candidates(
    maps: Sequence[Sequence[np.ndarray]],
    size: tuple[int, int],
    *,
    topk: int,
    threshold: float,
    threshold_by: str,
    rank_by: str,
    clip: bool,
) -> list[list[tuple[float, int, int, list[float]]]]:
    """(score, label, location, box) of one image, one list per level: all pairs in one sort.

    `maps` has one (class scores [C, h, w], regression, centreness) per level, after the sigmoid.
    """
    runs, offset = [], 0
    for (scores, distances, quality), stride in zip(maps, STRIDES, strict=True):
        _, height, width = scores.shape
        ranked = []
        for (label, y, x), score in np.ndenumerate(scores):
            product = score * quality[0, y, x]
            values = {"product": product, "class": score}
            if values[threshold_by] > threshold:
                ranked.append((values[rank_by], product, label, y, x))
        run = []
        for _, product, label, y, x in sorted(ranked, reverse=True)[:topk]:
            left, top, right, bottom = distances[:, y, x] * stride
            column, row = stride * x + stride // 2, stride * y + stride // 2
            box = [column - left, row - top, column + right, row + bottom]
            if clip:
                box = [float(np.clip(v, 0, size[1 - i % 2])) for i, v in enumerate(box)]
                if box[2] <= box[0] or box[3] <= box[1]:
                    continue
            run.append((product, label, offset + y * width + x, box))
        runs.append(sorted(run, reverse=True))
        offset += height * width
    return runs


@pytest.mark.parametrize("classes", [1, 80])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("threshold_by", "rank_by"), [*itertools.product(CHOICES, CHOICES)])
def test_two_stage_selection_is_the_plain_one(
    threshold_by: str, rank_by: str, clip: bool, classes: int
) -> None:
    # float64: the sigmoid of one number differs by a float32 ulp between vector lanes and can
    # reorder two candidates that lie as near
    random = torch.Generator().manual_seed(1)
    few = -3.0 if classes == 1 else -5.0
    offsets = torch.tensor([0.0, few, -20.0]).double()[:, None, None, None]  # many, few, none
    spread = torch.tensor([2.0, 1.0, 0.0]).double()[:, None, None, None]
    logits, regression, centreness = (
        [
            torch.randn((3, c, *shape), generator=random, dtype=torch.float64) * spread
            + offsets * by
            for shape in SHAPES
        ]
        for c, by in ((classes, 1.0), (4, 0.0), (1, 0.0))
    )
    regression = [r.relu() * 2 for r in regression]
    image_sizes, topk = torch.tensor([[48, 72], [40, 33], [17, 64]]), 20
    rules: dict[str, Any] = {"threshold_by": threshold_by, "rank_by": rank_by, "clip": clip}
    found = ops.select_candidates(
        logits,
        regression,
        centreness,
        strides=STRIDES,
        image_sizes=image_sizes,
        topk=topk,
        score_threshold=0.05,
        **rules,
    )
    assert found.boxes is not None
    parts = (found.boxes, *found[1:])
    assert [tuple(part.shape) for part in parts] == [(3, 60, 4), (3, 60), (3, 60), (3, 60)]
    assert found.labels.dtype == found.locations.dtype == torch.int32
    totals = []
    for i, (height, width) in enumerate(image_sizes.tolist()):
        maps = [
            (c[i].sigmoid().numpy(), r[i].numpy(), q[i].sigmoid().numpy())
            for c, r, q in zip(logits, regression, centreness, strict=True)
        ]
        runs = one_stage_candidates(maps, (height, width), topk=topk, threshold=0.05, **rules)
        totals.append(sum(map(len, runs)))
        for level, run in enumerate(runs):
            slots = slice(level * topk, level * topk + len(run))
            rest = slice(slots.stop, (level + 1) * topk)
            scores, labels, locations, boxes = zip(*run, strict=True) if run else ((),) * 4
            np.testing.assert_allclose(found.scores[i, slots], scores, rtol=1e-12)
            assert found.labels[i, slots].tolist() == list(labels)
            assert found.locations[i, slots].tolist() == list(locations)
            expected_boxes = np.reshape(boxes, (-1, 4))
            np.testing.assert_allclose(found.boxes[i, slots], expected_boxes, rtol=0, atol=1e-10)
            assert (found.scores[i, rest] == -1).all()
    assert totals[0] > totals[1] > totals[2] == 0  # many, few, none


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize(("coordinates", "use_features"), INPUTS)
def test_folded_mask_logits_are_those_of_grouped_convolutions(
    coordinates: str, use_features: bool, depth: int
) -> None:
    random = torch.Generator().manual_seed(2)
    for width, channels, (batch, kept) in itertools.product(
        (2, 8, 16), (1, 8, 16), ((1, 0), (1, 1), (3, 0), (3, 7))
    ):
        head = {
            "depth": depth,
            "width": width,
            "channels": channels,
            "coordinates": coordinates,
            "use_features": use_features,
        }
        count = sum(o * i + o for o, i in mask_layers(**head))
        features = torch.randn((batch, channels, 5, 7), generator=random)
        params = torch.randn((batch, kept, count), generator=random)
        centres = torch.rand((batch, kept, 2), generator=random) * 60
        sizes = torch.tensor([64.0, 128.0, 256.0])[torch.arange(batch * kept) % 3]
        arguments = (features, params, centres, sizes.reshape(batch, kept))
        logits = ops.mask_logits(*arguments, stride=8, **head)
        assert logits.shape == (batch, kept, 5, 7)
        if kept:  # torch has no convolution with no groups
            expected = ops.mask_logits_by_grouped_conv(*arguments, stride=8, **head)
            # float32; measured worst 3.4e-6 of the largest logit, at depth 4
            worst = (logits - expected).abs().max() / expected.abs().max()
            assert worst < 1e-5


def test_slots_past_the_count_are_zero_whatever_they_hold() -> None:
    random = torch.Generator().manual_seed(3)
    params = torch.randn((3, 4, 169), generator=random)
    counts = [0, 4, 2]
    for i, count in enumerate(counts):
        params[i, count:] = torch.nan
    masks = ops.dynamic_mask_head(
        torch.randn((3, 8, 3, 5), generator=random),
        params,
        torch.full((3, 4, 2), 9.0),
        torch.full((3, 4), 64.0),
        torch.tensor(counts, dtype=torch.int32),
        stride=8,
        factor=2,
    )
    assert masks.shape == (3, 4, 6, 10)
    for i, count in enumerate(counts):
        assert (masks[i, count:] == 0).all()
        assert (masks[i, :count].amax((1, 2)) > 0).all()


@pytest.mark.parametrize("biased", [True, False])
def test_conv_at_locations_is_the_dense_convolution_gathered(biased: bool) -> None:
    random = torch.Generator().manual_seed(4)
    shapes = ((4, 6), (3, 1), (1, 1))
    features = [torch.randn((2, 5, *shape), generator=random) for shape in shapes]
    weight = torch.randn((7, 5, 3, 3), generator=random)
    bias = torch.randn(7, generator=random) if biased else None
    dense = [functional.conv2d(f, weight, bias, padding=1).flatten(2) for f in features]
    total = 4 * 6 + 3 + 1
    locations = torch.stack([torch.arange(total), torch.randperm(total, generator=random)]).int()
    rows = locations.long()[:, :, None].expand(-1, -1, 7)
    expected = torch.cat(dense, 2).transpose(1, 2).gather(1, rows)
    found = ops.conv_at_locations(features, weight, bias, locations)
    # float32 sums in another order; measured worst 6e-6 of values up to 23
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_places_from_locations_are_where_a_plain_loop_puts_them() -> None:
    expected_centres, expected_sizes = [], []
    interest = (64, 128, 256)
    for (height, width), stride, size in zip(SHAPES, STRIDES, interest, strict=True):
        for y in range(height):
            for x in range(width):
                expected_centres.append([stride * x + stride // 2, stride * y + stride // 2])
                expected_sizes.append(size)
    order = np.random.default_rng(0).permutation(len(expected_sizes))
    locations = torch.from_numpy(np.stack([np.arange(len(order)), order])).int()
    centres, sizes = ops.places_from_locations(locations, SHAPES, STRIDES, interest)
    np.testing.assert_array_equal(centres[0], expected_centres)
    np.testing.assert_array_equal(sizes[0], expected_sizes)
    np.testing.assert_array_equal(centres[1], np.array(expected_centres)[order])
    np.testing.assert_array_equal(sizes[1], np.array(expected_sizes)[order])


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 4)])
def test_aligned_bilinear_is_its_definition(size: tuple[int, int], factor: int) -> None:
    x = np.random.default_rng(5).standard_normal((2, 3, *size))

    def taps(length: int, j: int) -> list[tuple[int, float]]:
        at = (j - factor // 2) / factor
        low = math.floor(at)
        cells = ((low, 1 - (at - low)), (low + 1, at - low))
        return [(min(max(cell, 0), length - 1), share) for cell, share in cells]

    expected = np.zeros((2, 3, size[0] * factor, size[1] * factor))
    for j, k in np.ndindex(expected.shape[2:]):
        for row, of_row in taps(size[0], j):
            for column, of_column in taps(size[1], k):
                expected[:, :, j, k] += of_row * of_column * x[:, :, row, column]
    found = ops.aligned_bilinear(torch.from_numpy(x), factor)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)  # float64 rounding


@pytest.mark.parametrize("classes", [1, 80])
def test_class_nms_is_the_greedy_loop(classes: int) -> None:
    random = np.random.default_rng(7)
    for slots, keep in itertools.product((1, 2, 37, 300), (1, 30, 60)):
        scene = random_scene(random, batch=3, slots=slots, classes=classes)
        # boxes on a grid often overlap by exactly a half, which does not suppress
        expected, counts = greedy_nms(scene, threshold=0.5, keep=keep)
        tensors = [torch.from_numpy(part) for part in scene]
        found, count = ops.class_nms(*tensors, iou_threshold=0.5, max_detections=keep)
        assert found.dtype == count.dtype == torch.int32
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(count, counts)


def deformed_convolution(module: DeformConvNorm, x: Tensor) -> np.ndarray:
    """ReLU of the deformable convolution of `x` [N, C, H, W] by `module`, one tap at a time."""
    raw, maps = module.offset(x).double().numpy(), x.double().numpy()
    weight = module.conv.weight.double().numpy()  # [O, C / groups, 3, 3]
    batch, channels, height, width = maps.shape
    deform, groups = module.deform_groups, module.conv.groups
    out = np.zeros((batch, len(weight), *raw.shape[2:]))
    for n, y, column, c, tap in np.ndindex(batch, *raw.shape[2:], channels, 9):
        offsets_of = 18 * (c * deform // channels) + 2 * tap
        at_y = y * module.stride - 1 + tap // 3 + raw[n, offsets_of, y, column]
        at_x = column * module.stride - 1 + tap % 3 + raw[n, offsets_of + 1, y, column]
        value = 0.0
        for row, col in itertools.product(
            *((math.floor(at), math.floor(at) + 1) for at in (at_y, at_x))
        ):
            if 0 <= row < height and 0 <= col < width:
                value += (1 - abs(at_y - row)) * (1 - abs(at_x - col)) * maps[n, c, row, col]
        if module.modulated:
            mask = raw[n, 18 * deform + 9 * (c * deform // channels) + tap, y, column]
            value /= 1 + math.exp(-mask)
        group = c * groups // channels
        outputs = slice(group * len(weight) // groups, (group + 1) * len(weight) // groups)
        out[n, outputs, y, column] += (
            value * weight[outputs, c % (channels // groups)].reshape(-1, 9)[:, tap]
        )
    return out.clip(min=0)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize(("groups", "deform_groups"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_deformable_convolution_is_its_definition(
    stride: int, groups: int, deform_groups: int, modulated: bool
) -> None:
    torch.manual_seed(6)
    module = DeformConvNorm(
        4,
        6,
        stride=stride,
        norm="none",
        modulated=modulated,
        deform_groups=deform_groups,
        groups=groups,
    )
    torch.nn.init.normal_(module.offset.weight, std=0.5)  # offsets of several cells: many outside
    with torch.no_grad():
        x = torch.randn(2, 4, 5, 7)
        # float32 coordinates; measured worst 4e-7
        np.testing.assert_allclose(module(x), deformed_convolution(module, x), rtol=0, atol=3e-6)
