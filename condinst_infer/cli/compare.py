"""`condinst compare`: two model files, stage by stage."""

import json
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

from condinst_infer.cli.options import Verb, add_json
from condinst_infer.contract.model_file import model_path


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of `condinst compare`."""

    a: Path
    b: Path
    images: list[Path]
    json: bool


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `CompareOptions`."""
    parser.add_argument(
        "a",
        type=model_path,
        metavar="A",
        help="an .onnx, .engine or .safetensors file, or nuclei, the model that ships",
    )
    parser.add_argument("b", type=model_path, metavar="B", help="another file of the same model")
    parser.add_argument(
        "images",
        nargs="*",
        type=Path,
        metavar="IMAGE",
        help="images to compare on (default: two generated batches)",
    )
    add_json(parser)


def run(options: CompareOptions) -> int:
    """Print where two model files differ; 1 if more than they may."""
    from condinst_infer.verification.compare import compare

    report = compare(options.a, options.b, options.images)
    if options.json:
        print(json.dumps(report.to_dict()))
    else:
        print(report)
        print("they agree." if report.ok else "they differ by more than they may.")
    return 0 if report.ok else 1


VERB = Verb(
    "condinst compare model.safetensors model.onnx street.jpg\n\n"
    "exit status: 0 they agree, 1 they don't",
    add_options,
    CompareOptions,
    run,
)
