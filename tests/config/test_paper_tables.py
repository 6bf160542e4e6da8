"""Every row of the papers' tables is an override that trains, exports and runs as in PyTorch."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.trained_statistics import with_trained_statistics
from condinst_infer import ops
from condinst_infer.config import presets
from condinst_infer.config.model import CondInstConfig
from condinst_infer.config.paper_tables import (
    ABLATIONS,
    ECCV,
    MODELS,
    TableRow,
    config_of,
    train_arguments,
)
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.model.condinst import CondInst, build_condinst
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.train.losses import LossConfig, condinst_losses
from condinst_infer.train.settings import replace_settings, settings_for
from condinst_infer.train.targets import ground_truth
from tests.support.classes import numbered_classes
from tests.support.function_bodies import mask_head_model, session

TINY: dict[str, Any] = {
    "stem_channels": 4,
    "res2_channels": 4,
    "neck_channels": 8,
    "head_levels": (3,),
    "sizes_of_interest": (64,),
    "share_convs": 1,
    "mask_branch_channels": 4,
    "mask_branch_convs": 1,
    **numbered_classes(2),
    "pre_nms_topk": 30,
    "max_detections": 6,
    "mask_nms_candidates": 20,
}
CANVAS = (64, 96)


def tiny(row: TableRow) -> CondInstConfig:
    """The network of a row, made small: what the row sets, on the mask heads of its preset."""
    mask = presets.preset(row.preset).mask
    own = {"mask_levels": mask.mask_levels, "mask_stride": mask.mask_stride}
    return presets.preset("condinst_nano", **{**TINY, **own, **row.changes})


def distinct(rows: list[TableRow], quick: str = "") -> list[Any]:
    """One test for each network: tables repeat the one without changes.

    Args:
        quick: the place of the only row whose test is quick; all are by default.
    """
    first: dict[CondInstConfig, TableRow] = {}
    for row in rows:
        first.setdefault(tiny(row), row)
    return [
        pytest.param(
            row, id=place(row), marks=[] if quick in ("", place(row)) else [pytest.mark.slow]
        )
        for row in first.values()
    ]


def place(row: TableRow) -> str:
    return f"{row.paper} {row.table} {row.row}"


def trained(config: CondInstConfig) -> CondInst:
    """A network full of instances, after one step on a made-up batch."""
    torch.manual_seed(0)
    model = with_trained_statistics(build_condinst(config)).train()
    images = torch.randint(0, 256, (2, *CANVAS, 3), dtype=torch.uint8)
    masks = torch.zeros((2, *CANVAS), dtype=torch.bool)
    masks[0, 8:56, 4:40], masks[1, 20:40, 50:90] = True, True
    boxes = torch.tensor([[4.0, 8, 40, 56], [50, 20, 90, 40]])
    truth = ground_truth(
        masks,
        boxes,
        torch.tensor([0, 1]),
        mask_stride=config.mask.mask_stride,
        feature_stride=config.mask_feature_stride,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    raw = model.heads(images, torch.tensor([CANVAS] * 2, dtype=torch.int32))
    losses = condinst_losses(raw, (truth, truth), config, LossConfig())
    assert 0 < losses["mask"].item() <= 1
    sum(losses.values(), torch.zeros(())).backward()
    for name, value in model.named_parameters():
        used = "controller" in name or ("mask_branch" in name and config.mask.use_features)
        grad = 0.0 if value.grad is None else value.grad.norm().item()
        assert math.isfinite(grad) and (grad > 0 or not used), name
    optimizer.step()
    return model.eval()


JOURNAL_ROWS = [row for row in ABLATIONS if row.paper != ECCV]
# of the first paper its own network, with either NMS; the other rows change the mask heads alone
ECCV_ROWS = [row for row in ABLATIONS if row.paper == ECCV and row.table == "5"]


@pytest.mark.parametrize("row", distinct([*JOURNAL_ROWS, *ECCV_ROWS], quick="journal 6 mask"))
def test_a_row_trains_exports_and_runs_in_onnx_runtime(row: TableRow, tmp_path: Path) -> None:
    config = tiny(row)
    model, path = trained(config), tmp_path / "model.onnx"
    export_onnx(model, path, size=CANVAS, batch=1)
    random = np.random.default_rng(1)
    feeds = {
        "images": random.integers(0, 256, (1, *CANVAS, 3), np.uint8),
        "image_sizes": np.array([[60, 90]], np.int32),
    }
    outputs = OrtSession(path).run(feeds)
    with torch.inference_mode():
        expected = model(*map(torch.from_numpy, feeds.values()))
    assert outputs["num_detections"] == expected["num_detections"].numpy() > 0
    height, width = (side // config.mask.mask_stride for side in CANVAS)
    assert outputs["masks"].shape == (1, 6, height, width)
    for name, value in expected.items():
        # float32 sums in another order; measured worst 2.2e-5, of masks and of boxes in pixels
        atol = 1e-3 if name == "boxes" else 1e-4
        np.testing.assert_allclose(outputs[name], value.numpy(), rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    "row", distinct([row for row in ABLATIONS if row.paper == ECCV and row.table != "5"])
)
def test_a_row_of_the_first_paper_trains_and_its_mask_heads_run(row: TableRow) -> None:
    config = tiny(row)
    model = trained(config)
    random = torch.Generator().manual_seed(1)
    slots = config.detect.max_detections
    images = torch.randint(0, 256, (1, *CANVAS, 3), dtype=torch.uint8, generator=random)
    with torch.inference_mode():
        raw = model.heads(images, torch.tensor([CANVAS], dtype=torch.int32))
    inputs = {
        "features": raw.mask_features,
        "params": raw.params[0].flatten(2)[:, :, ::5][:, :, :slots].mT.contiguous(),
        "centres": 60 * torch.rand((1, slots, 2), generator=random),
        "sizes": torch.full((1, slots), 64.0),
        "count": torch.tensor([slots], dtype=torch.int32),
    }
    expected = ops.dynamic_mask_head(**inputs, **config.mask_head_settings).numpy()
    feeds = {name: value.numpy() for name, value in inputs.items()}
    (masks,) = session(mask_head_model(config)).run(None, feeds)
    # float32 sums in another order; measured worst 2.6e-6
    np.testing.assert_allclose(np.asarray(masks), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


def test_every_preset_of_the_papers_has_a_row_and_every_row_a_model() -> None:
    rows = (*ABLATIONS, *MODELS)
    assert len(set(map(place, rows))) == len(rows) == 46 + 29
    own = {"condinst_nano", "condinst_r50_bifpn"}  # in no table
    assert {row.preset for row in rows} == set(presets.preset_names()) - own
    for name in set(presets.preset_names()) - own:
        numbers = {str(row.number) for row in rows if row.preset == name}
        assert set(presets.figure(name).split()[0].split("-")) <= numbers


@pytest.mark.parametrize("row", (*ABLATIONS, *MODELS), ids=place)
def test_a_row_is_what_its_words_say(row: TableRow) -> None:
    name, *words = train_arguments(row).split()
    values: dict[str, Any] = {}
    for word in words[1::2]:
        field, _, text = word.partition("=")
        values[field] = json.loads(text) if text[0] in "[0123456789tf" else text
    assert words[::2] == ["--set"] * len(values) and values == {**row.changes, **row.training}
    config = presets.preset(name, **{k: v for k, v in values.items() if k not in row.training})
    assert config == config_of(row)
    settings = replace_settings(settings_for(config), **row.training)
    of_table = {"8": 360_000, "9": 24_000, "11": 24_000}
    expected = of_table.get(row.table, 270_000 if "3x" in row.row else 90_000)
    assert settings.iterations == expected
    if expected == 270_000:  # as 1x: 60,000 and 20,000 before the end
        assert settings.steps == (210_000, 250_000)
