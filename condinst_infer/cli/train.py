"""`condinst train`: a model from images with annotations."""

import json
import os
import shlex
import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condinst_infer.cli.options import Verb, add_output, positive
from condinst_infer.config.model import SECTION_OF, override
from condinst_infer.config.presets import preset
from condinst_infer.errors import ConfigError, require, shorten
from condinst_infer.system.json_text import parse_json
from condinst_infer.system.signals import Interrupted

_TRAINING = ("iterations", "images_per_batch", "learning_rate", "amp")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of `condinst train`."""

    preset: str
    train: Path
    images: Path
    val: Path | None
    val_images: Path | None
    init: Path | None
    output: Path
    recipe: str
    iterations: int | None
    images_per_batch: int | None
    learning_rate: float | None
    amp: str | None
    set: list[str]
    device: str | None
    resume: bool


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `TrainOptions`."""
    parser.add_argument(
        "preset", metavar="PRESET", help="name of a model; list them with: condinst presets"
    )
    _add_data(parser)
    add_output(parser, "RUN", "folder for the run; created if missing")
    parser.add_argument(
        "--recipe",
        choices=("paper", "short"),
        default="paper",
        help="the papers' schedule for COCO, or AdamW, cosine and 3000 batches of 8 for a few "
        "thousand images (default: %(default)s)",
    )
    parser.add_argument(
        "--iterations",
        type=positive,
        metavar="N",
        help="number of optimizer steps (default: the recipe's)",
    )
    parser.add_argument(
        "--images-per-batch",
        type=positive,
        metavar="N",
        help="batch size, summed over all processes (default: the recipe's)",
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        metavar="X",
        help="learning rate after warm-up (default: the recipe's)",
    )
    parser.add_argument(
        "--amp",
        choices=("off", "bf16", "fp16"),
        help="automatic mixed precision (default: off)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set any other field of the model or the training; RUN/config.json lists all",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="device to train on (default: cuda if there is one)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last saved state of the run"
    )


def _add_data(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--train",
        type=Path,
        required=True,
        metavar="FILE",
        help="annotations: a COCO instances file, or a COCO panoptic file for a panoptic preset",
    )
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the images in --train",
    )
    parser.add_argument(
        "--val",
        type=Path,
        metavar="FILE",
        help="annotations to evaluate on during training (default: none)",
    )
    parser.add_argument(
        "--val-images",
        type=Path,
        metavar="DIR",
        help="folder of the images of --val (default: that of --images)",
    )
    parser.add_argument(
        "--init",
        type=Path,
        metavar="FILE",
        help="initial weights: a checkpoint of ours, or a torchvision or timm backbone",
    )


def run(options: TrainOptions) -> int:
    """Train, and print where the model is."""
    for module in ("torch", "safetensors", "tensorboard", "faster_coco_eval"):
        require(module, "train")
    from condinst_infer.train.run import DataPaths, train
    from condinst_infer.train.settings import replace_settings, settings_for

    values = dict(map(_assignment, options.set))
    model = {name: value for name, value in values.items() if name in SECTION_OF}
    training = {name: value for name, value in values.items() if name not in SECTION_OF}
    given = {name: getattr(options, name) for name in _TRAINING}
    training |= {name: value for name, value in given.items() if value is not None}
    config = override(preset(options.preset), **model)
    val = options.val and DataPaths(options.val, options.val_images or options.images)
    try:
        path = train(
            config,
            replace_settings(settings_for(config, options.recipe), **training),
            DataPaths(options.train, options.images),
            options.output,
            val=val,
            init=options.init,
            resume=options.resume,
            device=options.device,
            how_to_resume=command_to_resume(options),
        )
    except Interrupted as stop:
        if not str(stop):
            raise
        print(f"condinst: interrupted. {stop}", file=sys.stderr)
        return stop.exit_status
    print(f"-> {path}")
    return 0


def command_to_resume(options: TrainOptions) -> str:
    """The command that goes on with the training that `options` started."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1:
        start = ["torchrun", "--nproc-per-node", str(processes), "-m", "condinst_infer"]
    elif Path(sys.argv[0]).name == "__main__.py":
        start = [sys.executable, "-m", "condinst_infer"]
    else:
        start = ["condinst"]
    values: dict[str, Any] = {
        "--train": options.train,
        "--images": options.images,
        "--val": options.val,
        "--val-images": options.val_images,
        "--init": options.init,
        "-o": options.output,
        "--recipe": options.recipe,
        "--iterations": options.iterations,
        "--images-per-batch": options.images_per_batch,
        "--learning-rate": options.learning_rate,
        "--amp": options.amp,
        "--device": options.device,
    }
    given = [str(word) for pair in values.items() if pair[1] is not None for word in pair]
    sets = [word for value in options.set for word in ("--set", value)]
    return shlex.join([*start, "train", options.preset, *given, *sets, "--resume"])


def _assignment(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE; the value is JSON, or else text."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(
            f"--set {shorten(text)[1:-1]} is not NAME=VALUE, such as --set mask_stride=2."
        )
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        if value.lstrip()[:1] not in ("[", "{"):
            return name, value
    return name, parse_json(value, f"--set {shorten(name)[1:-1]}", ConfigError)


VERB = Verb(
    "condinst train condinst_nano --train train.json --images photos --val val.json \\\n"
    "      -o runs/first --recipe short --set crop=512 --set mask_stride=2\n"
    "  torchrun --nproc-per-node 8 -m condinst_infer train condinst_r50 --init r50.pth ...\n"
    "  condinst train condinst_panoptic_r50 --train panoptic_train2017.json ...\n"
    "\nCtrl-C and SIGTERM save; the same command with --resume goes on.",
    add_options,
    TrainOptions,
    run,
    inputs=("train", "val", "images", "val_images", "init"),
    outputs={"output": "folder"},
)
