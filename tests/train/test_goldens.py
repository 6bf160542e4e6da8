"""The training step of the official implementations, number for number.

Tolerances are those the reference numbers come with: ten times what float64 would move them.
"""

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from condinst_infer.config.model import CondInstConfig
from condinst_infer.model.condinst import CondInst
from condinst_infer.model.heads import HeadOutputs
from condinst_infer.ops import places_from_locations
from condinst_infer.train import losses as of
from condinst_infer.train.losses import LossConfig, Positives, condinst_losses
from condinst_infer.train.targets import GroundTruth, Targets, assign_targets, centreness_targets
from tests.support import foreign_names, goldens
from tests.support.goldens import TRAINED_SETS

PARTS = {  # our names of the losses -> AdelaiDet's, mmdetection's
    "class": ("loss_fcos_cls", "loss_cls"),
    "box": ("loss_fcos_loc", "loss_bbox"),
    "centreness": ("loss_fcos_ctr", "loss_centerness"),
    "mask": ("loss_mask", "loss_mask"),
    "semantic": ("loss_sem",),
}


def settings_of(name: str, **changes: Any) -> LossConfig:
    """As the official implementation of set `name` computes its losses."""
    if "mmdet" in name:
        changes = {"max_mask_samples": 0, "max_mask_samples_per_image": 300} | changes
    return LossConfig(box_loss_plus_one="mmdet" not in name, **changes)


def assert_losses(losses: dict[str, Tensor], golden: dict[str, float], name: str) -> None:
    theirs = {PARTS[part]["mmdet" in name]: float(loss.detach()) for part, loss in losses.items()}
    assert theirs == pytest.approx(golden, rel=1e-4)


def their_name(name: str, config: CondInstConfig, golden: str) -> str:
    if "mmdet" in golden:
        return foreign_names.mmdet_name(name)
    return foreign_names.adelaidet_name(name, config)


@pytest.mark.parametrize("norms", ["bn_eval", "bn_train"])
@pytest.mark.parametrize("name", TRAINED_SETS)
def test_losses_and_gradients(name: str, norms: str) -> None:
    golden, facts = goldens.arrays(f"train_{name}"), goldens.facts(f"train_{name}")
    model = copy.deepcopy(goldens.model(name)).train(norms == "bn_train")
    raw = model.heads(*goldens.training_images())
    truths = goldens.training_truths(model.config)
    losses = condinst_losses(raw, truths, model.config, settings_of(name))
    assert_losses(losses, facts[f"losses_{norms}"], name)
    total = torch.stack(list(losses.values())).sum()
    assert float(total.detach()) == pytest.approx(facts[f"total_{norms}"], rel=1e-4)
    total.backward()
    parameters = {their_name(n, model.config, name): p for n, p in model.named_parameters()}
    gradients = {n: p.grad.flatten() for n, p in parameters.items() if p.grad is not None}
    norm_of = {n: float(gradient.norm()) for n, gradient in gradients.items()}
    expected = facts[f"grad_l2_{norms}"]
    near = {"bn_eval": 5e-3, "bn_train": 1e-2}[norms]  # worst of bn_eval: 5e-4, in C
    assert {n: norm_of[n] for n in expected} == pytest.approx(expected, rel=near)
    if norms == "bn_eval":
        check_gradients(golden, facts, gradients)
    else:
        check_running_statistics(golden, model, name)
    without = parameters.keys() - gradients.keys()
    if "mmdet" not in name:  # frozen norms are no parameters there
        without = {n for n in without if "norm" not in n}
    assert without == set(facts["params_without_grad"])


def check_gradients(
    golden: dict[str, np.ndarray], facts: dict[str, Any], gradients: dict[str, Tensor]
) -> None:
    """Assert whole gradients, sums of their elements and the norm of all, near their norms."""
    for parameter, total in facts["grad_sum_bn_eval"].items():
        gradient = gradients[parameter]
        near = 5e-2 * float(gradient.norm())  # float64 moves it by 1.3e-2 in C, 2.9e-2 in M
        assert float(gradient.sum()) == pytest.approx(total, rel=0, abs=near), parameter
        if f"grad__{parameter}" in golden:
            expected = torch.from_numpy(golden[f"grad__{parameter}"]).flatten()
            assert (gradient - expected).norm() <= 1e-2 * expected.norm(), parameter
    norm = torch.cat(list(gradients.values())).norm()
    assert float(norm) == pytest.approx(facts["grad_l2_all_params_bn_eval"], rel=5e-3)


def check_running_statistics(golden: dict[str, np.ndarray], model: CondInst, name: str) -> None:
    """Assert the statistics that the step left in two norms; set M alone has them."""
    after = {key.removeprefix("after__"): a for key, a in golden.items() if "after__" in key}
    assert len(after) == (4 if "mmdet" in name else 0)
    if after:
        ours = foreign_names.renamed(model, foreign_names.mmdet_name)
        for key, expected in after.items():
            np.testing.assert_allclose(ours[key], expected, rtol=1e-3, atol=1e-5)


@functools.cache
def step(name: str) -> tuple[HeadOutputs, list[GroundTruth], Targets, Positives]:
    """The training step of set `name` up to the losses."""
    model = goldens.model(name)
    truths = goldens.training_truths(model.config)
    with torch.inference_mode():
        raw = model.heads(*goldens.training_images())
    shapes = shapes_of(raw)
    targets = assign_targets(
        truths,
        shapes,
        model.config.strides,
        num_classes=model.config.heads.num_classes,
        sizes_of_interest=model.config.heads.sizes_of_interest,
    )
    return raw, truths, targets, of.positives_of(targets, shapes)


def shapes_of(raw: HeadOutputs) -> list[tuple[int, int]]:
    return [(logits.shape[2], logits.shape[3]) for logits in raw.class_logits]


@pytest.mark.parametrize("name", TRAINED_SETS)
def test_positives_and_what_each_costs(name: str) -> None:
    golden, batch = goldens.arrays(f"train_{name}"), goldens.arrays("train")
    raw, truths, targets, positives = step(name)
    counts = [len(image) for image, _ in positives.of_level]
    assert counts == goldens.facts(f"train_{name}")["positives_per_level"]
    cells = np.array([height * width for height, width in shapes_of(raw)])
    before = (np.cumsum(cells) - cells) * len(truths)  # locations of finer levels in the batch
    levels = zip(before, cells, positives.of_level, strict=True)
    inds = torch.cat([start + image * size + place for start, size, (image, place) in levels])
    np.testing.assert_array_equal(inds, batch["pos_inds"])
    distances = targets.distances[positives.image, positives.location]
    centreness = centreness_targets(distances)
    np.testing.assert_allclose(centreness, batch["pos_ctr_targets"], rtol=0, atol=1e-5)
    plus_one = settings_of(name).box_loss_plus_one
    box = of.giou_loss(positives.gather(raw.regression), distances, plus_one=plus_one)
    np.testing.assert_allclose(1 - box, golden["pos_giou"], rtol=0, atol=1e-5)
    by_image = positives.image.argsort(stable=True)
    dice = of.mask_losses(raw, truths, positives, by_image, goldens.model(name).config)
    # sums over thousands of cells; measured 1.2e-5 on a Zen 5 with one thread
    np.testing.assert_allclose(dice, golden["pos_dice_loss"][by_image], rtol=0, atol=5e-5)


@pytest.mark.parametrize("topk", [64, 16])
@pytest.mark.parametrize("name", TRAINED_SETS)
def test_best_masks_of_each_object(name: str, topk: int) -> None:
    golden, facts = goldens.arrays(f"train_{name}"), goldens.facts(f"train_{name}")
    config, settings = goldens.model(name).config, settings_of(name, topk_masks_per_image=topk)
    raw, truths, _, positives = step(name)
    rows = of.mask_samples(raw, positives, settings)
    places, sizes = places_from_locations(
        positives.location[None], shapes_of(raw), config.strides, config.heads.sizes_of_interest
    )
    start = torch.tensor([0, len(truths[0].labels)])  # of the images, in a count over the batch
    instance = positives.instance + start[positives.image]
    level = (sizes[0] / config.heads.sizes_of_interest[0]).log2()
    ours = torch.stack([*places[0].T, level, instance], 1)[rows]  # [K, 4]
    names = (f"topk{topk}_{part}" for part in ("levels", "gt_inds"))
    theirs = [*golden[f"topk{topk}_locations"].T, *(golden[n] for n in names)]
    dice = of.mask_losses(raw, truths, positives, rows, config)
    got = dict(zip(map(tuple, ours.tolist()), dice.tolist(), strict=True))
    keys = map(tuple, np.stack(theirs, 1).tolist())
    expected = dict(zip(keys, golden[f"topk{topk}_dice_loss"].tolist(), strict=True))
    assert len(rows) == len(got) == {64: 91, 16: 31}[topk]
    assert got == pytest.approx(expected, rel=0, abs=5e-5)  # as in the test above
    losses = condinst_losses(raw, truths, config, settings)
    assert_losses(losses, facts[f"losses_bn_eval_topk{topk}"], name)
