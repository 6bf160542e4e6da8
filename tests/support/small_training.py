"""A network, data and settings small enough to train for some iterations inside a test."""

import json
from pathlib import Path
from typing import Any

from condinst_infer.config.model import CondInstConfig
from condinst_infer.config.presets import preset
from condinst_infer.train.run import DataPaths
from condinst_infer.train.settings import TrainConfig, replace_settings
from tests.support.coco_files import write_scenes

# as options of the command line too, so that a process of its own trains the same
MODEL: dict[str, Any] = {
    "stem_channels": 8,
    "res2_channels": 8,
    "neck_channels": 16,
    "mask_branch_channels": 8,
    "short_side": 96,
    "long_side": 128,
    "max_detections": 10,
}
SETTINGS: dict[str, Any] = {
    "iterations": 6,
    "images_per_batch": 2,
    "optimizer": "adamw",
    "learning_rate": 0.002,
    "schedule": "cosine",
    "warmup_iterations": 2,
    "short_sides": [64, 96],
    "workers": 0,
    "log_every": 1,
    "save_every": 2,
    "eval_every": 100,
}


def small_config(**changes: Any) -> CondInstConfig:
    return preset("condinst_nano", **{**MODEL, **changes})


def small_settings(**changes: Any) -> TrainConfig:
    return replace_settings(TrainConfig(), **{**SETTINGS, **changes})


def small_data(folder: Path) -> DataPaths:
    """Six made-up images, one of them without objects."""
    return DataPaths(write_scenes(folder, 6), folder / "images")


def command_line(data: DataPaths, run: Path, **changes: Any) -> list[str]:
    """`condinst train` for the same network, data and settings."""
    values = {**MODEL, **SETTINGS, **changes}
    pairs = [f"{name}={json.dumps(value).strip(chr(34))}" for name, value in values.items()]
    sets = [word for pair in pairs for word in ("--set", pair)]
    paths = ["--train", str(data.annotations), "--images", str(data.images), "-o", str(run)]
    return ["train", "condinst_nano", *paths, *sets]


def losses_of(run: Path) -> list[dict[str, float]]:
    """The losses of each iteration in the log of a run."""
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in row.items() if k == "iteration" or k.startswith("loss/")}
        for row in rows
        if "loss/total" in row
    ]
