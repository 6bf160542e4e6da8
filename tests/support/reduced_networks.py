"""Networks of every preset and ablation, small, with the statistics of trained ones."""

import functools
from typing import Any

import pytest

from benchmarks.trained_statistics import reduced, with_trained_statistics
from condinst_infer.config.paper_tables import ABLATIONS, TableRow
from condinst_infer.config.presets import preset, preset_names
from condinst_infer.model import resnet
from condinst_infer.model.condinst import CondInst, build_condinst
from tests.support.classes import numbered_classes

# blocks per stage: each stage has one that changes its size, one or more have another behind it
_BLOCKS = {"resnet18": (1, 2, 1, 1), "resnet50": (1, 2, 1, 1), "resnet101": (1, 1, 3, 1)}
_TINY: dict[str, Any] = {
    "head_levels": (3, 4),
    "sizes_of_interest": (64, 128),
    **numbered_classes(4),
}


_P2 = {"neck_in_levels": (2, 3, 4, 5), "mask_levels": (2, 3, 4, 5)}

# of condinst_nano: what no row of the papers has, or not together
VARIANTS: dict[str, dict[str, Any]] = {
    "deep and wide mask heads": {"mask_head_depth": 4, "mask_head_width": 16},
    "one channel, width 2": {"mask_channels": 1, "mask_head_width": 2},
    "P2, mask stride 4": {**_P2, "mask_stride": 4},
    "P2, mask stride 2": {**_P2, "mask_stride": 2},
    "separate towers": {"share_convs": 0, "class_convs": 1, "box_convs": 1, "tower_norm": "gn"},
    "no norm, one class": {"tower_norm": "none", "semantic_loss": True, **numbered_classes(1)},
    "grouped and deformable": {
        "backbone_type": "resnet50",
        "deform_stages": (True, True, True, True),
        "deform_groups": 2,
        "groups": 2,
        "deform_modulated": False,
    },
    "class alone decides": {"threshold_by": "class", "rank_by": "class", "clip_before_nms": True},
    "fast mask NMS": {"nms": "mask", "mask_nms": "fast"},
    "matrix mask NMS": {"nms": "mask", "mask_nms": "matrix"},
}


def network_names() -> list[str]:
    """Presets, the ablations that make a network of their own, and variants."""
    return [*preset_names(), *_ablations(), *VARIANTS]


@functools.cache
def _ablations() -> dict[str, TableRow]:
    first: dict[Any, TableRow] = {}
    for row in ABLATIONS:
        first.setdefault(preset("condinst_nano", **_fields(row)), row)
    return {f"{row.paper} {row.table} {row.row}": row for row in first.values()}


def _fields(row: TableRow) -> dict[str, Any]:
    """What an ablation changes, on the mask settings of its preset."""
    mask = preset(row.preset).mask
    own = {"mask_levels": mask.mask_levels, "mask_stride": mask.mask_stride}
    return {**_TINY, **own, **row.changes}


def reduced_network(name: str, **changes: Any) -> CondInst:
    """The network of a preset or an ablation with few channels and repeats, and its structure."""
    if name in preset_names():
        config = preset(name)
    else:
        row = _ablations().get(name)
        fields = {**_TINY, **VARIANTS[name]} if row is None else _fields(row)
        config = preset("condinst_nano", **fields)
    config = reduced(config, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "RESNET_BLOCKS", _BLOCKS)
        return with_trained_statistics(build_condinst(config))
