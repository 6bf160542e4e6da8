"""Each loss against the official implementations, and what must hold for every batch."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from condinst_infer.config.presets import preset
from condinst_infer.model.heads import HeadOutputs
from condinst_infer.train import losses as of
from condinst_infer.train.losses import LossConfig, Positives, condinst_losses
from condinst_infer.train.targets import (
    IGNORED,
    GroundTruth,
    assign_targets,
    centreness_targets,
    ground_truth,
)
from tests.support import goldens
from tests.support.classes import numbered_classes

CANVAS, CELLS, SHAPES = (64, 96), (16, 24), ((8, 12), (4, 6), (2, 3))
NANO = preset("condinst_nano", **numbered_classes(3))


def test_focal_loss() -> None:
    golden = goldens.arrays("train_unit")
    logits, targets = (torch.from_numpy(golden[f"loss_focal_{p}"]) for p in ("logits", "targets"))
    loss = of.focal_loss(logits, targets > 0, alpha=0.25, gamma=2)
    np.testing.assert_allclose(loss, golden["loss_focal_none"], rtol=1e-4, atol=1e-5)
    total = goldens.facts("train_unit")["loss_focal_sum_alpha.25_gamma2"]
    assert float(loss.sum()) == pytest.approx(total, rel=1e-5)


def test_box_loss() -> None:
    golden, facts = goldens.arrays("train_unit"), goldens.facts("train_unit")
    boxes, targets = (torch.from_numpy(golden[f"loss_box_{p}"]) for p in ("pred", "target"))
    loss, weights = of.giou_loss(boxes, targets, plus_one=True), centreness_targets(targets)
    np.testing.assert_allclose(1 - loss, golden["loss_box_giou"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights, golden["loss_box_ctr_target"], rtol=1e-4, atol=1e-5)
    total = float((loss * weights).sum())
    assert total == pytest.approx(facts["loss_giou_ctr_weighted_sum"], rel=1e-5)
    normalised = total / float(weights.sum())
    assert normalised == pytest.approx(facts["loss_giou_weighted_normalised"], rel=1e-5)


def test_dice_loss() -> None:
    golden = goldens.arrays("train_unit")
    scores, targets = (torch.from_numpy(golden[f"loss_dice_{p}"]) for p in ("scores", "targets"))
    loss = of.dice_loss(scores[:, 0], targets[:, 0] > 0)
    np.testing.assert_allclose(loss, golden["loss_dice"], rtol=1e-4, atol=1e-5)


def made_up(*counts: int, seed: int = 0) -> tuple[HeadOutputs, list[GroundTruth]]:
    """Random outputs of a small network for images with so many objects."""
    random = torch.Generator().manual_seed(seed)

    def maps(channels: int) -> tuple[Tensor, ...]:
        sizes = [(len(counts), channels, *shape) for shape in SHAPES]
        return tuple(torch.randn(size, generator=random).requires_grad_() for size in sizes)

    auxiliary = maps(3)[0]
    raw = HeadOutputs(
        maps(3), tuple(x.exp() for x in maps(4)), maps(1), maps(169), maps(8)[0], auxiliary
    )
    raw = raw._replace(semantic=stuff_logits(len(counts), random))
    truths = [truth_of(count, random) for count in counts]
    parts = [0.1 + 0.2 * i for i in range(len(counts))]
    stuff = [stuff_labels(part, random) for part in parts]
    return raw, [t._replace(stuff=s) for t, s in zip(truths, stuff, strict=True)]


def stuff_logits(count: int, random: torch.Generator) -> Tensor:
    """Random outputs of a semantic branch with four channels."""
    return torch.randn((count, 4, *CELLS), generator=random).requires_grad_()


def stuff_labels(part: float, random: torch.Generator) -> Tensor:
    """Random labels of a semantic branch in `part` of the cells."""
    labels = torch.randint(0, 4, CELLS, generator=random)
    return labels.where(torch.rand(CELLS, generator=random) < part, IGNORED)


def truth_of(count: int, random: torch.Generator) -> GroundTruth:
    """An image with so many rectangles."""
    low = torch.randint(0, 40, (count, 2), generator=random)
    high = low + torch.randint(10, 24, (count, 2), generator=random)  # inside of the canvas
    boxes = torch.cat([low, high], 1)
    left, top, right, bottom = boxes.T[..., None, None]  # [G, 1, 1] each
    y, x = torch.arange(CANVAS[0])[:, None], torch.arange(CANVAS[1])
    return ground_truth(
        (x >= left) & (x < right) & (y >= top) & (y < bottom),
        boxes.float(),
        torch.randint(0, 3, (count,), generator=random),
        mask_stride=4,
        feature_stride=8,
    )


def positives_of(truths: list[GroundTruth]) -> Positives:
    sizes = NANO.heads.sizes_of_interest
    targets = assign_targets(truths, SHAPES, NANO.strides, num_classes=3, sizes_of_interest=sizes)
    return of.positives_of(targets, SHAPES)


def test_random_limits_keep_exactly_so_many_and_repeat() -> None:
    raw, truths = made_up(5, 0, 4)
    positives = positives_of(truths)

    def drawn(seed: int, settings: LossConfig) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        rows = of.mask_samples(raw, positives, settings, random)
        assert len(rows.unique()) == len(rows)
        return rows

    total = len(positives.image)
    assert total > 20
    assert len(drawn(0, LossConfig())) == len(drawn(0, LossConfig(max_mask_samples=0))) == total
    rows = drawn(0, LossConfig(max_mask_samples=10))
    assert len(rows) == 10
    assert rows.tolist() == drawn(0, LossConfig(max_mask_samples=10)).tolist()
    assert rows.tolist() != drawn(1, LossConfig(max_mask_samples=10)).tolist()
    rows = drawn(0, LossConfig(max_mask_samples_per_image=7))
    assert positives.image[rows].bincount(minlength=3).tolist() == [7, 0, 7]
    # where the random limit acts, the best are not looked for; and with them, no limit on all
    assert len(drawn(0, LossConfig(max_mask_samples_per_image=7, topk_masks_per_image=4))) == 14
    rows = drawn(0, LossConfig(topk_masks_per_image=10, max_mask_samples=3))
    for image, count in ((0, 5), (2, 4)):
        there = positives.instance[positives.image == image].bincount(minlength=count)
        kept = positives.instance[rows][positives.image[rows] == image].bincount(minlength=count)
        assert kept.tolist() == there.clamp(max=10 // count).tolist()


def test_a_batch_is_the_sum_of_its_images() -> None:
    raw, truths = made_up(5, 0, 4)
    positives = positives_of(truths)
    counts = positives.image.bincount(minlength=3).tolist()
    losses = condinst_losses(raw, truths, NANO, LossConfig())
    for part in ("class", "mask"):
        summed = 0.0
        for i, truth in enumerate(truths):
            loss = condinst_losses(image_of(raw, i), [truth], NANO, LossConfig())[part]
            summed += float(loss.detach()) * max(1, counts[i])
        assert float(losses[part].detach()) == pytest.approx(summed / sum(counts), rel=1e-5)


def image_of(raw: HeadOutputs, i: int) -> HeadOutputs:
    own: list[Any] = [x[i : i + 1] for x in outputs_of(raw)]
    levels = [tuple(own[3 * k : 3 * k + 3]) for k in range(4)]
    return HeadOutputs._make([*levels, *own[12:]])


def outputs_of(raw: HeadOutputs) -> list[Tensor]:
    """All maps: three levels of four kinds, mask features, auxiliary and semantic logits."""
    assert raw.semantic_logits is not None and raw.semantic is not None
    return [*itertools.chain(*raw[:4]), raw.mask_features, raw.semantic_logits, raw.semantic]


@pytest.mark.parametrize("count", [0, 3])
def test_losses_reach_every_output(count: int) -> None:
    raw, truths = made_up(count, 0)
    losses = condinst_losses(raw, truths, NANO, LossConfig())
    assert list(losses) == ["class", "box", "centreness", "mask", "semantic", "panoptic"]
    for part in ("box", "centreness", "mask"):
        assert (float(losses[part].detach()) > 0) == (count > 0)
    assert all(gradient.isfinite().all() for gradient in gradients(raw, losses))


def test_the_panoptic_loss_is_half_the_mean_over_labelled_cells() -> None:
    raw, truths = made_up(2, 0, 1)
    assert raw.semantic is not None
    negative_logs = []
    for logits, truth in zip(raw.semantic.log_softmax(1), truths, strict=True):
        assert truth.stuff is not None
        for place in (truth.stuff != IGNORED).nonzero().tolist():
            label = int(truth.stuff[tuple(place)])
            negative_logs.append(-float(logits[(label, *place)].detach()))
    assert 100 < len(negative_logs) < truths[0].stuff.numel()  # pyright: ignore
    for settings, weight in ((LossConfig(), 0.5), (LossConfig(panoptic_weight=2.0), 2.0)):
        loss = float(condinst_losses(raw, truths, NANO, settings)["panoptic"].detach())
        assert loss == pytest.approx(weight * np.mean(negative_logs), rel=1e-5)


def test_images_of_void_alone_have_no_panoptic_loss() -> None:
    raw, truths = made_up(2)
    void = [t._replace(stuff=torch.full_like(t.stuff, IGNORED)) for t in truths]  # pyright: ignore
    losses = condinst_losses(raw, void, NANO, LossConfig())
    assert float(losses["panoptic"].detach()) == 0
    assert all(gradient.isfinite().all() for gradient in gradients(raw, losses))


def test_without_a_semantic_branch_there_is_no_panoptic_loss() -> None:
    raw, truths = made_up(2)
    plain = [truth._replace(stuff=None) for truth in truths]
    losses = condinst_losses(raw._replace(semantic=None), plain, NANO, LossConfig())
    assert list(losses) == ["class", "box", "centreness", "mask", "semantic"]


def test_bfloat16_changes_only_what_the_network_puts_out() -> None:
    raw, truths = made_up(3, 4)
    exact = condinst_losses(raw, truths, NANO, LossConfig())
    halved = raw._replace(
        params=tuple(x.bfloat16() for x in raw.params), mask_features=raw.mask_features.bfloat16()
    )
    with torch.autocast("cpu", torch.bfloat16):
        same = condinst_losses(raw, truths, NANO, LossConfig())
        near = condinst_losses(halved, truths, NANO, LossConfig())
    for part, loss in exact.items():
        assert torch.equal(same[part], loss)
        assert near[part].dtype == torch.float32
        assert float((near[part] - loss).detach()) == pytest.approx(0, abs=2e-3)  # measured 1e-4


def gradients_of_one_process(rank: int, folder: Path) -> None:
    """Saves the gradient by the class logits of image `rank`, with the other in another process."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    raw, truths = made_up(4, 0)
    losses = condinst_losses(image_of(raw, rank), [truths[rank]], NANO, LossConfig())
    torch.save(gradients(raw, losses), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def gradients(raw: HeadOutputs, losses: dict[str, Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(list(losses.values()), outputs_of(raw)))


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    raw, truths = made_up(4, 0)  # one of the processes has nothing
    expected = gradients(raw, condinst_losses(raw, truths, NANO, LossConfig()))
    spawn(gradients_of_one_process, (tmp_path,), nprocs=2)
    pairs = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)), strict=True)
    for whole, (first, second) in zip(expected, pairs, strict=True):
        torch.testing.assert_close((first + second) / 2, whole, rtol=1e-4, atol=1e-7)
