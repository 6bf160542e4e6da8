"""`condinst presets`: the models of the papers, and those that others have published."""

import json
from argparse import ArgumentParser
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from condinst_infer.cli.options import Verb, add_json
from condinst_infer.config.model_zoo import LICENCES, PUBLISHED
from condinst_infer.config.paper_tables import ABLATIONS, MODELS, measurement_of, train_arguments
from condinst_infer.config.presets import figure, preset, preset_names

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


@dataclass(frozen=True, kw_only=True)
class PresetsOptions:
    """Options of `condinst presets`."""

    table: bool
    published: bool
    json: bool


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `PresetsOptions`."""
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--table",
        action="store_true",
        help="list the rows of the papers' tables instead, and how to reproduce each",
    )
    other.add_argument(
        "--published",
        action="store_true",
        help="list the models with published weights of AdelaiDet and mmdetection instead",
    )
    add_json(parser)


def run(options: PresetsOptions) -> int:
    """Print all presets, the rows of the papers or the published models."""
    if options.table:
        rows, note = paper_rows(), _TABLE_NOTE
    elif options.published:
        rows, note = published_rows(), _PUBLISHED_NOTE
    else:
        rows, note = preset_rows(), _PRESETS_NOTE
    if options.json:
        print(json.dumps(rows))
    else:
        print(tabulate(rows, headers="keys", tablefmt="plain", floatfmt=".1f"))
        print(f"\n{note}")
    return 0


def paper_rows() -> list[dict[str, Any]]:
    """The rows of the papers' tables, with the arguments that train each."""
    return [
        {
            "paper": row.paper,
            "table": row.table,
            "row": row.row,
            "metric": row.metric,
            "reported": row.number,
            "here": measurement_of(row),
            "condinst train": train_arguments(row),
        }
        for row in (*ABLATIONS, *MODELS)
    ]


def published_rows() -> list[dict[str, Any]]:
    """The models that others have published weights of."""
    return [
        {
            "name": model.name,
            "by": model.family,
            "box AP": model.box_ap,
            "mask AP": model.mask_ap,
            "licence": LICENCES[model.family],
        }
        for model in PUBLISHED.values()
    ]


def preset_rows() -> list[dict[str, Any]]:
    """The presets, with what makes them differ and the papers' figure."""
    rows = []
    for name in preset_names():
        config = preset(name)
        levels, backbone = config.heads.head_levels, config.backbone
        rows.append(
            {
                "preset": name,
                "backbone": backbone.backbone_type
                + ("+dcn" if any(backbone.deform_stages) else ""),
                "neck": config.neck.neck_type,
                "levels": f"P{levels[0]}-P{levels[-1]}",
                "towers": "shared" if config.heads.share_convs else "separate",
                "P": config.num_params,
                "input": f"{config.input.short_side}x{config.input.long_side}",
                "paper": figure(name),
            }
        )
    return rows


VERB = Verb("condinst presets --table", add_options, PresetsOptions, run)
