"""The rows of both papers' tables, as a preset and what is changed on it.

The journal version (arXiv:2102.03026, TPAMI 2022) and the first paper (ECCV 2020,
arXiv:2003.05664) number their tables differently: tables 4, 5 and 6 of the first are 5, 6 and 7
of the journal. Tables 1 to 6 of the journal are its ablations, the others its models.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from condinst_infer.config.model import CondInstConfig
from condinst_infer.config.presets import preset

JOURNAL, ECCV = "journal", "ECCV"


class TableRow(NamedTuple):
    """One row of a table: how `condinst train` reproduces it, and the number it is to reach."""

    paper: str
    table: str
    row: str  # the first columns of the table
    preset: str
    changes: Mapping[str, Any]  # fields of the model
    number: float
    metric: str = "AP val2017"
    training: Mapping[str, Any] = {}  # fields of the training


# measured here, in points of the row's metric, by (paper, table, row)
MEASURED: Mapping[tuple[str, str, str], float] = {}

# 1x is 90,000 iterations; the rate falls 60,000 and 20,000 before the end (section 4.7)
_3X = {"iterations": 270_000, "steps": [210_000, 250_000]}
_ONE_SCALE = {"short_sides": [800]}  # a row without "aug."
_P2 = {"mask_levels": [2, 3, 4, 5], "neck_in_levels": [2, 3, 4, 5]}
_SEM = {"semantic_loss": True}
_R101 = {"backbone_type": "resnet101"}


def _ablation(
    table: str,
    row: str,
    changes: dict[str, Any],
    journal: float | None,
    eccv: float | None,
    eccv_table: str = "",
) -> list[TableRow]:
    """The row of the journal and that of the first paper, where each has it."""
    papers = (
        (JOURNAL, table, "condinst_r50", journal),
        (ECCV, eccv_table or table, "condinst_eccv_r50", eccv),
    )
    return [
        TableRow(paper, of, row, base, changes, number)
        for paper, of, base, number in papers
        if number is not None
    ]


def _vary(
    table: str, noun: str, field: str, numbers: Mapping[int, tuple[float, float]]
) -> list[TableRow]:
    """The rows of a table that varies the number in `field`; value -> AP, journal and ECCV."""
    rows = []
    for value, (journal, eccv) in numbers.items():
        rows += _ablation(table, f"{noun} {value}", {field: value}, journal, eccv)
    return rows


ABLATIONS: tuple[TableRow, ...] = (
    *_vary(
        "1a",
        "depth",
        "mask_head_depth",
        {1: (30.5, 30.9), 2: (35.5, 35.5), 3: (35.6, 35.7), 4: (35.6, 35.7)},
    ),
    *_vary(
        "1b",
        "width",
        "mask_head_width",
        {2: (33.9, 34.1), 4: (35.4, 35.6), 8: (35.6, 35.7), 16: (35.7, 35.6)},
    ),
    *_vary(
        "2",
        "C_bottom",
        "mask_channels",
        {1: (34.7, 34.8), 2: (34.9, 35.4), 4: (35.5, 35.5), 8: (35.6, 35.7), 16: (35.4, 35.5)},
    ),
    *_ablation("3", "features", {"coordinates": "none"}, 31.5, 31.4),
    *_ablation("3", "relative coordinates", {"use_features": False}, 31.3, 31.3),
    *_ablation("3", "absolute coordinates, features", {"coordinates": "absolute"}, 32.0, 32.0),
    *_ablation("3", "relative coordinates, features", {"coordinates": "relative"}, 35.6, 35.7),
    *_ablation("4", "P3", {"mask_levels": [3, 4, 5]}, 35.6, None),
    *_ablation("4", "P2", _P2, 36.0, None),
    *_ablation("5", "factor 1, 1/8", {"mask_stride": 8}, 34.6, 34.4, "4"),
    *_ablation("5", "factor 2, 1/4", {"mask_stride": 4}, 35.6, 35.8, "4"),
    *_ablation("5", "factor 4, 1/2", {"mask_stride": 2}, 35.6, 35.7, "4"),
    *_ablation("6", "box", {"nms": "box"}, 35.6, 35.7, "5"),
    *_ablation("6", "mask", {"nms": "mask"}, 35.6, 35.7, "5"),
)


def _models(paper: str, table: str, metric: str, *rows: tuple[Any, ...]) -> list[TableRow]:
    """Rows of a table of models: row, preset, number, and where it takes more: training, model."""
    return [
        TableRow(paper, table, row, base, dict(*model), number, metric, training)
        for row, base, number, training, *model in rows
    ]


MODELS: tuple[TableRow, ...] = (
    *_models(
        JOURNAL,
        "7",
        "AP test-dev",
        ("R-50-FPN 1x, one scale", "condinst_r50", 35.3, _ONE_SCALE),
        ("R-50-FPN 1x", "condinst_r50", 35.9, {}),
        ("R-50-FPN 3x", "condinst_r50", 37.7, _3X),
        ("w/ sem. R-50-FPN 3x", "condinst_r50_sem", 38.6, _3X),
        ("R-101-FPN 3x", "condinst_r101", 39.1, _3X),
        ("w/ sem. R-101-FPN 3x", "condinst_r101_sem", 40.0, _3X),
        ("w/ sem. R-101-BiFPN 3x", "condinst_r101_bifpn_sem", 40.5, _3X),
        ("w/ sem. DCN-101-BiFPN 3x", "condinst_r101_dcn_bifpn_sem", 41.3, _3X),
    ),
    *_models(
        ECCV,
        "6",
        "AP test-dev",
        ("R-50-FPN 1x, one scale", "condinst_eccv_r50", 35.4, _ONE_SCALE),
        ("R-50-FPN 1x", "condinst_eccv_r50", 35.9, {}),
        ("R-50-FPN 3x", "condinst_eccv_r50", 37.8, _3X),
        ("w/ sem. R-50-FPN 3x", "condinst_eccv_r50", 38.8, _3X, _SEM),
        ("R-101-FPN 3x", "condinst_eccv_r50", 39.1, _3X, _R101),
        ("w/ sem. R-101-FPN 3x", "condinst_eccv_r50", 40.1, _3X, _R101 | _SEM),
    ),
    *_models(
        JOURNAL,
        "8",
        "AP test-dev",
        ("CondInst-RT shtw. R-50 4x", "condinst_rt_r50_shtw", 36.0, {}),
        ("CondInst-RT shtw. DLA-34 4x", "condinst_rt_dla34_shtw", 35.8, {}),
        ("CondInst-RT DLA-34 4x", "condinst_rt_dla34", 36.3, {}),
    ),
    *_models(
        JOURNAL,
        "9",
        "AP val",
        ("R-50-FPN train", "condinst_cityscapes_r50", 33.3, {}),
        ("w/ sem. R-50-FPN train", "condinst_cityscapes_r50_sem", 33.9, {}),
        ("R-50-FPN train+COCO", "condinst_cityscapes_r50", 37.5, {}),
        ("w/ sem. R-50-FPN train+COCO", "condinst_cityscapes_r50_sem", 37.7, {}),
        ("w/ sem. DCN-101-BiFPN train+COCO", "condinst_cityscapes_r101_dcn_bifpn_sem", 39.3, {}),
    ),
    *_models(
        JOURNAL,
        "9",
        "AP test",
        ("w/ sem. R-50-FPN train+val+COCO", "condinst_cityscapes_r50_sem", 34.4, {}),
        (
            "w/ sem. DCN-101-BiFPN train+val+COCO",
            "condinst_cityscapes_r101_dcn_bifpn_sem",
            35.1,
            {},
        ),
    ),
    *_models(
        JOURNAL,
        "10",
        "PQ test-dev",
        ("R-50-FPN 1x", "condinst_panoptic_r50", 42.1, {}),
        ("R-50-FPN 3x", "condinst_panoptic_r50", 44.6, _3X),
        ("R-101-FPN 3x", "condinst_panoptic_r101", 46.1, _3X),
        ("DCN-101-FPN 3x", "condinst_panoptic_r101_dcn", 47.8, _3X),
    ),
    *_models(JOURNAL, "11", "PQ val", ("R-50-FPN", "condinst_panoptic_cityscapes_r50", 61.7, {})),
)


def config_of(row: TableRow) -> CondInstConfig:
    """The model of a row."""
    return preset(row.preset, **row.changes)


def train_arguments(row: TableRow) -> str:
    """A row as `condinst train` takes it: the preset, and what is set on it."""
    pairs = {**row.changes, **row.training}.items()
    sets = [f"--set {name}={_value(value)}" for name, value in pairs]
    return " ".join([row.preset, *sets])


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def measurement_of(row: TableRow) -> float | None:
    """The number measured here for a row, or None."""
    return MEASURED.get((row.paper, row.table, row.row))
