"""`condinst import`: published weights become a checkpoint of ours."""

from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

from condinst_infer.cli.options import Verb, add_output
from condinst_infer.config.model import CondInstConfig, with_classes
from condinst_infer.config.model_zoo import published_model
from condinst_infer.contract.model_file import ModelFile, check_output
from condinst_infer.errors import ConfigError, require
from condinst_infer.system.outputs import atomic_file
from condinst_infer.system.paths import read_text


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of `condinst import`."""

    weights: Path
    config: Path | None
    preset_from: str | None
    classes: Path | None
    output: Path


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `ImportOptions`."""
    parser.add_argument(
        "weights", type=Path, metavar="WEIGHTS", help="a .pth file; nothing in it is executed"
    )
    config = parser.add_mutually_exclusive_group()
    config.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="AdelaiDet config that the weights were trained with",
    )
    config.add_argument(
        "--preset-from",
        metavar="NAME",
        help="name of a published model instead; list them with: condinst presets --published",
    )
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names, one per line")
    add_output(parser, "FILE", "the .safetensors file to write")


def run(options: ImportOptions) -> int:
    """Convert the weights, and print what became of them."""
    check_output(options.output, ModelFile.CHECKPOINT)
    for module in ("torch", "safetensors", "yaml"):
        require(module, "export")
    config = options.config
    source = config if options.preset_from is None else published_model(options.preset_from)
    from condinst_infer import checkpoint

    model = checkpoint.import_weights(options.weights, source)
    if options.classes is not None:
        model.config = _rename_classes(model.config, options.classes)
    with atomic_file(options.output) as part:
        checkpoint.save(model, part)
    print(f"{model.config.name}, {model.config.heads.num_classes} classes -> {options.output}")
    return 0


def _rename_classes(config: CondInstConfig, path: Path) -> CondInstConfig:
    """`config` with the class names in a text file, one per line."""
    lines = read_text(path).splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != config.heads.num_classes:
        raise ConfigError(
            f"{path} names {len(names)} classes, the weights have {config.heads.num_classes}."
        )
    return with_classes(config, names)


VERB = Verb(
    "condinst import CondInst_MS_R_50_1x.pth --preset-from MS_R_50_1x -o model.safetensors\n"
    "  condinst import own.pth --config own.yaml --classes names.txt -o model.safetensors",
    add_options,
    ImportOptions,
    run,
    inputs=("weights", "config", "classes"),
    outputs={"output": "file"},
)
