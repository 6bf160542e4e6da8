"""The options of `condinst bench`."""

from pathlib import Path

from condinst_infer.cli import options
from condinst_infer.cli.options import Parser, Verbs, add_device, add_json, add_threads, add_verb
from condinst_infer.system.timing import REPEATS, SIZES, WARMUP


def add_bench(verbs: Verbs) -> None:
    """The verb with its options."""
    verb = add_verb(
        verbs,
        "bench",
        "measure how long a model file takes, what of, how much memory, and how accurate it is",
        "condinst bench model.onnx --image street.jpg --threads 2 -o times.json\n\n"
        "Every time is taken on this machine, so keep it idle. What each clock counts is in the "
        "JSON.",
    )
    verb.add_argument(
        "model", type=Path, metavar="MODEL", help="an .onnx, .engine or .safetensors file"
    )
    _frames(verb)
    add_device(verb)
    add_threads(verb)
    for name, default, text in (
        ("--repeats", REPEATS, "calls of each clock"),
        ("--warmup", WARMUP, "calls before them, not counted"),
    ):
        verb.add_argument(
            name,
            type=options.positive,
            default=default,
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )
    _accuracy(verb)
    verb.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write it as JSON")
    add_json(verb)
    verb.set_defaults(command="condinst_infer.cli.bench:bench")


def _frames(verb: Parser) -> None:
    verb.add_argument(
        "--image",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="frames (default: the bundled micrograph)",
    )
    verb.add_argument(
        "--size",
        type=options.size,
        nargs="+",
        default=SIZES,
        metavar="HxW",
        help="sizes each frame is resized to before (default: "
        + " ".join(f"{height}x{width}" for height, width in SIZES)
        + ")",
    )
    verb.add_argument(
        "--batch",
        type=options.positive,
        nargs="+",
        default=[],
        metavar="N",
        help="frames of one call (default: 1, or the file's own)",
    )


def _accuracy(verb: Parser) -> None:
    for name, metavar, text in (
        ("--annotations", "FILE", "measure the accuracy too: a COCO instances file"),
        ("--images", "DIR", "folder of its images"),
    ):
        verb.add_argument(name, type=Path, metavar=metavar, help=text)
    verb.add_argument(
        "--limit",
        type=options.positive,
        metavar="N",
        help="only its first N images (default: all)",
    )
