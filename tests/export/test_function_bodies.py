"""The function bodies of the custom-domain nodes, run alone, against what `ops` means."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from benchmarks.trained_statistics import with_trained_statistics
from condinst_infer import ops
from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.config.presets import preset
from condinst_infer.contract.metadata import Metadata, metadata_from_props
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.model.condinst import build_condinst
from condinst_infer.ops.dynamic_mask_head import COORDINATES
from condinst_infer.ops.onnx_nodes import DOMAIN
from tests.support.classes import numbered_classes
from tests.support.function_bodies import FLOAT, HALF, in_openvino, mask_head_model, run, session

HEADS = [  # every value of every ablation field at least once
    {"mask_head_depth": depth, "mask_head_width": width, "mask_channels": channels}
    | {"coordinates": coordinates, "use_features": features, "mask_stride": stride}
    for depth, width, channels, coordinates, features, stride in (
        (3, 8, 8, "relative", True, 4),
        (1, 8, 8, "relative", True, 4),
        (2, 2, 16, "absolute", True, 2),
        (4, 16, 1, "relative", True, 8),
        (3, 16, 16, "none", True, 4),
        (1, 8, 1, "none", True, 8),
        (3, 8, 8, "relative", False, 2),
        (4, 2, 8, "absolute", False, 4),
        (1, 2, 8, "absolute", False, 8),
    )
]


def mask_head_inputs(
    config: CondInstConfig, batch: int, counts: list[int], size: tuple[int, int] = (5, 7)
) -> dict[str, torch.Tensor]:
    """Inputs of DynamicMaskHead with the slots of `config`, `counts` of which are used.

    Parameters of unused slots are NaN: they must not show.
    """
    random = torch.Generator().manual_seed(9)
    slots = config.detect.max_detections
    # parameters such that logits are about 1 at any depth and width, where probabilities move most
    shrink = max(o * i for o, i in config.mask_layers) ** -0.25
    params = shrink * torch.randn((batch, slots, config.num_params), generator=random)
    for of_image, count in zip(params, counts, strict=True):
        of_image[count:] = torch.nan
    return {
        "features": torch.randn((batch, config.mask.mask_channels, *size), generator=random),
        "params": params,
        "centres": 60 * torch.rand((batch, slots, 2), generator=random),
        "sizes": torch.tensor([64.0, 128.0])[torch.randint(2, (batch, slots), generator=random)],
        "count": torch.tensor(counts, dtype=torch.int32),
    }


def arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("counts", [[7], [0], [3, 7, 0], [23]], ids=str)
def test_dynamic_mask_head_body_is_the_operation(head: dict[str, Any], counts: list[int]) -> None:
    config = override(CondInstConfig(), **head, max_detections=max(1, *counts))
    inputs = mask_head_inputs(config, len(counts), counts)
    expected = ops.dynamic_mask_head(**inputs, **config.mask_head_settings)
    (masks,) = run(session(mask_head_model(config)), arrays(inputs))
    # float32 sums in another order; measured worst 1.2e-7, and other CPUs have other orders
    np.testing.assert_allclose(masks, expected, rtol=0, atol=3e-6)
    for mask, count in zip(masks, counts, strict=True):
        assert (mask[count:] == 0).all() and (mask[:count].max((1, 2)) > 0).all()


@pytest.mark.parametrize("stride", [8, 4, 2])  # factors 1, 2 and 4
@pytest.mark.parametrize("size", [(8, 16), (24, 8), (4, 12), (20, 8), (1, 1), (3, 32)], ids=str)
def test_dynamic_mask_head_body_takes_maps_of_every_size(
    size: tuple[int, int], stride: int
) -> None:
    config = override(CondInstConfig(), mask_stride=stride, max_detections=3)
    inputs = mask_head_inputs(config, 2, [3, 2], size)
    expected = ops.dynamic_mask_head(**inputs, **config.mask_head_settings)
    (masks,) = run(session(mask_head_model(config)), arrays(inputs))
    np.testing.assert_allclose(masks, expected, rtol=0, atol=3e-6)  # as above


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("counts", [[0], [3, 7, 0]], ids=str)
def test_dynamic_mask_head_body_without_a_loop_is_the_operation(
    head: dict[str, Any], counts: list[int]
) -> None:
    config = override(CondInstConfig(), **head, max_detections=9)
    inputs = mask_head_inputs(config, len(counts), counts, (8, 12))
    expected = ops.dynamic_mask_head(**inputs, **config.mask_head_settings)
    model = mask_head_model(config, static_batch=len(counts))
    assert not {"Loop", "If"} & {node.op_type for body in model.functions for node in body.node}
    (masks,) = run(session(model), arrays(inputs))
    np.testing.assert_allclose(masks, expected, rtol=0, atol=3e-6)  # as above
    assert all((mask[count:] == 0).all() for mask, count in zip(masks, counts, strict=True))


@pytest.mark.parametrize("counts", [[0], [1], [7, 8], [14, 0, 21, 6]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_slots_of_unused_groups_are_not_computed(dtype: torch.dtype, counts: list[int]) -> None:
    config = override(CondInstConfig(), max_detections=21)  # three groups of seven
    inputs = mask_head_inputs(config, len(counts), counts, (8, 8))
    body = session(mask_head_model(config, FLOAT if dtype == torch.float32 else HALF))
    inputs |= {name: inputs[name].to(dtype) for name in ("features", "params")}
    (masks,) = run(body, arrays(inputs))
    for mask, count in zip(masks, counts, strict=True):
        assert (mask[count:] == 0).all() and (mask[:count].max((1, 2)) > 0).all()
    inputs["features"] = torch.full_like(inputs["features"], torch.nan)  # shows where it is read
    (masks,) = run(body, arrays(inputs))
    for mask, count in zip(masks, counts, strict=True):
        computed = -(-count // 7) * 7
        assert np.isnan(mask[:computed]).all() and (mask[computed:] == 0).all()


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_half_precision_body_is_as_near_as_torch(head: dict[str, Any]) -> None:
    config = override(CondInstConfig(), **head, max_detections=4)
    inputs = mask_head_inputs(config, 2, [4, 2])
    reference = ops.dynamic_mask_head(**inputs, **config.mask_head_settings)
    halved = inputs | {name: inputs[name].half() for name in ("features", "params")}
    of_torch = ops.dynamic_mask_head(**halved, **config.mask_head_settings)
    (masks,) = run(session(mask_head_model(config, HALF)), arrays(halved))
    assert masks.dtype == np.float16 and of_torch.dtype == torch.float16
    error = np.abs(masks.astype(np.float32) - reference.numpy()).max()
    assert error <= 2 * (of_torch.float() - reference).abs().max()


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_dynamic_mask_head_body_in_openvino(head: dict[str, Any]) -> None:
    config = override(CondInstConfig(), **head, max_detections=10)
    counts = [7, 0, 2]
    inputs = mask_head_inputs(config, 3, counts, (8, 12))
    expected = ops.dynamic_mask_head(**inputs, **config.mask_head_settings)
    (masks,) = in_openvino(mask_head_model(config), arrays(inputs))
    np.testing.assert_allclose(masks, expected, rtol=0, atol=3e-6)  # as above
    assert all((mask[count:] == 0).all() for mask, count in zip(masks, counts, strict=True))


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_dynamic_mask_head_body_in_the_reference_evaluator(head: dict[str, Any]) -> None:
    config = override(CondInstConfig(), **head, max_detections=2)
    inputs = mask_head_inputs(config, 2, [1, 2], (2, 3))
    expected = ops.dynamic_mask_head(**inputs, **config.mask_head_settings)
    with np.errstate(over="ignore"):  # it is numpy, and an unused slot has e^10000 in its sigmoid
        (masks,) = run(ReferenceEvaluator(mask_head_model(config)), arrays(inputs))
    np.testing.assert_allclose(masks, expected, rtol=0, atol=3e-6)  # as above


def attributes(model: onnx.ModelProto, name: str) -> dict[str, Any]:
    """Attributes of the one node `name`; one-element lists as their element."""
    (node,) = (node for node in model.graph.node if node.op_type == name)
    assert node.domain == DOMAIN
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert (values.pop("plugin_namespace"), values.pop("aot")) == (b"condinst", 1)
    assert all(isinstance(value, list) and len(value) == 1 for value in values.values())
    return {key: value[0] for key, value in values.items()}


def constants(model: onnx.ModelProto, name: str) -> dict[str, np.ndarray]:
    """The constants in the body of `name`, by the name they have there."""
    (body,) = (body for body in model.functions if body.name == name)
    found = {}
    for node in body.node:
        if node.op_type == "Constant":
            value = helper.get_attribute_value(node.attribute[0])
            array = numpy_helper.to_array(value) if node.attribute[0].HasField("t") else value
            found[node.output[0]] = np.asarray(array)
    return found


def assert_attributes_match(model: onnx.ModelProto, metadata: Metadata) -> None:
    config = metadata.config
    nms, nms_body = attributes(model, "ClassNMS"), constants(model, "ClassNMS")
    assert nms == {
        "iou_threshold": pytest.approx(config.detect.nms_iou, rel=1e-7),  # stored as float32
        "max_detections": config.detect.max_detections,
        "runs": len(config.heads.head_levels),
    }
    assert nms_body["threshold"] == np.float32(nms["iou_threshold"])
    assert nms_body["steps"] == nms["max_detections"]
    head, body = attributes(model, "DynamicMaskHead"), constants(model, "DynamicMaskHead")
    settings = config.mask_head_settings
    assert head == settings | {"coordinates": COORDINATES.index(settings["coordinates"])}
    assert body.get("stride", head["stride"]) == head["stride"]
    assert body["up_by"].tolist() == [1, 1, head["factor"], head["factor"]]
    inputs = head["channels"] * head["use_features"] + 2 * (head["coordinates"] > 0)
    widths = [inputs, *[head["width"]] * (head["depth"] - 1), 1]
    lengths = [o * i for i, o in itertools.pairwise(widths)] + widths[1:]
    assert body["lengths"].tolist() == lengths
    assert body["all_slots"] == nms["max_detections"]
    assert ("absolute" in body) == (COORDINATES[head["coordinates"]] == "absolute")


def test_attributes_of_an_export_match_its_bodies(nano_onnx: Path) -> None:
    model = onnx.load(nano_onnx)
    props = {prop.key: prop.value for prop in model.metadata_props}
    assert_attributes_match(model, metadata_from_props(props, nano_onnx))


@pytest.mark.slow
def test_attributes_of_an_ablation_match_its_bodies(tmp_path: Path) -> None:
    ablation = {"mask_head_depth": 2, "mask_head_width": 4, "mask_channels": 5}
    ablation |= {"coordinates": "absolute", "mask_stride": 2, "nms_iou": 0.45, "max_detections": 9}
    config = preset("condinst_nano", **numbered_classes(2), **ablation)
    path = tmp_path / "ablation.onnx"
    export_onnx(with_trained_statistics(build_condinst(config)), path, size=(64, 96), batch=1)
    assert_attributes_match(onnx.load(path), Metadata(config))


@pytest.mark.long  # compares times, which needs an idle machine
@pytest.mark.parametrize(("size", "least"), [((64, 88), 2.5), ((100, 168), 5.0)])
def test_dynamic_mask_head_body_outruns_grouped_convolution(
    size: tuple[int, int], least: float
) -> None:
    from benchmarks.mask_heads import measure

    ratios = []
    while len(ratios) < 3 and max(ratios, default=0.0) < least:  # machines are noisy
        result = measure(size)
        ratios.append(result["ratio"])
        assert result["largest_difference"] < 1e-5  # float32; measured 7e-7 and 1.4e-6
    assert max(ratios) >= least, ratios
