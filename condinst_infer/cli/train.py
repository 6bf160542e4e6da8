"""`condinst train`."""

import argparse
import json
from typing import Any

from condinst_infer.config import presets
from condinst_infer.config.model import SECTION_OF, override
from condinst_infer.errors import ConfigError, require


def train(args: argparse.Namespace) -> int:
    """Train, and say where the model is."""
    for module in ("torch", "safetensors", "tensorboard", "faster_coco_eval"):
        require(module, "train")
    from condinst_infer.train.run import DataPaths
    from condinst_infer.train.run import train as run
    from condinst_infer.train.settings import replaced, settings_for

    values = dict(map(_assignment, args.set))
    model = {k: v for k, v in values.items() if k in SECTION_OF}
    rest = {k: v for k, v in values.items() if k not in SECTION_OF}
    for name in ("iterations", "images_per_batch", "learning_rate", "amp"):
        if getattr(args, name) is not None:
            rest[name] = getattr(args, name)
    config = override(presets.preset(args.preset), **model)
    val = args.val and DataPaths(args.val, args.val_images or args.images)
    path = run(
        config,
        replaced(settings_for(config, args.recipe), **rest),
        DataPaths(args.train, args.images),
        args.output,
        val=val,
        init=args.init,
        resume=args.resume,
        device=args.device,
    )
    print(f"-> {path}")
    return 0


def _assignment(text: str) -> tuple[str, Any]:
    """NAME=VALUE; the value is JSON, or else text."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--set {text} is not NAME=VALUE, such as --set mask_stride=2.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
