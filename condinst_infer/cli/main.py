"""The command line: `condinst VERB ...`.

Exit status: 0 done; 1 some images failed, or two artefacts differ; 2 the call can't be carried
out, with one line on stderr; 130 interrupted.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from condinst_infer import __version__
from condinst_infer.cli import model_verbs, options
from condinst_infer.cli.bench_options import add_bench
from condinst_infer.cli.options import (
    Parser,
    Verbs,
    add_json,
    add_output,
    add_runtime,
    add_threads,
    add_verb,
)
from condinst_infer.config.model import MAX_PIXELS, DetectConfig
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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="condinst",
        description="CondInst instance segmentation: train, export, run a model, look inside.",
        epilog="Start here: condinst demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"condinst {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for add in (_demo, _predict, _convert, _train, _eval, *model_verbs.VERBS, add_bench, _doctor):
        add(verbs)
    return parser


def _demo(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "demo",
        "find the nuclei in the bundled micrograph with the bundled model",
        "condinst demo -o overlay.jpg",
    )
    add_output(verb, "FILE", "the overlay to write (default: %(default)s)", "condinst-demo.jpg")
    add_threads(verb)
    verb.set_defaults(command="condinst_infer.cli.predict:demo")


def _predict(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "predict",
        "find the instances in images and videos; write overlays and COCO results",
        "condinst predict model.onnx street.jpg holiday/ 'scans/*.png' -o out "
        "--score-threshold 0.4\n"
        "  condinst predict model.onnx traffic.mp4 camera:0 rtsp://host/stream -o out\n\n"
        "exit status: 0 all done, 1 some could not be read, 2 nothing was done, 130 interrupted:\n"
        "the video at work ends there, whole, and images done before it are kept",
    )
    verb.add_argument(
        "model", type=Path, metavar="MODEL", help="an .onnx, .engine or .safetensors file"
    )
    verb.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="images, videos, folders (searched), patterns, .txt files with a path per line, "
        "camera:N or URLs of streams",
    )
    add_output(verb, "DIR", "folder for the results, made if missing")
    _filters(verb)
    _panoptic(verb)
    switch = argparse.BooleanOptionalAction
    verb.add_argument(
        "--overlays", action=switch, default=True, help="draw each image (default: yes)"
    )
    verb.add_argument(
        "--coco-json",
        action=switch,
        default=True,
        help="write detections.json, or panoptic.json and its PNGs; of a video a .jsonl "
        "(default: yes)",
    )
    options.add_video(verb)
    add_runtime(verb)
    verb.add_argument(
        "--max-pixels",
        type=options.positive,
        default=MAX_PIXELS,
        metavar="N",
        help="refuse larger images, height times width (default: %(default)s)",
    )
    options.add_ray(verb)
    add_json(verb)
    verb.set_defaults(command="condinst_infer.cli.predict:predict")


def _panoptic(verb: Parser) -> None:
    verb.add_argument(
        "--panoptic",
        action="store_true",
        help="instances and stuff: what every pixel shows; for models with a semantic branch",
    )
    for name, kind, letter, text in (
        ("--instance-threshold", float, "S", "lowest score of an instance"),
        ("--overlap-threshold", float, "X", "drop an instance that loses more of its area"),
        ("--stuff-area-limit", int, "PIXELS", "smaller stuff is void"),
    ):
        help_ = f"with --panoptic: {text} (default: the model's)"
        verb.add_argument(name, type=kind, metavar=letter, help=help_)


def _filters(verb: Parser) -> None:
    verb.add_argument(
        "--score-threshold", type=float, metavar="S", help="lowest score, 0 to 1 (default: all)"
    )
    verb.add_argument(
        "--max-detections", type=int, metavar="K", help="most instances per image (default: all)"
    )
    verb.add_argument(
        "--classes",
        type=options.classes,
        metavar="A,B",
        help="names or numbers of the classes to keep, with commas (default: all)",
    )


def _convert(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "convert",
        "write the annotations of a data set as COCO files",
        "condinst convert cityscapes cityscapes/ -o coco\n"
        "  condinst train condinst_cityscapes_r50 --train coco/instances_train.json \\\n"
        "      --images cityscapes/leftImg8bit/train -o runs/street",
    )
    verb.add_argument("data", choices=("cityscapes",), help="the format of the data set")
    verb.add_argument(
        "root", type=Path, metavar="ROOT", help="the folder with leftImg8bit and gtFine"
    )
    add_output(verb, "DIR", "folder for the annotation files, made if missing")
    verb.add_argument(
        "--split",
        nargs="+",
        choices=("train", "val", "test"),
        default=("train", "val"),
        help="(default: train val)",
    )
    verb.add_argument(
        "--panoptic", action="store_true", help="also COCO panoptic files: 8 things, 11 stuff"
    )
    verb.set_defaults(command="condinst_infer.cli.convert:convert")


def _train(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "train",
        "train a model on images with COCO annotations",
        "condinst train condinst_nano --train train.json --images photos --val val.json \\\n"
        "      -o runs/first --recipe short --set crop=512 --set mask_stride=2\n"
        "  torchrun --nproc-per-node 8 -m condinst_infer train condinst_r50 --init r50.pth ...\n"
        "  condinst train condinst_panoptic_r50 --train panoptic_train2017.json ...\n"
        "\nCtrl-C saves; the same command with --resume goes on.",
    )
    verb.add_argument("preset", metavar="PRESET", help="a model; list them: condinst presets")
    for name, required, text in (
        ("--train", True, "annotations, a COCO instances file; of a panoptic preset, panoptic"),
        ("--images", True, "folder that its file names are relative to"),
        ("--val", False, "annotations to evaluate on (default: none)"),
        ("--val-images", False, "folder of their images (default: that of --images)"),
        ("--init", False, "start from a checkpoint of ours, or a torchvision or timm backbone"),
    ):
        kind = "DIR" if "images" in name else "FILE"
        verb.add_argument(name, type=Path, required=required, metavar=kind, help=text)
    add_output(verb, "RUN", "folder for the run, made if missing")
    verb.add_argument(
        "--recipe",
        choices=("paper", "short"),
        default="paper",
        help="the papers' schedule for COCO, or AdamW, cosine and 3000 batches of 8 for a few "
        "thousand images (default: %(default)s)",
    )
    verb.add_argument("--iterations", type=options.positive, metavar="N", help="of the recipe")
    verb.add_argument(
        "--images-per-batch", type=options.positive, metavar="N", help="over all processes"
    )
    verb.add_argument("--learning-rate", type=float, metavar="X", help="after warm-up")
    verb.add_argument(
        "--amp", choices=("off", "bf16", "fp16"), help="half precision where it is safe"
    )
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other field of the model or the training; run/config.json lists all",
    )
    verb.add_argument(
        "--device", choices=("cpu", "cuda"), help="(default: a GPU where there is one)"
    )
    verb.add_argument("--resume", action="store_true", help="go on where the run stopped")
    verb.set_defaults(command="condinst_infer.cli.train:train")


def _eval(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "eval",
        "measure COCO's average precision, or panoptic quality, of a model file or its results",
        "condinst eval model.onnx --annotations instances_val2017.json --images val2017\n"
        "  condinst eval model.onnx --panoptic --annotations panoptic_val2017.json "
        "--images val2017",
    )
    verb.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="an .onnx, .engine or .safetensors file, or a .json file of COCO results; with "
        "--panoptic also the folder that predict --panoptic wrote",
    )
    _ground_truth(verb)
    verb.add_argument(
        "--max-dets",
        type=options.positive,
        metavar="K",
        help="most detections that count per class and image "
        f"(default: {DetectConfig.max_detections})",
    )
    verb.add_argument(
        "--limit",
        type=options.positive,
        metavar="N",
        help="only the first N images of the annotations (default: all)",
    )
    verb.add_argument(
        "--detections", type=Path, metavar="FILE", help="also write what was found, as COCO results"
    )
    add_runtime(verb)
    add_json(verb)
    verb.set_defaults(command="condinst_infer.cli.eval:evaluate")


def _ground_truth(verb: Parser) -> None:
    verb.add_argument(
        "--annotations",
        type=Path,
        required=True,
        metavar="FILE",
        help="the ground truth, a COCO instances file; with --panoptic a panoptic one",
    )
    verb.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of its images; a .json file needs none"
    )
    verb.add_argument(
        "--panoptic", action="store_true", help="measure PQ, SQ and RQ of a panoptic model"
    )
    verb.add_argument(
        "--pngs",
        type=Path,
        metavar="DIR",
        help="PNGs of the panoptic ground truth (default: the folder named as the annotations)",
    )


def _doctor(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "doctor",
        "show versions, GPU, what works here and how to get the rest",
        "condinst doctor",
    )
    add_json(verb)
    verb.set_defaults(command="condinst_infer.cli.doctor:run")
