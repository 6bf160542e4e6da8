"""Networks of every preset and ablation, small, with the statistics of trained ones."""

import functools
from typing import Any

import pytest

from benchmarks.trained_statistics import reduced, with_trained_statistics
from condinst_infer.ablations import ABLATIONS, Row
from condinst_infer.model import CondInst, resnet
from condinst_infer.presets import names, preset

# blocks per stage: each stage has one that changes its size, one or more have another behind it
_BLOCKS = {"resnet18": (1, 2, 1, 1), "resnet50": (1, 2, 1, 1), "resnet101": (1, 1, 3, 1)}
_TINY: dict[str, Any] = {"head_levels": (3, 4), "sizes_of_interest": (64, 128), "num_classes": 4}


def network_names() -> list[str]:
    """Presets, then the ablations that make a network of their own."""
    return [*names(), *_ablations()]


@functools.cache
def _ablations() -> dict[str, Row]:
    first: dict[Any, Row] = {}
    for row in ABLATIONS:
        first.setdefault(preset("condinst_nano", **_fields(row)), row)
    return {f"{row.paper} {row.table} {row.row}": row for row in first.values()}


def _fields(row: Row) -> dict[str, Any]:
    """What an ablation changes, on the mask settings of its preset."""
    mask = preset(row.preset).mask
    own = {"mask_levels": mask.mask_levels, "mask_stride": mask.mask_stride}
    return {**_TINY, **own, **row.changes}


def reduced_network(name: str, **changes: Any) -> CondInst:
    """The network of a preset or an ablation with few channels and repeats, and its structure."""
    if name in names():
        config = reduced(preset(name), **changes)
    else:
        config = reduced(preset("condinst_nano", **_fields(_ablations()[name])), **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "DEPTHS", _BLOCKS)
        return with_trained_statistics(CondInst(config))
