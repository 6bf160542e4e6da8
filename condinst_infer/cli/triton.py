"""`condinst export --triton`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from condinst_infer.errors import ConfigError, ModelFileError
from condinst_infer.serving.triton import repository
from condinst_infer.system.files import new_folder

_OF_CHECKPOINTS = ("size", "batch", "max_detections", "score_threshold", "nms")


def write_repository(
    args: argparse.Namespace, write_onnx: Callable[[argparse.Namespace, Path], dict[str, Any]]
) -> dict[str, Any]:
    """Write the folder `args.triton`; `write_onnx` exports a checkpoint on the way.

    Returns:
        What `write_onnx` does, and the names of the models in the folder.
    """
    suffix = args.model.suffix.lower()
    if suffix not in (".safetensors", ".onnx", ".engine"):
        raise ModelFileError(
            f"{args.model} is no model file; it must end in .onnx, .engine or .safetensors."
        )
    if args.graph != "full":
        raise ConfigError("Triton needs the whole model: --graph full.")
    if suffix != ".safetensors":
        _check_options(args)
    name, report = repository.model_name(args.model), {}
    with new_folder(args.triton) as folder:
        model = args.model
        if suffix == ".safetensors":
            model = folder / "model.onnx"
            report = write_onnx(args, model)
        repository.write_repository(folder, name, model)
        if model != args.model:
            model.unlink()
    network = repository.NETWORK.format(name)
    if not args.json:
        print(f"-> {args.triton}: {name} takes images, {network} is its network")
    return {"model": name, "network": network, **report}


def _check_options(args: argparse.Namespace) -> None:
    """ConfigError if an option says how to export what is exported already."""
    given = [name for name in _OF_CHECKPOINTS if getattr(args, name) is not None]
    if args.precision != "fp32":
        given.append("precision")
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} is chosen when a checkpoint is exported; "
            f"{args.model} is exported already."
        )
