"""The command line: `condinst VERB ...`.

Exit status: 0 done; 1 some images failed, or two artefacts differ; 2 the call can't be carried
out, with one line on stderr; 130 interrupted.
"""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from condinst_infer import __version__
from condinst_infer.config import MAX_BATCH, MAX_PIXELS, DetectConfig
from condinst_infer.errors import CondInstError, ParityError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of the process) and return its exit status."""
    try:
        args = _parser().parse_args(argv)
        module, _, function = args.command.partition(":")  # imported now: some are heavy
        status = getattr(importlib.import_module(module), function)(args)
        sys.stdout.flush()  # a broken pipe shows here, not at shutdown
        return status
    except CondInstError as error:
        print(f"condinst: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, ParityError) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader went away; Python would complain again while it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


Verbs = Any  # what add_subparsers returns has no public name


class _Parser(argparse.ArgumentParser):
    """Reports a wrong call in one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"condinst: {message}. See: {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="condinst",
        description="CondInst instance segmentation: export a checkpoint, run it, look inside.",
        epilog="Start here: condinst demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"condinst {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for add in (_demo, _predict, _export, _import, _info, _presets, _compare, _doctor):
        add(verbs)
    return parser


def _verb(verbs: Verbs, name: str, text: str, example: str) -> _Parser:
    return verbs.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _demo(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "demo",
        "run the bundled model on the bundled photograph",
        "condinst demo -o overlay.jpg",
    )
    _output(verb, "FILE", "the overlay to write (default: %(default)s)", "condinst-demo.jpg")
    _threads(verb)
    verb.set_defaults(command="condinst_infer.commands.predict:demo")


def _predict(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "predict",
        "find the instances in images; write overlays and COCO results",
        "condinst predict model.onnx street.jpg holiday/ 'scans/*.png' -o out "
        "--score-threshold 0.4\n\n"
        "exit status: 0 all images done, 1 some could not be read, 2 nothing was done",
    )
    verb.add_argument("model", type=Path, metavar="MODEL", help="a .onnx or .safetensors file")
    verb.add_argument(
        "source", nargs="+", metavar="SOURCE", help="image files, folders (searched) or patterns"
    )
    _output(verb, "DIR", "folder for the results, made if missing")
    _filters(verb)
    switch = argparse.BooleanOptionalAction
    verb.add_argument(
        "--overlays", action=switch, default=True, help="draw each image (default: yes)"
    )
    verb.add_argument(
        "--coco-json", action=switch, default=True, help="write detections.json (default: yes)"
    )
    verb.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)"
    )
    _threads(verb)
    verb.add_argument(
        "--batch",
        type=_positive,
        default=MAX_BATCH,
        metavar="N",
        help="images read and run at once; more cost memory (default: %(default)s)",
    )
    verb.add_argument(
        "--max-pixels",
        type=_positive,
        default=MAX_PIXELS,
        metavar="N",
        help="refuse larger images, height times width (default: %(default)s)",
    )
    _json(verb)
    verb.set_defaults(command="condinst_infer.commands.predict:predict")


def _filters(verb: _Parser) -> None:
    verb.add_argument(
        "--score-threshold", type=float, metavar="S", help="lowest score, 0 to 1 (default: all)"
    )
    verb.add_argument(
        "--max-detections", type=int, metavar="K", help="most instances per image (default: all)"
    )
    verb.add_argument(
        "--classes",
        type=_classes,
        metavar="A,B",
        help="names or numbers of the classes to keep, with commas (default: all)",
    )


def _export(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "export",
        "write a checkpoint as ONNX, and check the file against PyTorch",
        "condinst export model.safetensors -o model.onnx --precision fp16",
    )
    verb.add_argument("model", type=Path, metavar="MODEL", help="a .safetensors checkpoint of ours")
    _output(verb, "FILE", "the .onnx file to write")
    verb.add_argument(
        "--graph",
        choices=("full", "detector"),
        default="full",
        help="the whole model, or up to NMS for our CUDA kernels (default: %(default)s)",
    )
    verb.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        default="fp32",
        help="of weights and features (default: %(default)s)",
    )
    verb.add_argument(
        "--size",
        type=_size,
        metavar="HxW",
        help="static canvas in pixels, multiples of 32 (default: dynamic)",
    )
    verb.add_argument(
        "--batch", type=_batch, metavar="N", help="static batch, or dynamic (default: dynamic)"
    )
    default = DetectConfig()
    verb.add_argument(
        "--max-detections",
        type=_positive,
        metavar="K",
        help=f"most instances per image (default: the checkpoint's, usually "
        f"{default.max_detections})",
    )
    verb.add_argument(
        "--score-threshold",
        type=float,
        metavar="S",
        help="lowest score the file can report, 0 to 1 (default: the checkpoint's, usually "
        f"{default.score_threshold**0.5:.3f})",
    )

    verb.set_defaults(command="condinst_infer.commands.models:export")


def _import(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "import",
        "convert AdelaiDet or mmdetection weights into a checkpoint",
        "condinst import CondInst_MS_R_50_1x.pth --config MS_R_50_1x.yaml -o model.safetensors",
    )
    verb.add_argument(
        "weights", type=Path, metavar="WEIGHTS", help="a .pth file; nothing in it is executed"
    )
    verb.add_argument("--config", type=Path, metavar="YAML", help="the config it was trained with")
    verb.add_argument("--classes", type=Path, metavar="FILE", help="class names, one per line")
    _output(verb, "FILE", "the .safetensors file to write")

    verb.set_defaults(command="condinst_infer.commands.models:import_")


def _info(verbs: Verbs) -> None:
    verb = _verb(verbs, "info", "show what is inside a model file", "condinst info model.onnx")
    verb.add_argument("file", type=Path, metavar="FILE", help="a .onnx or .safetensors file")
    _json(verb)
    verb.set_defaults(command="condinst_infer.commands.models:info")


def _presets(verbs: Verbs) -> None:
    verb = _verb(verbs, "presets", "list the models of the papers", "condinst presets --json")
    _json(verb)
    verb.set_defaults(command="condinst_infer.commands.models:presets")


def _compare(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "compare",
        "show, stage by stage, how two model files differ",
        "condinst compare model.safetensors model.onnx street.jpg\n\n"
        "exit status: 0 they agree, 1 they don't",
    )
    verb.add_argument("a", type=Path, metavar="A", help="a .onnx or .safetensors file")
    verb.add_argument("b", type=Path, metavar="B", help="another one of the same model")
    verb.add_argument(
        "images",
        nargs="*",
        type=Path,
        metavar="IMAGE",
        help="images (default: two made-up batches)",
    )
    _json(verb)
    verb.set_defaults(command="condinst_infer.commands.models:compare")


def _doctor(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "doctor",
        "show versions, GPU, what works here and how to get the rest",
        "condinst doctor",
    )
    _json(verb)
    verb.set_defaults(command="condinst_infer.doctor:run")


def _output(verb: _Parser, metavar: str, text: str, default: str | None = None) -> None:
    verb.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar=metavar,
        required=default is None,
        default=default,
        help=text,
    )


def _threads(verb: _Parser) -> None:
    verb.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: all)")


def _json(verb: _Parser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON for programs")


def _positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,11}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 1")
    return int(text)


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else _positive(text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, such as 512x736")
    return int(match[1]), int(match[2])


def _classes(text: str) -> list[int | str]:
    names = [name.strip() for name in text.split(",")]
    return [int(name) if name.isdigit() else name for name in names if name]
