"""`condinst presets`."""

import argparse
import json
from typing import Any

from condinst_infer.cli.sources import print_table
from condinst_infer.config import presets as models
from condinst_infer.config.model_zoo import LICENCES, PUBLISHED, Published
from condinst_infer.config.paper_tables import ABLATIONS, MODELS, Row, measured, words_of

_PRESETS_NOTE = (
    "The figures are the papers', not measured here; input is short x long side in pixels."
)
_TABLE_NOTE = (
    "journal: arXiv:2102.03026, ECCV: arXiv:2003.05664; here: measured with this package, blank if "
    "not.\nTrain with: condinst train followed by the last column; for rows with +COCO also --init "
    "a checkpoint trained on COCO."
)
_PUBLISHED_NOTE = (
    "The APs are the authors', on COCO val2017, not measured here. The licence is the project's;\n"
    "neither says more of its weights. Import them with:\n"
    "condinst import WEIGHTS --preset-from NAME -o model.safetensors"
)


def presets(args: argparse.Namespace) -> int:
    """All presets, the rows of the papers or the published models, as a table or as JSON."""
    if args.table:
        rows, note = [_paper_row(row) for row in (*ABLATIONS, *MODELS)], _TABLE_NOTE
    elif args.published:
        rows, note = [_published_row(model) for model in PUBLISHED.values()], _PUBLISHED_NOTE
    else:
        rows, note = [_preset_row(name) for name in models.names()], _PRESETS_NOTE
    if args.json:
        print(json.dumps(rows))
        return 0
    print_table([{name: _cell(value) for name, value in row.items()} for row in rows])
    print(f"\n{note}")
    return 0


def _cell(value: Any) -> Any:
    """A value of a row as the table shows it: nothing for None, 36.0 for 36.0."""
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else value


def _paper_row(row: Row) -> dict[str, Any]:
    return {
        "paper": row.paper,
        "table": row.table,
        "row": row.row,
        "metric": row.metric,
        "reported": row.number,
        "here": measured(row),
        "condinst train": words_of(row),
    }


def _published_row(model: Published) -> dict[str, Any]:
    return {
        "name": model.name,
        "by": model.family,
        "box AP": model.box_ap,
        "mask AP": model.mask_ap,
        "licence": LICENCES[model.family],
    }


def _preset_row(name: str) -> dict[str, Any]:
    config = models.preset(name)
    levels = config.heads.head_levels
    backbone = config.backbone.backbone_type
    return {
        "preset": name,
        "backbone": backbone + ("+dcn" if any(config.backbone.deform_stages) else ""),
        "neck": config.neck.neck_type,
        "levels": f"P{levels[0]}-P{levels[-1]}",
        "towers": "shared" if config.heads.share_convs else "separate",
        "P": config.num_params,
        "input": f"{config.input.short_side}x{config.input.long_side}",
        "paper": models.figure(name),
    }
