"""Options that several verbs share, and what their texts may be."""

import argparse
import re
from pathlib import Path
from typing import Any, NoReturn

from condinst_infer.config.model import MAX_BATCH, RECONNECT
from condinst_infer.system.hardware import usable_cores

MAX_WORKERS = 8  # by default: each holds an image and the model's buffers
Verbs = Any  # what add_subparsers returns has no public name


class Parser(argparse.ArgumentParser):
    """Reports a wrong call in one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"condinst: {message}. See: {self.prog} --help\n")


def add_verb(verbs: Verbs, name: str, text: str, example: str) -> Parser:
    """The parser of one verb; `text` says what it does, without a capital and a full stop."""
    return verbs.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_output(verb: Parser, metavar: str, text: str, default: str | None = None) -> None:
    """`-o`, required if it has no default."""
    verb.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar=metavar,
        required=default is None,
        default=default,
        help=text,
    )


def add_device(verb: Parser) -> None:
    """`--device`, `--runtime` and `--precision`: what runs a model file."""
    verb.add_argument(
        "--device", choices=("cpu", "cuda"), help="(default: cpu; cuda for an .engine)"
    )
    verb.add_argument(
        "--runtime",
        choices=("onnxruntime", "openvino"),
        help="of an .onnx file on the CPU (default: onnxruntime)",
    )
    verb.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8"),
        help="to compute in, with --runtime openvino (default: that of the file)",
    )


def add_runtime(verb: Parser) -> None:
    """How a model file is run on images: `add_device`, `--workers`, `--threads` and `--batch`."""
    add_device(verb)
    verb.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="batches worked on at the same time, each from reading to writing; 1 takes least "
        f"memory (default: as many as the cores have room for, up to {MAX_WORKERS})",
    )
    add_threads(verb, "CPU threads of the model in each worker (default: all, shared)")
    verb.add_argument(
        "--batch",
        type=positive,
        default=MAX_BATCH,
        metavar="N",
        help="images a worker gives the model at once; more cost memory and gain nothing on a CPU "
        "(default: %(default)s)",
    )


def add_video(verb: Parser) -> None:
    """`--every` and `--reconnect`: how videos are read."""
    verb.add_argument(
        "--every",
        type=positive,
        default=1,
        metavar="N",
        help="of videos, take every N-th frame; of cameras and live streams the newest is taken "
        "whenever there is time (default: %(default)s)",
    )
    verb.add_argument(
        "--reconnect",
        type=count,
        default=RECONNECT,
        metavar="N",
        help="attempts to open a camera or a live stream again that broke off, with growing "
        "pauses (default: %(default)s)",
    )


def add_ray(verb: Parser) -> None:
    """`--ray` and what its shards are."""
    ray = verb.add_argument_group(
        "Ray", "many images over the cores or GPUs of a cluster, and a rerun goes on"
    )
    ray.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="write shards of results instead of overlays and COCO files; local starts Ray on this "
        "machine, auto and HOST:PORT join its cluster. Each actor takes --workers times "
        "--threads cores (default: up to 8 times 1), with --device cuda also a GPU. All nodes need "
        "this package, and model, images and DIR under the same paths",
    )
    ray.add_argument(
        "--shards",
        choices=("jsonl", "parquet"),
        default="jsonl",
        help="JSON lines as of videos, or the same as Parquet (default: %(default)s)",
    )
    ray.add_argument(
        "--shard-size",
        type=positive,
        default=100,
        metavar="N",
        help="images in a shard, the part that is done again if it was not finished "
        "(default: %(default)s)",
    )


def workers(args: argparse.Namespace, images: int) -> int:
    """`--workers`; by default so many that all cores are busy, but none without an image."""
    room = usable_cores() // (args.threads or 1)
    return args.workers or max(1, min(room, MAX_WORKERS, -(-images // args.batch)))


def runtime(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_device` and `add_threads` were told, as `load` takes it."""
    return {name: getattr(args, name) for name in ("device", "threads", "runtime", "precision")}


def add_threads(verb: Parser, text: str = "CPU threads (default: all)") -> None:
    """`--threads`."""
    verb.add_argument("--threads", type=positive, metavar="N", help=text)


def add_json(verb: Parser) -> None:
    """`--json`."""
    verb.add_argument("--json", action="store_true", help="print JSON for programs")


def positive(text: str) -> int:
    """A whole number >= 1."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,11}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 1")
    return int(text)


def count(text: str) -> int:
    """A whole number >= 0."""
    return 0 if text == "0" else positive(text)


def batch(text: str) -> int | None:
    """A whole number >= 1, or None for "dynamic"."""
    return None if text == "dynamic" else positive(text)


def size(text: str) -> tuple[int, int]:
    """(height, width) from "512x736"."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, such as 512x736")
    return int(match[1]), int(match[2])


def shape(text: str) -> tuple[int, int, int]:
    """(images, height, width) from "1x512x736"."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NxHxW, such as 1x512x736")
    return int(match[1]), int(match[2]), int(match[3])


def classes(text: str) -> list[int | str]:
    """Class names and numbers from "person,2"."""
    names = [name.strip() for name in text.split(",")]
    return [int(name) if name.isdigit() else name for name in names if name]
