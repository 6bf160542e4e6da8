"""The network: every preset and ablation runs, batches equal single images, padding is nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condinst_infer.config import presets
from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.config.presets import preset
from condinst_infer.model.condinst import CondInst, build_condinst
from tests.support.classes import numbered_classes

FLAT = 100  # a grey level that normalises to zero in `lively`
ABLATIONS: dict[str, dict[str, Any]] = {
    **{f"depth {n}": {"mask_head_depth": n} for n in (1, 2, 4)},
    **{f"width {n}": {"mask_head_width": n} for n in (2, 4, 16)},
    **{f"channels {n}": {"mask_channels": n} for n in (1, 2, 4, 16)},
    **{f"coordinates {kind}": {"coordinates": kind} for kind in ("absolute", "none")},
    **{f"mask stride {n}": {"mask_stride": n} for n in (8, 2)},
    **{f"tower norm {kind}": {"tower_norm": kind} for kind in ("gn", "none")},
    "relative coordinates alone": {"use_features": False},
    "absolute coordinates alone": {"use_features": False, "coordinates": "absolute"},
    "mask branch on P3 alone": {"mask_levels": (3,)},
    "mask branch on P2": {"mask_levels": (2, 3, 4, 5), "neck_in_levels": (2, 3, 4, 5)},
    "separate towers": {"share_convs": 0, "class_convs": 4, "box_convs": 4},
    "semantic loss": {"semantic_loss": True},
    "no scales": {"regression_scales": False},
    "class alone decides": {"threshold_by": "class", "rank_by": "class", "clip_before_nms": True},
    "bifpn": {"neck_type": "bifpn", "neck_extra_levels": 2, "neck_norm": "bn"},
}


def lively(**changes: Any) -> CondInst:
    """A nano network of random weights that finds instances in noise and none in flat grey."""
    torch.manual_seed(0)
    changes = {"pixel_mean": (FLAT,) * 3, **numbered_classes(5), "max_detections": 60} | changes
    model = build_condinst(preset("condinst_nano", **changes)).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    images, sizes = scenes()
    fcos, branch = model.fcos, model.mask_branch
    with torch.no_grad():  # outputs of a few units: sigmoids that neither sleep nor saturate
        raw = model.heads(images[:2], sizes[:2])
        for conv, maps, spread in (
            (fcos.class_logits, raw.class_logits, 2.0),
            (fcos.box_regression, raw.regression, 1.0),
            (fcos.centreness, raw.centreness, 1.0),
            (fcos.controller, raw.params, 0.5),
            (branch.output, (raw.mask_features,), 1.0),
        ):
            conv.weight *= spread / torch.cat([m.flatten() for m in maps]).std()
        nn.init.constant_(fcos.class_logits.bias, -4.0)  # pyright: ignore
    return model


def scenes() -> tuple[Tensor, Tensor]:
    """Four images of unequal size on one canvas of 96x128; the third is flat grey."""
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, 96, 128, 3), generator=random, dtype=torch.uint8)
    images[2] = FLAT
    sizes = torch.tensor([[96, 128], [50, 128], [96, 90], [77, 33]], dtype=torch.int32)
    return images, sizes


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal but for float32 sums in another order.

    Measured worst: boxes 3e-4 of up to 300 pixels, scores 2e-6, masks 1e-5.
    """
    for name in ("num_detections", "labels"):
        assert torch.equal(found[name], expected[name]), name
    for name, atol in (("boxes", 1e-3), ("scores", 1e-5), ("masks", 1e-4)):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=atol)


def assert_contract(outputs: dict[str, Tensor], config: CondInstConfig, canvas: Tensor) -> None:
    """Names, types and shapes of the graph contract, and what unused slots hold."""
    (batch, height, width), kept = canvas.shape[:3], config.detect.max_detections
    stride = config.mask.mask_stride
    semantic = {}
    if config.is_panoptic:
        classes = 1 + len(config.panoptic.stuff_names)
        semantic["semantic"] = (torch.float32, (batch, classes, height // 4, width // 4))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in outputs.items()} == {
        "num_detections": (torch.int32, (batch,)),
        "boxes": (torch.float32, (batch, kept, 4)),
        "scores": (torch.float32, (batch, kept)),
        "labels": (torch.int32, (batch, kept)),
        "masks": (torch.float32, (batch, kept, height // stride, width // stride)),
        **semantic,
    }
    for i, count in enumerate(outputs["num_detections"].tolist()):
        scores, labels = outputs["scores"][i], outputs["labels"][i]
        assert (scores[:count] > 0).all() and (scores[:count] <= 1).all()
        assert (scores.diff() <= 0).all()
        assert ((labels[:count] >= 0) & (labels[:count] < config.heads.num_classes)).all()
        assert (labels[count:] == -1).all() and (scores[count:] == 0).all()
        assert (outputs["boxes"][i, count:] == 0).all()
        assert (outputs["masks"][i, count:] == 0).all()


@pytest.mark.parametrize("name", presets.preset_names())
def test_preset_runs(name: str) -> None:
    torch.manual_seed(2)
    config = preset(name)
    model = build_condinst(config).eval()
    nn.init.constant_(model.fcos.class_logits.bias, -1.0)  # pyright: ignore
    images = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    sizes = torch.tensor([[60, 90]], dtype=torch.int32)
    with torch.inference_mode():
        raw = model.heads(images, sizes)
        outputs = model.finish(raw, sizes)
    assert_contract(outputs, config, images)
    assert 0 < outputs["num_detections"].item()
    shapes = [(-(-64 // stride), -(-96 // stride)) for stride in config.strides]
    for maps, channels in (
        (raw.class_logits, config.heads.num_classes),
        (raw.regression, 4),
        (raw.centreness, 1),
        (raw.params, config.num_params),
    ):
        assert [tuple(m.shape) for m in maps] == [(1, channels, *shape) for shape in shapes]
    assert raw.mask_features.shape == (1, 8, 8, 12)
    semantic = raw.semantic_logits
    assert (semantic is not None) == config.mask.semantic_loss
    assert semantic is None or semantic.shape == (1, config.heads.num_classes, 8, 12)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablation_runs_and_its_parts_agree(ablation: str) -> None:
    model = lively(**ABLATIONS[ablation])
    images, sizes = scenes()
    with torch.inference_mode():
        outputs = model(images, sizes)
        raw = model.heads(images, sizes)
        finished = model.finish(raw, sizes)
        candidates = model.detector(images, sizes)
    assert_contract(outputs, model.config, images)
    assert outputs["num_detections"][0] > 0
    assert_close(outputs, finished)  # the controller at kept locations is the controller
    assert (raw.semantic_logits is not None) == model.config.mask.semantic_loss
    slots = len(model.config.strides) * model.config.detect.pre_nms_topk
    assert candidates["candidate_boxes"].shape == (4, slots, 4)
    assert candidates["params_map"].shape[:2] == (4, model.config.num_params)
    assert torch.equal(candidates["mask_features"], raw.mask_features)


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_batch_equals_single_images_on_the_same_canvas(norm: str) -> None:
    model = lively(tower_norm=norm)
    images, sizes = scenes()
    with torch.inference_mode():
        together = model(images, sizes)
        counts = together["num_detections"].tolist()
        assert counts[2] == 0 and len(set(counts)) > 2, counts  # an empty one, unequal others
        for i in range(len(images)):
            single = model(images[i : i + 1], sizes[i : i + 1])
            assert_close(single, {name: tensor[i : i + 1] for name, tensor in together.items()})


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_pixels_in_the_padding_change_nothing(norm: str) -> None:
    model = lively(tower_norm=norm)
    images, sizes = scenes()
    other = images.clone()
    for image, (rows, columns) in zip(other, sizes.tolist(), strict=True):
        image[rows:], image[:, columns:] = 255, 0
    assert not torch.equal(images, other)
    with torch.inference_mode():
        expected, found = model(images, sizes), model(other, sizes)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    other[0, 0, 0] += 64  # a pixel inside does
    with torch.inference_mode():
        assert not torch.equal(model(other, sizes)["scores"], expected["scores"])


def test_normalisation_comes_before_padding() -> None:
    mean, std = (10.0, 20.0, 30.0), (2.0, 4.0, 5.0)
    image = torch.tensor([11, 22, 33], dtype=torch.uint8).expand(1, 32, 64, 3)
    size = torch.tensor([[20, 50]], dtype=torch.int32)
    for order, expected in (("bgr", (0.5, 0.5, 0.6)), ("rgb", (11.5, 0.5, -3.8))):
        model = lively(pixel_mean=mean, pixel_std=std, channel_order=order)
        x = model.normalize(image, size)
        assert x.shape == (1, 3, 32, 64)
        inside = torch.tensor(expected)[None, :, None, None].expand(1, 3, 20, 50)
        torch.testing.assert_close(x[:, :, :20, :50], inside)
        assert (x[:, :, 20:] == 0).all() and (x[:, :, :, 50:] == 0).all()


@pytest.mark.parametrize("norm", ["bn", "bn_eval", "frozen_bn"])
def test_frozen_parts_stay_as_they_are_in_training(norm: str) -> None:
    model = lively(backbone_norm=norm, frozen_stages=2).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, sizes = scenes()
    model.heads(images, sizes).mask_features.sum().backward()
    moved = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    for stage in ("stem", "res2"):
        assert not any(name.startswith(f"backbone.{stage}.") for name in moved | trained)
    res3 = "backbone.res3.0.conv1."
    assert f"{res3}conv.weight" in trained
    assert (f"{res3}norm.running_mean" in moved) == (norm == "bn")
    assert (f"{res3}norm.weight" in trained) == (norm != "frozen_bn")


def test_prior_probability_is_the_first_class_score() -> None:
    config = override(preset("condinst_nano"), prior_probability=0.03, **numbered_classes(2))
    bias = build_condinst(config).fcos.class_logits.bias
    assert bias is not None
    torch.testing.assert_close(bias.sigmoid(), torch.full((2,), 0.03))
